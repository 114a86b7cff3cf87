"""Tables, figures and claims of the study of extension, from the cells there are."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.extension_cells import (
    ANSWERED,
    ASKED,
    CROPPED,
    LOSS,
    SUITE,
    Row,
    costs,
    loss_rows,
    task_name,
    task_rows,
    tokens,
)
from longrope_jax import plot, tasks
from longrope_jax.evaluation import lengths


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """Loss in windows of one length: of each block of positions, and means of the tables' columns.

    `within` and `beyond` are means on each side of the trained length, `ordered` the measured rows
    with the lowest loss beyond it first, `reference` the one that the others are compared with.
    """

    length: int
    rows: Sequence[Row]
    reference: str
    blocks: lab.Scores
    columns: Mapping[str, lab.Scores]
    within: lab.Scores
    beyond: lab.Scores
    ordered: tuple[str, ...]


def losses(config: ConfigDict, facts: lab.Facts, folder: Path, cells) -> list[Losses]:
    """The finished losses, longest windows first."""
    trained, block, found = config.trained_length, config.trained_length // config.blocks, []
    chosen = [cell for cell in cells if cell.kind == LOSS]
    for length in sorted({cell.what[2].length for cell in chosen}, reverse=True):
        blocks = lab.scores(folder, [c for c in chosen if c.what[2].length == length], "blocks")
        inner = {n for n in (tokens(config, edge) for edge in config.edges) if n < length}
        pairs = [*itertools.pairwise([0, trained, *sorted(inner), length]), (trained, length)]

        def part(a: int, b: int, blocks=blocks) -> lab.Scores:
            return blocks.map(lambda values: values[..., a // block : b // block].mean(-1))

        columns = {f"{a:,} to {b:,}": part(a, b) for a, b in pairs}
        beyond, known = part(trained, length), loss_rows(config, facts, length)
        ordered = tuple(sorted(beyond.rows, key=lambda row, x=beyond: float(x.mean(row))))
        one = length, known, known[0].label, blocks, columns, part(0, trained), beyond, ordered
        found += [Losses(*one)] if ordered else []
    return found


def loss_records(found: Losses) -> list[dict[str, Any]]:
    """One line of the table for each measured row."""
    lines, reference = [], found.reference
    for row in found.ordered:
        same = [one.label for one in found.rows if one.same_as == row]
        line: dict[str, Any] = {"method": " = ".join(same)}
        line["documents"] = len(found.blocks.documents[row])
        line |= {name: x.interval(row) or float(x.mean(row)) for name, x in found.columns.items()}
        line[f"within, minus {reference}"] = lab.gap(found.within, row, reference)
        line[f"beyond, minus {reference}"] = lab.gap(found.beyond, row, reference)
        line["beyond less within"] = lab.gap(found.beyond.minus(found.within), row, reference)
        line[f"beyond, minus {CROPPED}"] = lab.gap(found.beyond, row, CROPPED)
        lines.append(line)
    return lines


def loss_claim(found: Losses, trained: str) -> str:
    """What the numbers of one length bear out."""
    (lowest, *_), beyond, further = found.ordered, found.beyond, found.beyond.minus(found.within)
    methods = [row for row in beyond.rows if row not in (found.reference, CROPPED)]
    said = [f"At {trained} to {found.length:,} tokens {lowest} has the lowest loss"]
    said[0] += f", {beyond.mean(lowest):.3f} nats"
    for row in (found.reference, CROPPED):
        if row in beyond.rows:
            there, within = float(beyond.mean(row)), float(found.within.mean(row))
            said.append(f"{row} has {there:.3f} there and {within:.3f} within {trained}")
            said.append(f"of the other methods {lab.counted(beyond, methods, row)}")
        else:
            said.append(f"{row} is not measured yet")
    said.append(f"beyond less within {lab.counted(further, methods, found.reference)}")
    return "; ".join(said) + "."


def _loss_table(length: int, lines: Sequence[Mapping[str, Any]]) -> lab.Table:
    shown = [
        {k: v if isinstance(v, str | int) else lab.show(v) for k, v in x.items()} for x in lines
    ]
    return lab.table(shown, f"Loss in nats, windows of {length:,} tokens", f"loss_{length}")


@lab.style()
def _beyond(found: Sequence[Losses], config: ConfigDict) -> lab.Figure:
    """Cost within the trained length beside the loss beyond it, for every method."""
    counts, trained = [len(x.ordered) for x in found], f"{config.trained_length:,}"
    size = (11, 1.3 * len(counts) + 0.26 * sum(counts))
    grid = {"squeeze": False, "sharey": "row", "height_ratios": [n + 1 for n in counts]}
    fig, axes = lab.subplots(len(counts), 2, size=size, **grid)
    for (left, right), x in zip(axes, found, strict=True):
        for y, row in enumerate(x.ordered):
            look = {"color": "#D55E00" if row in (x.reference, CROPPED) else "#0072B2"}
            left.plot(lab.mean_gap(x.within, row, x.reference), y, "o", **look)
            single = x.beyond.values[row][0]
            right.plot(single, [y] * len(single), "x", markersize=5 * (len(single) > 1), **look)
            right.plot(single.mean(), y, "o", **look)
            if row == CROPPED:
                right.axvline(single.mean(), linestyle="--", linewidth=0.8, **look)
        left.set_yticks(range(len(x.ordered)), x.ordered)
        left.set(title=f"cost within {trained} tokens", xlabel=f"nats, minus {x.reference}")
        left.set_ylim(len(x.ordered) - 0.4, -0.6)
        right.set(title=f"loss at {trained} to {x.length:,}", xlabel="nats per token")
    caption = "Lowest loss beyond the trained length on top. Crosses: documents; dashed: cropped."
    return lab.Figure("beyond", fig, caption)


@lab.style()
def _by_position(found: Sequence[Losses], config: ConfigDict) -> lab.Figure:
    """Differences from the reference by position, where the text's own ups and downs cancel."""
    first = [sorted(x.ordered, key=lambda row: row not in (x.reference, CROPPED)) for x in found]
    best = [rows[:6] for rows in first]
    named = list(dict.fromkeys(itertools.chain(*best)))
    colour = dict(zip(named, lab.colours(named), strict=True))
    size = (8, 1 + 3.4 * len(found))
    fig, axes = lab.subplots(len(found), 1, size=size, squeeze=False)
    for ax, x, chosen in zip(axes[:, 0], found, best, strict=True):
        for row in sorted(x.blocks.rows, key=chosen.__contains__):  # those in colour on top
            look = {"color": colour.get(row), "label": row}
            look = look if row in chosen else {"color": "#BBBBBB", "linewidth": 0.8}
            curve = lab.mean_gap(x.blocks, row, x.reference)
            ax.plot((np.arange(len(curve)) + 0.5) * x.length / len(curve), curve, **look)
        ax.axvline(config.trained_length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=f"windows of {x.length:,} tokens", ylabel=f"loss minus {x.reference}, nats")
        ax.set(xlabel="position, tokens", xlim=(0, x.length))
        ax.legend()
    caption = "Loss by position on the same text. Dotted: the trained length. Grey: other methods."
    return lab.Figure("loss_by_position", fig, caption)


