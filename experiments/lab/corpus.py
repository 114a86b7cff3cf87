"""The text of a study: documents to train on and documents held out, checked all at once."""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.errors import unknown_name
from ml_collections import ConfigDict

from longrope_jax.data import corpora, documents
from longrope_jax.data.corpora import Document
from longrope_jax.data.tokenizers import Tokenizer

_MOST_NAMED = 8  # problems that one message spells out


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Documents as tokens, split into those trained on and those never trained on.

    Attributes:
        tokenizer: that made the tokens.
        bos: name of the token that begins every window.
        training: documents to train on.
        held_out: documents never trained on.
        notes: which documents were left out, and why, in words.
    """

    tokenizer: Tokenizer
    bos: str
    training: tuple[TokenizedDocument, ...]
    held_out: tuple[TokenizedDocument, ...]
    notes: tuple[str, ...] = ()

    def windows(self, length: int, per_document: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Windows of the held-out documents: tokens int32 [n, length + 1], document names [n].

        Raises:
            ValueError: a document does not hold so many windows.
        """
        bos = self.tokenizer.special(self.bos)
        return documents.validation_windows(
            self.held_out, length=length, per_document=per_document, bos=bos
        )


def text(
    settings: ConfigDict,
    tokenizer: Tokenizer,
    *,
    bos: str = "",
    length: int,
    windows: int = 1,
    unseen: bool = False,
) -> Text:
    """Loads, checks and splits a corpus; a document that cannot be used is left out and counted.

    Args:
        settings: `corpus` (a name or a path), `held_out` (how many documents, chosen by the hash of
            their names, or their names), `sentence_tokens` (least and greatest tokens of a sentence
            that a window may begin at).
        tokenizer: makes the tokens.
        bos: name of the token that begins a window; default `settings.bos`.
        length: tokens of a window that is scored.
        windows: of that length that every held-out document must hold.
        unseen: windows of held-out documents begin only at sentences that occur nowhere in the
            training text, as questions about their first sentence need.

    Raises:
        ValueError: too few documents can be used; the message names all problems and the remedy.
    """
    bos = bos or settings.bos
    tokenizer.special(bos)  # a wrong name is found now
    if not settings.corpus:
        raise ValueError("this preset needs your own text: --config.corpus=DIR")
    loaded = corpora.load(settings.corpus)
    by_name = {document.name: document for document in loaded}
    named = not isinstance(settings.held_out, int)
    if named:
        corpora.split(loaded, tuple(settings.held_out))  # names that do not exist
        candidates, count = list(settings.held_out), len(settings.held_out)
    else:
        candidates, count = corpora.held_out_order(by_name), settings.held_out
    low, high = settings.sentence_tokens
    tokenized: dict[str, TokenizedDocument | str] = {}

    def tokens_of(document: Document) -> TokenizedDocument | str:
        """The document as tokens, or why it cannot be used."""
        if document.name not in tokenized:
            try:
                tokenized[document.name] = documents.tokenize_document(
                    document, tokenizer, min_tokens=low, max_tokens=high
                )
            except ValueError as error:
                tokenized[document.name] = str(error)
        return tokenized[document.name]

    problems: dict[str, str] = {}
    while True:
        chosen = _usable(candidates, problems, by_name, tokens_of, count, length, windows)
        if len(chosen) < count or (named and problems):
            raise ValueError(_too_few(chosen, count, problems, settings))
        training = [document for name, document in by_name.items() if name not in chosen]
        held_out = [tokens_of(by_name[name]) for name in by_name if name in chosen]
        found = _without_seen(held_out, training, tokenizer, length, windows, unseen, problems)
        if found is not None:
            break
    notes = [f"{len(problems)} held out as little: {_listed(problems)}"] if problems else []
    training, more = _training(training, [by_name[name] for name in chosen], tokens_of)
    notes = [note.replace("held out as little", "not held out") for note in notes] + more
    if not training:
        raise ValueError(
            f"no document of {settings.corpus} is left to train on: {'; '.join(notes)}. Give more "
            "documents, or widen --config.sentence_tokens"
        )
    for note in notes:
        print(f"text: {note}", flush=True)
    return Text(tokenizer, bos, tuple(training), tuple(found), tuple(notes))


