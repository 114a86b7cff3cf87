"""Cells: one result file each, named by everything that decides its numbers, made once.

A study lists its cells and gives one function per kind of cell. `complete` runs what is missing, in
order; a file is written whole or not at all, so a study that was killed goes on with the cell it
was at. Training and measuring are different cells: another evaluation setting has another name, and
the trained cells it stands on keep theirs.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import re
import secrets
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments.lab import processes
from experiments.lab.files import plain, write
from experiments.lab.machine import Machine
from experiments.lab.progress import Progress
from experiments.lab.versions import versions
from longrope_jax import hosts
from longrope_jax.folders import located, only_writer, sweep
from longrope_jax.rotary import registry
from longrope_jax.training.loop import Diverged

_RECORD = "record"
# Significant digits of a float in a cell's name: powers and roots differ between processors in the
# last two of 17.
_DIGITS = 12
_MOST_BYTES = 2**32  # of a result file, which may come from elsewhere, when it is unpacked
# What zipfile, zlib and numpy raise for changed bytes.
_DAMAGED = (
    ValueError,
    OSError,
    KeyError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One result file of a study; two cells are equal if they are the same file.

    Attributes:
        kind: what is done, such as "train" or "loss"; it chooses the function that does it.
        row: label in the tables; part of the file's name, not of its fingerprint.
        seed: of what is drawn at random.
        what: every value that decides the numbers, and nothing else: texts, numbers, methods,
            dataclasses, mappings and tuples of them.
        after: the cells that this one starts from. They are part of its identity, and are made
            only if this cell is missing.
    """

    kind: str
    row: str
    seed: int = 0
    what: tuple = ()
    after: tuple["Cell", ...] = ()

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is taken of, as JSON has it."""
        after = [cell.identity for cell in self.after]
        return {"kind": self.kind, "seed": self.seed, "what": _canonical(self.what), "after": after}

    @functools.cached_property
    def name(self) -> str:
        """Name of its file and of its run's folder, such as "loss-yarn-seed0-1f3a9c20"."""
        text = json.dumps(self.identity, sort_keys=True)
        mark = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{_slug(self.kind)}-{_slug(self.row)}-seed{self.seed}-{mark}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def path(folder: Path, cell: Cell) -> Path:
    """The result file of a cell."""
    return located(folder) / "cells" / f"{cell.name}.npz"


def run_folder(folder: Path, cell: Cell) -> Path:
    """Returns the folder in which a cell that trains or searches keeps checkpoints and logs."""
    return located(folder) / "runs" / cell.name


def read(folder: Path, cell: Cell) -> dict[str, np.ndarray] | None:
    """The arrays of a finished cell, or None.

    Raises:
        ValueError: the file is damaged.
    """
    arrays = _load(path(folder, cell))
    return arrays and {name: array for name, array in arrays.items() if name != _RECORD}


def needed(folder: Path, cell: Cell) -> dict[str, np.ndarray]:
    """The arrays of a cell without which there is nothing to show.

    Raises:
        ValueError: the cell is not finished, or its file is damaged.
    """
    arrays = read(folder, cell)
    if arrays is None:
        raise ValueError(
            f"{folder} has no {cell.name} to show: leave out --config.machine.measure=False"
        )
    return arrays


