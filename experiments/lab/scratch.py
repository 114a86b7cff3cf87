"""Studies of training data: rows that begin at random, their text, and what is measured of them.

The config of such a study names a text (`corpus`, `tokenizer`, `bos`, `held_out`,
`sentence_tokens`), a model (`model`, `width`, `dtype`, `param_dtype`), the questions that are asked
(`asked`) and what is measured (`evaluation`), all as configs/curriculum.py has them.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.lab import corpus, quantities, reach, reports, training
from experiments.lab.cells import Cell, missing
from experiments.lab.fail import naming
from experiments.lab.machine import Machine
from experiments.lab.models import Models
from experiments.lab.page import Section, Table
from longrope_jax import llama, rotary
from longrope_jax.data import token_cache
from longrope_jax.data.packing import TaskMixture
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.model import Model
from longrope_jax.tasks import Passkey

_TEXT = ("corpus", "tokenizer", "bos", "held_out", "sentence_tokens")


def identity(config: ConfigDict, windows: Sequence[int] = ()) -> tuple[dict[str, Any], tuple]:
    """The model and the text of a config, as they stand in the `what` of a cell that trains.

    Args:
        config: of the study.
        windows: keys that a layer sees, by layer and repeated, see `LlamaConfig`; () for all.
    """
    own = config.model.to_dict() | ({"windows": tuple(windows)} if windows else {})
    types = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    return own | {"width": config.width} | types, tuple(config[name] for name in _TEXT)


def shape(model: Mapping[str, Any], vocab: int) -> llama.LlamaConfig:
    """The model of `identity`: a published preset, or one of the config's width.

    Raises:
        ValueError: a vocabulary too small for the tokenizer.
    """
    own = dict(model)
    preset, width = own.pop("preset"), own.pop("width")
    if preset:
        fields = {k: v for k, v in own.items() if k in ("dtype", "param_dtype", "windows")}
        found = llama.preset(preset, **fields)
        if found.vocab_size < vocab:
            raise ValueError(f"{preset} has {found.vocab_size} ids, the text {vocab}")
        return found
    heads = {"n_kv_heads": own["n_heads"], "d_ff": 3 * width}
    return llama.LlamaConfig(vocab_size=vocab, d_model=width, **own, **heads)


def pretraining(config: ConfigDict, method: rotary.Method, seed: int, windows=()) -> Cell:
    """The training from scratch at `config.short` tokens that a study's rows go on from."""
    fields = config.pretraining.to_dict() | questions(config.asked)
    recipe = training.Recipe(method, config.short, **fields, seed=seed)
    return Cell("train", "pretraining", seed, (recipe, *identity(config, windows)))


def questions(asked: ConfigDict) -> dict[str, Any]:
    """The fields of a recipe that say how often keys are asked for, and in which words."""
    mixture = TaskMixture(passkey=asked.share, every=asked.every) if asked.share else None
    return {"mixture": mixture, "passkey": Passkey(asked.fact, asked.prompt)}


def measured(
    config: ConfigDict,
    row: str,
    trained: Cell,
    sizes: reach.Reach,
    method: rotary.Method | None = None,
) -> Iterator[Cell]:
    """The cells that measure what a training came to, under its own method or another one."""
    text, more = identity(config)[1], () if method is None else (method,)
    yield Cell("loss", row, trained.seed, (sizes, text, *more), (trained,))
    if config.asked.share:
        task = questions(config.asked)["passkey"]
        yield Cell("keys", row, trained.seed, (sizes, text, task, *more), (trained,))


