"""Documents are tokenized together with the sentences at which a passage can begin."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope_jax.data.corpora import Document
from longrope_jax.data.tokenizers import Tokenizer

_SENTENCE = re.compile(r"(?<![^\s'\"(])[^\W\d_][^.!?]*[.!?]+(?=\s|$)")
# Marks of Chinese, Japanese, Hindi, Arabic, Urdu, Armenian, Ethiopic, Burmese and Khmer, which no
# blank need follow; text with any of them is cut at all marks.
_MARKS = "。！？｡।॥؟۔։።၊။។"
_OTHER_SENTENCE = re.compile(rf"[^\W\d_][^.!?{_MARKS}]*(?:[{_MARKS}]+|[.!?]+(?=\s|$))[」』”’）]*")
_LINE = re.compile(r"[^\W\d_][^\n]*")
_EVERY = 16  # tokens between two beginnings in text without sentences


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """A TokenizedDocument is a document as tokens, with its sentences.

    Attributes:
        name: name of the document.
        tokens: int32 [n], tokens of the whole text.
        starts: int32 [m], index in `tokens` where each sentence begins.
        sentences: the tokens of each sentence, m arrays of int32.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    sentences: tuple[np.ndarray, ...]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Returns (start, end) of each sentence, in characters.

    A sentence begins with a letter, ends with ., ! or ?, or with the mark of another script, and
    lies within one paragraph. A first line in capitals, such as the speaker in a play, belongs to
    no sentence.
    """
    spans = []
    sentence = _OTHER_SENTENCE if any(mark in text for mark in _MARKS) else _SENTENCE
    for paragraph in re.finditer(r"(?:[^\n]|\n(?!\s*\n))+", text):
        begin = paragraph.start()
        head = re.match(r"\s*[^a-z\n]+\n", paragraph.group())
        begin += head.end() if head else 0
        spans += [m.span() for m in sentence.finditer(text, begin, paragraph.end())]
    return spans


def tokenize_document(
    document: Document, tokenizer: Tokenizer, *, min_tokens: int, max_tokens: int
) -> TokenizedDocument:
    """Tokenizes a document and keeps the sentences of min_tokens to max_tokens tokens.

    The text is tokenized once; the tokens of a sentence are those that share a character with it.
    Where there is no such sentence, as in source code, lines serve instead, each from its first
    letter on.

    Raises:
        ValueError: the document has neither a sentence nor a line of such a length.
    """
    text = document.text
    tokens, spans = tokenizer.encode(text), tokenizer.spans(text)
    for found in (sentence_spans(text), [line.span() for line in _LINE.finditer(text)]):
        edges = np.asarray(found, int).reshape(-1, 2)
        begin = np.searchsorted(spans[:, 1], edges[:, 0], side="right")
        end = np.searchsorted(spans[:, 0], edges[:, 1], side="left")
        kept = (end - begin >= min_tokens) & (end - begin <= max_tokens)
        if kept.any():
            break
    else:
        raise ValueError(
            f"{document.name} has no sentence or line of {min_tokens} to {max_tokens} tokens, at "
            "which a training window could begin; plain_document takes any text"
        )
    sentences = tuple(tokens[i:j] for i, j in zip(begin[kept], end[kept], strict=True))
    return TokenizedDocument(document.name, tokens, begin[kept].astype(np.int32), sentences)


def plain_document(name: str, tokens: np.ndarray) -> TokenizedDocument:
    """Returns a document of any text, in which windows may begin anywhere, at every 16th token.

    It has no sentences, so none of them can be asked for.
    """
    starts = np.arange(0, len(tokens), _EVERY, dtype=np.int32)
    none = np.zeros(0, np.int32)
    return TokenizedDocument(name, np.asarray(tokens, np.int32), starts, (none,) * len(starts))


def unseen(
    candidates: TokenizedDocument, training_text: str, tokenizer: Tokenizer
) -> TokenizedDocument:
    """Returns the document without those sentences that occur in `training_text`.

    Raises:
        ValueError: no sentence is left.
    """
    texts = [tokenizer.decode(sentence) for sentence in candidates.sentences]
    maybe = _may_hold(training_text, texts)
    keep = [i for i, text in enumerate(texts) if not (maybe[i] and text in training_text)]
    if not keep:
        raise ValueError(f"every sentence of {candidates.name} occurs in the training text")
    return TokenizedDocument(
        candidates.name,
        candidates.tokens,
        candidates.starts[keep],
        tuple(candidates.sentences[i] for i in keep),
    )


def _may_hold(text: str, parts: Sequence[str]) -> np.ndarray:
    """Whether the text may hold each part from the beginning of a word on, bool [n].

    A search through a long text takes milliseconds, so most parts are ruled out by the hashes of
    their beginnings; what is left must be searched for.
    """
    known, found = _beginnings(text), np.ones(len(parts), bool)
    for i, part in enumerate(parts):
        data = part.encode("utf-8", "surrogatepass")
        if len(data) >= 16 and data[:1].isalpha():
            (own,) = _hashes(data, np.zeros(1, int))
            at = np.searchsorted(known, own)
            found[i] = at < len(known) and known[at] == own
    return found


@functools.lru_cache(maxsize=1)
def _beginnings(text: str) -> np.ndarray:
    """Sorted hashes of the 16 bytes from the beginning of each word on."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) < 16:
        return np.zeros(0, np.uint64)
    raw = np.frombuffer(data, np.uint8)
    letter = ((raw | 32) >= ord("a")) & ((raw | 32) <= ord("z"))
    starts = np.flatnonzero(letter & ~np.append(False, letter[:-1]))
    return np.unique(_hashes(data, starts[starts <= len(data) - 16]))


def _hashes(data: bytes, starts: np.ndarray) -> np.ndarray:
    """A hash of the 16 bytes from each start on, uint64 [n]."""
    words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    return words[starts] * np.uint64(0x9E3779B97F4A7C15) ^ words[starts + 8]


def window_starts(document: TokenizedDocument, *, length: int, count: int) -> np.ndarray:
    """Returns where `count` windows of `length` tokens begin, int [count], without overlaps.

    Each window begins at a sentence: at the first one of each of `count` equal parts of the
    document if every window fits into its part, else at the earliest sentences that leave room.

    Raises:
        ValueError: the document holds fewer such windows.
    """
    n, starts = len(document.tokens), document.starts
    room = n // count
    parts = np.arange(count) * room
    even = starts[np.minimum(np.searchsorted(starts, parts), len(starts) - 1)]
    if ((even >= parts) & (even + length <= np.minimum(parts + room, n))).all():
        return even
    packed: list[int] = []
    for start in starts.tolist():
        if start + length <= n and (not packed or start >= packed[-1] + length):
            packed.append(start)
    if len(packed) < count:
        raise ValueError(
            f"{document.name} has {n:,} tokens and {len(starts)} sentences that a window may begin "
            f"at: it holds {len(packed)} windows of {length:,} tokens, not {count}"
        )
    return np.asarray(packed[:count])


def validation_windows(
    documents: Sequence[TokenizedDocument], *, length: int, per_document: int, bos: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns validation windows int32 [n, length + 1] and their document names [n].

    Each window is the id `bos` and plain text from the beginning of a sentence on. Windows of one
    document do not overlap.

    Raises:
        ValueError: a document is too short for `per_document` windows.
    """
    rows, names = [], []
    for document in documents:
        for start in window_starts(document, length=length, count=per_document):
            rows.append(np.concatenate([[bos], document.tokens[start : start + length]]))
            names.append(document.name)
    return np.stack(rows).astype(np.int32), np.asarray(names)
