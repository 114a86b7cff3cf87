"""Which base reaches furthest beyond the length that it was trained at? (Giraffe 2308.10882).

    python -m experiments.giraffe --config=configs/giraffe.py:cpu --workdir=DIR

A model is pretrained at L tokens and continued at 2 L under each method, as Giraffe's LLaMA of
2,048 at 4,096. Then it is asked for keys, and its loss is measured, up to 16 L: linear scales 4, 8
and 16 promise more than they were trained at. Linear rows are read at 1/2, 3/4, 3/2 and 2 times
their own scale as well (a scale below 1 is none), "trained at 16, read at 12" among them.

    scale 1, linear 4, 8, 16    frequencies over the scale (PI)
    power, truncated            Giraffe's bases: power 0.5; cut off below a full turn in L
    randomised                  positions drawn from 16 L (2305.16843), counted when read
    xPos, ABF                   ABF, the adjusted base, is not in Giraffe
    progressive                 linear 4 at 2 L, then linear 16 at 8 L (LongRoPE 2402.13753)
    DroPE                       RoPE, without rotation in the last eighth (2512.12167)
    RNoPE-SWA                   layers by turns: RoPE on a window of L, no rotation on everything
                                (2501.18795); pretrained so; not in the preset cpu

DroPE's last eighth is at the 2 L of all rows, and its logits are not rescaled at longer texts.
Presets: overnight (3 seeds; about 14 hours on 2 cores), cpu (one seed, six rows; 7 minutes
of processor time), tiny, and pod_7b, on a folder of `longrope tokenize`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.lab import reach, scratch
from longrope_jax import rotary
from longrope_jax.data.mixtures import Mixture, Source, Stage

BEYOND, KEPT = "keys beyond", "keys at its scale, less those when short"
OVER = "loss, over scale 1"
QUANTITIES = ("loss", "loss beyond", OVER, "keys when short", BEYOND, KEPT)


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    cells = plan(config, folder)
    lab.check_hypotheses(config.hypotheses, QUANTITIES, (cell.row for cell in cells))
    work = scratch.Scratch(config, folder, machine, config.short * config.longest)
    if machine.measure and lab.missing(folder, cells):
        work.check(cells)
    lab.complete(folder, cells, work.functions, machine)
    return publish(config, folder, cells, command)


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure, each after its trainings."""
    del folder
    return list(_cells(config))


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    sizes = reach.read(config.evaluation, config.short * config.longest, config.short)
    sizes = dataclasses.replace(sizes, crops=False)
    for seed in range(config.seeds):
        for row, settings in config.rows.items():
            windows = [size * config.short for size in settings.windows]
            pretrained = _method(config, row, "pretrained")
            before = scratch.pretraining(config, pretrained, seed, windows)
            what = recipe_of(config, row, seed), *scratch.identity(config, windows)
            trained = lab.Cell("train", row, seed, what, (before,))
            for name, scale in read_at(config, row).items():
                method = _method(config, row, "method", scale)
                yield from scratch.measured(config, name, trained, sizes, method)


def read_at(config: ConfigDict, row: str) -> dict[str, float]:
    """The scales at which a row is read, by the name of what is measured; its own first."""
    settings = config.rows[row]
    others = (settings.scale * ratio for ratio in settings.read_at)
    return {row: settings.scale} | {f"{row} at {x:g}": x for x in others if x >= 1}


def _method(config: ConfigDict, row: str, field: str, scale: float | None = None) -> rotary.Method:
    settings, base = config.rows[row], config.base_per_token * config.short
    known = {"base": base, "adjusted": base * config.adjusted_factor, "short": config.short}
    known |= {"scale": settings.scale if scale is None else scale}
    with lab.naming(f"rows.{row}.{field}"):
        return lab.read_method(settings[field], **known)


def recipe_of(config: ConfigDict, row: str, seed: int) -> lab.Recipe:
    """The continuation of a row, as many tokens as in every other one.

    Raises:
        ValueError: a method or positions that cannot be read, or stages that cannot be.
    """
    settings, fields = config.rows[row], config.training.to_dict()
    with lab.naming(f"rows.{row}.stages"):
        stages = tuple(Stage(until, times * config.short) for until, times in settings.stages)
        blend = Mixture((("text", Source("")),), stages)
        if fields["batch"] * config.trained * config.short % blend.block:
            raise ValueError(f"a step's tokens are no whole number of windows of {blend.block}")
    fields["batch"] = fields["batch"] * config.trained * config.short // blend.block
    return lab.Recipe(
        _method(config, row, "method"),
        blend.block,
        **fields,
        **scratch.questions(config.asked),
        seed=seed,
        blend=blend,
        first_method=_method(config, row, "first") if settings.first else None,
        positions=settings.positions.format(longest=config.longest * config.short),
    )


