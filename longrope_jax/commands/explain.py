"""Which rotary method a config names, and what it does: key by key, and pair by pair.

    longrope explain config.json --picture pairs.png
    longrope explain yarn:factor=8,original_length=4096

CONFIG is a config.json of Hugging Face or a folder that has one, or a method with its options.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import NamedTuple

from longrope_jax import rotary
from longrope_jax.rotary.config_keys import audit, audit_lines, declared_head_dim
from longrope_jax.rotary.explanation import explain, option

_HEAD_DIM, _SEQ_LEN = 128, 4096  # where nothing tells them


class Given(NamedTuple):
    """What one argument names: the method, and what a config file declares beside it."""

    label: str
    spec: rotary.Method
    lines: list[str]
    head_dim: int | None = None
    seq_len: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", metavar="CONFIG", help="config.json, its folder, or a method")
    add_sizes(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the explanation, and draws it where a picture is wanted.

    Raises:
        ValueError: The config or the method cannot be read, or a size is out of range.
    """
    given = read(args.config, args.layer_type)
    size = sizes(args, [given])
    if args.picture:  # first, since printing ends early into a closed pipe
        from longrope_jax.rotary import picture

        picture.explain_picture(given.spec, args.picture, **size)
    print("\n".join([*given.lines, explain(given.spec, **size)]), flush=True)
    return 0


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `explain` and `diff` share."""
    parser.add_argument("--head-dim", type=int, help="default: the config's, else 128")
    parser.add_argument("--seq-len", type=int, help="default: the longest declared, else 4096")
    parser.add_argument("--layer-type", help="where rope_parameters differ by layer")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw it, too")


def sizes(args: argparse.Namespace, given: list[Given]) -> dict[str, int]:
    """The head_dim and seq_len to explain: the command line's, else the configs', else a default.

    Raises:
        ValueError: Two configs differ in head_dim.
    """
    heads = {g.head_dim for g in given if g.head_dim is not None}
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


def read(text: str, layer_type: str | None) -> Given:
    """A config file if the text names one or looks like one, else a method.

    Raises:
        ValueError: Neither can be read.
    """
    if not text.strip():
        raise ValueError("give a config.json, its folder, or a method such as yarn:factor=4")
    path = Path(text)
    path = path / "config.json" if path.is_dir() else path
    if not (path.suffix == ".json" or path.is_file()):
        return Given(text, rotary.parse(text), [])
    config = _load(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = rotary.from_hf(config, layer_type=layer_type)
    lines = [f"warning: {w.message}" for w in caught]
    keys = audit(config, layer_type=layer_type)
    longest = config.get("max_position_embeddings")
    return Given(
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
        here = "; a checkpoint of another kind: longrope inspect " + str(path.parent)
        hint = here * (path.name == "config.json" and path.parent.is_dir())
        raise ValueError(f"cannot read {path}: {error.strerror}{hint}") from error
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(f"{path} is not JSON: {error}") from error
