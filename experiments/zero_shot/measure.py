"""Measures cells, one file each, whole or not at all."""

import functools
import io
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import files
from experiments.continual import base as bases
from experiments.zero_shot import plan as planning
from experiments.zero_shot.plan import Cell, Plan
from longrope_jax import rotary, sharding
from longrope_jax.data import corpora, documents, tasks
from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation.by_position import nll_by_position, position_blocks
from longrope_jax.evaluation.perplexity import score_tokens


class Study:
    """Model, text and finished cells of a folder; the text is read when a cell needs it."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, Path(workdir)
        self.base = bases.load(config, sharding.make_mesh(devices=jax.devices()[:1]))
        self.plan = Plan(config, self.base.model, getattr(self.base.method, "base", None))

    @property
    def bos(self) -> str:
        """Name of the token that begins every window and sample."""
        return bases.beginning(self.config, self.base)

    def path(self, cell: Cell) -> Path:
        """Where a cell's numbers are kept."""
        return self.workdir / "cells" / f"{cell.slug}.npz"

    def read(self, cell: Cell) -> dict[str, np.ndarray] | None:
        """Arrays of a cell, or None while it is not measured."""
        if not self.path(cell).is_file():
            return None
        with np.load(self.path(cell)) as saved:
            return {name: saved[name] for name in saved.files}

    @functools.cached_property
    def documents(self) -> list[TokenizedDocument]:
        """The config's documents, tokenized.

        Raises:
            ValueError: another form than CORPUS:DOCUMENT, or an unknown corpus or document.
        """
        low, high = self.config.sentence_tokens
        return [
            documents.tokenize_document(
                _document(text), self.base.tokenizer, min_tokens=low, max_tokens=high
            )
            for text in self.config.documents
        ]

    def measure(self, cell: Cell) -> None:
        """Measures a cell and keeps it, with the seconds that it took."""
        began = time.monotonic()
        arrays = self._loss(cell) if cell.task == planning.LOSS else self._retrieval(cell)
        seconds = np.float64(time.monotonic() - began)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays, seconds=seconds)
        files.write(self.path(cell), buffer.getvalue())

    def rotary(self, cell: Cell) -> rotary.Rotary:
        """The cell's method, made for the length of its sequences."""
        spec = self.plan.spec(cell.method, cell.length)
        return rotary.make(spec, head_dim=self.base.model.head_dim, seq_len=cell.length)

    def window(self, cell: Cell) -> np.ndarray:
        """BOS and the document's first `length` tokens from its first sentence on, [1, T + 1]."""
        tokens, _ = documents.validation_windows(
            [self.documents[cell.document]],
            length=cell.length,
            per_document=1,
            bos=self.base.tokenizer.special(self.bos),
        )
        return tokens

    def _loss(self, cell: Cell) -> dict[str, np.ndarray]:
        base, tokens = self.base, self.window(cell)
        nll = nll_by_position(base.model, base.params, self.rotary(cell), tokens, batch_size=1)
        return {"blocks": position_blocks(nll, self.config.block)[0]}

    def samples(self, cell: Cell) -> tasks.Samples:
        """The cell's samples: those of its document among the samples of all documents.

        So the depths of the pass keys are spread over the documents.
        """
        r, count = self.config.retrieval, self.config.retrieval.documents
        settings = {
            "length": cell.length,
            "count": count * cell.sequences,
            "seed": self.config.seed,
            "bos": self.bos,
        }
        documents, tokenizer = self.documents[:count], self.base.tokenizer
        if cell.task == planning.PASSKEY:
            task = tasks.Passkey(fact=r.fact, prompt=r.passkey_prompt)
            found = tasks.passkey_samples(task, documents, tokenizer, **settings)
        else:
            task = tasks.FirstSentence(prompt=r.first_sentence_prompt, end=r.end)
            settings["control"] = "removed" if cell.task == planning.REMOVED else "none"
            found = tasks.first_sentence_samples(task, documents, tokenizer, **settings)
        own = slice(cell.document, None, count)
        return tasks.Samples(
            found.tokens[own], found.answer[own], found.prompt_length, found.documents[own]
        )

    def _retrieval(self, cell: Cell) -> dict[str, np.ndarray]:
        """Per sample: whole answer right, share of its tokens right, mean loss of them in nats."""
        base, samples, rot = self.base, self.samples(cell), self.rotary(cell)
        rows = []
        for tokens, answer in zip(samples.tokens, samples.answer, strict=True):
            scores = score_tokens(base.model, base.params, rot, tokens[None])
            mask = answer[1:]
            right, nll = np.asarray(scores.correct)[0][mask], np.asarray(scores.nll)[0][mask]
            rows.append((right.all(), right.mean(), nll.mean(dtype=np.float64)))
        exact, share, nll = zip(*rows, strict=True)
        return {"exact": np.asarray(exact), "share": np.asarray(share), "nll": np.asarray(nll)}


def _document(text: str) -> corpora.Document:
    corpus, colon, name = text.partition(":")
    if not colon:
        raise ValueError(f"a document is CORPUS:DOCUMENT, e.g. plays:hamlet, got {text!r}")
    known = {d.name: d for d in corpora.load(corpus)}
    if name not in known:
        raise ValueError(unknown_name(f"document of {corpus}", name, known))
    return known[name]