def answers(config: ConfigDict, facts: lab.Facts, folder: Path, cells) -> list[dict[str, Any]]:
    """One line per kind, task and method, with all finished samples, as `lengths.summary` has it.

    A method that has not been asked at a length has no number there; cropping is the reference up
    to the trained length. The score of first sentences is the share of their tokens, of others
    whether the answer is whole; of greedy text what the task's rule gives.
    """
    known, lines = task_rows(config, facts), []
    groups: dict[tuple, dict[int, list[lab.Cell]]] = {}
    for cell in cells:
        if cell.kind in (ASKED, ANSWERED):
            *_, reading, part = cell.what
            by_length = groups.setdefault((cell.kind, part.task), {})
            by_length.setdefault(reading.length, []).append(cell)
    for (kind, task), by_length in groups.items():
        shared = kind == ASKED and isinstance(task, tasks.FirstSentence)
        found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
        for length, of in by_length.items():
            for row in known:
                short = row.label == CROPPED and length <= row.reads
                label = known[0].label if short else row.same_as
                own = [lab.read(folder, cell) for cell in of if cell.row == label]
                if own := [one for one in own if one is not None]:
                    one = {key: np.concatenate([part[key] for part in own]) for key in own[0]}
                    scores = one["share"] if shared else one["scores"]
                    found.setdefault(row.label, {})[length] = one | {"scores": scores}
        for label, one in found.items():
            line = {"kind": kind, "task": task_name(task), "method": label}
            line["samples"] = {n: len(x["scores"]) for n, x in one.items()}
            lines.append(line | lengths.summary(one, min(by_length)))
    return lines


