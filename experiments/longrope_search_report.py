"""Tables, figures and claims of longrope_search."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.longrope_search_cells import (
    CROPPED,
    KINDS,
    NEEDLE,
    SEARCHES,
    TEXT,
    quantities,
    rows,
    target,
    tested,
)
from longrope_jax import rotary
from longrope_jax.search import evolution, gradient
from longrope_jax.search.evolution import History


def publish(config, facts: lab.Facts, folder: Path, cells, command: str) -> lab.Report:
    """Writes tables, figures and claims of the cells there are."""
    keys = "loss", "within", "right"
    loss, within, right = (quantities(config, folder, cells, key) for key in keys)
    answers = {k.replace(NEEDLE, "tokens right"): v for k, v in right.items() if NEEDLE in k}
    searches = [c.after[0] for c in cells if c.after and c.after[0].kind == "search"]
    arrays = {cell: lab.read(folder, cell) for cell in dict.fromkeys(searches)}
    found = {cell: evolution.from_arrays(one) for cell, one in arrays.items() if one}
    judged = lab.judged(config.hypotheses, loss | answers)
    shown = [name for name, scores in loss.items() if scores.rows and not name.endswith(" 1x")]
    tables = [_loss_table(name, loss[name], within[name], right[name]) for name in shown]
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(judged), "Hypotheses", "hypotheses")
    spent, specs = [_spent(*one) for one in found.items()], _specs(found)
    equal = [lab.table(spent, "Searches at equal compute", "searches")] if found else []
    figures = [_factors(config, facts, found), _descents(config, found)] if found else []
    pareto = _pareto(config, loss, answers)
    winners = [f"{x['search']} to {x['target']}:\n\n{x['spec']}\n\n{x['hf']}" for x in specs]
    means = {name: {row: x.mean(row) for row in x.rows} for name, x in loss.items()}
    claims = [_lowest(name, loss[name]) for name in shown]
    claims += [f"{h.name}: {h.claim}: {h.verdict}." for h in judged]
    sections = [
        lab.Section("Result", [pareto, *tables, *figures[:1]]),
        lab.Section("What was claimed", [verdicts, _explained(config, facts)]),
        lab.Section("Searches", [*equal, *figures[1:], *map(lab.Paragraphs, winners)]),
    ]
    page = {"claims": claims, "sections": sections, "cells": cells}
    page["results"] = {"loss": means, "searches": spent, "specs": specs}
    return lab.publish(folder, command, config, title="Searched and learned factors", **page)


def _lowest(name: str, loss: lab.Scores) -> str:
    """The row with the lowest loss, and how the best lies to cropped text."""
    methods = [row for row in loss.rows if row != CROPPED]
    best = min(methods, key=lambda row: float(loss.mean(row)))
    said = f"Lowest loss, {name} the trained length: {best}, {loss.mean(best):.3f} nats"
    if CROPPED in loss.rows:
        said += f"; cropped {loss.mean(CROPPED):.3f}; {lab.counted(loss, methods, CROPPED)}"
    return said + "."


def _loss_table(name: str, loss: lab.Scores, within: lab.Scores, right: lab.Scores) -> lab.Table:
    """Every row, lowest loss first: its loss, what it is against others, its short-range cost."""
    lines = []
    for row in sorted(loss.rows, key=lambda row: float(loss.mean(row))):
        line = {"row": row, "seeds": len(loss.values[row]), "loss": lab.show(loss.mean(row))}
        for other in ("PI", "NTK", "YaRN", CROPPED):
            line[f"minus {other}"] = lab.show(lab.gap(loss, row, other))
        line["within L, minus RoPE"] = lab.show(lab.gap(within, row, "RoPE"))
        share = right.mean(row) if row in right.rows else None
        lines.append(line | {"tokens right": lab.show(share, 2)})
    title = f"Loss of {name} the trained length, nats per token"
    return lab.table(lines, title, name.replace(" ", "_"))


def _spent(cell: lab.Cell, found: History) -> dict[str, Any]:
    """Budget, start and result of a search."""
    _, extension, lowered, settings = cell.what
    scored, descent = len(found.fitness), "steps" in settings
    passes = gradient.cost(scored) if descent else scored
    first = found.fitness[: 1 if descent else settings["sizes"].population]
    line = {"search": cell.row, "target": f"{extension.factor:g}x"}
    line["seed"] = None if descent else cell.seed
    line["forward passes"] = passes - 2 * scored if descent else scored
    line |= {"backward passes": scored if descent else 0, "forward equivalents": passes}
    line |= {"tokens": passes * lowered.count * lowered.length, "loss at start": min(first)}
    line |= {"loss found": min(found.fitness), "start tokens": found.best.start_count}
    return line | {"critical pair": found.best.critical or None}


def _specs(found: Mapping[lab.Cell, History]) -> list[dict[str, Any]]:
    """The best of the seeds of each search and target, as code and as Hugging Face's JSON.

    Hugging Face has no start tokens: its JSON is that of the same factors without them.
    """
    best: dict[tuple, lab.Cell] = {}
    for cell in sorted(found, key=lambda cell: min(found[cell].fitness), reverse=True):
        best[cell.row, cell.what[1]] = cell
    specs = []
    for (row, extension), cell in sorted(best.items(), key=lambda item: item[0][0]):
        spec = extension.spec(found[cell].best)
        plain = rotary.to_hf(dataclasses.replace(spec, start_count=0), head_dim=extension.head_dim)
        named = {"search": row, "target": f"{extension.factor:g}x", "spec": f"rotary.{spec!r}"}
        more = {"hf": json.dumps(plain), "hf leaves out start tokens": spec.start_count}
        specs.append(named | {"loss found": min(found[cell].fitness)} | more)
    return specs


@lab.style()
def _pareto(config, loss: Mapping[str, lab.Scores], answers: Mapping[str, lab.Scores]):
    """Loss of text against the share of needles' tokens that are right, by row and target."""
    fig, axes = lab.subplots(1, len(config.factors), size=(11, 4.8), squeeze=False, sharey=True)
    for ax, factor in zip(axes[0], config.factors, strict=True):
        text, right = loss[f"{TEXT} at {factor:g}x"], answers[f"tokens right at {factor:g}x"]
        both = [row for row in right.rows if row in text.rows and "LongRoPE's" not in row]
        points = {row: (float(text.mean(row)), float(right.mean(row))) for row in both}
        for i, (row, (x, y)) in enumerate(points.items()):
            best = not any(u <= x and v >= y and (u, v) != (x, y) for u, v in points.values())
            look = {"marker": "osDv^<>Pp*X"[i % 11], "markersize": 10 if best else 6}
            ax.plot(x, y, linestyle="", label=row, **look)
        ax.set(xlabel="loss of text, nats", title=f"{factor:g}x the trained length", xscale="log")
        ax.tick_params(axis="x", which="both", labelrotation=45)
        ax.xaxis.set_minor_formatter("{x:g}")
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("share of needles' tokens right")
    if axes[0, -1].lines:
        axes[0, -1].legend(fontsize=8)
    caption = "The upper left is best; no row is better on both than one with a large mark."
    return lab.Figure("pareto", fig, caption)


