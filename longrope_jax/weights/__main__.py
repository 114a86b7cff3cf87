"""What is in a checkpoint: `python -m longrope_jax.weights inspect PATH [--layout]`."""

import argparse
import dataclasses
import math
import os
import sys
from pathlib import Path

from longrope_jax import rotary, weights
from longrope_jax.weights import layout, stream


def main(arguments: list[str] | None = None) -> int:
    """Prints config, rotary method, tensors and notes; 2 and one line for what isn't readable."""
    parser = argparse.ArgumentParser(prog="python -m longrope_jax.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="print what a checkpoint holds")
    inspect.add_argument("path", type=Path, help="folder or .gguf file")
    inspect.add_argument("--layout", action="store_true", help="load it, try both rotary layouts")
    options = parser.parse_args(arguments)
    try:
        print(describe(options.path))
        if options.layout:
            print(describe_layout(options.path))
        sys.stdout.flush()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def describe(path: Path) -> str:
    """Config, rotary method, tensors and notes as text; reads headers only."""
    found = weights.open_checkpoint(path)
    stream.check(found.config, found.source, found.form, ignored=found.ignored)
    kinds, values = {}, 0
    for name, kind in found.source.kinds.items():
        kinds[kind] = kinds.get(kind, 0) + 1
        values += math.prod(found.source.shapes[name])
    config = dataclasses.asdict(found.config)
    length = min(found.context_length or 2048, rotary.MAX_POSITION)
    lines = [
        *(f"{key:16} {config[key]}" for key in config if key not in ("attention", "remat")),
        f"context_length   {found.context_length}",
        f"rotary           {found.rotary}",
        f"tokenizer        {found.tokenizer}",
        f"special ids      {found.special_ids}",
        f"stop ids         {list(found.stop_ids)}",
        f"adds bos         {found.adds_bos}",
        f"tensors          {len(found.source.shapes)}, {values:,} values, "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        *(f"note             {note}" for note in found.notes),
        "",
        str(rotary.explain(found.rotary, head_dim=found.config.head_dim, seq_len=length)),
    ]
    return "\n".join(lines)


def describe_layout(path: Path) -> str:
    """Both rotary layouts tried on the loaded weights, and on a text where there is a tokenizer."""
    loaded = weights.load(path)
    lines = [f"note             {loaded.notes[-1]}"]
    if loaded.tokenizer is not None:
        losses = layout.score(loaded.config, loaded.params, loaded.rotary_spec, loaded.tokenizer)
        lines += [f"loss of a text   {loss:.4f} nats, {name}" for name, loss in losses.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
