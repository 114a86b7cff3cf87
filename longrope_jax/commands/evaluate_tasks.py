"""Tasks of a checkpoint under several methods: the part of `longrope evaluate` with --tasks."""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longrope_jax import llama, model, plot, rotary, sharding, tasks
from longrope_jax.commands.generate import tell
from longrope_jax.data import corpora, documents, questions
from longrope_jax.evaluation import lengths as lengths_lib
from longrope_jax.evaluation import retrieval, statistics
from longrope_jax.folders import local, only_writer, sweep, write
from longrope_jax.model import Model
from longrope_jax.tasks import Samples, Task

CROPPED = "cropped"
_KEPT = ("scores", "exact", "share", "nll", "depths", "documents")
_SENTENCE = (4, 64)  # tokens of the sentences at which text begins


class Cell(NamedTuple):
    """One result: a task at a length under a method, and what decides its numbers."""

    task: str
    length: int
    row: str
    method: rotary.Method
    reads: int
    identity: Mapping[str, Any]

    @property
    def file(self) -> str:
        """Name of its file."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of tasks to the command's parser."""
    add = parser.add_argument_group("tasks").add_argument
    names = ", ".join(sorted(tasks.TASKS))
    add("--tasks", nargs="+", metavar="TASK", help=f"what is asked, with options: {names}")
    add("--lengths", nargs="+", type=int, metavar="N", help="tokens of a sample")
    add("--samples", type=int, default=50, metavar="N", help="of each task and length (default 50)")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (default 0)")
    add(
        "--control",
        choices=tasks.CONTROLS,
        default="none",
        help="ask the same of contexts that do not hold the answer, or hold another one",
    )
    add(
        "--generate",
        type=int,
        default=0,
        metavar="N",
        help="generate the answers to the first N samples and score them by the task's rule "
        "(default: score the right answers in one pass, as greedy decoding would give them)",
    )
    add("--articles", default="squad", metavar="FILE", help="with questions (default squad)")
    add("--out", type=Path, metavar="DIR", help="keep results and pictures; started again, go on")


def main(args: argparse.Namespace, headers: Sequence[Model], labels: Sequence[str]) -> int:
    """Prints a table for each task, and keeps results if asked.

    Raises:
        ValueError: An argument is wrong, found before the parameters are read.
    """
    asked = _asked(args)
    lengths = sorted(set(args.lengths))
    drawn = _drawn(args, headers[0], asked, lengths)
    cells = list(_cells(args, headers, labels, drawn))
    folder = local(args.out) if args.out else None
    done = {cell.file: _read(folder, cell) for cell in cells}
    left = sum(one is None for one in done.values())
    tell(f"{len(cells)} cells, {len(cells) - left} of them done before")
    if left:
        loaded = model.load(args.checkpoint, dtype=args.dtype)
        loaded = dataclasses.replace(loaded, tokenizer=headers[0].tokenizer)
        if folder:
            with only_writer(folder):
                sweep(folder)
                _complete(args, loaded, drawn, cells, done, folder)
        else:
            _complete(args, loaded, drawn, cells, done, None)
    lines, results = _report(args, asked, cells, done)
    print("\n".join(lines), flush=True)
    if folder:
        _keep(folder, headers[0].trained_length, results)
    return 0


def _asked(args: argparse.Namespace) -> dict[str, Task]:
    if not args.lengths:
        raise ValueError("--tasks needs --lengths, such as --lengths 4096 8192")
    if args.samples < 1 or not 0 <= args.generate <= args.samples:
        raise ValueError(
            f"--samples must be at least 1 and --generate from 0 to it, got {args.samples} and "
            f"{args.generate}"
        )
    return {text: tasks.parse(text) for text in args.tasks}


