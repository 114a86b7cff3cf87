"""When to train on long windows (Llama 2 Long 2309.16039 section 4.4, Tables 10 and 11, Figure 6).

    python -m experiments.curriculum --config=configs/curriculum.py:cpu --workdir=DIR

A model is trained from scratch on the same text in the same order, as long windows throughout, as
short ones until 20, 40 or 80 % of the steps, or as short ones throughout; an update has as many
tokens in every arm. Questions for keys take the place of some text, by chance in every arm alike.
The base is the adjusted one from the beginning, in one arm from the switch on. Length is width, so
that by the paper's count of FLOPs the arms cost 1 : 0.9 : 0.8 : 0.6, as its 7B.

The text is read from a token cache. Presets: overnight (3 seeds of 12 million tokens), cpu
(minutes), tiny, and pod_7b, whose text is a folder of `longrope tokenize`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.lab import reach
from longrope_jax import llama
from longrope_jax.data import token_cache
from longrope_jax.data.mixtures import Mixture, Source, Stage
from longrope_jax.data.packing import TaskMixture
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.tasks import Passkey
from longrope_jax.training.flops import train_flops_per_token

OVER, RECOVERY = "loss over long throughout", "training loss after the switch"
QUANTITIES = (*reach.QUANTITIES, OVER, RECOVERY)


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    lab.check_hypotheses(config.hypotheses, QUANTITIES, config.rows)
    work, cells = Work(config, folder, machine), plan(config, folder)
    if machine.measure and lab.missing(folder, cells):
        check(work, cells)
    functions = {"train": work.train, "loss": work.loss, "keys": work.keys}
    lab.complete(folder, cells, functions, machine)
    return publish(config, folder, cells, command)


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure, each after its training."""
    del folder
    return list(_cells(config))


def lengths(config: ConfigDict) -> tuple[int, int]:
    """Tokens of a short and of a long window."""
    return config.width, config.width * config.factor


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    names = ("corpus", "tokenizer", "bos", "held_out", "sentence_tokens")
    text = tuple(config[name] for name in names)
    short, long = lengths(config)
    measured = reach.read(config.evaluation, long, short)
    model = (config.model, config.width, config.dtype, config.param_dtype)
    for seed in range(config.seeds):
        for row in config.rows:
            trained = lab.Cell("train", row, seed, (recipe_of(config, row, seed), model, text))
            yield lab.Cell("loss", row, seed, (measured, text), (trained,))
            if config.asked.share:
                task = Passkey(config.asked.fact, config.asked.prompt)
                yield lab.Cell("keys", row, seed, (measured, text, task), (trained,))