@dataclasses.dataclass(frozen=True, eq=False)
class Scratch:
    """Makes the cells of such a study; text and models are read when a cell needs them.

    Attributes:
        config: of the study.
        folder: where its cells and runs lie.
        machine: what it is computed with.
        length: tokens of the longest window that is scored.
    """

    config: ConfigDict
    folder: Path
    machine: Machine
    length: int

    @property
    def functions(self) -> dict[str, Any]:
        """The function of each kind of cell."""
        return {"train": self.train, "loss": self.loss, "keys": self.keys}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The config's, or that of the token cache that the corpus is."""
        if self.config.tokenizer:
            return corpus.tokenizer(self.config.tokenizer, self.config.corpus, self.folder)
        return token_cache.open_cache(self.config.corpus).tokenizer

    @functools.cached_property
    def text(self) -> corpus.Text:
        """Documents to measure on, and a token cache of the others."""
        windows = self.config.evaluation.windows_per_document
        found = corpus.text(self.config, self.tokenizer, length=self.length, windows=windows)
        return found if found.cache else corpus.on_disk(found, self.folder)

    @functools.cached_property
    def models(self) -> Models:
        """What the trainings came to."""
        return Models("", self.folder, self.machine, {}, fresh=self._fresh)

    def _fresh(self, cell: Cell) -> Model:
        own, method = shape(cell.what[1], self.tokenizer.vocab_size), _first(cell.what[0])
        return training.fresh(own, self.tokenizer, method, self.machine, seed=cell.seed)

    def _model(self, cell: Cell) -> Model:
        """The model that a cell measures, under the method that the cell names."""
        model = self.models.start(cell)
        method = next((one for one in cell.what if _is_method(one)), model.method)
        return dataclasses.replace(model, method=method)

    def train(self, cell: Cell) -> dict[str, Any]:
        """A training, from scratch or from the one before it."""
        return self.models.train(cell, self.text)

    def loss(self, cell: Cell) -> dict[str, Any]:
        """Loss by position, whole and cropped."""
        return reach.loss(self._model(cell), self.text, cell.what[0], self.machine)

    def keys(self, cell: Cell) -> dict[str, Any]:
        """Keys found by length."""
        sizes, _, task = cell.what[:3]
        return reach.keys(self._model(cell), self.text, task, sizes, self.machine)

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuses what would be refused later, before anything is trained.

        Raises:
            ValueError: the first thing that cannot be honoured.
        """
        for cell in missing(self.folder, cells):
            if cell.kind == "train":
                recipe, own = cell.what[0], shape(cell.what[1], self.tokenizer.vocab_size)
                with naming(f"rows.{cell.row}"):
                    training.check(recipe, own, self.machine)
                training.blended(recipe, self.text)
            method = next((one for one in cell.what if _is_method(one)), None)
            if cell.kind == "loss" and method is not None:
                rotary.make(method, head_dim=self._head_dim, seq_len=self.length)
        self.text.windows(self.length, self.config.evaluation.windows_per_document)
        corpus.check_held_out(self.folder, cells, self.text)

    @property
    def _head_dim(self) -> int:
        return shape(identity(self.config)[0], self.tokenizer.vocab_size).head_dim


def _first(recipe: training.Recipe) -> rotary.Method:
    return recipe.first_method or recipe.method


def _is_method(value: Any) -> bool:
    return callable(getattr(value, "frequencies", None))


def publish(
    folder: Path,
    command: str,
    config: ConfigDict,
    parts: Mapping[str, quantities.Scores],
    blocks: Sequence,
    *,
    title: str,
    cells: Sequence[Cell],
) -> reports.Report:
    """Writes the report of rows and their quantities: a study's own blocks, the rows, verdicts."""
    hypotheses = quantities.judged(config.hypotheses, parts)
    header, lines = reach.lines(parts, quantities.show)
    lines_of = quantities.verdict_lines(hypotheses)
    verdicts = Table(quantities.VERDICT_HEADER, lines_of, "Hypotheses", "hypotheses")
    result = Table(header, lines, "Mean over seeds and documents, with 95 %", "rows")
    return reports.publish(
        folder,
        command,
        config,
        title=title,
        claims=[f"{h.name}: {h.claim}: {h.verdict}." for h in hypotheses],
        sections=[
            Section("Result", [*blocks[:1], result, *blocks[1:]]),
            Section("What was claimed", [verdicts]),
        ],
        results={"loss": {row: parts["loss"].mean(row) for row in parts["loss"].rows}},
        cells=cells,
    )
