"""What a checkpoint holds: sizes, tensors, rotary method, tokenizer, and what its config does.

    longrope inspect CKPT --layout

Headers alone are read. With --layout the weights are loaded and both pairings of features tried.
"""

import argparse
import dataclasses
import math

from longrope_jax import model, rotary, runs, weights
from longrope_jax.weights import layout, stream

_HOW = ("attention", "remat", "sparse_group", "context_parallel", "dtype", "param_dtype")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    parser.add_argument("--layout", action="store_true", help="load it, try both rotary layouts")


def main(args: argparse.Namespace) -> int:
    """Prints config, rotary method, tensors and notes.

    Raises:
        ValueError: The checkpoint cannot be read.
    """
    print(describe(args.checkpoint))
    if args.layout:
        print(describe_layout(args.checkpoint))
    return 0


def describe(source: str) -> str:
    """Config, rotary method, tensors and notes as text; reads headers only.

    Raises:
        ValueError: As `longrope_jax.load`.
    """
    found = model.open_model(source)
    config, special = dataclasses.asdict(found.config), found.special_tokens
    length = min(found.trained_length or 2048, rotary.MAX_POSITION)
    lines = [
        *(f"{key:16} {config[key]}" for key in config if key not in _HOW),
        f"trained_length   {found.trained_length}",
        f"rotary           {found.method}",
        f"tokenizer        {found.tokenizer}",
        f"special ids      {special.ids()}",
        f"stop ids         {list(special.stops)}",
        f"adds bos         {special.adds_bos}",
        *_tensors(source),
        *(f"note             {note}" for note in found.notes),
        "",
        str(rotary.explain(found.method, head_dim=found.config.head_dim, seq_len=length)),
    ]
    return "\n".join(lines)


def _tensors(source: str) -> list[str]:
    if runs.checkpoints_folder(source) is not None:
        return []
    found = weights.open_checkpoint(source)
    stream.check(found.config, found.source, found.form, ignored=found.ignored)
    kinds, values = {}, 0
    for name, kind in found.source.kinds.items():
        kinds[kind] = kinds.get(kind, 0) + 1
        values += math.prod(found.source.shapes[name])
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [f"tensors          {len(found.source.shapes)}, {values:,} values, {listed}"]


def describe_layout(source: str) -> str:
    """Both rotary layouts tried on the loaded weights, and on a text where there is a tokenizer."""
    loaded = model.load(source)
    lines = [f"note             {loaded.notes[-1]}"]
    if loaded.tokenizer is not None:
        losses = layout.score(loaded.config, loaded.params, loaded.method, loaded.tokenizer)
        lines += [f"loss of a text   {loss:.4f} nats, {name}" for name, loss in losses.items()]
    return "\n".join(lines)
