"""Untrusted files are read in bounded memory, without executing anything.

Every error is a ValueError with a message of one line.
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

TEXT_BYTES = 32 << 20


class TensorSource(Protocol):
    """A TensorSource gives the tensors of a checkpoint in slices of their first axis.

    Matrices are [out, in].

    Attributes:
        where: path of the checkpoint, for messages.
        shapes: shape of each tensor by name.
        kinds: the file's name for each tensor's dtype.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop` of a tensor, in the file's float type or dequantised."""
        ...


def read_at(path: Path, offset: int, size: int) -> bytearray:
    """Reads `size` bytes from `offset`.

    The file is not memory-mapped, because a mapped file that shrinks kills the process.

    Raises:
        ValueError: the file cannot be read, or ends before `offset` + `size`.
    """
    try:
        # The check comes before the buffer, so that a false size in a header costs no memory.
        if offset + size > path.stat().st_size:
            raise ValueError(f"{path} is truncated: it ends before byte {offset + size}")
        data = bytearray(size)
        with path.open("rb") as file:
            file.seek(offset)
            count = file.readinto(data)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if count != size:
        raise ValueError(f"{path} is truncated: it has {count} of {size} bytes at {offset}")
    return data


def file_size(path: Path) -> int:
    """Returns the size of a regular file in bytes.

    Raises:
        ValueError: there is no regular file at the path.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; is the checkpoint complete?")
    return os.stat(path).st_size


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        ValueError: the data are not JSON, not an object, have a key twice, or have NaN or infinity;
            the message begins with `where`.
    """

    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice[:100]!r} occurs twice")
        return found

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(found).__name__}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        ValueError: the file is missing, larger than TEXT_BYTES, or refused by `parse_json`.
    """
    return parse_json(_small(path), str(path))


def read_text(path: Path) -> str:
    """Reads UTF-8 text from a file.

    Raises:
        ValueError: the file is missing, larger than TEXT_BYTES, or not UTF-8.
    """
    try:
        return _small(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error})") from error


def _small(path: Path) -> bytes:
    size = file_size(path)
    if size > TEXT_BYTES:
        raise ValueError(f"{path} has {size} bytes; the limit for a text file is {TEXT_BYTES}")
    return bytes(read_at(path, 0, size))


def whole(values: dict, key: str, where: str, default: Any = ...) -> int:
    """Returns the whole number from 1 to 2^31 - 1 under `key`, or `default` if there is none.

    Raises:
        ValueError: the value is anything else, or missing without a default.
    """
    value = values.get(key)
    if value is None:
        if default is ...:
            raise ValueError(f"{where} has no {key}")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{where}: {key} must be a whole number above 0, got {_brief(value)}")
    return value


def number(values: dict, key: str, where: str, default: Any = ...) -> float:
    """Returns the finite number above 0 under `key`, or `default` if there is none.

    Raises:
        ValueError: the value is anything else, or missing without a default.
    """
    value = values.get(key)
    if value is None:
        if default is ...:
            raise ValueError(f"{where} has no {key}")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise ValueError(f"{where}: {key} must be a number above 0, got {_brief(value)}")
    return float(value)


def check_shape(source: TensorSource, name: str, shape: tuple[int, ...]) -> None:
    """Checks that the checkpoint has a tensor of this name and shape.

    Raises:
        ValueError: the tensor is missing or has another shape.
    """
    if name not in source.shapes:
        raise ValueError(f"{source.where} has no tensor {name!r}")
    if source.shapes[name] != shape:
        found = list(source.shapes[name])
        raise ValueError(
            f"{source.where}: {name} has shape {found}, but the config wants {list(shape)}"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