@lab.style()
def _factors(config, facts: lab.Facts, found: Mapping[lab.Cell, History]) -> lab.Figure:
    """lambda_j of every row and of every winner, one panel for each target."""
    colour = dict(zip(SEARCHES, lab.colours(list(SEARCHES)), strict=True))
    fig, axes = lab.subplots(1, len(config.factors), size=(11, 4.6), squeeze=False)
    for ax, factor in zip(axes[0], config.factors, strict=True):
        extension = target(config, facts, factor)
        curves = {}
        for row, method in rows(config, facts, extension).items():
            f = method.frequencies(head_dim=extension.head_dim, seq_len=extension.seq_len).inv_freq
            if f.shape == extension.inv_freq.shape and (f > 0).all():
                curves.setdefault(tuple(np.round(extension.inv_freq / f, 9)), row)
        dashes = itertools.cycle((":", "--", "-.", (0, (1, 3)), (0, (5, 1, 1, 1))))
        for (curve, row), dash in zip(curves.items(), dashes, strict=False):
            ax.plot(curve, color="#7F7F7F", linestyle=dash, label=row)
        for cell, one in found.items():
            if cell.what[1].factor == factor:
                label = cell.row if cell.seed == 0 else None
                ax.plot(one.best.factors, color=colour[cell.row], label=label)
        ax.set(xlabel="pair j, fast to slow", title=f"to {factor:g}x the trained length")
    axes[0, 0].set_ylabel("factor λ of the wavelength")
    axes[0, 0].legend()
    return lab.Figure("factors", fig, "Factors by pair; several lines: seeds.")


@lab.style()
def _descents(config: ConfigDict, found: Mapping[lab.Cell, History]) -> lab.Figure:
    """Lowest loss so far against forward passes; rows are targets, columns the two losses."""
    colour = dict(zip(SEARCHES, lab.colours(list(SEARCHES)), strict=True))
    panels = list(itertools.product(config.factors, KINDS))
    size = (11, 3.6 * len(config.factors))
    fig, axes = lab.subplots(len(config.factors), 2, size=size, squeeze=False, sharex=True)
    for ax, (factor, kind) in zip(axes.flat, panels, strict=True):
        shown = []
        for cell, one in found.items():
            if (cell.what[1].factor, cell.what[2].kind) == (factor, kind):
                cost, loss = np.arange(len(one.fitness)) + 1, np.minimum.accumulate(one.fitness)
                cost = gradient.cost(cost) if "steps" in cell.what[3] else cost
                look = {"color": colour[cell.row], "label": cell.row if cell.seed == 0 else None}
                ax.plot(cost, loss, drawstyle="steps-post", **look)
                # What comes before is PI, which would flatten all that follows.
                shown += loss[np.searchsorted(cost, gradient.cost(0)) :].tolist()
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) + 1e-6
            ax.set_ylim(min(shown) - margin, max(shown) + margin)
            ax.legend()
        ax.set_title(f"loss of {kind} at {factor:g}x, search documents", loc="left")
        ax.set(xlabel="forward passes (a gradient counts as three)", ylabel="lowest loss so far")
    return lab.Figure("progress", fig, "Progress of the searches at equal compute.")


def _explained(config: ConfigDict, facts: lab.Facts) -> lab.Paragraphs:
    of = "models, each the mean over its restarts"
    if config.models == 1:
        of = "seeds of the search; one model: they say nothing of other models"
    return lab.Paragraphs(
        f"L = {config.trained_length} tokens, {facts.method}. Searches on "
        f"{config.search_documents} held-out documents of {config.corpus} ({config.windows} "
        f"windows or needles), test on {tested(config)} others. Intervals: 95%, over test "
        f"documents and, where a row has several, over {of}. Within L: the same windows up to L, "
        "and other needles of L tokens. Cropped: RoPE reads the last L tokens, at least seven "
        "eighths of them.\n\n"
        "Every search gets the same number of forward passes over sequences of the same documents; "
        "a gradient counts as three. It begins at the best of PI, NTK and YaRN, a restart at the "
        "next best; their passes count too. It has no start tokens, and is not held to a "
        "range or to monotone factors; its monotone variants are projected onto LongRoPE's space "
        "after every step. Loss at start: the best of the first generation, or the gradient's "
        "first point."
    )
