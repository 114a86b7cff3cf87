r"""Instruction tuning without human long data (Llama 2 Long 2309.16039, Table 9; Giraffe's IFT).

    python -m experiments.instruction_tuning --config=configs/instruction_tuning.py:cpu \
        --workdir=DIR

A small model is trained on short windows of text, continued on long ones under ABF, PI and RoPE,
and then tuned on questions: none, short ones, short ones and text, short and long ones without and
with the loss on the long prompts, the last by LoRA too. Questions are made by rule (a number that
the text states once), and written by SmolLM2-135M-Instruct about chunks of the same documents, kept
where the answer stands in the chunk: the report says which share that is. Asked: does tuning raise
accuracy within the short length, and does it leave alone how far a base reaches?

Presets: overnight (3 seeds), cpu (one), tiny; pod_llama2_long_7b and pod_giraffe_v2_13b tune yours.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.lab import reach
from longrope_jax import llama
from longrope_jax.data import chat
from longrope_jax.data.instructions import Instruct, Pair
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.model import Model
from longrope_jax.tasks import Passkey

UNTUNED, REACH = "none", "reach"
QUANTITIES = (*reach.QUANTITIES, REACH)
_KEPT = 0.8  # of a model's own accuracy at the short length, up to its reach
_WRITTEN = re.compile(r"Question:\s*(\S[^\n]*)\n+\s*Answer:\s*(\S[^\n]*)")
_COLUMNS = ("document", "start", "end", "question", "answer", "kept")
_ASK = (
    "{chunk}\n\nWrite one question about the text above that a few words of the text answer, and "
    "copy these words from the text. Write exactly two lines:\nQuestion: ...\nAnswer: ..."
)


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    lab.check_hypotheses(config.hypotheses, QUANTITIES, rows(config))
    work, cells = Work(config, folder, machine), plan(config, folder)
    if machine.measure and lab.missing(folder, cells):
        check(work, cells)
    functions = {"train": work.train, "write": work.write, "loss": work.loss, "keys": work.keys}
    lab.complete(folder, cells, functions, machine)
    return publish(config, folder, cells, command)


def rows(config: ConfigDict) -> list[str]:
    """Labels: each base untuned and under each arm."""
    return [f"{base}, {arm}" for base in config.bases for arm in (UNTUNED, *config.arms)]


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure, each after its training."""
    del folder
    return list(_cells(config))


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    names = ("corpus", "tokenizer", "bos", "held_out", "sentence_tokens")
    text = tuple(config[name] for name in names)
    start = (config.model or config.shape, config.dtype, config.param_dtype)
    measured = reach.read(config.evaluation, config.length, config.short)
    task = Passkey(config.asked.fact, config.asked.prompt)
    written = lab.Cell("write", "self-instruct", 0, (config.writer, text))
    for seed in range(config.seeds):
        for base in config.bases:
            before = _before(config, base, seed, (start, text))
            for arm in (UNTUNED, *config.arms):
                row = f"{base}, {arm}"
                after = before
                if arm != UNTUNED:
                    what = (recipe_of(config, base, arm, seed), start, text)
                    also = (written,) if config.writer.chunks else ()
                    after = (lab.Cell("train", row, seed, what, (*before, *also)),)
                yield lab.Cell("loss", row, seed, (measured, text), after)
                yield lab.Cell("keys", row, seed, (measured, text, task), after)


def _before(config: ConfigDict, base: str, seed: int, what: tuple) -> tuple[lab.Cell, ...]:
    """The model that is tuned: the checkpoint, or text at the short and then the long length."""
    if config.model:
        return ()
    method = lab.read_method("rope", base=float(config.base))
    first = lab.Recipe(method, config.short, **config.pretraining, seed=seed)
    pretrained = lab.Cell("train", "pretraining", seed, (first, *what))
    second = lab.Recipe(_method(config, base), config.length, **config.continuation, seed=seed)
    return (lab.Cell("train", base, seed, (second, *what), (pretrained,)),)


