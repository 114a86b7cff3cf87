"""Samples of an exact length: a beginning token, a context, a question about it, and its answer.

A task says what is asked (`Question`); `drawn` puts facts at their depths and cuts the context, so
that all samples end their question at the same token.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from longrope_jax.errors import unknown_name

CONTROLS = ("none", "removed", "other")
Encode = Callable[[str], np.ndarray]
_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo one spread depths as evenly as possible


class Tokenizer(Protocol):
    """What a task needs of a tokenizer (`data.tokenizers`)."""

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the special tokens."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [T]."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids [T]."""
        ...

    def special(self, name: str) -> int:
        """Returns the id of a special token."""
        ...


class Document(Protocol):
    """A tokenized document with its sentences (`data.documents.TokenizedDocument`)."""

    @property
    def name(self) -> str:
        """Name of the document."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Token ids of the whole text, int32 [T]."""
        ...

    @property
    def starts(self) -> np.ndarray:
        """Index in `tokens` where each sentence begins."""
        ...

    @property
    def sentences(self) -> Sequence[np.ndarray]:
        """Token ids of each sentence."""
        ...


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples are test samples of one length T.

    Attributes:
        tokens: int32 [n, T], each row BOS, context, prompt, answer and padding.
        answer: bool [n, T], true at the tokens of the answer.
        prompt_length: number of tokens before the answer, the same for every sample.
        documents: [n], name of the held-out document that each sample comes from.
        depths: float64 [n], where the answer stands in the context, from 0 (its beginning) to 1.
        wanted: the strings that a generated answer to each sample must hold.
    """

    tokens: np.ndarray
    answer: np.ndarray
    prompt_length: int
    documents: np.ndarray
    depths: np.ndarray | None = None
    wanted: tuple[tuple[str, ...], ...] = ()

    def first(self, count: int) -> "Samples":
        """Returns the first `count` samples."""
        return self.part(0, count)

    def part(self, first: int, count: int) -> "Samples":
        """Returns `count` samples from number `first` on, as many of them as there are."""
        return self._of(slice(first, first + count), slice(None), self.prompt_length)

    def last(self, length: int) -> "Samples":
        """Returns the samples cropped to their last `length` tokens, which hold every answer.

        Raises:
            ValueError: `length` does not reach back to an answer and the token before it.
        """
        left_out = self.tokens.shape[1] - length
        if not 0 <= left_out < self.prompt_length:
            answer = self.tokens.shape[1] - self.prompt_length
            raise ValueError(
                f"length must be from {answer + 1} to {self.tokens.shape[1]} tokens to hold the "
                f"answers, got {length}"
            )
        return self._of(slice(None), slice(left_out, None), self.prompt_length - left_out)

    def references(self) -> list[np.ndarray]:
        """Returns the tokens of each answer."""
        return [row[mask] for row, mask in zip(self.tokens, self.answer, strict=True)]

    def _of(self, rows: slice, at: slice, prompt_length: int) -> "Samples":
        return Samples(
            self.tokens[rows, at],
            self.answer[rows, at],
            prompt_length,
            self.documents[rows],
            None if self.depths is None else self.depths[rows],
            self.wanted[rows],
        )


class Task(Protocol):
    """A task is a frozen dataclass that draws samples and names the rule that scores answers."""

    @property
    def rule(self) -> str:
        """Name of the rule in `evaluation.scoring.RULES` that scores a generated answer."""
        ...

    def samples(
        self,
        documents: Sequence[Any],
        tokenizer: Tokenizer,
        *,
        length: int,
        count: int,
        seed: int,
        bos: str | int | None,
        control: str = "none",
        first: int = 0,
    ) -> Samples:
        """Returns `count` samples of exactly `length` tokens, spread evenly over the documents.

        Args:
            documents: held-out documents: text around the facts, or what is asked about.
            tokenizer: the tokenizer of the documents.
            length: tokens of a sample.
            count: number of samples.
            seed: seed of the draws.
            bos: name or id of the token that begins a sample, or None.
            control: "none"; "removed" leaves out what the answer stands in; "other", where a task
                has it, puts a wrong one in its place. Controls ask the same questions.
            first: number of the first sample, from which depths and documents follow.

        Raises:
            ValueError: the control is unknown, a document is too short, or `length` does not hold
                question and answer.
        """
        ...


class Fact(NamedTuple):
    """A Fact is a text to be put into the context at a depth from 0 to 1.

    Attributes:
        text: what is stated.
        depth: where, as a share of the text around it.
        needed: whether the question cannot be answered without it: control "removed" leaves it out.
        other: what control "other" states in its place; None where the task has no such control.
    """

    text: str
    depth: float
    needed: bool = True
    other: str | None = None


class Question(NamedTuple):
    """A Question is what one sample asks, before its context is filled to a length.

    Attributes:
        facts: what the context states.
        prompt: text of the question; the answer follows it.
        answer: text of the right answer.
        wanted: strings that a generated answer must hold; () is the answer without blanks around.
        opening: text that the context begins with.
        haystack: makes what surrounds the facts, as texts of at most so many tokens in all, from
            (tokens, encode, whether the answer is removed); None is the text of the document.
        depth: where the answer stands, if not where the first fact was to be put.
    """

    facts: tuple[Fact, ...]
    prompt: str
    answer: str
    wanted: tuple[str, ...] = ()
    opening: str = ""
    haystack: Callable[[int, Encode, bool], list[np.ndarray]] | None = None
    depth: float | None = None


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the tokens of `text`, or the one id of a special token of that name, int32 [T]."""
    if text in tokenizer.specials:
        return np.asarray([tokenizer.special(text)], np.int32)
    return tokenizer.encode(text)


