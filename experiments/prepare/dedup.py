"""What occurs twice: lines, files, books, and what is also in the held-out text."""

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from experiments.prepare.package import package
from experiments.prepare.stages import Stage, normal
from longrope_jax.data.corpora import Document


def lines() -> Stage:
    """A stage that keeps the first of equal lines among all documents (CCNet, 1911.00359).

    Lines are equal if the first 64 bits of the SHA-1 of their normal forms are. Which normal forms
    are left does not depend on the order of the documents; which document keeps one does. Blank
    lines stay, and a document that has nothing else is dropped.
    """

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        seen: set[bytes] = set()
        for document in documents:
            kept = []
            for line in document.text.split("\n"):
                key = hashlib.sha1(normal(line).encode("utf-8", "replace")).digest()[:8]
                if not line.strip() or key not in seen:
                    kept.append(line)
                if line.strip():
                    seen.add(key)
            text = "\n".join(kept)
            if text.strip():
                yield Document(document.name, text)

    return stage


def files() -> Stage:
    """A stage that keeps the first of the documents with exactly the same text."""

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        seen: set[bytes] = set()
        for document in documents:
            key = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
            if key not in seen:
                seen.add(key)
                yield document

    return stage


_WORD = re.compile(r"\w+")
_SHINGLE = 5  # words
_HASHES, _BANDS = 128, 32  # a pair whose sets are half the same is a candidate in 87 % of cases


def shingles(text: str) -> np.ndarray:
    """Hashes of all runs of 5 words of a text, lower case, each once: sorted uint64 [n]."""
    words = normal(text).split()
    runs = (" ".join(words[i : i + _SHINGLE]) for i in range(max(len(words) - _SHINGLE + 1, 1)))
    digests = b"".join(hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)
    return np.unique(np.frombuffer(digests, "<u8"))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller set of shingles that the other one holds too."""
    return len(np.intersect1d(a, b, assume_unique=True)) / max(min(len(a), len(b)), 1)


def books(most: float = 0.9, dropped: list[tuple[str, str, float]] | None = None) -> Stage:
    """A stage that drops a book which overlaps an earlier one by more than `most`.

    MinHash (package rensa) finds the candidates; whether one is dropped is decided by the exact
    overlap of its 5-word shingles. A book within another one of more than twice its length may be
    no candidate. LLaMA drops books above 90 % and does not say how they are found.

    Args:
        most: overlap that is still kept.
        dropped: takes (name, name of the earlier book, overlap) of each book that is dropped.

    Raises:
        ValueError: the package rensa is missing.
    """

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        rensa = package("rensa", "deduplication of books")
        index = rensa.RMinHashLSH(0.5, _HASHES, _BANDS)
        known: list[tuple[str, np.ndarray]] = []
        for document in documents:
            own = shingles(document.text)
            sketch = rensa.RMinHash(_HASHES, 0)
            sketch.update([value.tobytes() for value in own])
            pairs = [(overlap(own, known[i][1]), known[i][0]) for i in index.query(sketch)]
            share, other = max(pairs, default=(0.0, ""))
            if share > most:
                if dropped is not None:
                    dropped.append((document.name, other, share))
                continue
            index.insert(len(known), sketch)
            known.append((document.name, own))
            yield document

    return stage


_GRAM = 13  # words: GPT-3 (2005.14165), appendix C
_SHORTEST = 200  # characters of a piece that is kept, as there


def grams(text: str) -> Iterator[tuple[str, int, int]]:
    """Every run of 13 words of a text in lower case, and where it begins and ends."""
    words = [(m.group().lower(), *m.span()) for m in _WORD.finditer(text)]
    for i in range(len(words) - _GRAM + 1):
        run = words[i : i + _GRAM]
        yield " ".join(word for word, _, _ in run), run[0][1], run[-1][2]


def shared(documents: Iterable[Document], held_out: Iterable[Document]) -> int:
    """How many different runs of 13 words both texts have."""
    known = {gram for document in held_out for gram, _, _ in grams(document.text)}
    return len({g for d in documents for g, _, _ in grams(d.text) if g in known})


def unseen(held_out: Iterable[Document]) -> Stage:
    """A stage that cuts out every run of 13 words which the held-out text has too.

    What is left and right of a cut becomes a document of its own, so that no new run arises; pieces
    below 200 characters are dropped.
    """
    known = {gram for document in held_out for gram, _, _ in grams(document.text)}

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            cuts = [(a, b) for gram, a, b in grams(document.text) if gram in known]
            if not cuts:
                yield document
            for i, piece in enumerate(_pieces(document.text, cuts) if cuts else ()):
                yield Document(f"{document.name}#{i}", piece)

    return stage


def _pieces(text: str, cuts: list[tuple[int, int]]) -> Iterator[str]:
    at = 0
    for begin, end in [*cuts, (len(text), len(text))]:
        piece = text[at:begin].strip() if begin > at else ""
        if len(piece) >= _SHORTEST:
            yield piece
        at = max(at, end)
