"""How every experiment script starts: flags, and errors of one line."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

CONFIGS = Path(__file__).parents[1] / "configs"

# What an experiment gets: its config, its directory, and the command line that a report states.
Main = Callable[[ConfigDict, Path, str], object]


def run(main: Main, name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `main(config, workdir, command)` of experiment `name` and exits.

    The flags are `--config=FILE.py:PRESET` (default: configs/NAME.py, its default preset), any
    `--config.FIELD=VALUE`, and `--workdir=DIR`. They live only as long as the run, so one process
    can run several experiments.

    Args:
        main: the experiment; a ValueError of it, of its config or of a flag becomes the one line
            `error: ...` on stderr and exit status 2.
        name: module name below `experiments` and `configs`.
        argv: command line, program first; default `sys.argv`.
    """
    argv = list(sys.argv if argv is None else argv)
    command = shlex.join(["python", "-m", f"experiments.{name}", *argv[1:]])
    try:
        app.run(
            lambda _: _checked(main, command),
            argv=argv,
            flags_parser=lambda args: _parse(name, args),
        )
    finally:
        _remove_flags()
    sys.exit(0)


def fail(message: str) -> NoReturn:
    """Prints `error: message` on stderr as one line and exits with status 2."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def _define_flags(name: str, argv: list[str]) -> None:
    config_flags.DEFINE_config_file(
        "config", str(CONFIGS / f"{name}.py"), "FILE.py:PRESET", lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Directory of the results.")


def _remove_flags() -> None:
    for flag in list(flags.FLAGS):
        if flag in ("config", "workdir") or flag.startswith("config."):
            delattr(flags.FLAGS, flag)


def _parse(name: str, argv: list[str]) -> list[str]:
    try:
        _define_flags(name, argv)
        rest = flags.FLAGS(argv)
        # A config file that cannot be read shows itself only when the config is used.
        flags.FLAGS.config.keys()
    except (flags.Error, ValueError, OSError, AttributeError, KeyError) as error:
        fail(_message(error))
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}: options look like --config.FIELD=VALUE")
    if not flags.FLAGS.workdir:
        fail("no directory for the results: give --workdir=DIR")
    workdir = Path(flags.FLAGS.workdir)
    if workdir.exists() and not workdir.is_dir():
        fail(f"--workdir={workdir} is a file, not a directory")
    # Found out now, not after the first hour of work.
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        fail(f"--workdir={workdir}: no permission to write in {there}")
    return rest


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, OSError):
        return f"cannot load the config: {text.splitlines()[-1]}"
    if isinstance(error, AttributeError | KeyError):
        plain = text.replace("\\n", "; ").translate(str.maketrans("", "", "'\"\\"))
        return f"no such field in the config: {plain}"
    # ml_collections puts a whole traceback into the message when a config file raises.
    if "Traceback" in text:
        return text.splitlines()[-1].removeprefix("ValueError: ")
    return text


def _checked(main: Main, command: str) -> None:
    # Otherwise jax tells of every kind of device that this machine has not.
    logging.getLogger("jax").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells of every step of a save
    try:
        main(flags.FLAGS.config, Path(flags.FLAGS.workdir), command)
    except (ValueError, OSError) as error:
        fail(str(error))
