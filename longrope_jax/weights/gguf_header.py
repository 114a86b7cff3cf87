"""The header of a GGUF file is read with every count and length checked against the file's size.

The reader of the package `gguf` trusts these numbers: a file of 100 bytes that claims 2^40 entries
exhausts the memory. Only the package's tables of types and its dequantisation are used.
Format: docs/gguf.md of ggml, versions 2 and 3, little-endian.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longrope_jax.weights.files import file_size

HEADER_BYTES = 64 << 20  # a vocabulary of 262,000 tokens with its merges is about 20 MB
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"}
_SCALARS |= {10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY, _FLOAT32, _BOOL = 8, 9, 6, 7


class TensorInfo(NamedTuple):
    """A TensorInfo is a tensor's ggml type number, shape [rows, columns] and offset in the file."""

    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """A Header holds the metadata of a file by key and what is known of its tensors by name.

    Metadata values are numbers, strings, numpy arrays and lists of strings.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Cursor:
    """A cursor reads a file forward and refuses counts that the file cannot hold."""

    def __init__(self, path: Path):
        self.path, self.size, self.at = path, file_size(path), 0
        self.file = path.open("rb")

    def take(self, count: int) -> bytes:
        if count > min(self.size, HEADER_BYTES) - self.at:
            reason = f"its header needs {count} bytes at {self.at} of {self.size}"
            raise ValueError(f"{self.path} is truncated or damaged: {reason}")
        self.at += count
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError(f"{self.path} is truncated at byte {self.at}")
        return data

    def unpack(self, form: str):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def count(self, least: int) -> int:
        """Reads a number of entries of at least `least` bytes each."""
        count = self.unpack("Q")
        if count * least > min(self.size, HEADER_BYTES) - self.at:
            raise ValueError(f"{self.path} is damaged: {count} entries at {self.at} of {self.size}")
        return count

    def string(self) -> str:
        data = self.take(self.count(1))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} is damaged: the string before byte {self.at} is not UTF-8"
            ) from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            value = np.frombuffer(self.take(dtype.itemsize), dtype)[0]
            # The shortest decimal of this float32 is the intended number: 1e-05, not
            # 9.999999747378752e-06.
            return float(str(value)) if kind == _FLOAT32 else value.item()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.unpack("I"))
        raise ValueError(f"{self.path} is damaged: unknown value type {kind} at {self.at}")

    def array(self, kind: int) -> Any:
        if kind == _STRING:
            return [self.string() for _ in range(self.count(8))]
        if kind not in _SCALARS:
            raise ValueError(
                f"{self.path} is damaged or has nested arrays: array of type {kind} at {self.at}"
            )
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(self.count(dtype.itemsize) * dtype.itemsize), dtype)


def read_header(path: Path) -> Header:
    """Reads the header of a GGUF file.

    Raises:
        ValueError: the file is not GGUF version 2 or 3, is damaged or truncated, or its tensors
            overlap.
    """
    cursor = _Cursor(path)
    with cursor.file:
        if cursor.take(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not begin with GGUF")
        version = cursor.unpack("I")
        if version not in (2, 3):
            raise ValueError(f"{path}: GGUF version {version} is not supported, only 2 and 3 are")
        tensor_count, value_count = cursor.count(24), cursor.count(13)
        metadata = {}
        for _ in range(value_count):
            key = _new(cursor, metadata)
            metadata[key] = cursor.value(cursor.unpack("I"))
        raw = {}
        for _ in range(tensor_count):
            name = _new(cursor, raw)
            raw[name] = _tensor_info(cursor)
        return Header(metadata, _placed(cursor, raw, metadata.get("general.alignment", 32)))


def _new(cursor: _Cursor, seen: dict) -> str:
    name = cursor.string()
    if name in seen:
        raise ValueError(f"{cursor.path}: the name {name[:100]!r} occurs twice")
    return name


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    dims = cursor.unpack("I")
    if not 1 <= dims <= 4:
        raise ValueError(f"{cursor.path} is damaged: a tensor of {dims} dimensions at {cursor.at}")
    shape = tuple(cursor.unpack("Q") for _ in range(dims))
    return TensorInfo(cursor.unpack("I"), shape[::-1], cursor.unpack("Q"))


def _placed(cursor: _Cursor, raw: dict, alignment: Any) -> dict[str, TensorInfo]:
    """Returns tensors with absolute offsets, once none overlaps another or leaves the file."""
    path = cursor.path
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(
            f"{path}: general.alignment must be a power of two, got {str(alignment)[:40]}"
        )
    start = -(-cursor.at // alignment) * alignment
    end, placed = start, {}
    for name, info in sorted(raw.items(), key=lambda item: item[1].offset):
        first = start + info.offset
        if first < end or first % alignment:
            raise ValueError(f"{path}: tensor {name[:100]!r} overlaps another or is not aligned")
        end = first + byte_count(path, name, info)
        if end > cursor.size:
            raise ValueError(
                f"{path} is truncated: {name[:100]!r} ends at {end}, the file at {cursor.size}"
            )
        placed[name] = info._replace(offset=first)
    return placed


def byte_count(path: Path, name: str, info: TensorInfo) -> int:
    """Returns the size of a tensor in bytes.

    Raises:
        ValueError: the type is unknown, or rows are not whole blocks.
    """
    block, size = block_size(path, name, info.kind)
    values = math.prod(info.shape)
    if not 0 < values < 2**48 or info.shape[-1] % block:
        raise ValueError(f"{path}: tensor {name[:100]!r} has a damaged shape {list(info.shape)}")
    return values // block * size


def block_size(path: Path, name: str, kind: int) -> tuple[int, int]:
    """Returns (values, bytes) of a block of this ggml type.

    Raises:
        ValueError: the type is unknown.
    """
    import gguf

    try:
        return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: tensor {name[:100]!r} has unknown type {kind}") from error
