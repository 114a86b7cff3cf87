"""What the study of extension measures, under every method, and what that costs.

A row of tasks and suites is a method with the same options at every length, so that it has an
effective length, and a cost where nothing is long.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import rotary, tasks
from longrope_jax.evaluation import windowing
from longrope_jax.training import flops

CROPPED = "cropped"
LOSS, ASKED, ANSWERED, SUITE = "loss", "asked", "answered", "suite"
_ITEM = 128  # tokens of an item of a suite, roughly and padded; SmolLM2 reads 45 to 86


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a cell lets the model read: a document (CORPUS:DOCUMENT), its length in tokens, how.

    With `reads` the model reads only the last so many tokens.
    """

    document: str
    length: int
    method: rotary.Method
    reads: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples `first` to `first + count` of `of` that a task draws; depths and documents go round.

    Attributes:
        task: what is asked.
        sources: the documents (CORPUS:DOCUMENT), or the set of articles.
        of, first, count: which samples.
        seed: of the draws.
    """

    task: tasks.Task
    sources: tuple[str, ...]
    of: int
    first: int
    count: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A method at one length, as config and tables write it.

    With `reads` it reads only the last so many tokens; `same_as` is the first row whose frequencies
    are the same numbers, which alone is measured.
    """

    label: str
    text: str
    method: rotary.Method
    reads: int
    same_as: str


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts]:
    """The config with what it leaves open filled from the checkpoint, and the checkpoint's facts.

    Raises:
        ValueError: a token, a task, a length, samples or blocks that do not fit.
    """
    config, facts = lab.filled(config, folder)
    if config.blocks < 1 or config.trained_length % config.blocks:
        raise ValueError(f"--config.blocks={config.blocks} must divide {config.trained_length}")
    factors = [(f"windows.{name}.factor", w.factor) for name, w in config.windows.items()]
    for field, factor in [*factors, *(("edges", edge) for edge in config.edges)]:
        if factor <= 1 or factor * config.blocks % 1:
            raise ValueError(
                f"--config.{field} must be above 1 and a multiple of 1/{config.blocks} "
                f"(--config.blocks), got {factor}"
            )
    for name, _ in (*config.tasks, *config.answered.tasks):
        tasks.parse(name)
    if config.target < 1:
        raise ValueError(f"--config.target must be at least 1, got {config.target}")
    if not 0 < config.part <= config.samples or config.samples % config.part:
        raise ValueError(f"--config.part={config.part} must divide --config.samples")
    if not (config.windows or config.tasks or config.suites):
        raise ValueError("nothing to measure: --config.windows, .tasks and .suites are empty")
    return config, facts


def rows(
    config: ConfigDict, facts: lab.Facts, length: int, methods, at: Iterable[int]
) -> list[Row]:
    """The reference, cropping beyond the trained length, and methods as they stand for a length.

    Two are the same if their frequencies are, at all lengths `at` which they are measured.

    Raises:
        ValueError: unknown placeholder, method or option.
    """
    texts = list(dict.fromkeys([config.reference, *methods]))
    names = [text.partition(":")[0] for text in texts]
    values = {"factor": max(1.0, length / config.trained_length)}
    values["kv_heads"] = facts.config.n_kv_heads
    found: list[Row] = []
    known: dict[str, Any] = {}
    for name, text in zip(names, texts, strict=True):
        label = name if names.count(name) == 1 else text
        method = lab.method(text, facts, config.trained_length, f"methods: {text}", **values)
        head = facts.config.head_dim
        each = [rotary.frequencies_of(method, head_dim=head, seq_len=n) for n in sorted(set(at))]
        known[label] = list(itertools.chain(*each)), getattr(method, "pattern", None)
        same = next(other for other, one in known.items() if _same(one, known[label]))
        found.append(Row(label, text, method, 0, same))
    first, reads = found[0], config.trained_length
    cropped = Row(CROPPED, CROPPED, first.method, reads, CROPPED)
    return [first, cropped, *found[1:]]


def _same(one, other) -> bool:
    """Says whether two methods, as frequencies and pattern over layers, are the same."""
    if len(one[0]) != len(other[0]) or one[1] != other[1]:
        return False
    return all(a.equals(b) for a, b in zip(one[0], other[0], strict=True))


def tokens(config: ConfigDict, factor: float) -> int:
    """Tokens of a factor, which is a length over the trained length."""
    return round(config.trained_length * factor)


def loss_rows(config: ConfigDict, facts: lab.Facts, length: int) -> list[Row]:
    """Rows of all windows of a length, each once."""
    windows = [w for w in config.windows.values() if tokens(config, w.factor) == length]
    methods = dict.fromkeys(text for window in windows for text in window.methods)
    return rows(config, facts, length, methods, [length])


def task_rows(config: ConfigDict, facts: lab.Facts) -> list[Row]:
    """Rows of tasks and suites: methods as they stand for `target` times the trained length."""
    length, asked = tokens(config, config.target), (*config.tasks, *config.answered.tasks)
    at = [length, *(tokens(config, factor) for _, factors in asked for factor in factors)]
    return rows(config, facts, length, config.methods, at)