def first_token(tokenizer: Tokenizer, bos: str | int | None) -> np.ndarray:
    """Returns the token that begins a sample, int32 [1], or [0] where there is none."""
    if isinstance(bos, str):
        bos = tokenizer.special(bos)
    return np.asarray([] if bos is None else [bos], np.int32)


def check_control(control: str, known: Sequence[str] = CONTROLS) -> None:
    """Refuses a control that a task does not have.

    Raises:
        ValueError: it is unknown.
    """
    if control not in known:
        raise ValueError(unknown_name("control", control, known))


def even_depth(i: int) -> float:
    """Depth from 0 to 1 of sample `i`: any number of first samples covers the context evenly."""
    return i * _GOLDEN % 1


def drawn(
    draw: Callable[[np.random.Generator, int, float], tuple[str, np.ndarray, Question]],
    tokenizer: Tokenizer,
    *,
    length: int,
    count: int,
    seed: int,
    bos: str | int | None,
    control: str = "none",
    first: int = 0,
) -> Samples:
    """Returns samples of the questions that `draw` draws, see `Task.samples`.

    Args:
        draw: gives the name of a document, its tokens from some place on and a question about it,
            from a generator, the number of the sample and its depth.
        tokenizer, length, count, seed, bos, control, first: see `Task.samples`.

    Raises:
        ValueError: as `Task.samples`.
    """
    check_control(control)
    rng = np.random.default_rng(seed)
    found = [draw(rng, i, even_depth(i)) for i in range(first, first + count)]
    longest = max(len(tokenizer.encode(asked.answer)) for _, _, asked in found)
    begin, rows, stated = first_token(tokenizer, bos), [], 0
    for i, (name, text, asked) in enumerate(found, first):
        prompt, answer = tokenizer.encode(asked.prompt), tokenizer.encode(asked.answer)
        room = length - longest - len(begin) - len(prompt)
        context, least = _context(asked, text, tokenizer, room, control)
        wanted = asked.wanted or (asked.answer.strip(),)
        depth = even_depth(i) if asked.depth is None else asked.depth
        rows.append(Row(np.concatenate([begin, context]), prompt, answer, name, depth, wanted))
        stated = max(stated, len(begin) + least)
    return assemble(rows, longest, length, stated)


