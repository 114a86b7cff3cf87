"""Rotary configs on the command line.

python -m longrope_jax.rotary explain config.json [--picture FILE.png]
python -m longrope_jax.rotary diff config.json yarn:factor=8,original_length=4096
python -m longrope_jax.rotary docs docs/rotary.md
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from longrope_jax import rotary
from longrope_jax.rotary import compare, documentation, picture
from longrope_jax.rotary.config_keys import audit, audit_lines, declared_head_dim
from longrope_jax.rotary.explanation import explain, option

_HEAD_DIM, _SEQ_LEN = 128, 4096  # where nothing tells them


class _Given(NamedTuple):
    """What an argument says: the method, and what a config file says beside it."""

    label: str
    spec: rotary.Method
    lines: list[str]
    head_dim: int | None = None
    seq_len: int | None = None


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 2 and one line for whatever cannot be read."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OverflowError) as error:  # a number of 400 digits in a file
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m longrope_jax.rotary", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    known = "a config.json of Hugging Face, or a method such as yarn:factor=8,original_length=4096"
    one = commands.add_parser("explain", help="which method a config names, and what it does")
    one.add_argument("config", help=known)
    one.set_defaults(run=_explain)
    two = commands.add_parser("diff", help="where two configs differ")
    two.add_argument("a", help=known)
    two.add_argument("b", help=known)
    two.set_defaults(run=_diff)
    for command in (one, two):
        command.add_argument("--head-dim", type=int, help="default: the config's, else 128")
        command.add_argument("--seq-len", type=int, help="default: the longest declared, else 4096")
        command.add_argument("--layer-type", help="where rope_parameters differ by layer")
        command.add_argument("--picture", type=Path, metavar="FILE.png", help="draw it, too")
    docs = commands.add_parser("docs", help="write the table of methods into docs/rotary.md")
    docs.add_argument("file", type=Path, nargs="?", default=Path("docs/rotary.md"))
    docs.set_defaults(run=lambda args: documentation.update(args.file))
    return parser


def _explain(args) -> None:
    given = _read(args.config, args.layer_type)
    size = _sizes(args, [given])
    if args.picture:  # first, since printing ends early into a closed pipe
        picture.explain_picture(given.spec, args.picture, **size)
    print("\n".join([*given.lines, explain(given.spec, **size)]))


def _diff(args) -> None:
    both = [_read(text, args.layer_type) for text in (args.a, args.b)]
    size = _sizes(args, both)
    a, b = both
    if args.picture:
        picture.diff_picture(a.spec, b.spec, args.picture, labels=(a.label, b.label), **size)
    for letter, given in zip("AB", both, strict=True):
        print("\n".join([f"{letter} = {given.label}", *given.lines]))
    print(compare.diff(a.spec, b.spec, **size))


def _sizes(args, given: list[_Given]) -> dict[str, int]:
    """head_dim and seq_len: of the command line, else of the configs, else the methods' own."""
    heads = {g.head_dim for g in given} - {None}
    if args.head_dim is None and len(heads) > 1:
        raise ValueError(f"the two have head_dim {sorted(heads)}: choose one with --head-dim")
    lengths = [g.seq_len or _extended(g.spec) for g in given]
    return {
        "head_dim": args.head_dim if args.head_dim is not None else max(heads, default=_HEAD_DIM),
        "seq_len": args.seq_len if args.seq_len is not None else max(lengths),
    }


def _extended(spec: rotary.Method) -> int:
    trained = option(spec, "original_length")
    return int(trained * (option(spec, "factor") or 1)) if trained else _SEQ_LEN


def _read(text: str, layer_type: str | None) -> _Given:
    """A config file if the text names one or looks like one, else a method."""
    path = Path(text)
    if not (path.suffix == ".json" or path.is_file() or path.is_dir()):
        return _Given(text, rotary.parse(text), [])
    config = _load(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = rotary.from_hf(config, layer_type=layer_type)
    lines = [f"warning: {w.message}" for w in caught]
    keys = audit(config, layer_type=layer_type)
    longest = config.get("max_position_embeddings")
    return _Given(
        text,
        spec,
        ["keys of the config:", *audit_lines(keys), *lines, ""],
        declared_head_dim(config),
        longest if isinstance(longest, int) and longest > 0 else None,
    )


def _load(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(f"{path} is not JSON: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
