"""Reading files from strangers: bounded, nothing executed, every error one ValueError line."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

TEXT_BYTES = 32 << 20


class TensorSource(Protocol):
    """The tensors of a checkpoint: matrices are [out, in], read in slices of their first axis."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor, in the file's float type or dequantised."""
        ...


def read_at(path: Path, offset: int, size: int) -> bytearray:
    """`size` bytes from `offset`; read, not mapped, so a file that shrinks can't kill us."""
    try:
        # Checked before the buffer is made, so a lie about the size costs no memory.
        if offset + size > path.stat().st_size:
            raise ValueError(f"{path} is truncated: it ends before byte {offset + size}")
        data = bytearray(size)
        with path.open("rb") as file:
            file.seek(offset)
            count = file.readinto(data)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if count != size:
        raise ValueError(f"{path} is truncated: {count} of {size} bytes at {offset}")
    return data


def file_size(path: Path) -> int:
    """Bytes of a regular file. Raises ValueError for anything else."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; is the checkpoint whole?")
    return os.stat(path).st_size


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object with no key twice and no NaN. Raises ValueError that begins with `where`."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice[:100]!r} is there twice")
        return found

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(found).__name__}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most TEXT_BYTES. Raises ValueError."""
    return parse_json(_small(path), str(path))


def read_text(path: Path) -> str:
    """The UTF-8 text in a file of at most TEXT_BYTES. Raises ValueError."""
    try:
        return _small(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error


def _small(path: Path) -> bytes:
    size = file_size(path)
    if size > TEXT_BYTES:
        raise ValueError(f"{path}: {size} bytes; the limit is {TEXT_BYTES}")
    return bytes(read_at(path, 0, size))


def whole(values: dict, key: str, where: str, default: Any = ...) -> int:
    """A whole number from 1 to 2^31 - 1 under `key`. Raises ValueError."""
    value = values.get(key)
    if value is None:
        if default is ...:
            raise ValueError(f"{where} has no {key}")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{where}: {key} must be a whole number above 0, got {_brief(value)}")
    return value


def number(values: dict, key: str, where: str, default: Any = ...) -> float:
    """A finite number above 0 under `key`. Raises ValueError."""
    value = values.get(key)
    if value is None:
        if default is ...:
            raise ValueError(f"{where} has no {key}")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise ValueError(f"{where}: {key} must be a number above 0, got {_brief(value)}")
    return float(value)


def check_shape(source: TensorSource, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the checkpoint has the tensor, of this shape."""
    if name not in source.shapes:
        raise ValueError(f"{source.where} has no tensor {name!r}")
    if source.shapes[name] != shape:
        found = list(source.shapes[name])
        raise ValueError(f"{source.where}: {name} is {found}, the config wants {list(shape)}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
