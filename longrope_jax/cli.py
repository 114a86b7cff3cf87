"""The command `longrope`: what a person does to a checkpoint or a rotary config, in one line each.

A command is a module with `add_arguments(parser)` and `main(args) -> int`; its docstring is its
help. It is imported only when it is called, so `longrope --help` is instant.
"""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from longrope_jax.errors import unknown_name

# Name of each command, its module, and its line in `longrope --help`.
COMMANDS = {
    "explain": ("longrope_jax.commands.explain", "which rotary method a config names, key by key"),
    "diff": ("longrope_jax.commands.diff", "where two rotary methods or configs differ"),
    "inspect": ("longrope_jax.commands.inspect", "what a checkpoint holds, without loading it"),
    "generate": ("longrope_jax.commands.generate", "continue a text with a checkpoint"),
    "chat": ("longrope_jax.commands.chat", "a conversation with a checkpoint that has a template"),
    "evaluate": (
        "longrope_jax.commands.evaluate",
        "perplexity on your own text, or tasks by length, under one or several methods",
    ),
    "suite": (
        "longrope_jax.commands.suite",
        "scores on published benchmarks, under one or several methods",
    ),
    "convert": ("longrope_jax.commands.convert", "write it as another format, or another method"),
    "tokenize": ("longrope_jax.commands.tokenize", "a corpus of any size as tokens on disk"),
    "fits": ("longrope_jax.aot.command", "does a model fit a TPU slice that need not be there"),
}
_HELP = """usage: longrope COMMAND ...

{commands}

`longrope COMMAND --help` says more of each; `longrope --version` prints the version.
CKPT is a Hugging Face folder, a .gguf file, Meta's folder, a run of this package
(WORKDIR/runs/NAME), or smollm2-135m, which is fetched once. METHOD is a name with options, such as
yarn:factor=4; what it leaves open is taken from the checkpoint."""


class _Parser(argparse.ArgumentParser):
    """Errors are one line, as all errors of the command are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 2 and one line on stderr for what is wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(argv)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, OverflowError) as error:  # a number of 400 digits in a file
        return _fail(str(error))
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        first = str(error).partition("\n")[0]
        return _fail(f"out of memory: {first} A shorter text or --dtype bfloat16 need less")


def _run(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)))
        return 0
    if name == "--version":
        print(importlib.import_module("importlib.metadata").version("longrope_jax"))
        return 0
    if name not in COMMANDS:
        raise ValueError(unknown_name("command", name, COMMANDS))
    from absl import logging as absl_logging  # not for --help, which is instant

    # Else jax lists every kind of device that this machine lacks, and orbax its metadata files
    # and, with its traceback, what it raises.
    logging.getLogger("jax").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.FATAL)
    command = importlib.import_module(COMMANDS[name][0])
    parser = _Parser(
        prog=f"longrope {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return command.main(parser.parse_args(rest))


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Shows a warning in one line, without the place in the source, which says nothing here."""
    del category, filename, lineno, line
    print("warning:", " ".join(str(message).split()), file=file or sys.stderr)


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
