"""A corpus of any size is read as parts, each a stream of documents that one process reads alone.

| file                            | documents                                   | parts           |
|---------------------------------|---------------------------------------------|-----------------|
| `.jsonl`                        | one a line, its text in the field "text"    | ranges of bytes |
| `.jsonl.gz`, `.json.gz`, `.zst` | the same: what datatrove and Dolma write    | one a file      |
| `.parquet`                      | one a row, its text in the column "text"    | one a file      |
| `.txt`, `.md` or suffixes given | one a file                                  | groups of files |
| `.safetensors`                  | tokens: a tensor [n] or each row of [m, n]  | one a file      |

A part is known by the hash of its bytes, so that what was read once is known again wherever the
file lies. This file imports neither jax nor grain: the processes that tokenize stay small.
"""

import contextlib
import gzip
import hashlib
import importlib
import io
import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longrope_jax.folders import fetched

LINES = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
TEXT = (".txt", ".md")
_CONTAINERS = (*LINES, ".parquet", ".safetensors")
_CHUNK = 2**20  # bytes that are hashed at a time
_LONGEST = 2**28  # bytes of a line: a hostile .gz or .zst unpacks to one without end
_ROWS = 256  # of a parquet file at a time


@dataclass(frozen=True)
class Part:
    """A Part is what one process reads: whole files, or a range of the bytes of one.

    Attributes:
        kind: "lines", "parquet", "text" or "safetensors".
        files: paths; several of them only for "text".
        start, stop: bytes of the one file, whole lines; (0, 0) is all of it.
    """

    kind: str
    files: tuple[str, ...]
    start: int = 0
    stop: int = 0

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.stop - self.start or sum(Path(file).stat().st_size for file in self.files)


def parts(corpus: str | Path, *, text: Sequence[str] = TEXT, size: int) -> list[Part]:
    """Divides a corpus, in the order of its files' names.

    Args:
        corpus: a file, or a folder, which is searched with all its subfolders but hidden ones.
        text: suffixes of files that are one document each.
        size: bytes that a part of lines or of small files has at most, roughly.

    Raises:
        ValueError: there is no such path, or nothing in it can be read; the message counts what
            lies there instead.
    """
    root = fetched(corpus)
    if not root.exists():
        raise ValueError(f"no file or folder {root}: give the path of a corpus")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if _shown(root, p))
    found: list[Part] = []
    group: list[str] = []
    held = 0
    for file in files:
        if _suffix(file) in LINES:
            found += _ranges(file, size)
        elif file.suffix in (".parquet", ".safetensors"):
            found.append(Part(file.suffix[1:], (str(file),)))
        elif file.suffix in text or root.is_file():
            group.append(str(file))
            held += file.stat().st_size
            if held >= size:
                found.append(Part("text", tuple(group)))
                group, held = [], 0
    found += [Part("text", tuple(group))] if group else []
    if not found:
        there = Counter(file.suffix or "no suffix" for file in files).most_common(5)
        listed = ", ".join(f"{count:,} of {suffix}" for suffix, count in there) or "no files"
        raise ValueError(
            f"{root} has no {', '.join((*_CONTAINERS, *text))}, but {listed}: name the suffixes of "
            "files that are text, such as --text .py"
        )
    return found


def digest(part: Part) -> str:
    """Returns the sha256 of what a part holds, whatever its files are called."""
    found = hashlib.sha256(part.kind.encode())
    for file in part.files:
        size = part.size if part.stop else Path(file).stat().st_size
        found.update(size.to_bytes(8, "little"))
        with Path(file).open("rb") as stream:
            stream.seek(part.start)
            left = size
            while left and (data := stream.read(min(_CHUNK, left))):
                found.update(data)
                left -= len(data)
    return found.hexdigest()


def documents(part: Part, field: str = "text") -> Iterator[str | np.ndarray | None]:
    """Yields each document: its text with LF newlines, or its tokens; None where it is not UTF-8.

    Raises:
        ValueError: a file is damaged, or a document has no such field; with file and line.
    """
    readers = {"lines": _lines, "parquet": _parquet, "safetensors": _tensors, "text": _whole}
    for file in part.files:
        yield from readers[part.kind](Path(file), part, field)