def task_claim(task: str, lines: Sequence[Mapping[str, Any]], able: float) -> str:
    """The effective length of every method at a task, if the reference can do it when short."""
    reference, *_ = lines
    short = min(n for line in lines for n in line["lengths"])
    score = reference["lengths"].get(short, {"score": 0.0})["score"]
    if score < able:
        return (
            f"{task}: {lab.NOT_TESTABLE}, {reference['method']} scores {score:.2f} at {short:,} "
            f"tokens (gate: {able:g})."
        )
    said = (
        f"{line['method']} {lengths.shown_effective(line['effective'])}"
        for line in lines
        if "effective" in line
    )
    counts = [n for line in lines for n in line["samples"].values()]
    return f"{task}, effective length on {min(counts)} to {max(counts)} samples: {', '.join(said)}."


def suite_records(config: ConfigDict, facts: lab.Facts, folder: Path, cells) -> list[dict]:
    """One line per suite and method: its score, and what it differs from the reference by."""
    lines, known = [], task_rows(config, facts)
    for name, _ in config.suites:
        of = [cell for cell in cells if cell.kind == SUITE and cell.what[-2] == name]
        found = lab.scores(folder, of, "scores")
        for row in (row for row in known if row.same_as in found.values):
            line = {"suite": name, "method": row.label, "items": found.values[row.same_as].size}
            line["score"] = found.interval(row.same_as) or float(found.mean(row.same_as))
            line["difference"] = lab.gap(found, row.same_as, known[0].same_as)
            lines.append(line)
    return lines


