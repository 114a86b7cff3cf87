"""What the runs of one folder share: the base, text, mesh, windows, and how they are scored."""

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import files
from experiments.continual import base as bases
from longrope_jax import rotary, sharding
from longrope_jax.data import corpora, documents, packing
from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.evaluation.by_position import nll_by_position, position_blocks

# Settings that do not change what is trained or measured.
_FREE = ("mesh", "multihost", "export")
_SETTINGS = "settings.json"


@dataclass(frozen=True, eq=False)
class Project:
    """Base, text and scores of a folder, loaded when they are needed."""

    config: ConfigDict
    workdir: Path

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices as the config arranges them."""
        return sharding.make_mesh(**self.config.mesh)

    @property
    def length(self) -> int:
        """Target length in tokens, at which everything is measured: the longest stage's."""
        lengths = [stage.length for stage in self.config.stages.values()]
        return self.config.evaluation.length or max(lengths)

    @functools.cached_property
    def base(self) -> bases.Base:
        """What training continues from."""
        return bases.load(self.config, self.mesh)

    def method(self, text: str) -> rotary.Method:
        """A method of the config, with the checkpoint's values filled in."""
        return bases.method(text, self.base, self.config.trained_length)

    @functools.cached_property
    def _documents(self) -> tuple[tuple[TokenizedDocument, ...], tuple[TokenizedDocument, ...]]:
        if not self.config.corpus:
            raise ValueError("this preset needs your own text: --config.corpus=DIR")
        low, high = self.config.sentence_tokens
        split = corpora.split(corpora.load(self.config.corpus), self.config.held_out)
        tokenizer = self.base.tokenizer
        if tokenizer.vocab_size > self.base.model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
                f"{self.base.model.vocab_size}"
            )
        train, test = (
            [
                documents.tokenize_document(d, tokenizer, min_tokens=low, max_tokens=high)
                for d in part
            ]
            for part in split
        )
        return tuple(train), tuple(test)

    @property
    def bos(self) -> str:
        """Name of the token that begins every document."""
        return bases.beginning(self.config, self.base)

    @functools.cached_property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows of documents never trained on: tokens [n, T + 1], document names [n].

        Raises:
            ValueError: a document too short, or fewer than the two that an interval needs.
        """
        documents = self._documents[1]
        if len(documents) < 2:
            raise ValueError("an interval needs at least 2 held-out documents: --config.held_out=2")
        return documents.validation_windows(
            documents,
            length=self.length,
            per_document=self.config.evaluation.windows_per_document,
            bos=self.base.tokenizer.special(self.bos),
        )

    def training_windows(self, length: int, shortest: int) -> packing.WindowMaker:
        """Windows of plain text, packed if `shortest` is not 0."""
        return packing.training_windows(
            self._documents[0],
            self.base.tokenizer,
            length=length,
            shortest=shortest or None,
            bos=self.bos,
        )

    @property
    def writes(self) -> bool:
        """Whether this process writes results (one does on several hosts)."""
        return jax.process_index() == 0

    @property
    def _settings(self) -> dict:
        plain = json.loads(self.config.to_json_best_effort())
        return _flat({k: v for k, v in plain.items() if k not in _FREE})

    def check_settings(self) -> None:
        """Raises ValueError if the folder holds results of other settings."""
        path, mine = self.workdir / _SETTINGS, self._settings
        before = json.loads(path.read_text()) if path.exists() else {}
        for name, value in before.items():
            if mine.get(name) != value:
                raise ValueError(
                    f"{self.workdir} holds a run with {name}={value!r}, not {mine.get(name)!r}: "
                    "choose another --workdir"
                )

    def keep_settings(self) -> None:
        """Makes the folder this config's own; called once all of it has been checked."""
        if self.writes:
            files.save_json(self.workdir / _SETTINGS, self._settings)

    def scores_path(self, name: str) -> Path:
        """Where a measurement is kept."""
        return self.workdir / "scores" / f"{name}.npz"

    def is_scored(self, name: str) -> bool:
        """Whether every held-out window of a measurement is there."""
        path = self.scores_path(name)
        if not path.is_file():
            return False
        with np.load(path) as saved:
            return bool(saved["blocks"].shape[0] == len(saved["documents"]))

    def scores(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(mean nll [n, blocks] in nats, document names [n]) of a whole measurement."""
        with np.load(self.scores_path(name)) as saved:
            return saved["blocks"].astype(np.float64), saved["documents"]

    def score(self, name: str, params, method: rotary.Method, on_tokens=lambda _: None) -> None:
        """Measures `params` on every held-out window, one at a time; each is kept at once.

        Full attention, whatever the training used.
        """
        tokens, documents = self.held_out
        path, T = self.scores_path(name), tokens.shape[1] - 1
        done = [] if not path.is_file() else list(self.scores(name)[0])
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rot = rotary.make(method, head_dim=self.base.model.head_dim, seq_len=T)
        while len(done) < len(tokens):
            rows = tokens[len(done) : len(done) + parts]
            with jax.set_mesh(self.mesh):
                nll = nll_by_position(self.base.model, params, rot, rows, batch_size=parts)
            done += list(position_blocks(nll, T // self.config.evaluation.blocks))
            if self.writes:
                _save(path, np.stack(done), documents)
            on_tokens(rows.size)


def _save(path: Path, blocks: np.ndarray, documents: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, blocks=blocks.astype(np.float32), documents=documents)
    files.write(path, buffer.getvalue())


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