def _drawn(args, header: Model, asked, lengths) -> dict[tuple[str, int], Samples]:
    """All samples, so that a text that is too short is known before the model is loaded."""
    bos, tokenizer = header.beginning(args.bos), header.tokenizer
    sources: dict[bool, Sequence] = {}
    drawn = {}
    for name, task in asked.items():
        about = isinstance(task, tasks.ARTICLES)
        if about not in sources:
            sources[about] = questions.load(args.articles) if about else _texts(args, header)
        for n in lengths:
            options = {"length": n, "count": args.samples, "seed": args.seed, "bos": bos}
            drawn[name, n] = task.samples(
                sources[about], tokenizer, control=args.control, **options
            )
            llama.check_vocabulary(header.config, f"a sample of {name}", drawn[name, n].tokens)
    return drawn


def _texts(args, header: Model) -> list[documents.TokenizedDocument]:
    assert header.tokenizer is not None  # `prepared` has asked for one
    names = args.text or ["plays"]
    if not args.text:
        tell("text around the facts: plays (--text gives another)")
    least, most = _SENTENCE
    options = {"min_tokens": least, "max_tokens": most}
    texts = [text for name in names for text in corpora.load(name)]
    long = [documents.tokenize_document(one, header.tokenizer, **options) for one in texts]
    fits = [one for one in long if (one.starts <= len(one.tokens) - max(args.lengths)).any()]
    if len(fits) < len(long):
        tell(f"left out: {len(long) - len(fits)} of {len(long)} documents are too short")
    return fits or long  # where none fits the task says so


def _cells(args, headers: Sequence[Model], labels, drawn) -> Iterator[Cell]:
    """Cells by length, then method: programs of one shape follow each other."""
    trained, first = headers[0].trained_length, headers[0]
    mark = _mark(args.checkpoint)
    if args.cropped and trained is None:
        raise ValueError("--cropped needs a trained length, which this checkpoint does not declare")
    for n in sorted({n for _, n in drawn}):
        rows = [(label, one.method, 0) for label, one in zip(labels, headers, strict=True)]
        if args.cropped and trained is not None and n > trained:
            rows.append((CROPPED, first.method, trained))
        for row, method, reads in rows:
            rotary.make(method, head_dim=first.config.head_dim, seq_len=reads or n)
            for task in (task for task, length in drawn if length == n):
                samples = drawn[task, n]
                if reads and reads <= samples.tokens.shape[1] - samples.prompt_length + 1:
                    raise ValueError(f"--cropped: {reads} tokens do not hold an answer of {task}")
                content = samples.tokens.tobytes() + samples.answer.tobytes()
                identity = {
                    "checkpoint": mark,
                    "rotary": repr(method),
                    "task": repr(tasks.parse(task)),
                    "length": n,
                    "reads": reads,
                    "control": args.control,
                    "generate": args.generate,
                    "dtype": args.dtype,
                    "samples": hashlib.sha256(content).hexdigest(),
                }
                yield Cell(task, n, row, method, reads, identity)


def _mark(source: str) -> Any:
    """What tells a checkpoint from another: its name, or its files with sizes and times."""
    path = Path(source).expanduser()
    if not path.exists():
        return str(source)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _complete(args, loaded: Model, drawn, cells, done, folder: Path | None) -> None:
    for number, cell in enumerate(cells, start=1):
        if done[cell.file] is not None:
            continue
        began = time.monotonic()
        done[cell.file] = measured(args, loaded, drawn[cell.task, cell.length], cell)
        taken = time.monotonic() - began
        tell(f"{number} of {len(cells)}: {cell.task}, {cell.length:,}, {cell.row}: {taken:.1f} s")
        if folder:
            kept = {"identity": cell.identity, "seconds": round(taken, 3)} | done[cell.file]
            write(folder / "cells" / cell.file, json.dumps(kept).encode())


def measured(args, loaded: Model, samples: Samples, cell: Cell) -> dict[str, Any]:
    """What a cell holds: per sample the score, and of right answers given: exact, share, nll."""
    asked = retrieval.cropped(samples, cell.reads) if cell.reads else samples
    options = {"batch": args.batch_size, "answered": args.generate, "decode": loaded.decode}
    options["rule"] = tasks.parse(cell.task).rule
    with sharding.mesh_of(loaded.params):
        found = retrieval.measured(loaded.config, loaded.params, cell.method, asked, **options)
    return {name: values.tolist() for name, values in found.items()}