# What came out.


def quantities(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> dict[str, lab.Scores]:
    """Every quantity of every row that is finished.

    The loss is that within the trained length, where "beyond" does not say otherwise.
    """
    blocks = lab.scores(folder, [cell for cell in cells if cell.kind == "loss"], "blocks")
    keys = lab.scores(folder, [cell for cell in cells if cell.kind == "keys"], "right")
    trained = config.trained.bit_length()  # lengths up to the trained one, each twice the last
    loss = blocks.map(lambda values: values[..., : config.trained].mean(-1))
    found = (
        loss,
        blocks.map(lambda values: values[..., config.trained :].mean(-1)),
        reach.over(loss, "scale 1"),
        keys.map(lambda values: values[..., 0]),
        keys.map(lambda values: values[..., trained:].mean(-1)),
        kept(config, keys),
    )
    return dict(zip(QUANTITIES, found, strict=True))


def kept(config: ConfigDict, keys: lab.Scores) -> lab.Scores:
    """Keys found at scale times L, less those at L, of rows that are read at a scale above 1."""
    scales: dict[str, float] = {}
    for row in config.rows:
        scales |= read_at(config, row)
    lengths = reach.read(config.evaluation, config.short * config.longest, config.short).lengths
    promised = {row: scales[row] * config.short for row in keys.rows if scales[row] > 1}
    columns = {row: lengths.index(n) for row, n in promised.items() if n in lengths}
    values = {
        row: keys.values[row][..., i] - keys.values[row][..., 0] for row, i in columns.items()
    }
    return lab.Scores(values, {row: keys.documents[row] for row in values})


def matrix(config: ConfigDict, found: lab.Scores) -> lab.Table:
    """Keys beyond the trained length by the scale trained at, and the scale read at."""
    rows = [row for row, settings in config.rows.items() if settings.read_at]
    scales = sorted({scale for row in rows for scale in read_at(config, row).values()})
    lines = []
    for row in rows:
        by_scale = {scale: name for name, scale in read_at(config, row).items()}
        names = (by_scale.get(scale) for scale in scales)
        lines.append([row, *(found.mean(n) if n in found.values else None for n in names)])
    header = ["trained", *(f"read at {scale:g}" for scale in scales)]
    shown = dict.fromkeys(header[1:], "{:.3f}".format)
    return lab.Table(header, lines, "Keys found beyond the trained length", "matrix", shown)


def publish(config: ConfigDict, folder: Path, cells, command: str) -> lab.Report:
    """Writes the tables, figures and claims that the finished cells allow."""
    parts = quantities(config, folder, cells)
    blocks = [_drawn(config, folder, cells), matrix(config, parts[BEYOND])]
    title = f"Beyond the trained length: {config.trained * config.short} tokens and more"
    return scratch.publish(folder, command, config, parts, blocks, title=title, cells=cells)


@lab.style()
def _drawn(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> lab.Figure:
    """Loss by position and keys by length, of every row at its own scale."""
    fig, axes = lab.subplots(1, 2, size=(12, 5))
    own, short = [cell for cell in cells if cell.row in config.rows], config.short
    curves: Mapping[str, Any] = {
        kind: lab.scores(folder, [cell for cell in own if cell.kind == kind], key)
        for kind, key in (("loss", "blocks"), ("keys", "right"))
    }
    lengths = reach.read(config.evaluation, short * config.longest, short).lengths
    places = {"loss": short * (np.arange(config.longest) + 1), "keys": np.asarray(lengths)}
    for ax, (kind, found) in zip(axes, curves.items(), strict=True):
        for i, row in enumerate(found.rows):
            ax.plot(places[kind], found.mean(row), "o-" if i % 2 else "s--", label=row, ms=3)
        ax.axvline(config.trained * short, color="black", linewidth=0.8)
        ax.set(xlabel="tokens", xscale="log", ylabel={"loss": "loss, nats"}.get(kind, "keys found"))
    if curves["loss"].rows:
        axes[0].legend(fontsize=8)
    return lab.Figure("by_length", fig, "Mean over documents and seeds; the line: trained length.")


if __name__ == "__main__":
    lab.run(main, "experiments.giraffe")
