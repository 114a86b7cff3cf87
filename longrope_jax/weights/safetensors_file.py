"""safetensors files are read and written without memory-mapping.

A file is 8 bytes of header length, a JSON header and raw little-endian tensors (README of
huggingface/safetensors). The package safetensors maps files, and has no bfloat16 without torch.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from longrope_jax.weights.files import file_size, parse_json, read_at

HEADER_BYTES = 32 << 20  # room for 100,000 tensors; a parsed header takes ten times the memory
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES |= {name: dtype.itemsize for name, dtype in DTYPES.items()}


class SafetensorsSource:
    """A SafetensorsSource reads the tensors of one or more safetensors files.

    Raises:
        ValueError: a file is damaged, or two files hold the same tensor.
    """

    def __init__(self, where: str, files: Iterable[Path]):
        self.where, self.shapes, self.kinds, self._at = where, {}, {}, {}
        for path in files:
            for name, (kind, shape, offset) in read_header(path).items():
                if name in self.shapes:
                    raise ValueError(
                        f"{where}: tensor {name!r} is in {self._at[name][0].name} and in {path}"
                    )
                self.shapes[name], self.kinds[name] = shape, kind
                self._at[name] = path, offset

    def rename(self, name: str, other: str) -> None:
        """Shows a tensor under another name from now on."""
        for table in (self.shapes, self.kinds, self._at):
            table[other] = table.pop(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop` of a tensor, in the file's dtype.

        Raises:
            ValueError: the dtype is not a float type, or the file is truncated.
        """
        if self.kinds[name] not in DTYPES:
            raise ValueError(
                f"{self.where}: {name} has dtype {self.kinds[name]}, expected a float type"
            )
        dtype, (path, offset) = DTYPES[self.kinds[name]], self._at[name]
        shape = (stop - start, *self.shapes[name][1:])
        row = math.prod(shape[1:]) * dtype.itemsize
        data = read_at(path, offset + start * row, (stop - start) * row)
        return np.frombuffer(data, dtype).reshape(shape)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Returns dtype name, shape and absolute offset of each tensor.

    Raises:
        ValueError: the file is damaged, or its tensors do not fill it exactly, without overlaps.
    """
    size = file_size(path)
    if size < 8:
        raise ValueError(f"{path} is truncated: it has {size} bytes, a header needs at least 8")
    (length,) = struct.unpack("<Q", read_at(path, 0, 8))
    if length > min(size - 8, HEADER_BYTES):
        raise ValueError(
            f"{path} is truncated or wrong: it claims a header of {length} bytes, but has {size}"
        )
    header = parse_json(bytes(read_at(path, 8, length)), str(path))
    header.pop("__metadata__", None)
    found = {name: _entry(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, first, last) in sorted(found.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise ValueError(f"{path}: {name!r} starts at byte {first}, expected {end}")
        end = last
    if 8 + length + end != size:
        raise ValueError(f"{path} has {size} bytes, but its tensors end at {8 + length + end}")
    return {name: (kind, shape, 8 + length + at) for name, (kind, shape, at, _) in found.items()}


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Returns (dtype name, shape, first, last) of one header entry.

    Raises:
        ValueError: one of them is malformed, or the offsets do not fit shape and dtype.
    """
    entry = entry if isinstance(entry, dict) else {}
    kind: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    span: Any = entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _BYTES:
        raise ValueError(f"{path}: {name!r} has dtype {kind!r}, expected one of {sorted(_BYTES)}")
    for what, value in (("shape", shape), ("data_offsets", span)):
        if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
            raise ValueError(f"{path}: {name!r} has {what} {str(value)[:60]}, expected sizes")
    if len(span) != 2 or len(shape) > 8 or max(shape, default=0) >= 2**48:
        raise ValueError(f"{path}: {name!r} has an impossible shape or impossible offsets")
    if span[1] - span[0] != math.prod(shape) * _BYTES[kind]:
        raise ValueError(f"{path}: {name!r} of {kind} {shape} does not fill its offsets {span}")
    return kind, tuple(shape), span[0], span[1]


def write(
    path: Path,
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes a safetensors file, tensor by tensor.

    Args:
        path: the file to write.
        tensors: shape and dtype of each tensor by name, in the order of the file.
        read: returns a tensor by name; it is called once for each, in order.

    Raises:
        ValueError: `read` returns another shape or dtype than planned.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        first, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": (first, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, dtype) in tensors.items():
            tensor = np.ascontiguousarray(read(name))
            if tensor.shape != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype}{tensor.shape}, but {dtype}{shape} was planned"
                )
            file.write(tensor.view(np.uint8).data)