class AboutText:
    """AboutText is a task whose questions need no text of their own: any text surrounds its facts.

    A subclass is a frozen dataclass with `ask(length, rng, depth)` and `rule`.
    """

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws the question of one sample of `length` tokens, its fact at a depth from 0 to 1."""
        raise NotImplementedError

    def samples(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        *,
        length: int,
        count: int,
        seed: int,
        bos: str | int | None,
        control: str = "none",
        first: int = 0,
    ) -> Samples:
        """Returns samples whose facts are spread evenly over depths, see `Task.samples`.

        Raises:
            ValueError: as `Task.samples`.
        """
        return drawn(
            about_text(functools.partial(self.ask, length), documents, length),
            tokenizer,
            length=length,
            count=count,
            seed=seed,
            bos=bos,
            control=control,
            first=first,
        )


def about_text(
    ask: Callable[[np.random.Generator, float], Question],
    documents: Sequence[Document],
    length: int,
) -> Callable[[np.random.Generator, int, float], tuple[str, np.ndarray, Question]]:
    """Returns what `drawn` takes: questions that need no text of their own, in these documents.

    The text begins at a random sentence with `length` tokens from it on.

    Raises:
        ValueError: a document is shorter.
    """

    def draw(rng: np.random.Generator, i: int, depth: float):
        document = documents[i % len(documents)]
        start, _ = draw_sentence(document, rng, room=length)
        return document.name, document.tokens[start:], ask(rng, depth)

    return draw


def _context(asked: Question, text, tokenizer: Tokenizer, room: int, control: str):
    """The context of `room` tokens, and the least tokens that hold what it states."""
    encode_text = tokenizer.encode
    opening, facts = encode_text(asked.opening), []
    for fact in asked.facts:
        said = fact.text
        if fact.needed and control != "none":
            if control == "other" and fact.other is None:
                raise ValueError("this task has no control 'other': take control 'removed'")
            said = (fact.other or "") if control == "other" else ""
        facts.append((fact.depth, encode_text(said)))
    least = len(opening) + sum(len(tokens) for _, tokens in facts)
    left = max(room - least, 0)
    if asked.haystack is None:
        front, units = text[:0], text[:left]  # facts may stand between any two tokens
    else:
        units = asked.haystack(left, encode_text, control != "none")
        front = text[: left - sum(map(len, units))]  # what no further line fits into
    pieces, done = [front, opening], 0
    places = ((round(len(units) * depth), tokens) for depth, tokens in facts)
    for at, tokens in sorted(places, key=lambda place: place[0]):
        pieces += [*_whole(units[done:at]), tokens]
        done = at
    return np.concatenate([*pieces, *_whole(units[done:])]).astype(np.int32), least


def _whole(units: np.ndarray | list[np.ndarray]) -> list[np.ndarray]:
    return [units] if isinstance(units, np.ndarray) else units


def draw_sentence(document: Document, rng: np.random.Generator, *, room: int):
    """Draws a sentence with at least `room` tokens of text from its start on.

    Returns:
        The index of its first token, and its tokens.

    Raises:
        ValueError: the document is too short.
    """
    fits = np.searchsorted(document.starts, len(document.tokens) - room, side="right")
    if not fits:
        raise ValueError(f"{document.name} is shorter than a sample of {room} tokens")
    i = int(rng.integers(fits))
    return int(document.starts[i]), document.sentences[i]


def until_full(lines: Iterator[str], room: int, encode: Encode) -> list[np.ndarray]:
    """Returns the tokens of each line, as many lines as fit into `room` tokens."""
    found: list[np.ndarray] = []
    for line in lines:
        tokens = encode(line)
        room -= len(tokens)
        if room < 0:
            break
        found.append(tokens)
    return found


class Row(NamedTuple):
    """A Row is one sample before its context is cut to a length."""

    context: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    document: str
    depth: float
    wanted: tuple[str, ...]


def assemble(rows: Sequence[Row], longest: int, length: int, stated: int) -> Samples:
    """Cuts contexts to the room that prompt and longest answer leave, at least `stated` tokens.

    Raises:
        ValueError: there is less room.
    """
    prompt_length = length - longest
    room = prompt_length - max(len(row.prompt) for row in rows)
    if room < stated:
        raise ValueError(
            f"length={length} tokens do not hold a question and its answer: take at least "
            f"{length + stated - room}"
        )
    tokens = np.zeros((len(rows), length), np.int32)
    answer = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        context = row.context[: prompt_length - len(row.prompt)]
        ids = np.concatenate([context, row.prompt, row.answer])
        tokens[i, : len(ids)] = ids
        answer[i, prompt_length : len(ids)] = True
    return Samples(
        tokens,
        answer,
        prompt_length,
        np.asarray([row.document for row in rows]),
        np.asarray([row.depth for row in rows], float),
        tuple(row.wanted for row in rows),
    )
