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

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.lab import reach, scratch
from longrope_jax.data.mixtures import Mixture, Source, Stage
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
    cells = plan(config, folder)
    work = scratch.Scratch(config, folder, machine, lengths(config)[1])
    if machine.measure and lab.missing(folder, cells):
        work.check(cells)
    lab.complete(folder, cells, work.functions, machine)
    return publish(config, folder, cells, command)


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure, each after its training."""
    del folder
    return list(_cells(config))


def lengths(config: ConfigDict) -> tuple[int, int]:
    """Tokens of a short and of a long window."""
    return config.width, config.width * config.factor


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    short, long = lengths(config)
    sizes, known = reach.read(config.evaluation, long, short), scratch.identity(config)
    for seed in range(config.seeds):
        for row in config.rows:
            trained = lab.Cell("train", row, seed, (recipe_of(config, row, seed), *known))
            yield from scratch.measured(config, row, trained, sizes)


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
    return lab.Recipe(
        lab.read_method(config.method, **known),
        stages[-1].length,
        **fields,
        **scratch.questions(config.asked),
        seed=seed,
        blend=Mixture((("text", Source("")),), stages),
        first_method=first,
    )


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
    lines, own = [], scratch.shape(scratch.identity(config)[0], 1)
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
    short, long = lengths(config)
    losses = [cell for cell in cells if cell.kind == "loss"]
    blocks = [_drawn(config, folder, losses), cost_table(config)]
    title = f"Curriculum of lengths: {short} to {long} tokens"
    return scratch.publish(folder, command, config, parts, blocks, title=title, cells=cells)


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
