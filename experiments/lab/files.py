"""Result files that are whole or not there at all."""

import csv
import dataclasses
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from longrope_jax import folders


def save_json(path: Path, obj: Any) -> None:
    """Writes `obj` as JSON, whole or not at all.

    NumPy and JAX scalars and arrays, dataclasses, mappings, tuples and paths are converted; float32
    keeps its short form (0.1, not 0.10000000149); NaN and infinities become null.

    Raises:
        TypeError: something else.
    """
    text = json.dumps(plain(obj), indent=2, allow_nan=False, ensure_ascii=False)
    write(path, (text + "\n").encode())


def save_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file (UTF-8, comma, line feed), whole or not at all; None becomes empty."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([plain(value) for value in row] for row in rows)
    write(path, out.getvalue().encode())


def plain(obj: Any) -> Any:
    """`obj` as JSON can hold it, see `save_json`."""
    if obj is None or isinstance(obj, str | bool):
        return obj
    if isinstance(obj, int | float):
        number = float(obj) if isinstance(obj, float) else int(obj)
        return number if math.isfinite(number) else None
    if isinstance(obj, np.generic):
        # Through its shortest text, so that float32 0.1 does not become 0.10000000149.
        return plain(float(str(obj)) if np.issubdtype(obj.dtype, np.floating) else obj.item())
    if isinstance(obj, np.ndarray | jax.Array):
        array = np.asarray(obj)
        return plain(list(array) if array.ndim else array[()])
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if hasattr(obj, "to_dict"):
        return plain(obj.to_dict())
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [plain(item) for item in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    raise TypeError(f"cannot write {type(obj).__name__} as JSON")


def exported(path: Path, save: Callable[[Path], object]) -> None:
    """Has `save(path)` write a file or a folder, whole or not at all, unless it is there.

    What goes to a bucket is saved in a temporary folder first, and copied anew where a process was
    killed before its cell was written.
    """
    if folders.is_url(path):
        with tempfile.TemporaryDirectory() as name:
            partial = Path(name) / path.name
            save(partial)
            folders.copy(partial, path)
        return
    partial = path.with_name(f"partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.unlink(missing_ok=True)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        save(partial)
        partial.rename(path)


def write(path: Path, data: bytes) -> None:
    """Writes `data` whole or not at all; makes the folder."""
    folders.write(path, data)
