"""How every study starts: its config, overrides of any field, and errors of one line."""

import ast
import dataclasses
import difflib
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from experiments.lab.fail import fail
from experiments.lab.machine import Machine
from experiments.lab.processes import quiet
from longrope_jax import hosts
from longrope_jax.errors import unknown_name
from longrope_jax.folders import is_url, located, write
from longrope_jax.training.termination import INTERRUPTED, TERMINATED

ROOT = Path(__file__).parents[2]

_FULL = "the disk is full: make room, and the same command goes on"

# What a study gets: its config, its directory, and the command line that a report states.
Main = Callable[[ConfigDict, Path, str], object]


def run(main: Main, module: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `main(config, workdir, command)` of a study and exits.

    The flags are `--config=FILE.py:PRESET`, any `--config.FIELD=VALUE`, and `--workdir=DIR`;
    `--help` prints the study's own words. Without `--config` the file is configs/NAME.py, or, where
    there is none, the study's own, which then has a `get_config` itself.

    Args:
        main: the study; a ValueError of it, of its config or of a flag becomes the one line
            `error: ...` on stderr and exit status 2. SIGTERM exits with 75, Ctrl-C with 130: the
            same command goes on.
        module: name of the study in `python -m NAME`, such as "experiments.base_bound".
        argv: command line, program first; default `sys.argv`.
    """
    argv = list(sys.argv if argv is None else argv)
    command = shlex.join(["python", "-m", module, *argv[1:]])
    quiet()
    try:
        if {"--help", "-h"} & set(argv[1:]):
            print(sys.modules[main.__module__].__doc__)
            sys.exit(0)
        signal.signal(signal.SIGTERM, _terminated)  # training has a handler of its own, which saves
        config, workdir = parse(module, argv[1:])
        main(config, workdir, command)
    except (ValueError, OSError) as error:
        full = "No space left on device" in str(error)
        fail(f"{_FULL} ({error})" if full else str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it was", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        first = str(error).partition("\n")[0]
        if hosts.several():
            hosts.stop(
                f"this host cannot go on, or another was lost: {type(error).__name__}: {first}"
            )
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        fail(
            f"out of memory: {first} --config.machine.accumulation splits a training step, remat "
            "saves fewer activations, tokens_per_batch bounds what is scored at once"
        )
    sys.exit(0)


def _terminated(number, frame) -> NoReturn:
    print("terminated: the same command goes on where it was", file=sys.stderr, flush=True)
    sys.exit(TERMINATED)


def parse(module: str, arguments: Sequence[str]) -> tuple[ConfigDict, Path]:
    """Config and directory that a command line asks for.

    Raises:
        ValueError: an unknown flag, field or preset, a value of another type, no directory.
    """
    given = _flags(arguments)
    overrides = {k.removeprefix("config."): given.pop(k) for k in list(given) if "." in k}
    config = load_config(given.pop("config", None) or _own_config(module))
    workdir = given.pop("workdir", "")
    if given:
        known = ("config", "workdir", *(f"config.{field}" for field in config))
        raise ValueError(unknown_name("flag", next(iter(given)), known))
    for path, text in overrides.items():
        override(config, path, text)
    config.lock()
    return config, _checked_workdir(workdir)


def _own_config(module: str) -> str:
    """The file in configs/ named like the study, or else the study's own file, wherever it lies."""
    file = ROOT / "configs" / f"{module.rpartition('.')[2]}.py"
    if file.is_file():
        return str(file)
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.origin:
        raise ValueError(
            f"no config for {module!r}: lab.run(main, NAME) takes the NAME of `python -m NAME`, or "
            "give --config=FILE.py"
        )
    return spec.origin


def load_config(text: str) -> ConfigDict:
    """The config that FILE.py or FILE.py:PRESET gives, with every field of `Machine`.

    Raises:
        ValueError: no such file, one without get_config, or an unknown preset.
    """
    file, colon, preset = text.partition(":")
    path = Path(file)
    if not path.is_file():
        where = "" if path.is_absolute() else f" below {Path.cwd()}"
        names = [f"configs/{one.name}" for one in (ROOT / "configs").glob("[!_]*.py")]
        near = difflib.get_close_matches(file, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        checkout = "" if Path.cwd() == ROOT else f": studies run from the checkout, cd {ROOT}"
        raise ValueError(f"no config {file}{where}{checkout}{hint}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file} has no function get_config: it is no config of a study")
    config = module.get_config(preset) if colon else module.get_config()
    with config.unlocked():
        config.machine = dataclasses.asdict(Machine()) | dict(config.get("machine", {}))
    return config


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets one field, written as in `--config.rows.YaRN.method=yarn:factor=8`.

    A row or group that is not there yet is made where the config has defaults for it: a field
    `row_defaults` beside `rows`.

    Raises:
        ValueError: no such field (the nearest one is named), or a value of another type.
    """
    node, walked = config, []
    *parents, last = path.split(".")
    for name in parents:
        if name not in node and (new := _new_item(config, walked)) is not None:
            with node.unlocked():
                node[name] = new
        if not isinstance(node.get(name), ConfigDict):
            raise ValueError(_no_field(node, name, walked))
        node, walked = node[name], [*walked, name]
    if last not in node:
        raise ValueError(_no_field(node, last, walked))
    with node.ignore_type():
        node[last] = _converted(text, node[last], path)


def _new_item(config: ConfigDict, walked: list[str]) -> ConfigDict | None:
    """A copy of the defaults for a new entry of the mapping at `walked`; None without defaults."""
    if not walked:
        return None
    *outer, group = walked
    node = config
    for name in outer:
        node = node[name]
    defaults = node.get(f"{group.removesuffix('s')}_defaults")
    return None if defaults is None else defaults.copy_and_resolve_references()


def _no_field(node: Any, name: str, walked: list[str]) -> str:
    where = ".".join(["config", *walked])
    if name in node:
        return f"--{where}.{name} is a single value, it has no fields"
    deeper = [path for path in _fields(node, where) if path.endswith(f".{name}")]
    hint = f"; there is --{deeper[0]}" if deeper else ""
    return unknown_name(f"field of --{where}", name, node.keys()) + hint


def _fields(node: ConfigDict, where: str) -> Iterator[str]:
    """The paths of all fields below a group."""
    for name in node:
        yield f"{where}.{name}"
        if isinstance(node[name], ConfigDict):
            yield from _fields(node[name], f"{where}.{name}")


def _converted(text: str, present: Any, path: str) -> Any:
    """The text as a value of the type that the field has."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple"}
    try:
        if isinstance(present, bool):
            return {"true": True, "false": False}[text.strip().lower()]
        if isinstance(present, int):
            try:
                return int(text)
            except ValueError:
                names = ast.literal_eval(text)  # documents by name instead of how many
                if isinstance(names, tuple) and all(isinstance(name, str) for name in names):
                    return names
                raise
        if isinstance(present, float):
            return float(text)
        if isinstance(present, tuple):
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, list | tuple) else (value,)
    except (ValueError, SyntaxError, KeyError) as error:
        kind = next(words for cls, words in kinds.items() if isinstance(present, cls))
        raise ValueError(
            f"--config.{path} must be {kind} like {present!r}, got {text!r}"
        ) from error
    if isinstance(present, ConfigDict):
        fields = ", ".join(map(str, present.keys()))
        raise ValueError(f"--config.{path} has fields of its own, set one of them: {fields}")
    return text


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """Flags written --name=value or --name value, in order; the last of a name counts."""
    found, rest = {}, list(arguments)
    while rest:
        item = rest.pop(0)
        name, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or not name:
            raise ValueError(
                f"unexpected argument {item!r}: options look like --config.FIELD=VALUE"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} needs a value: write --{name}=VALUE")
            value = rest.pop(0)
        found[name] = value
    return found


def _checked_workdir(text: str) -> Path:
    if not text:
        raise ValueError("no directory for the results: give --workdir=DIR")
    workdir = located(text)
    if is_url(workdir):
        _check_bucket(workdir)
        return workdir
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file, not a directory")
    # Found out now, not after the first hour of work.
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--workdir={workdir}: no permission to write in {there}")
    return workdir


def _check_bucket(workdir: Path) -> None:
    """Raises ValueError where a bucket cannot be written to."""
    probe = workdir / f".probe-{os.getpid()}"
    try:
        write(probe, b"")
        probe.unlink(missing_ok=True)
    except Exception as error:  # each store's client has errors of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"--workdir={workdir} cannot be written ({reason}): make the bucket, and log in with "
            "`gcloud auth application-default login` or give the machine's service account "
            "roles/storage.objectAdmin on it"
        ) from error