def _read(folder: Path | None, cell: Cell) -> dict[str, Any] | None:
    file = folder and folder / "cells" / cell.file
    if not file or not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        return {key: found[key] for key in _KEPT}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and start again") from error


def _report(args, asked, cells: Sequence[Cell], done) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines of all tables, and what results.json holds."""
    lines, results = [], []
    for task in asked:
        of = [cell for cell in cells if cell.task == task]
        lengths = sorted({cell.length for cell in of})
        rows = {
            row: {c.length: done[c.file] for c in of if c.row == row}
            for row in dict.fromkeys(c.row for c in of)
        }
        first, *_ = rows
        how = (
            f"generated answers by {asked[task].rule}"
            if args.generate
            else "whole answers that greedy decoding gives"
        )
        control = f", control {args.control}" if args.control != "none" else ""
        lines += ["", f"{task}: {how}, {args.generate or args.samples} samples{control}"]
        low, high = lengths[0], lengths[-1]
        cost = [f"cost at {low:,}", f"gain at {high:,}"] * (len(rows) > 1 and low != high)
        table = [["method", *(f"{n:,}" for n in lengths), "effective", *cost]]
        for row, found in rows.items():
            line = {"task": task, "method": row, "control": args.control}
            line |= lengths_lib.summary(found, low)
            shown = [lengths_lib.shown(line["lengths"].get(n)) for n in lengths]
            shown.append(lengths_lib.shown_effective(line.get("effective")))
            if cost:
                shown += [_difference(found, rows[first], n, row == first) for n in (low, high)]
            table.append([row, *shown])
            results.append(line)
        lines += aligned(table)
    note = f"effective: the longest length up to which {lengths_lib.SHARE:.0%} of the score at the "
    note += "shortest is kept; cost and gain: minus the first method, over the same samples"
    return [*lines[1:], "", note], results


def _difference(found, reference, n: int, is_first: bool) -> str:
    if is_first or n not in found or n not in reference:
        return "-"
    a, b = (np.asarray(one[n]["scores"], float) for one in (found, reference))
    documents = found[n]["documents"]
    if len(set(documents)) < 2:
        return f"{(a - b).mean():+.2f}"
    one = statistics.paired_difference(a[None], b[None], documents)
    return f"{one.estimate:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows in columns, all but the first to the right."""
    first, *widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in rows]


def _keep(folder: Path, trained_length: int | None, results: Sequence[Mapping[str, Any]]) -> None:
    """results.json, and where matplotlib is installed the pictures."""
    write(folder / "results.json", json.dumps({"results": results}, indent=1).encode())
    by_length: dict[str, dict[str, dict[int, tuple[float, float, float]]]] = {}
    grids: dict[str, dict[str, np.ndarray]] = {}
    for line in results:
        found = line["lengths"]
        points = {n: (x["score"], x["low"], x["high"]) for n, x in found.items()}
        by_length.setdefault(line["task"], {})[line["method"]] = points
        if len(found) == max(len(x["lengths"]) for x in results):
            grid = np.array([x["by depth"] for x in found.values()]).T
            grids.setdefault(line["task"], {})[line["method"]] = grid
    try:
        plot.scores_by_length(by_length, trained_length=trained_length).savefig(
            folder / "scores.png", dpi=100
        )
        lengths = sorted({n for line in results for n in line["lengths"]})
        for task, of_task in grids.items():
            name = "".join(c if c.isalnum() else "-" for c in task)
            figure = plot.scores_by_depth(of_task, lengths)
            figure.savefig(folder / f"depth-{name}.png", dpi=100)
    except ValueError as error:
        tell(f"no pictures: {error}")
    tell(f"kept in {folder}: results.json, cells, pictures")