def every(config: ConfigDict, facts: lab.Facts) -> list[lab.Cell]:
    """All cells, cheap ones first: windows and suites, then each part of the samples a round."""
    start = (config.model, config.dtype, config.param_dtype), (config.bos, config.sentence_tokens)
    found: list[tuple[tuple[int, float], lab.Cell]] = []
    block = config.trained_length // config.blocks
    for window in config.windows.values():
        length = tokens(config, window.factor)
        known = loss_rows(config, facts, length)
        texts = {config.reference, CROPPED, *window.methods}
        wanted = {row.same_as for row in known if row.text in texts}
        for number, name in enumerate(config.documents[: window.documents or None]):
            for row in (row for row in known if row.label in wanted):
                what = Reading(name, length, row.method, row.reads), {"block": block}
                key = 0, float(length * (number + 1))
                found.append((key, lab.Cell(LOSS, row.label, what=(*start, *what))))
    chosen = task_rows(config, facts)
    for kind, factor, part in _parts(config):
        length = tokens(config, factor)
        for row in _once(chosen):
            if not row.reads or length > row.reads:
                what = Reading("", length, row.method, row.reads), part
                key = part.first // config.part, float(length * part.count)
                found.append((key, lab.Cell(kind, row.label, what=(*start, *what))))
    for name, items in config.suites:
        for row in _once(chosen):
            if not row.reads:
                what = *start, row.method, name, items
                found.append(((0, float(_ITEM * items)), lab.Cell(SUITE, row.label, what=what)))
    order = sorted(found, key=lambda pair: pair[0])
    return list(dict.fromkeys(cell for _, cell in order))


def _once(known: Iterable[Row]) -> Iterator[Row]:
    return (row for row in known if row.same_as == row.label)


def _parts(config: ConfigDict) -> Iterator[tuple[str, float, Part]]:
    """(kind of cell, factor, samples) of every task, length and part."""
    for kind, asked in ((ASKED, config.tasks), (ANSWERED, config.answered.tasks)):
        of = config.samples if kind == ASKED else config.answered.samples
        for name, factors in asked:
            task = tasks.parse(name)
            about = (config.articles,) if isinstance(task, tasks.ARTICLES) else config.documents
            for factor, first in itertools.product(factors, range(0, of, config.part)):
                count = min(config.part, of - first)
                part = Part(task, tuple(about), config.samples, first, count, config.seed)
                yield kind, factor, part


def costs(facts: lab.Facts, folder: Path, cells: Sequence[lab.Cell]) -> list[dict[str, Any]]:
    """A line for each kind, task and length: cells, those left, and their cost.

    Floating point operations are counted as those of plain RoPE: methods that compute two scores
    for each pair of tokens take longer. Hours come from the seconds of finished cells of the same
    kind, or of any; without one they are not known.
    """
    groups: dict[tuple[str, str, int], list[lab.Cell]] = {}
    done: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        groups.setdefault(_group(cell), []).append(cell)
        known = lab.record(folder, cell)
        if known and known["seconds"]:
            done.setdefault(cell.kind, []).append((_flops(facts, cell), known["seconds"]))
    lines = []
    for (kind, asked, length), of in groups.items():
        left = lab.missing(folder, of)
        work = sum(_flops(facts, cell) for cell in left)
        rate = done.get(kind) or [pair for pairs in done.values() for pair in pairs]
        hours = work * sum(x[1] for x in rate) / sum(x[0] for x in rate) / 3600 if rate else None
        spent = sum(known["seconds"] for cell in of if (known := lab.record(folder, cell)))
        line = {"measures": kind, "what": asked, "tokens": length, "cells": len(of)}
        line |= {"hours so far": round(spent / 3600, 2)}
        line |= {"left": len(left), "PFLOP left": round(work / 1e15, 3)}
        lines.append(line | {"hours left": None if hours is None else round(hours, 2)})
    return lines


def _group(cell: lab.Cell) -> tuple[str, str, int]:
    if cell.kind == SUITE:
        return SUITE, cell.what[-2], 0
    *_, reading, asked = cell.what
    return cell.kind, "text" if cell.kind == LOSS else task_name(asked.task), reading.length


def task_name(task: tasks.Task) -> str:
    """What a person calls a task; one with options of its own is written out."""
    return next((name for name, one in tasks.TASKS.items() if one == task), repr(task))


def _flops(facts: lab.Facts, cell: lab.Cell) -> float:
    """Floating point operations of a cell's forward passes under plain RoPE."""
    if cell.kind == SUITE:
        return cell.what[-1] * _ITEM * flops.train_flops_per_token(facts.config, _ITEM) / 3
    *_, reading, asked = cell.what
    length = reading.reads or reading.length
    if cell.kind == LOSS:
        step = windowing.Sliding(length, max(length // 8, 1))
        passes = len(list(windowing.score_windows(reading.length, step, bos=True)))
    else:
        passes = asked.count * (2 if cell.kind == ANSWERED else 1)
    return passes * length * flops.train_flops_per_token(facts.config, length) / 3
