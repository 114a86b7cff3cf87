"""The things that every run of the study shares: text, tokenizer, mesh, samples."""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.ablation import plan
from longrope_jax import llama, sharding
from longrope_jax.data import corpora, passages, tasks, tokenizers, windows
from longrope_jax.data.passages import Passages


@dataclass(frozen=True, eq=False)
class Study:
    """Text and model of a study, loaded when a run needs them."""

    config: ConfigDict
    workdir: Path

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """Of the config; an error that names the option if it is not given."""
        if not self.config.tokenizer or not self.config.corpus:
            raise ValueError(
                "this preset needs your own text and tokenizer: --config.corpus=DIR "
                "--config.tokenizer=tokenizer.json"
            )
        return tokenizers.load(self.config.tokenizer)

    @functools.cached_property
    def model(self) -> llama.LlamaConfig:
        """Shape of the model."""
        return plan.model_config(self.config, self.tokenizer.vocab_size)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices as the config arranges them."""
        return sharding.make_mesh(**self.config.mesh)

    @functools.cached_property
    def _documents(self) -> tuple[tuple[Passages, ...], tuple[Passages, ...]]:
        held_out = self.config.held_out
        split = corpora.split(corpora.load(self.config.corpus), held_out)
        low, high = self.config.retrieval.sentence_tokens
        train, test = (
            [passages.passages(d, self.tokenizer, min_tokens=low, max_tokens=high) for d in part]
            for part in split
        )
        text = "\n".join(d.text for d in split[0])
        return tuple(train), tuple(passages.unseen(p, text, self.tokenizer) for p in test)

    @property
    def training(self) -> tuple[Passages, ...]:
        """Documents to train on."""
        return self._documents[0]

    @property
    def held_out(self) -> tuple[Passages, ...]:
        """Documents never trained on, with only those sentences that training never sees."""
        return self._documents[1]

    @property
    def first_sentence(self) -> tasks.FirstSentence:
        """The retrieval task as the config words it."""
        r = self.config.retrieval
        return tasks.FirstSentence(prompt=r.first_sentence_prompt, end=r.first_sentence_end)

    @property
    def passkey(self) -> tasks.Passkey:
        """The passkey task as the config words it."""
        r = self.config.retrieval
        return tasks.Passkey(fact=r.passkey_fact, prompt=r.passkey_prompt)

    def training_windows(self, phase: str, *, taught: bool) -> windows.WindowMaker:
        """Windows of "pretraining" or "continuation", with or without taught retrieval."""
        full = plan.continued_length(self.config)
        r = self.config.retrieval
        teaching = windows.Teaching(r.taught_first_sentence, r.taught_passkey, r.answer_weight)
        return windows.training_windows(
            self.training,
            self.tokenizer,
            length=self.config.length if phase == "pretraining" else full,
            shortest=self.config[phase].shortest_passage or None,
            teaching=teaching if taught else None,
            first_sentence=self.first_sentence,
            passkey=self.passkey,
            bos=self.config.bos,
        )

    @functools.cached_property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Clean windows of twice the continued length: tokens [n, 2 * 8L + 1], documents [n]."""
        return passages.windows(
            self.held_out,
            length=2 * plan.continued_length(self.config),
            per_document=self.config.evaluation.windows_per_document,
            bos=int(tasks.encode(self.tokenizer, self.config.bos)[0]),
        )

    @functools.cache  # noqa: B019  (one study lives as long as its process)
    def samples(self, task: str, length: int, control: str = "none") -> tasks.Samples:
        """Test samples, the same for every run: "first sentence" or "passkey"."""
        make = tasks.first_sentence_samples if task == "first sentence" else tasks.passkey_samples
        return make(
            self.first_sentence if task == "first sentence" else self.passkey,
            self.held_out,
            self.tokenizer,
            length=length,
            count=self.config.evaluation.samples,
            seed=length,
            bos=self.config.bos,
            control=control,
        )

    def batch(self, length: int) -> int:
        """Rows per scored batch at this length."""
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = self.config.evaluation.tokens_per_batch // length
        return max(parts, rows // parts * parts)

    def scores_path(self, run: plan.Run) -> Path:
        """Where a run's scores are kept."""
        return self.workdir / "scores" / f"{run.slug}.npz"

    def is_done(self, run: plan.Run) -> bool:
        """Whether a run's scores are there."""
        return self.scores_path(run).is_file()

    @property
    def writes(self) -> bool:
        """Whether this process writes results (one does on several hosts)."""
        return jax.process_index() == 0
