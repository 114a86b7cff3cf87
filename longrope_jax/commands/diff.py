"""Where two rotary methods or configs differ, pair by pair.

    longrope diff config.json yarn:factor=8,original_length=8192,base=500_000

A and B are each a config.json of Hugging Face, a folder that has one, or a method.
"""

import argparse

from longrope_jax.commands.explain import add_sizes, read, sizes
from longrope_jax.rotary import compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="config.json, its folder, or a method")
    add_sizes(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the differences, and draws them where a picture is wanted.

    Raises:
        ValueError: A config or a method cannot be read, or a size is out of range.
    """
    both = [read(text, args.layer_type) for text in (args.a, args.b)]
    size = sizes(args, both)
    a, b = both
    if args.picture:
        from longrope_jax.rotary import picture

        picture.diff_picture(a.spec, b.spec, args.picture, labels=(a.label, b.label), **size)
    for letter, given in zip("AB", both, strict=True):
        print("\n".join([f"{letter} = {given.label}", *given.lines]))
    print(compare.diff(a.spec, b.spec, **size), flush=True)
    return 0