def document(name: str, tokenizer: Tokenizer, sentence_tokens: Sequence[int]) -> TokenizedDocument:
    """One document written CORPUS:DOCUMENT, such as plays:hamlet or DIR:a.txt, as tokens.

    Raises:
        ValueError: another form, an unknown corpus or document, or no sentence of such a length.
    """
    corpus, colon, wanted = name.rpartition(":")
    if not colon or not corpus:
        hint = f"; a file alone is {Path(name).parent}:{Path(name).name}" if "/" in name else ""
        raise ValueError(f"a document is CORPUS:DOCUMENT, e.g. plays:hamlet, got {name!r}{hint}")
    known = {d.name: d for d in corpora.load(corpus)}
    if wanted not in known:
        raise ValueError(unknown_name(f"document of {corpus}", wanted, known))
    low, high = sentence_tokens
    return documents.tokenize_document(known[wanted], tokenizer, min_tokens=low, max_tokens=high)


def _usable(candidates, problems, by_name, tokens_of, count, length, windows) -> list[str]:
    """The first `count` candidates that hold their windows; what is wrong with the others."""
    chosen: list[str] = []
    for name in candidates:
        if len(chosen) == count:
            break
        if name in problems:
            continue
        found = tokens_of(by_name[name])
        wrong = found if isinstance(found, str) else _lacks(found, length, windows)
        if wrong:
            problems[name] = wrong
        else:
            chosen.append(name)
    return chosen


def _lacks(document: TokenizedDocument, length: int, windows: int) -> str:
    try:
        documents.window_starts(document, length=length, count=windows)
    except ValueError as error:
        return str(error)
    return ""


def _without_seen(
    held_out, training, tokenizer, length, windows, unseen, problems
) -> list[TokenizedDocument] | None:
    """The held-out documents with the sentences that they may begin at; None after a refusal."""
    if not unseen:
        return held_out
    whole = "\n".join(document.text for document in training)
    found, before = [], len(problems)
    for document in held_out:
        try:
            kept = documents.unseen(document, whole, tokenizer)
        except ValueError as error:
            problems[document.name] = str(error)
            continue
        if wrong := _lacks(kept, length, windows):
            problems[document.name] = f"{wrong} (sentences that also occur in training left out)"
        found.append(kept)
    return found if len(problems) == before else None


def _training(training, held_out, tokens_of) -> tuple[list[TokenizedDocument], list[str]]:
    """Documents to train on, and notes on those that cannot be."""
    texts = {document.text.strip() for document in held_out}
    kept, doubles, unusable = [], [], {}
    for document in training:
        found = tokens_of(document)
        if document.text.strip() in texts:
            doubles.append(document.name)
        elif isinstance(found, str):
            unusable[document.name] = found
        else:
            kept.append(found)
    notes = []
    if doubles:
        notes.append(f"{len(doubles)} not trained on, their text is held out: {_names(doubles)}")
    if unusable:
        notes.append(f"{len(unusable)} not trained on: {_listed(unusable)}")
    return kept, notes


def _too_few(chosen, count: int, problems: dict[str, str], settings: ConfigDict) -> str:
    return (
        f"{settings.corpus} has {len(chosen)} documents that can be held out, "
        f"--config.held_out asks for {count}: {_listed(problems) or 'there are no more'}. Hold out "
        "fewer, ask for shorter or fewer windows, widen --config.sentence_tokens, or give longer "
        "documents"
    )


def _listed(problems: dict[str, str]) -> str:
    shown = list(problems.values())[:_MOST_NAMED]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _names(names: list[str]) -> str:
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")