def _shown(root: Path, file: Path) -> bool:
    hidden = any(name.startswith(".") for name in file.relative_to(root).parts)
    return not hidden and file.is_file()


def _suffix(file: Path) -> str:
    return next((suffix for suffix in LINES if file.name.endswith(suffix)), file.suffix)


def _ranges(file: Path, size: int) -> list[Part]:
    if file.suffix != ".jsonl":  # a compressed file is read from its beginning on
        return [Part("lines", (str(file),))]
    edges = [0]
    with file.open("rb") as stream:
        while edges[-1] < file.stat().st_size:
            at = edges[-1] + size - 1
            stream.seek(at)
            if len(stream.readline(_LONGEST + 1)) > _LONGEST:
                raise _endless(file, f"byte {at:,}")
            edges.append(min(stream.tell(), file.stat().st_size))
    return [Part("lines", (str(file),), a, b) for a, b in itertools.pairwise(edges)]


def _lines(file: Path, part: Part, field: str) -> Iterator[str | None]:
    with _opened(file) as stream:
        if part.start:
            stream.seek(part.start)
        number = 0
        while not part.stop or stream.tell() < part.stop:
            at = f"byte {stream.tell():,}" if part.start else f"line {number + 1:,}"
            try:
                line = stream.readline(_LONGEST + 1)
            except Exception as error:  # zlib, zstandard and gzip have exceptions of their own
                raise ValueError(f"{file} is damaged at {at}: {error}") from error
            if not line:
                return
            if len(line) > _LONGEST:
                raise _endless(file, at)
            number += 1
            if line.strip():
                yield _text(_json(line, f"{file}, {at}"), field, f"{file}, {at}")


def _endless(file: Path, at: str) -> ValueError:
    return ValueError(
        f"{file}, {at}: a line has more than {_LONGEST:,} bytes, which is no document: "
        "split it, or leave the file out"
    )


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON in UTF-8 ({error})") from error


def _text(item: Any, field: str, where: str) -> str | None:
    text, kind = item.get(field) if isinstance(item, dict) else None, type(item).__name__
    if not isinstance(text, str):
        has = textwrap.shorten(", ".join(map(str, item)), 200) if isinstance(item, dict) else kind
        raise ValueError(
            f"{where}: no string in the field {field!r}, it has {has}: name the field of the text, "
            "such as --field content"
        )
    return _lf(text)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO | Any]:
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as stream:
            yield stream
    elif file.suffix == ".zst":
        zstandard = _package("zstandard", file)
        with file.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield io.BufferedReader(stream, _CHUNK)
    else:
        with file.open("rb") as stream:
            yield stream


def _parquet(file: Path, part: Part, field: str) -> Iterator[str | None]:
    parquet = _package("pyarrow.parquet", file)
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise ValueError(
                    f"no column {field!r}, it has {', '.join(names)}: name the column of the text, "
                    "such as --field content"
                )
            for batch in table.iter_batches(batch_size=_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield _lf(str(text or ""))
    except ValueError as error:  # pyarrow's own errors are ValueErrors too
        raise ValueError(f"{file}: {error}") from error
    except OSError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _whole(file: Path, part: Part, field: str) -> Iterator[str | None]:
    try:
        yield _lf(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        yield None


def _tensors(file: Path, part: Part, field: str) -> Iterator[np.ndarray]:
    safetensors = _package("safetensors", file)
    try:
        with safetensors.safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                view = tensors.get_slice(name)
                rank = len(view.get_shape())
                if rank not in (1, 2):
                    raise ValueError(f"tensor {name!r} has {rank} axes, tokens have 1 or 2")
                rows = [view[:]] if rank == 1 else (view[i] for i in range(view.get_shape()[0]))
                for row in rows:
                    if row.dtype.kind not in "iu":
                        raise ValueError(f"tensor {name!r} is of {row.dtype}, tokens are integers")
                    yield row
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file}: {error}") from error


def _package(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "pip install 'longrope_jax[corpora]'"
        raise ValueError(f"{file} needs the package {name.split('.')[0]}: {hint}") from error


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
