"""The text of a study: documents to train on and documents held out, checked all at once."""

import dataclasses
import functools
import hashlib
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.lab.cells import Cell, read
from experiments.lab.files import write
from longrope_jax import hosts
from longrope_jax.data import (
    bpe,
    corpora,
    documents,
    streams,
    token_cache,
    tokenization,
    tokenizers,
)
from longrope_jax.data.corpora import Document
from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.data.instructions import Pair
from longrope_jax.data.token_cache import TokenCache
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.errors import unknown_name
from longrope_jax.folders import fetched, located

SPECIALS = ("<retrieve>", "<answer_end>")  # of a tokenizer that is trained here, beside <s>, </s>

_BPE = "bpe:"
_MOST_NAMED = 8  # problems that one message spells out
_MOST_HELD_OUT = 40  # documents, where the config leaves their number open


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Documents as tokens, split into those trained on and those never trained on.

    Attributes:
        tokenizer: that made the tokens.
        bos: name of the token that begins every window.
        training: documents to train on.
        held_out: documents never trained on.
        notes: which documents were left out, and why, in words.
        cache: tokens on disk to train on, in place of `training`.
        without: hashes of the cache's texts that are held out.
        pairs: questions that were written about documents of `training`.
    """

    tokenizer: Tokenizer
    bos: str
    training: tuple[TokenizedDocument, ...]
    held_out: tuple[TokenizedDocument, ...]
    notes: tuple[str, ...] = ()
    cache: TokenCache | None = None
    without: frozenset[int] = frozenset()
    pairs: tuple[Pair, ...] = ()

    def digest(self) -> str:
        """What tells this text from another one: the hash of names and tokens."""
        mark = hashlib.sha256()
        for document in (*self.training, None, *self.held_out):
            if document is not None:
                mark.update(document.name.encode())
                mark.update(np.ascontiguousarray(document.tokens).data)
            mark.update(b"\0")
        return mark.hexdigest()[:16]

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
        settings: `corpus` (a name, a path, or a folder that `longrope tokenize` wrote, which is
            read where it lies), `held_out` (how many documents, chosen by the hash of
            their names, or their names; 0 is a quarter of those that hold their windows, 2 to 40),
            `sentence_tokens` (least and greatest tokens of a sentence that a window may begin at;
            () takes any text, and windows that begin anywhere).
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
    if token_cache.is_cache(settings.corpus):
        return _cached(settings, tokenizer, bos, length * windows)
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        by_name = {document.name: document for document in corpora.load(settings.corpus)}
    tokens_of = functools.cache(
        lambda name: _tokenized(by_name[name], tokenizer, settings.sentence_tokens)
    )
    candidates, count = _candidates(settings, by_name)
    problems: dict[str, str] = {}
    held_out = None
    # Which sentences are unseen depends on the choice, so a refusal there means another choice.
    while held_out is None:
        usable = _usable(candidates, problems, tokens_of, count, length, windows)
        wanted = count or min(max(-(-len(usable) // 4), 2), _MOST_HELD_OUT)
        names = usable[:wanted]
        if len(names) < wanted:
            raise ValueError(_too_few(settings, len(names), wanted, problems))
        whole = "\n".join(d.text for d in by_name.values() if d.name not in names)
        kept = [tokens_of(name) for name in by_name if name in names]
        held_out = _unseen(kept, whole, tokenizer, problems, length, windows) if unseen else kept
    training, notes = _training(by_name, names, tokens_of)
    notes = [*(str(warning.message) for warning in left_out), *notes]
    if problems and (count or len(held_out) < _MOST_HELD_OUT):
        notes.append(f"{len(problems)} of {len(by_name)} not held out: {_listed(problems)}")
    if not training:
        raise ValueError(
            f"no document of {settings.corpus} is left to train on: {'; '.join(notes)}. Give more "
            "documents, or widen --config.sentence_tokens"
        )
    for note in notes:
        print(f"text: {note}", flush=True)
    return Text(tokenizer, bos, tuple(training), tuple(held_out), tuple(notes))


def tokenizer(spec: str, corpus: str, folder: Path) -> Tokenizer:
    """The tokenizer that a config names: what `tokenizers.load` takes, or "bpe:PIECES".

    The latter is a sentencepiece BPE of that many pieces, digits one by one, trained on the whole
    corpus and kept as FOLDER/tokenizer-PIECES.model. The same corpus gives the same file.

    Raises:
        ValueError: no such tokenizer, no number of pieces, or what the training refuses.
    """
    if not spec.startswith(_BPE):
        return tokenizers.load(spec)
    pieces = spec.removeprefix(_BPE)
    if not pieces.isdecimal():
        raise ValueError(f"a tokenizer to train is {_BPE}PIECES, such as {_BPE}2048, got {spec!r}")
    file = located(folder) / f"tokenizer-{pieces}.model"

    def make() -> None:
        if not file.exists():
            texts = [document.text for document in corpora.load(corpus)]
            write(file, bpe.learn(texts, vocab_size=int(pieces), specials=SPECIALS))

    hosts.made_once(make, lambda: None)
    return tokenizers.load(fetched(file))


def check_held_out(folder: Path, cells: Iterable[Cell], text: Text) -> None:
    """Refuses to measure a finished run on a document that it was trained on.

    A number in `--config.held_out` chooses among the documents that hold their windows, so longer
    or more windows may choose others, while the runs that are trained already keep their names.

    Raises:
        ValueError: such documents, named.
    """
    for cell in cells:
        arrays = read(folder, cell) or {}
        kept = set(np.asarray(arrays.get("held_out", ())).tolist())
        trained_on = [one.name for one in text.held_out if kept and one.name not in kept]
        if trained_on:
            raise ValueError(
                f"{cell.name} was trained on {', '.join(trained_on)}, which this evaluation would "
                "measure it on: take the windows that its held-out documents "
                f"({', '.join(sorted(kept))}) hold, or train anew with the documents' names in "
                "--config.held_out"
            )
        check_held_out(folder, cell.after, text)


@functools.cache
def document(
    name: str, tokenizer: Tokenizer, sentence_tokens: tuple[int, int]
) -> TokenizedDocument:
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
    made = _tokenized(known[wanted], tokenizer, sentence_tokens)
    if isinstance(made, str):
        raise ValueError(made)
    return made


def on_disk(text: Text, folder: Path) -> Text:
    """The text with its training documents in a token cache, FOLDER/tokens, for a `blend`.

    Of several hosts the first writes it.
    """
    tokens, where = (document.tokens for document in text.training), Path(folder) / "tokens"
    cache = hosts.made_once(
        lambda: tokenization.from_tokens(tokens, where, text.tokenizer),
        lambda: token_cache.open_cache(where, text.tokenizer),
    )
    return dataclasses.replace(text, cache=cache)


def _tokenized(
    document: Document, tokenizer: Tokenizer, sentence_tokens: Sequence[int]
) -> TokenizedDocument | str:
    """The document as tokens, or why it cannot be used."""
    if not sentence_tokens:
        return documents.plain_document(document.name, tokenizer.encode(document.text))
    low, high = sentence_tokens
    try:
        return documents.tokenize_document(document, tokenizer, min_tokens=low, max_tokens=high)
    except ValueError as error:
        return str(error)


def _cached(settings: ConfigDict, tokenizer: Tokenizer, bos: str, least: int) -> Text:
    """Text that is trained on from a token cache; documents held out have `least` tokens or more.

    Raises:
        ValueError: names of documents, which a cache does not keep, or too few long documents.
    """
    if not isinstance(settings.held_out, int):
        raise ValueError(
            f"--config.held_out={settings.held_out}: {settings.corpus} keeps no names of "
            "documents, give their number"
        )
    cache = token_cache.open_cache(settings.corpus, tokenizer)
    found, hashes = streams.held_out(
        cache, count=settings.held_out or _MOST_HELD_OUT, least=least + 1
    )
    held_out, plain = [], 0
    for mark, tokens in found:
        name = f"{mark:016x}"
        made = _tokenized(
            Document(name, tokenizer.decode(tokens)), tokenizer, settings.sentence_tokens
        )
        if isinstance(made, str) or _lacks(made, least, 1):
            made, plain = documents.plain_document(name, tokens), plain + 1
        held_out.append(made)
    notes = [
        f"{cache.folder}: {cache.tokens:,} tokens of {cache.documents:,} documents; held out are "
        f"the {len(found)} of {least:,} tokens or more whose texts have the smallest hashes; "
        "passages that they share with other documents are not looked for"
    ]
    if plain and settings.sentence_tokens:
        notes.append(
            f"{plain} of them have no sentence where a window could begin: it begins anywhere"
        )
    for note in notes:
        print(f"text: {note}", flush=True)
    return Text(tokenizer, bos, (), tuple(held_out), tuple(notes), cache, hashes)


def _candidates(settings: ConfigDict, by_name: dict[str, Document]) -> tuple[list[str], int]:
    """Documents that may be held out, in order, and how many are; 0 leaves that open."""
    if isinstance(settings.held_out, int):
        if not 0 <= settings.held_out < len(by_name):
            raise ValueError(
                f"--config.held_out={settings.held_out} of the {len(by_name)} documents of "
                f"{settings.corpus} leaves none to train on or none to measure on: hold out 1 to "
                f"{len(by_name) - 1}"
            )
        return corpora.held_out_order(by_name), settings.held_out
    for name in settings.held_out:
        if name not in by_name:
            raise ValueError(unknown_name(f"document of {settings.corpus}", name, by_name))
    return list(settings.held_out), len(settings.held_out)


def _usable(candidates, problems, tokens_of, count: int, length: int, windows: int) -> list[str]:
    """The first `count` candidates that hold their windows (0: all); notes what others lack."""
    names: list[str] = []
    for name in candidates:
        if (not count or len(names) < count) and name not in problems:
            found = tokens_of(name)
            wrong = found if isinstance(found, str) else _lacks(found, length, windows)
            if wrong:
                problems[name] = wrong
            else:
                names.append(name)
    return names


def _lacks(document: TokenizedDocument, length: int, windows: int) -> str:
    """Why the document does not hold its windows; empty if it does."""
    try:
        documents.window_starts(document, length=length, count=windows)
    except ValueError as error:
        return str(error)
    return ""


def _unseen(held_out, training_text: str, tokenizer, problems, length, windows):
    """The held-out documents with only sentences that training never sees; None after a refusal."""
    found, before = [], len(problems)
    for document in held_out:
        try:
            found.append(documents.unseen(document, training_text, tokenizer))
        except ValueError as error:
            problems[document.name] = str(error)
            continue
        if wrong := _lacks(found[-1], length, windows):
            problems[document.name] = f"{wrong} (sentences that occur in training are left out)"
    return found if len(problems) == before else None


def _training(by_name, held_out, tokens_of) -> tuple[list[TokenizedDocument], list[str]]:
    """Documents to train on, and notes on those that cannot be."""
    texts = {by_name[name].text.strip() for name in held_out}
    kept, doubles, unusable = [], [], {}
    for name, document in by_name.items():
        if name in held_out:
            continue
        found = tokens_of(name)
        if document.text.strip() in texts:
            doubles.append(name)
        elif isinstance(found, str):
            unusable[name] = found
        else:
            kept.append(found)
    notes = []
    if doubles:
        names = textwrap.shorten(", ".join(doubles), 200, placeholder=" ...")
        notes.append(f"{len(doubles)} not trained on, since their text is held out: {names}")
    if unusable:
        notes.append(f"{len(unusable)} not trained on: {_listed(unusable)}")
    return kept, notes


def _too_few(settings: ConfigDict, found: int, count: int, problems: dict[str, str]) -> str:
    return (
        f"{found} documents of {settings.corpus} can be held out, {count} are needed "
        f"(--config.held_out): {_listed(problems)}. Hold out fewer, ask for shorter or fewer "
        "windows, widen --config.sentence_tokens, or give longer documents"
    )


def _listed(problems: dict[str, str]) -> str:
    shown = list(problems.values())[:_MOST_NAMED]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
