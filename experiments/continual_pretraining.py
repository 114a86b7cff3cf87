r"""Continual pretraining to a longer context (Llama 2 Long 2309.16039 section 2.1).

    python -m experiments.continual_pretraining \
        --config=configs/continual_pretraining.py:smollm2_cpu --workdir=DIR

From another checkpoint, on another text:

    python -m experiments.continual_pretraining --config=configs/continual_pretraining.py:pi_1000 \
        --config.model=CHECKPOINT --config.corpus=DIR_OF_TEXT --workdir=DIR

The loss at the target length is measured on documents that are never trained on: before training
under the checkpoint's own method (unchanged), under that method with only the last tokens read
(cropped: what can be had without an extension) and under the new method (zero-shot), and after each
stage. The report gives the gains with paired intervals, within the trained length and beyond it.
The first seed's result is exported to DIR/export/hf-NAME, a folder that other software reads.

Presets: smollm2_cpu (at most two hours on 2 cores), the published recipes llama2_long_7b, _13b,
_34b, _70b, pi_1000, yarn_400_200, longlora_1000, giraffe_4k_16k, giraffe_v2_32k, together_7b_32k,
and tiny.

Killed at any moment and started again, it goes on where it was: in training at the last checkpoint,
in a measurement at its beginning, since a measurement takes no longer than a few steps.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import rotary, weights
from longrope_jax.evaluation.statistics import verdict
from longrope_jax.llama import LlamaConfig
from longrope_jax.training import lora

BEFORE = ("unchanged", "cropped", "zero-shot")
QUANTITIES = ("loss", "within", "beyond", "beyond minus within")


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure or export: before training, and each seed after each stage."""
    return list(_cells(*filled(config, folder)))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains, measures and exports what is missing, then writes the report.

    Raises:
        ValueError: a bad config, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = filled(config, folder)
    cells, work = list(_cells(config, facts)), Work(config, folder, machine)
    if machine.measure and lab.missing(folder, cells):
        check(work, facts, cells)
    functions = {"train": work.train, "loss": work.loss, "export": work.export}
    lab.complete(folder, cells, functions, machine)
    return publish(config, facts, folder, cells, command)


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts]:
    """The config with what it leaves open filled from the checkpoint, and the checkpoint's facts.

    Raises:
        ValueError: a method that cannot be read; a token, a length or blocks that do not fit.
    """
    config, facts = lab.filled(config, folder)
    trained, sizes = config.trained_length, config.evaluation
    for name, stage in config.stages.items():
        stage.measured_with = stage.measured_with or stage.method
        for field in ("method", "measured_with"):
            method = lab.method(stage[field], facts, trained, f"stages.{name}.{field}")
            stage[field] = rotary.notation(method)
    for hypothesis in config.hypotheses.values():
        for field in {"gates", "checks"} & set(hypothesis):
            hypothesis[field] = tuple(text.format(last=_last(config)) for text in hypothesis[field])
    sizes.length = sizes.length or max(stage.length for stage in config.stages.values())
    if sizes.blocks < 1 or sizes.length % sizes.blocks or trained % (sizes.length // sizes.blocks):
        raise ValueError(
            f"--config.evaluation.blocks={sizes.blocks} must divide {sizes.length} tokens so that "
            f"a block ends at the trained length of {trained}"
        )
    return config, facts


def _last(config: ConfigDict) -> str:
    """The row of the last stage; stages run in the order of their names."""
    return f"after {list(config.stages)[-1]}"


def _cells(config: ConfigDict, facts: lab.Facts) -> Iterator[lab.Cell]:
    start = (config.model, config.dtype, config.param_dtype)
    text = (config.corpus, config.held_out, config.bos, config.sentence_tokens)
    sizes, last = config.evaluation, list(config.stages.values())[-1]
    windows = (sizes.length, sizes.windows_per_document, sizes.blocks)

    def loss(row: str, method: rotary.Method, seed: int = 0, reads: int = 0, after=()) -> lab.Cell:
        return lab.Cell("loss", row, seed, (start, text, windows, method, reads), after)

    if sizes.unchanged:
        yield loss("unchanged", facts.method)
    if sizes.cropped and sizes.length > config.trained_length:
        yield loss("cropped", facts.method, reads=config.trained_length)
    yield loss("zero-shot", rotary.parse(last.measured_with))
    for seed in range(config.seeds):
        before = ()
        for number, (name, stage) in enumerate(config.stages.items()):
            # No stage repeats the windows of the one before in the same order.
            recipe = _recipe(config, stage, seed + 1000 * number)
            before = (lab.Cell("train", name, seed, (start, recipe, text), before),)
            yield loss(f"after {name}", rotary.parse(stage.measured_with), seed, after=before)
        if config.export and seed == 0:
            reach = max(sizes.length, config.trained_length)
            what = (config.export, rotary.parse(last.measured_with), reach)
            yield lab.Cell("export", config.export, what=what, after=before)


def _recipe(config: ConfigDict, stage: ConfigDict, seed: int) -> lab.Recipe:
    fields = {k: v for k, v in stage.items() if k not in ("method", "measured_with")}
    adapters = {name: config[name] for name in ("trainable", "rank", "alpha")}
    return lab.Recipe(rotary.parse(stage.method), **fields, **adapters, seed=seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Makes the cells of a config, each kind by a function."""

    config: ConfigDict
    folder: Path
    machine: lab.Machine

    @functools.cached_property
    def models(self) -> lab.Models:
        """The checkpoint and what each stage came to."""
        types = {name: self.config[name] for name in ("dtype", "param_dtype")}
        return lab.Models(self.config.model, self.folder, self.machine, types)

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to train on and to measure on; of the checkpoint headers alone are read."""
        sizes, tokenizer = self.config.evaluation, lab.opened(self.config.model).tokenizer
        windows = {"length": sizes.length, "windows": sizes.windows_per_document}
        return lab.text(self.config, tokenizer, **windows)

    def train(self, cell: lab.Cell) -> dict[str, Any]:
        """A stage, from where the stage before ended."""
        return self.models.train(cell, self.text)

    def loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Loss of each block of positions in windows of the held-out documents."""
        (length, windows, blocks), method, reads = cell.what[2:]
        tokens, documents = self.text.windows(length, windows)
        model, block = self.models.start(cell), length // blocks
        found = lab.losses(model, method, tokens, self.machine, block=block, reads=reads)
        return {"blocks": found, "documents": documents}

    def export(self, cell: lab.Cell) -> dict[str, Any]:
        """The model for other software, whole or not at all: a folder, or a file for "gguf"."""
        form, method, reach = cell.what
        name = cell.name.removeprefix("export-") + (".gguf" if form == "gguf" else "")
        path = self.folder / "export" / name

        def save(partial: Path) -> None:
            model = self.models.start(cell).with_rotary(method)
            model.save(partial, format=form, context_length=reach)

        lab.exported(path, save)
        print(f"exported: {path}", flush=True)
        return {"path": str(path.relative_to(self.folder))}


def check(work: Work, facts: lab.Facts, cells: list[lab.Cell]) -> None:
    """Refuses what would be refused later, before a checkpoint is loaded or anything is trained.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    config, left = work.config, lab.missing(work.folder, cells)
    model = dataclasses.replace(facts.config, **work.models.types)
    with lab.naming("trainable"):
        lora.trainable(config.trainable, rank=config.rank, alpha=config.alpha)
    rows = (*BEFORE, *(cell.row for cell in cells if cell.kind == "loss"))
    lab.check_hypotheses(config.hypotheses, QUANTITIES, rows)
    checks = {"train": _check_training, "loss": _check_loss, "export": _check_export}
    for cell in left:
        checks[cell.kind](work, model, cell)
    for cell in left:
        if cell.kind == "train":
            lab.windows(cell.what[1], work.text)
    lab.check_held_out(work.folder, left, work.text)


def _check_training(work: Work, model: LlamaConfig, cell: lab.Cell) -> None:
    with lab.naming(f"stages.{cell.row}"):
        lab.check_recipe(cell.what[1], model, work.machine)


def _check_loss(work: Work, model: LlamaConfig, cell: lab.Cell) -> None:
    (length, *_), method, reads = cell.what[2:]
    rotary.make(method, head_dim=model.head_dim, seq_len=reads or length)


def _check_export(work: Work, model: LlamaConfig, cell: lab.Cell) -> None:
    form, method, _ = cell.what
    tokenizer = lab.opened(work.config.model).tokenizer
    try:
        weights.check_save(model, method, tokenizer, format=form)
        if jax.process_count() > 1:
            raise ValueError("one host of several does not hold the parameters that it would write")
    except ValueError as error:
        remedy = "--config.export='' exports nothing, and the command of a later day can"
        raise ValueError(f"--config.export={form!r}: {error}: {remedy}") from error


def quantities(config: ConfigDict, curves: lab.Scores) -> dict[str, lab.Scores]:
    """Loss over the window, within the trained length, beyond it, and the latter's difference."""
    sizes = config.evaluation
    edge = config.trained_length * sizes.blocks // sizes.length
    whole = curves.map(lambda blocks: blocks.mean(-1))
    if edge >= sizes.blocks:
        return dict.fromkeys(QUANTITIES, lab.Scores({}, {})) | {"loss": whole}
    within = curves.map(lambda blocks: blocks[..., :edge].mean(-1))
    beyond = curves.map(lambda blocks: blocks[..., edge:].mean(-1))
    return dict(zip(QUANTITIES, (whole, within, beyond, beyond.minus(within)), strict=True))


def publish(config, facts: lab.Facts, folder: Path, cells, command: str) -> lab.Report:
    """Writes the tables, figures and claims that the finished cells allow."""
    measured = [cell for cell in cells if cell.kind == "loss"]
    curves = lab.scores(folder, measured, "blocks").repeated(BEFORE)
    parts = quantities(config, curves)
    hypotheses = lab.judged(config.hypotheses, parts)
    trainings = dict.fromkeys(before for cell in measured for before in cell.after)
    logged = {c: found for c in trainings if (found := lab.read(folder, c))}
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(hypotheses), "Hypotheses")
    by_position = {row: curves.mean(row) for row in curves.rows}
    return lab.publish(
        folder,
        command,
        config,
        title=f"Continual pretraining to {config.evaluation.length:,} tokens",
        claims=[claim(config, parts["loss"]), *(f"{h.claim}: {h.verdict}." for h in hypotheses)],
        sections=[
            lab.Section("Result", [_by_position(config, curves), *_tables(parts, _last(config))]),
            lab.Section("What was claimed", [verdicts, _explained(config)]),
            lab.Section("Training", [_base(config, facts), *_training(config, logged)]),
        ],
        results={"positions": _positions(config), "loss": by_position},
        cells=cells,
    )


def claim(config: ConfigDict, loss: lab.Scores) -> str:
    """Returns a sentence: whether the gain over zero-shot extension is told from none."""
    last, length = _last(config), config.evaluation.length
    if not {"zero-shot", last} <= set(loss.rows):
        return f"The loss at {length:,} tokens is not measured yet."
    gain, seeds = lab.difference(loss, "zero-shot", last), len(loss.values[last])
    if gain is None:
        return "One held-out document gives no interval: nothing is claimed of the gain."
    said = {"holds": "lower than", "reversed": "higher than"}
    word = said.get(verdict(gain, "difference > margin"), "indistinguishable from")
    return (
        f"At {length:,} tokens the loss after training is {word} that of zero-shot: gain "
        f"{lab.show(gain, 4)} nats per token (95% interval over {len(set(loss.documents[last]))} "
        f"held-out documents and {seeds} seed{'s' * (seeds > 1)})."
    )


def _tables(parts: Mapping[str, lab.Scores], last: str) -> list[lab.Table]:
    """Gains from every other row to the last, and losses of all rows."""
    parts = {name: part for name, part in parts.items() if part.rows}
    whole, gains, losses = parts["loss"], [], []
    for row in whole.rows:
        shown = [lab.show(part.interval(row) or part.mean(row), 4) for part in parts.values()]
        losses.append([row, *shown[:3], np.exp(whole.mean(row))])
        if last in whole.rows and row != last:
            between = (lab.show(lab.gap(part, row, last), 4) for part in parts.values())
            gains.append([f"{row} to {last}", *between])
    header = ["model", *list(parts)[:3], "perplexity"]
    return [
        lab.Table(["gain", *parts], gains, "Gain in nats per token", name="gain"),
        lab.Table(
            header, losses, "Loss in nats per token", "loss", {"perplexity": "{:.4f}".format}
        ),
    ]


def _explained(config: ConfigDict) -> lab.Paragraphs:
    trained = f"{config.trained_length:,} tokens"
    return lab.Paragraphs(
        "Intervals: 95%, documents and seeds resampled whole; with one seed they say nothing of "
        f"other seeds. Within and beyond: the trained length of {trained}. Beyond minus within: "
        "the gain beyond it less the gain within, which getting used to the training text does not "
        f"explain. Cropped: the checkpoint reads at most the last {trained}, at least seven "
        "eighths of so many where they are there."
    )


def _base(config: ConfigDict, facts: lab.Facts) -> lab.Paragraphs:
    return lab.Paragraphs(
        f"Base: {config.model}, {facts.parameters:,} parameters, method {facts.method}. "
        f"{' '.join(facts.notes)}"
    )


@lab.style()
def _training(config: ConfigDict, logged: Mapping[lab.Cell, Mapping]) -> list:
    """Training loss of each stage and seed, and the settings of each stage."""
    fig, ax = lab.subplots()
    for cell, found in logged.items():
        ax.plot(found["step"], found["loss"], ".-", label=f"{cell.row}, seed {cell.seed}")
    ax.set(xlabel="step", ylabel="training loss, nats per token")
    if logged:
        ax.legend()
    stages = {name: dict(stage) for name, stage in config.stages.items()}
    for cell, found in logged.items():
        stages[cell.row] |= {
            "trainable": f"{config.trainable}, {found['trainable']:,} numbers",
            "tokens": f"{cell.what[1].tokens:,}",
            "tokens/s": f"{lab.speed(found):,.0f}",
        }
    fields = dict.fromkeys(field for stage in stages.values() for field in stage)
    lines = [[field, *(str(s.get(field)) for s in stages.values())] for field in fields]
    drawn = lab.Figure("training", fig, "Loss of the training batches.")
    return [drawn, lab.Table(["setting", *stages], lines)]


def _positions(config: ConfigDict) -> np.ndarray:
    """Middle of each block, in tokens."""
    sizes = config.evaluation
    return (np.arange(sizes.blocks) + 0.5) * sizes.length / sizes.blocks


@lab.style()
def _by_position(config: ConfigDict, curves: lab.Scores) -> lab.Figure:
    """Loss of each row, and the gain over zero-shot with its band."""
    fig, (top, bottom) = lab.subplots(2, 1, size=(8, 7), sharex=True)
    at, last = _positions(config), _last(config)
    for row in curves.rows:
        top.plot(at, curves.mean(row), label=row)
    top.legend()
    if {"zero-shot", last} <= set(curves.rows):
        bottom.plot(at, curves.mean("zero-shot") - curves.mean(last), color="black")
        if band := lab.difference(curves, "zero-shot", last):
            look = {"color": "black", "alpha": 0.2, "linewidth": 0}
            bottom.fill_between(at, band.low, band.high, **look)
    for ax in (top, bottom):
        ax.axvline(config.trained_length, color="black", linewidth=0.8, linestyle=":")
    bottom.axhline(0, color="black", linewidth=0.8)
    top.set(ylabel="loss, nats per token")
    bottom.set(ylabel="gain over zero-shot, nats", xlabel="position, tokens")
    caption = (
        "Held-out loss by position; below, the gain over zero-shot with its 95% band; dotted: the "
        "trained length."
    )
    return lab.Figure("loss_by_position", fig, caption)


if __name__ == "__main__":
    lab.run(main, "experiments.continual_pretraining")
