"""The things that every run of the study shares: text, tokenizer, mesh, samples."""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.ablation import plan
from longrope_jax import llama, sharding, weights
from longrope_jax.data import corpora, documents, packing, tasks, tokenizers
from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.training import checkpoints
from longrope_jax.weights.foreign import ForeignCheckpoint


@dataclass(frozen=True, eq=False)
class Study:
    """Text and model of a study, loaded when a run needs them."""

    config: ConfigDict
    workdir: Path

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """Of the config, or of the checkpoint; an error that names the option if there is none."""
        if self.given and self.given.tokenizer and self.config.corpus and not self.config.tokenizer:
            return self.given.tokenizer
        if not self.config.tokenizer or not self.config.corpus:
            raise ValueError(
                "this preset needs your own text and tokenizer: --config.corpus=DIR "
                "--config.tokenizer=tokenizer.json"
            )
        return tokenizers.load(self.config.tokenizer)

    @functools.cached_property
    def model(self) -> llama.LlamaConfig:
        """Shape of the model; of an external checkpoint also layout, epsilon and vocabulary."""
        model = plan.model_config(self.config, self.tokenizer.vocab_size)
        return plan.fitted_config(self.config, model, self.given) if self.given else model

    @functools.cached_property
    def given(self) -> ForeignCheckpoint | None:
        """What `weights` reads at init_checkpoint; None for none or a run of our own."""
        path = self.config.init_checkpoint
        if not path or checkpoints.is_folder_of_steps(path):
            return None
        return weights.open_checkpoint(path)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices as the config arranges them."""
        return sharding.make_mesh(**self.config.mesh)

    @functools.cached_property
    def _documents(self) -> tuple[tuple[TokenizedDocument, ...], tuple[TokenizedDocument, ...]]:
        held_out = self.config.held_out
        split = corpora.split(corpora.load(self.config.corpus), held_out)
        low, high = self.config.retrieval.sentence_tokens
        train, test = (
            [
                documents.tokenize_document(d, self.tokenizer, min_tokens=low, max_tokens=high)
                for d in part
            ]
            for part in split
        )
        text = "\n".join(d.text for d in split[0])
        return tuple(train), tuple(documents.unseen(p, text, self.tokenizer) for p in test)

    @property
    def training(self) -> tuple[TokenizedDocument, ...]:
        """Documents to train on."""
        return self._documents[0]

    @property
    def held_out(self) -> tuple[TokenizedDocument, ...]:
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

    def training_windows(self, phase: str, *, taught: bool) -> packing.WindowMaker:
        """Windows of "pretraining" or "continuation", with or without taught retrieval."""
        full = plan.continued_length(self.config)
        r = self.config.retrieval
        task_mixture = packing.TaskMixture(
            r.taught_first_sentence, r.taught_passkey, r.answer_weight
        )
        return packing.training_windows(
            self.training,
            self.tokenizer,
            length=self.config.length if phase == "pretraining" else full,
            shortest=self.config[phase].shortest_passage or None,
            task_mixture=task_mixture if taught else None,
            first_sentence=self.first_sentence,
            passkey=self.passkey,
            bos=self.config.bos,
        )

    @functools.cached_property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Clean windows of twice the continued length: tokens [n, 2 * 8L + 1], documents [n]."""
        return documents.validation_windows(
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

    def check(self) -> None:
        """Everything that training and evaluation will ask of the config, before any training.

        Raises:
            ValueError: the first thing that cannot be honoured.
        """
        c = self.config
        lengths, e = plan.retrieval_lengths(c), c.evaluation
        if list(e.lengths) != sorted(set(e.lengths)) or e.lengths[-1] != 1:
            raise ValueError(f"evaluation.lengths must rise to 1.0, got {tuple(e.lengths)}")
        if not all(0 < at < 1 for at in c.continuation.evaluate_at):
            raise ValueError(f"evaluate_at must lie in 0..1, got {c.continuation.evaluate_at}")
        if not 1 <= e.generated <= e.samples:
            raise ValueError(f"generated must be 1 to {e.samples} samples, got {e.generated}")
        if c.factor & (c.factor - 1) or c.length * c.factor % plan.BLOCKS:
            raise ValueError(
                f"factor must be a power of two and length x factor a multiple of {plan.BLOCKS}, "
                f"got {c.factor} and {c.length}"
            )
        for length in lengths:
            self.samples("first sentence", length)
            self.samples("passkey", length)
        _ = self.validation, self.model
        self._check_batches()

    def _check_batches(self) -> None:
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        for phase in ("pretraining", "continuation"):
            if phase == "pretraining" and self.config.init_checkpoint:
                continue
            settings = self.config[phase]
            if settings.steps < 1:
                raise ValueError(
                    f"{phase} has no steps: set --config.{phase}.steps, or give a pretrained model "
                    "with --config.init_checkpoint=DIR"
                )
            if settings.batch % (settings.accumulation * parts):
                raise ValueError(
                    f"{phase}.batch of {settings.batch} does not divide over {parts} devices and "
                    f"{settings.accumulation} microbatches: change it or --config.mesh"
                )
            self.training_windows(phase, taught=True)

    def scores_path(self, slug: str) -> Path:
        """Where the scores of a run or a pretraining are kept."""
        return self.workdir / "scores" / f"{slug}.npz"

    def is_done(self, slug: str) -> bool:
        """Whether these scores are there."""
        return self.scores_path(slug).is_file()

    @property
    def writes(self) -> bool:
        """Whether this process writes results (one does on several hosts)."""
        return jax.process_index() == 0