def recipe_of(config: ConfigDict, row: str, seed: int) -> lab.Recipe:
    """One arm: its windows by stage, over the run's own text.

    Raises:
        ValueError: a switch outside 0 to 1, or a method that cannot be read.
    """
    settings, (short, long) = config.rows[row], lengths(config)
    if not 0 <= settings.switch <= 1:
        raise ValueError(f"--config.rows.{row}.switch must lie in 0..1, got {settings.switch}")
    base = config.base_per_token * short
    known = {"base": base, "adjusted": base * config.adjusted_factor}
    with lab.naming(f"rows.{row}.first"):
        first = lab.read_method(settings.first, **known) if settings.first else None
    stages = (Stage(settings.switch, short), Stage(1.0, long))
    stages = tuple(stage for stage in stages if stage.until > 0)[: 1 if settings.switch == 1 else 2]
    fields, factor = config.training.to_dict(), stages[-1].length // short
    fields["batch"] *= config.factor // factor
    keys = config.asked
    return lab.Recipe(
        lab.read_method(config.method, **known),
        stages[-1].length,
        **fields,
        mixture=TaskMixture(passkey=keys.share, every=keys.every) if keys.share else None,
        passkey=Passkey(keys.fact, keys.prompt),
        seed=seed,
        blend=Mixture((("text", Source("")),), stages),
        first_method=first,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Makes the cells of a config; text and models are read when a cell needs them."""

    config: ConfigDict
    folder: Path
    machine: lab.Machine

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The config's, or that of the token cache that the corpus is."""
        if self.config.tokenizer:
            return lab.tokenizer(self.config.tokenizer, self.config.corpus, self.folder)
        return token_cache.open_cache(self.config.corpus).tokenizer

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to measure on, and a token cache of the others."""
        windows = self.config.evaluation.windows_per_document
        found = lab.text(
            self.config, self.tokenizer, length=lengths(self.config)[1], windows=windows
        )
        return found if found.cache else lab.on_disk(found, self.folder)

    @functools.cached_property
    def shape(self) -> llama.LlamaConfig:
        """The model's, with the tokenizer's vocabulary."""
        return shape(self.config, self.tokenizer.vocab_size)

    @functools.cached_property
    def models(self) -> lab.Models:
        """The arms' models."""
        return lab.Models("", self.folder, self.machine, {}, fresh=self._fresh)

    def _fresh(self, cell: lab.Cell):
        method, machine = cell.what[0].method, self.machine
        return lab.fresh(self.shape, self.tokenizer, method, machine, seed=cell.seed)

    def train(self, cell: lab.Cell) -> dict[str, Any]:
        """An arm, from scratch."""
        return self.models.train(cell, self.text)

    def loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Loss at long range, whole and cropped."""
        return reach.loss(self.models.start(cell), self.text, cell.what[0], self.machine)

    def keys(self, cell: lab.Cell) -> dict[str, Any]:
        """Keys found by length."""
        measured, _, task = cell.what
        return reach.keys(self.models.start(cell), self.text, task, measured, self.machine)


def shape(config: ConfigDict, vocab: int) -> llama.LlamaConfig:
    """The model: a published preset, or one of the config's width.

    Raises:
        ValueError: a vocabulary too small for the tokenizer.
    """
    fields = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    if config.model.preset:
        found = llama.preset(config.model.preset, **fields)
        if found.vocab_size < vocab:
            raise ValueError(f"{config.model.preset} has {found.vocab_size} ids, the text {vocab}")
        return found
    own = {name: value for name, value in config.model.items() if name != "preset"}
    heads = {"n_kv_heads": own["n_heads"], "d_ff": 3 * config.width}
    return llama.LlamaConfig(vocab_size=vocab, d_model=config.width, **own, **heads, **fields)


def check(work: Work, cells: list[lab.Cell]) -> None:
    """Refuses what would be refused later, before anything is trained.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    for cell in lab.missing(work.folder, cells):
        if cell.kind == "train":
            recipe = cell.what[0]
            lab.check_recipe(recipe, work.shape, work.machine, scored=lengths(work.config)[1])
            lab.blended(recipe, work.text)
    work.text.windows(lengths(work.config)[1], work.config.evaluation.windows_per_document)
    lab.check_held_out(work.folder, cells, work.text)


# What it costs.


def paper_flops(width: int, length: int, layers: int) -> float:
    """Training FLOPs per token as Table 10 counts them: 72 l h^2 (1 + s / 6h).

    Megatron's count (Narayanan et al. 2021) without vocabulary, recomputation and causal halving,
    of a feed-forward layer without a gate.
    """
    return 72.0 * layers * width**2 * (1 + length / (6 * width))


def cost(switch: float, short: float, long: float) -> float:
    """FLOPs per token of a run that switches after a share of its steps."""
    return switch * short + (1 - switch) * long


def cost_table(config: ConfigDict) -> lab.Table:
    """Cost of each arm over long throughout, by the paper's count and by this project's."""
    lines, own = [], shape(config, 1)
    paper = [paper_flops(config.width, length, own.n_layers) for length in lengths(config)]
    ours = [train_flops_per_token(own, length) for length in lengths(config)]
    for row, settings in config.rows.items():
        ratios = (cost(settings.switch, *both) / both[1] for both in (paper, ours))
        lines.append([row, *ratios])
    return lab.Table(
        ["row", "Table 10's count", "causal, gated, without vocabulary"],
        lines,
        "Cost over long throughout",
        "cost",
        dict.fromkeys(("Table 10's count", "causal, gated, without vocabulary"), "{:.3f}".format),
    )


# What came out.


def quantities(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> dict[str, lab.Scores]:
    """Every quantity of every row that is finished."""
    losses = [cell for cell in cells if cell.kind == "loss"]
    keys = [cell for cell in cells if cell.kind == "keys"]
    blocks, cropped = (lab.scores(folder, losses, key) for key in ("blocks", "cropped"))
    parts = reach.quantities(blocks, cropped, lab.scores(folder, keys, "right"))
    over = reach.over(parts["loss"], config.reference)
    return parts | {OVER: over, RECOVERY: recovery(config, folder, losses)}


def recovery(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> lab.Scores:
    """Training loss over long throughout between 5 and 15 % of the steps after the switch.

    Both arms train on the same text in the same step, their questions aside, so each logged step is
    a pair.
    """
    logged = {(c.row, c.seed): lab.read(folder, c.after[0]) for c in cells}
    values, steps_of = {}, {}
    for row, settings in config.rows.items():
        if not 0 < settings.switch < 1:
            continue
        found = []
        for seed in range(config.seeds):
            own, other = logged.get((row, seed)), logged.get((config.reference, seed))
            if own is None or other is None:
                break
            share = own["step"] / config.training.steps - settings.switch
            after = (share > 0.05) & (share <= 0.15)
            found.append((own["loss"] - other["loss"])[after])
            steps_of[row] = np.asarray([f"step {step}" for step in own["step"][after]])
        if found and len(found[0]):
            values[row] = np.stack(found)
    return lab.Scores(values, {row: steps_of[row] for row in values})


def publish(config: ConfigDict, folder: Path, cells, command: str) -> lab.Report:
    """Writes the tables, figures and claims that the finished cells allow."""
    parts = quantities(config, folder, cells)
    hypotheses = lab.judged(config.hypotheses, parts)
    header, lines = reach.lines(parts, lab.show)
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(hypotheses), "Hypotheses")
    result = lab.Table(header, lines, "Mean over seeds and documents, with 95 %", "rows")
    losses = [cell for cell in cells if cell.kind == "loss"]
    return lab.publish(
        folder,
        command,
        config,
        title=f"Curriculum of lengths: {lengths(config)[0]} to {lengths(config)[1]} tokens",
        claims=[f"{h.claim}: {h.verdict}." for h in hypotheses],
        sections=[
            lab.Section("Result", [_drawn(config, folder, losses), result, cost_table(config)]),
            lab.Section("What was claimed", [verdicts]),
        ],
        results={"loss": {row: parts["loss"].mean(row) for row in parts["loss"].rows}},
        cells=cells,
    )


@lab.style()
def _drawn(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> lab.Figure:
    """Training loss of the first seed, over long throughout."""
    fig, ax = lab.subplots()
    logged: Mapping[str, Any] = {c.row: lab.read(folder, c.after[0]) for c in cells if c.seed == 0}
    reference = logged.get(config.reference)
    for row, found in logged.items():
        if found is not None and reference is not None and row != config.reference:
            difference = found["loss"] - reference["loss"]
            width = max(len(difference) // 50, 1)
            smooth = np.convolve(difference, np.ones(width) / width, "valid")
            ax.plot(found["step"][width - 1 :], smooth, label=row)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="step", ylabel=f"training loss over {config.reference}, nats")
    if ax.lines[:-1]:
        ax.legend()
    caption = "Loss of the training batches over that of long throughout, smoothed; seed 0."
    return lab.Figure("training", fig, caption)


if __name__ == "__main__":
    lab.run(main, "experiments.curriculum")