def record(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What stands beside a finished cell's numbers: `identity`, `machine`, `versions`, `seconds`.

    Raises:
        ValueError: the file is damaged.
    """
    arrays = _load(path(folder, cell))
    return arrays and json.loads(str(arrays[_RECORD]))


def _load(file: Path) -> dict[str, np.ndarray] | None:
    if not file.is_file():
        return None
    try:
        data = io.BytesIO(file.read_bytes())
        with zipfile.ZipFile(data) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes")
        data.seek(0)
        with np.load(data) as saved:
            return {name: saved[name] for name in saved.files}
    except _DAMAGED as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it, and the same command makes it again"
        ) from error


def complete(
    folder: Path,
    cells: Iterable[Cell],
    functions: Mapping[str, Callable[[Cell], Mapping[str, Any]]],
    machine: Machine,
) -> None:
    """Makes the cells that are missing, in order, and what they stand on before them.

    Args:
        folder: of the study.
        cells: all that the study's tables need, each once; a later beginning is a smaller study.
        functions: by kind of cell; each takes a cell and gives its arrays.
        machine: kept beside the numbers; with `measure=False` nothing is made.

    Raises:
        ValueError: a kind without a function, no cell at all where none may be made, another
            process that writes in the folder, or what a function raises; of a training that
            diverged with the row's name.
    """
    cells = list(dict.fromkeys(cells))
    left = missing(folder, cells)
    if not machine.measure and not any(path(folder, cell).is_file() for cell in cells):
        raise ValueError(f"{folder} has no cell to show: leave out --config.machine.measure=False")
    for cell in left:
        if cell.kind not in functions:
            raise ValueError(f"no function makes cells of the kind {cell.kind!r}")
    if not machine.measure:
        return
    processes.check(machine)
    _agree(folder, left)
    if jax.process_index() == 0:
        sweep(folder)
    if not left:
        return
    work = processes.shares(left, machine.processes)
    make = functools.partial(_make, functions, folder, machine)
    writer = only_writer(folder) if jax.process_index() == 0 else contextlib.nullcontext()
    with writer, Progress(len(left)) as progress:
        seconds, to_do = _seconds_by_kind(folder, cells), dict.fromkeys(left)

        def started(lane: int, cell: Cell) -> None:
            expected = _left(list(to_do), seconds)
            progress.start(_title(cell), expected and expected / len(work), lane)

        def ended(cell: Cell, taken: float) -> None:
            del to_do[cell]
            seconds.setdefault(cell.kind, []).append(taken)

        if len(work) > 1:
            processes.side_by_side(work, make, started, ended)
            return
        for cell in left:
            started(0, cell)
            ended(cell, make(cell))


def _make(functions: Mapping[str, Callable], folder: Path, machine: Machine, cell: Cell) -> float:
    """Makes a cell's file and returns the seconds it took."""
    began = time.monotonic()
    try:
        arrays = functions[cell.kind](cell)
    except Diverged as error:
        raise ValueError(f"{_title(cell)}: {error}") from error
    taken = time.monotonic() - began
    if jax.process_index() == 0:
        _save(path(folder, cell), cell, arrays, machine, taken)
    if jax.process_count() > 1:
        # Another host may read this cell next.
        multihost_utils.sync_global_devices(cell.name)
    return taken


def _agree(folder: Path, left: Sequence[Cell]) -> None:
    """Refuses hosts that would do different work, or do not see the same folder."""
    if not hosts.several():
        return
    mark = located(folder) / ".shared"
    if jax.process_index() == 0:
        write(mark, secrets.token_hex(8).encode())
    names = hashlib.sha256("\n".join(cell.name for cell in left).encode()).hexdigest()
    hosts.agree({"cells to make": f"{len(left)} ({names[:8]})", **versions()})
    seen = mark.read_text() if mark.is_file() else "no folder that host 0 writes"
    hosts.agree({f"in {folder}": seen})


def missing(folder: Path, cells: Iterable[Cell]) -> list[Cell]:
    """The cells without a file, each behind the missing ones that it starts from."""
    found: dict[Cell, None] = {}

    def visit(cell: Cell) -> None:
        if cell in found or path(folder, cell).is_file():
            return
        for before in cell.after:
            visit(before)
        found[cell] = None

    for cell in cells:
        visit(cell)
    return list(found)


def measured_by(folder: Path, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Versions and machine of the finished cells: each combination once, with its `cells`.

    Results may join cells of several machines, whose numbers differ by rounding.
    """
    groups: dict[str, dict[str, Any]] = {}
    for cell in dict.fromkeys(cells):
        found = record(folder, cell)
        if found:
            made = {"versions": found["versions"], "machine": found["machine"]}
            key = json.dumps(made, sort_keys=True)
            group = groups.setdefault(key, made | {"cells": 0, "seconds": 0.0})
            group["cells"] += 1
            group["seconds"] += found["seconds"] or 0.0  # of cells of long ago it is not known
    return list(groups.values())


def _save(file: Path, cell: Cell, arrays: Mapping[str, Any], machine: Machine, taken: float):
    known = {
        "identity": cell.identity,
        "machine": dataclasses.asdict(machine),
        "versions": versions(),
        "seconds": round(taken, 3),
    }
    small = {name: _small(np.asarray(value)) for name, value in arrays.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **small, **{_RECORD: np.asarray(json.dumps(plain(known)))})
    write(file, buffer.getvalue())


def _small(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _seconds_by_kind(folder: Path, cells: Sequence[Cell]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}
    for cell in cells:
        found = record(folder, cell)
        if found and found["seconds"]:
            seconds.setdefault(cell.kind, []).append(found["seconds"])
    return seconds


def _left(cells: Sequence[Cell], seconds: Mapping[str, Sequence[float]]) -> float | None:
    """Seconds to go if each cell takes as long as those of its kind did; None without any."""
    if any(cell.kind not in seconds for cell in cells):
        return None
    return sum(float(np.mean(seconds[cell.kind])) for cell in cells)


def _title(cell: Cell) -> str:
    return f"{cell.kind}: {cell.row}, seed {cell.seed}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def _canonical(value: Any) -> Any:
    """A value as JSON: the same text for the same meaning, in every version of Python.

    A field that stands at its default is left out, so that a new option with a neutral default
    renames no finished cell; a default, once published, therefore never changes its meaning. Floats
    have 12 digits, so that a cell has one name on all machines.
    """
    if callable(getattr(value, "frequencies", None)):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return [registry.name_of(value), _canonical(fields)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, _canonical(_changed_fields(value))]
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        value = float(f"{value:.{_DIGITS}g}")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a cell's `what` holds {value!r}, a {type(value).__name__}: it has no name")


def _changed_fields(value: Any) -> dict[str, Any]:
    changed = {}
    for field in dataclasses.fields(value):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        present = getattr(value, field.name)
        if type(present) is not type(default) or present != default:
            changed[field.name] = present
    return changed