def suite_claim(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """What each method costs on a suite of short questions."""
    (first, *rest) = (line for line in lines if line["suite"] == name)
    said = [
        f"{x['method']} {lab.show(x['difference'])}" for x in rest if x["difference"] is not None
    ]
    less = f"; minus that, {', '.join(said)}" if said else ""
    return f"{name}, {first['items']} items: {first['method']} {lab.show(first['score'])}{less}."


def publish(config, facts: lab.Facts, folder: Path, cells, command: str) -> lab.Report:
    """Writes tables, figures and claims of the cells there are."""
    found, asked = losses(config, facts, folder, cells), answers(config, facts, folder, cells)
    suites = suite_records(config, facts, folder, cells)
    records = {x.length: loss_records(x) for x in found}
    tables = [_loss_table(length, lines) for length, lines in records.items()]
    figures = [_beyond(found, config), _by_position(found, config)] if found else []
    trained = f"{config.trained_length:,}"
    claims = [loss_claim(x, trained) for x in found]
    for task in dict.fromkeys(x["task"] for x in asked if x["kind"] == ASKED):
        of = [x for x in asked if (x["kind"], x["task"]) == (ASKED, task)]
        claims.append(task_claim(task, of, config.able))
    claims += [suite_claim(name, suites) for name in dict.fromkeys(x["suite"] for x in suites)]
    known = [(x.length, row) for x in found for row in x.rows]
    known += [("tasks, suites", row) for row in task_rows(config, facts)]
    options = [[row.label, at, repr(row.method)] for at, row in known if row.label != CROPPED]
    written = lab.Table(["method", "length", "options"], options, "The methods, written out")
    means = {x.length: {row: x.blocks.mean(row) for row in x.blocks.rows} for x in found}
    cost = costs(facts, folder, cells)
    return lab.publish(
        folder,
        command,
        config,
        title=f"Extension of {config.model} without training",
        claims=claims,
        sections=[
            lab.Section("Loss", [*figures[:1], *tables, *figures[1:]]),
            lab.Section("Tasks", _tasks(asked, config) if asked else []),
            lab.Section("Suites", [_suite_table(suites)] if suites else []),
            lab.Section(
                "How it was measured",
                [_explained(config, facts), lab.table(cost, "What it costs", "costs"), written],
            ),
        ],
        results={
            "loss": records,
            "tasks": asked,
            "suites": suites,
            "loss by position": means,
            "costs": cost,
        },
        cells=cells,
    )


def _tasks(lines: Sequence[Mapping[str, Any]], config: ConfigDict) -> list:
    """Scores by length, a heat map of depths for each task, and a table."""
    every = sorted({n for line in lines for n in line["lengths"]})
    points: dict[str, dict] = {}
    grids: dict[str, dict] = {}
    rows = []
    for line in lines:
        name = line["task"] if line["kind"] == ASKED else f"{line['task']}, {ANSWERED}"
        found = line["lengths"]
        limits = {n: (x["score"], x["low"], x["high"]) for n, x in found.items()}
        points.setdefault(name, {})[line["method"]] = limits
        grid = [found[n]["by depth"] if n in found else [np.nan] * 5 for n in every]
        if line["kind"] == ASKED:
            grids.setdefault(name, {})[line["method"]] = np.transpose(grid)
        cells = {f"{n:,}": lengths.shown(found.get(n)) for n in every}
        effective = lengths.shown_effective(line.get("effective"))
        samples = "/".join(str(line["samples"].get(n, "-")) for n in every)
        rows.append({"task": name, "method": line["method"]} | cells)
        rows[-1] |= {"effective": effective, "samples": samples}
    drawn = plot.scores_by_length(points, trained_length=config.trained_length)
    caption = "Scores by length with Wilson's 95% intervals. Line: the trained length."
    maps = [
        lab.Figure(f"depth_{name}", plot.scores_by_depth(of, every), f"{name}: scores by depth.")
        for name, of in grids.items()
    ]
    table = lab.table(rows, "Scores; effective: the longest length that keeps 85%", "tasks")
    return [lab.Figure("tasks", drawn, caption), table, *maps]


def _suite_table(lines: Sequence[Mapping[str, Any]]) -> lab.Table:
    rows = [x | {k: lab.show(x[k]) for k in ("score", "difference")} for x in lines]
    return lab.table(rows, "Short questions: shares right, and minus the reference", "suites")


def _explained(config: ConfigDict, facts: lab.Facts) -> lab.Paragraphs:
    trained = f"{config.trained_length:,}"
    return lab.Paragraphs(
        f"Model: {facts.method}, trained on {trained} tokens. {' '.join(facts.notes)} Documents: "
        f"{', '.join(config.documents)}, each from its first sentence on, after {config.bos}; if "
        "they are old and public, the model may have read them.\n\n"
        f"Cropped: {config.reference} reads at most the last {trained} tokens, at least seven "
        "eighths of so many where they are there. Beyond less within: the difference of the two "
        "differences, which a method that is worse at every position does not gain by. Intervals: "
        "95%, documents resampled whole, differences paired, each method on its own.\n\n"
        "Windows are read by methods as they stand for the window's length; tasks and suites by "
        f"methods as they stand for {config.target:g} times the trained length. Those whose "
        "frequencies are the same numbers are measured once. Nothing was searched.\n\n"
        "Prompts are plain: no chat template. A whole answer, of which every token is the most "
        "likely one, is what greedy decoding would give; of a first sentence the share of such "
        "tokens counts. Wilson's intervals take samples as independent, those of the effective "
        "length resample documents. Operations are counted as plain RoPE's."
    )