def _method(config: ConfigDict, base: str):
    known = {"base": float(config.base), "adjusted": float(config.adjusted)}
    with lab.naming(f"bases.{base}"):
        return lab.read_method(config.bases[base], **known, factor=config.length // config.short)


def recipe_of(config: ConfigDict, base: str, arm: str, seed: int) -> lab.Recipe:
    """The tuning of one arm.

    Raises:
        ValueError: shares that are none, or a method that cannot be read.
    """
    own, asked = config.arms[arm].to_dict(), config.asked
    trainable = own.pop("trainable", "full")
    with lab.naming(f"arms.{arm}"):
        instruct = Instruct(
            Passkey(asked.fact, asked.prompt),
            shortest=asked.shortest,
            longest=config.short,
            written=asked.written if config.writer.chunks else 0.0,
            **own,
        )
    tuning = config.tuning.to_dict()
    rate = tuning.pop("lora_rate")
    tuning["learning_rate"] = tuning["learning_rate"] if trainable == "full" else rate
    return lab.Recipe(
        _method(config, base),
        config.length,
        **tuning,
        trainable=trainable,
        seed=seed,
        instruct=instruct,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Makes the cells of a config; text and models are read when a cell needs them."""

    config: ConfigDict
    folder: Path
    machine: lab.Machine

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's, or the config's."""
        if self.config.model:
            return lab.opened(self.config.model).tokenizer
        return lab.tokenizer(self.config.tokenizer, self.config.corpus, self.folder)

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to tune on and documents to measure on."""
        config = self.config
        bos = config.bos or lab.beginning(lab.opened(config.model))
        windows = config.evaluation.windows_per_document
        return lab.text(config, self.tokenizer, bos=bos, length=config.length, windows=windows)

    @functools.cached_property
    def shape(self) -> llama.LlamaConfig:
        """The model's."""
        if self.config.model:
            return lab.opened(self.config.model).config
        types = {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype}
        size = self.tokenizer.vocab_size
        return llama.LlamaConfig(vocab_size=size, **self.config.shape.to_dict(), **types)

    @functools.cached_property
    def models(self) -> lab.Models:
        """The models by stage."""
        types = {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype}
        fresh = None if self.config.model else self._fresh
        return lab.Models(self.config.model, self.folder, self.machine, types, fresh=fresh)

    def _fresh(self, cell: lab.Cell) -> Model:
        method, machine = cell.what[0].method, self.machine
        return lab.fresh(self.shape, self.tokenizer, method, machine, seed=cell.seed)

    def train(self, cell: lab.Cell) -> dict[str, Any]:
        """A stage; tuning sees the pairs that were written."""
        written = next((before for before in cell.after if before.kind == "write"), None)
        text = self.text
        if written is not None:
            text = dataclasses.replace(text, pairs=pairs(lab.needed(self.folder, written)))
        return self.models.train(cell, text)

    def write(self, cell: lab.Cell) -> dict[str, Any]:
        """Questions and answers that a chat model writes about chunks of held-in documents."""
        settings = cell.what[0]
        writer = lab.model(settings.model, self.machine)
        return written(writer, settings, self.text)

    def loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Loss at long range, whole and cropped."""
        return reach.loss(self.models.start(cell), self.text, cell.what[0], self.machine)

    def keys(self, cell: lab.Cell) -> dict[str, Any]:
        """Answers found by length."""
        measured, _, task = cell.what
        return reach.keys(self.models.start(cell), self.text, task, measured, self.machine)


def check(work: Work, cells: list[lab.Cell]) -> None:
    """Refuses what would be refused later, before anything is trained.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    for cell in lab.missing(work.folder, cells):
        if cell.kind == "train":
            recipe = cell.what[0]
            lab.check_recipe(recipe, work.shape, work.machine, scored=work.config.length)
            lab.window_maker(recipe, work.text)(0, np.random.default_rng(0))
    work.text.windows(work.config.length, work.config.evaluation.windows_per_document)
    lab.check_held_out(work.folder, cells, work.text)


# Self-instruct.


def written(writer: Model, settings: ConfigDict, text: lab.Text) -> dict[str, np.ndarray]:
    """What the writer wrote about random chunks of the documents that are trained on.

    Returns:
        By chunk: its `document`, the tokens `start` and `end` of the answer in it, `question`,
        `answer` and whether the pair is `kept`: its form is right and its answer stands in the
        chunk.
    """
    rng, found = np.random.default_rng(0), []
    documents = [d for d in text.training if len(d.tokens) > settings.tokens]
    if not documents:
        raise ValueError(f"no document has a chunk of writer.tokens={settings.tokens}")
    for _ in range(settings.chunks):
        document = documents[int(rng.integers(len(documents)))]
        at = int(rng.integers(len(document.tokens) - settings.tokens))
        chunk = text.tokenizer.decode(document.tokens[at : at + settings.tokens])
        ask = [{"role": "user", "content": _ASK.format(chunk=chunk)}]
        ids = chat.prompt(writer.tokenizer, writer.special_tokens, ask)
        said = writer.decode(writer.generate(ids, max_new_tokens=settings.new_tokens))
        question, answer = parsed(said)
        place = chunk.find(answer) if answer else -1
        if place < 0:
            found.append((document.name, 0, 0, question, answer, False))
            continue
        before, after = (
            len(text.tokenizer.encode(chunk[:n])) for n in (place, place + len(answer))
        )
        found.append(
            (document.name, at + max(before - 1, 0), at + after + 1, question, answer, True)
        )
    return {name: np.asarray(c) for name, c in zip(_COLUMNS, zip(*found, strict=True), strict=True)}


def parsed(said: str) -> tuple[str, str]:
    """Question and answer in the form that was asked for; two empty texts in another form."""
    match = _WRITTEN.search(said)
    if match is None:
        return "", ""
    return match[1].strip(), match[2].strip().strip("\"'").rstrip(".").strip()


def pairs(arrays: dict[str, np.ndarray]) -> tuple[Pair, ...]:
    """The kept pairs."""
    columns = [arrays[name][arrays["kept"]].tolist() for name in _COLUMNS[:-1]]
    return tuple(Pair(*values) for values in zip(*columns, strict=True))


# What came out.


def reaches(right: lab.Scores) -> lab.Scores:
    """Doublings of the short length up to which 80 % of the accuracy there is kept, by seed."""

    def one(values: np.ndarray) -> np.ndarray:
        accuracy = values.mean(1)  # [seeds, lengths]
        kept = (accuracy >= _KEPT * accuracy[:, :1]) & (accuracy[:, :1] > 0)
        doublings = np.maximum(np.cumprod(kept, axis=1).sum(1) - 1, 0)
        return np.repeat(doublings[:, None].astype(float), values.shape[1], axis=1)

    return right.map(one)


def quantities(folder: Path, cells: list[lab.Cell]) -> dict[str, lab.Scores]:
    """Every quantity of every row that is finished."""
    losses = [cell for cell in cells if cell.kind == "loss"]
    keys = [cell for cell in cells if cell.kind == "keys"]
    blocks, cropped = (lab.scores(folder, losses, key) for key in ("blocks", "cropped"))
    right = lab.scores(folder, keys, "right")
    return reach.quantities(blocks, cropped, right) | {REACH: reaches(right)}


def publish(config: ConfigDict, folder: Path, cells, command: str) -> lab.Report:
    """Writes the tables, figures and claims that the finished cells allow."""
    parts = quantities(folder, cells)
    hypotheses = lab.judged(config.hypotheses, parts)
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(hypotheses), "Hypotheses")
    result = lab.Table(
        *reach.lines(parts, lab.show), "Mean over seeds and documents, with 95 %", "rows"
    )
    claims = [f"{h.claim}: {h.verdict}." for h in hypotheses]
    writing = {
        c.name: c for cell in cells for t in cell.after for c in t.after if c.kind == "write"
    }
    found = next((lab.read(folder, cell) for cell in writing.values()), None)
    if found is not None:
        count, kept = len(found["kept"]), int(found["kept"].sum())
        claims.append(
            f"{config.writer.model} wrote a question whose answer stands in the text for {kept} of "
            f"{count} chunks ({kept / count:.0%})."
        )
    return lab.publish(
        folder,
        command,
        config,
        title=f"Instruction tuning: {config.short} to {config.length} tokens",
        claims=claims,
        sections=[
            lab.Section("Result", [_drawn(config, folder, cells), result]),
            lab.Section("What was claimed", [verdicts]),
        ],
        results={"keys": {row: parts["keys"].mean(row) for row in parts["keys"].rows}},
        cells=cells,
    )


@lab.style()
def _drawn(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> lab.Figure:
    """Accuracy by length of each arm, one panel for each base."""
    right = lab.scores(folder, [cell for cell in cells if cell.kind == "keys"], "right")
    fig, axes = lab.subplots(1, len(config.bases), size=(9, 3.5), sharey=True, squeeze=False)
    lengths = reach.read(config.evaluation, config.length, config.short).lengths
    for ax, base in zip(axes[0], config.bases, strict=True):
        for arm in (UNTUNED, *config.arms):
            if (row := f"{base}, {arm}") in right.values:
                ax.plot(lengths, right.mean(row), marker=".", label=arm)
        ax.set(xscale="log", xlabel="tokens", title=base)
    axes[0][0].set(ylabel="answers found")
    if axes[0][-1].lines:
        axes[0][-1].legend(fontsize=6)
    return lab.Figure("keys", fig, "Share of answers found by length, mean over seeds.")


if __name__ == "__main__":
    lab.run(main, "experiments.instruction_tuning")
