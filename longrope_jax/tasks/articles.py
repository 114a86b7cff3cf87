"""Questions about real documents: RULER's question answering, and Giraffe's FFQA and AltQA.

They read articles with questions (`data.questions.load`), of which the answers stand in the text.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longrope_jax.errors import unknown_name
from longrope_jax.tasks import vocabulary
from longrope_jax.tasks.samples import (
    Encode,
    Fact,
    Question,
    Samples,
    Tokenizer,
    check_control,
    drawn,
)

# Where the answer stands, as shares of the context (Giraffe, 2308.10882, section on WikiQA).
PLACES = {"any": (0.0, 1.0), "first": (0.0, 0.1), "bulk": (0.1, 0.9), "last": (0.9, 1.0)}
_NO_TEXT = np.zeros(0, np.int32)
_FREE, _NUMERIC = 5, 2  # the most words of a short answer, and of one with a number
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?")


class Asked(NamedTuple):
    """A question about an article, its right answers, and the character where the first stands."""

    question: str
    answers: tuple[str, ...]
    start: int


@dataclass(frozen=True)
class Article:
    """A document with questions whose answers stand in it.

    Attributes:
        name: unique name.
        text: the whole text, its paragraphs separated by empty lines.
        questions: what is asked about it.

    Raises:
        ValueError: the text does not hold a first answer where its question says.
    """

    name: str
    text: str
    questions: tuple[Asked, ...]

    def __post_init__(self):
        for asked in self.questions:
            if not asked.answers or not self.text.startswith(asked.answers[0], asked.start):
                raise ValueError(
                    f"{self.name}: {asked.question!r} has no answer that stands at character "
                    f"{asked.start} of the text, got {asked.answers[:1]}"
                )


@dataclass(frozen=True)
class ArticleQA:
    """The task asks about a whole article, cut to the length (Giraffe's FFQA and AltQA).

    The text is cut around the place where the answer stands, so that it stands at the depth that is
    asked for. With `altered` the answers are up to two words with a number, which is replaced
    wherever it stands: years (1000 to 2100) by one of the ten before or after, others by a number
    of as many digits, that the text does not hold. What the model knows by heart is then wrong.
    Source: Giraffe (2308.10882), whose own sets were built from Natural Questions.

    Attributes:
        altered: whether numbers are asked for and altered (AltQA), else any answer of up to five
            words (FFQA).
        place: where the answer stands: "first" and "last" tenth, "bulk" between, or "any".

    Raises:
        ValueError: the place is unknown.
    """

    altered: bool = False
    place: str = "any"

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "presence"

    def __post_init__(self):
        if self.place not in PLACES:
            raise ValueError(unknown_name("place", self.place, PLACES))

    def samples(
        self,
        documents: Sequence[Article],
        tokenizer: Tokenizer,
        *,
        length: int,
        count: int,
        seed: int,
        bos: str | int | None,
        control: str = "none",
        first: int = 0,
    ) -> Samples:
        """Returns samples, see `Task.samples`; control "removed" deletes the answer everywhere.

        Raises:
            ValueError: as `Task.samples`, or no article holds such an answer at a wanted depth.
        """
        check_control(control, ("none", "removed"))
        found = [
            (article, asked, at, size)
            for article in documents
            for asked in self._questions(article)
            for at, size in [_place(article, asked, tokenizer)]
        ]
        if not found:
            kind = "number for an answer" if self.altered else "short answer"
            raise ValueError(f"none of {len(documents)} articles has a question with a {kind}")

        def draw(rng: np.random.Generator, i: int, depth: float):
            del i
            low, high = PLACES[self.place]
            depth = low + (high - low) * depth
            before, after = depth * length, (1 - depth) * length
            fits = [x for x in found if before <= x[2] and x[2] + after <= x[3]]
            if not fits:
                longest = max(size for *_, size in found)
                raise ValueError(
                    f"no article holds an answer at depth {depth:.2f} of {length} tokens, the "
                    f"longest has {longest}: take a smaller length or another place"
                )
            article, asked, *_ = fits[int(rng.integers(len(fits)))]
            return article.name, _NO_TEXT, self._ask(rng, article, asked, depth, length)

        return drawn(
            draw,
            tokenizer,
            length=length,
            count=count,
            seed=seed,
            bos=bos,
            control=control,
            first=first,
        )

    def _questions(self, article: Article) -> list[Asked]:
        if not self.altered:
            return [q for q in article.questions if len(q.answers[0].split()) <= _FREE]
        found = []
        for asked in article.questions:
            numbers = _NUMBER.findall(asked.answers[0])
            told = set(numbers) & set(_NUMBER.findall(asked.question))
            if numbers and not told and len(asked.answers[0].split()) <= _NUMERIC:
                found.append(asked)
        return found

    def _ask(self, rng, article: Article, asked: Asked, depth: float, length: int) -> Question:
        text, answers = article.text, asked.answers
        if self.altered:
            text, answer = altered(rng, text, answers[0])
            answers = (answer,)

        def haystack(room: int, encode: Encode, removed: bool) -> list[np.ndarray]:
            # An altered number has as many characters, so that the answer keeps its place.
            whole, before = text, text[: asked.start]
            if removed:
                whole, before = _without(whole, answers), _without(before, answers)
            every, at, size = encode(whole), len(encode(before)), len(encode(answers[0]))
            if room < 2 * size:
                raise ValueError(
                    f"length={length} tokens do not hold a question and its answer: take a greater "
                    "one"
                )
            begin = min(max(at - round(depth * (room - size)), 0), max(len(every) - room, 0))
            return [every[begin : begin + room]]

        return Question(
            (),
            f"\n\nQuestion: {asked.question}\nAnswer:",
            f" {answers[0]}",
            answers,
            haystack=haystack,
            depth=depth,
        )


def altered(rng: np.random.Generator, text: str, answer: str) -> tuple[str, str]:
    """The text and its answer, with the numbers of the answer replaced wherever they stand.

    Raises:
        ValueError: the text holds every number that could stand for one.
    """
    known = frozenset(_NUMBER.findall(text))
    new = {n: altered_number(rng, n, known) for n in dict.fromkeys(_NUMBER.findall(answer))}

    def replaced(found: re.Match[str]) -> str:
        return new.get(found[0], found[0])  # a longer number that holds it stays as it is

    return _NUMBER.sub(replaced, text), _NUMBER.sub(replaced, answer)


def altered_number(rng: np.random.Generator, number: str, known: frozenset[str]) -> str:
    """Returns another number in the place of one: a year by up to 10, others of as many digits.

    Args:
        rng: generator of the draw.
        number: digits, with or without commas between thousands and a decimal point.
        known: numbers that it must not be, as they stand in the text.

    Raises:
        ValueError: every such number is known.
    """
    if re.fullmatch(r"\d{4}", number) and 1000 <= int(number) <= 2100:
        near = range(max(int(number) - 10, 1000), min(int(number) + 10, 2100) + 1)
        choices = [str(year) for year in near]
    else:
        digits = rng.integers(0, 10, (200, len(number)))
        if len(number) > 1 and number[0] != "0":
            digits[:, 0] = rng.integers(1, 10, 200)
        choices = ["".join(map(_digit_like, number, row)) for row in digits.tolist()]
    choices = [x for x in choices if x != number and x not in known]
    if not choices:
        raise ValueError(f"the text holds every number that could stand for {number}")
    return choices[int(rng.integers(len(choices)))]


def _digit_like(character: str, digit: int) -> str:
    return str(digit) if character.isdigit() else character


def _without(text: str, answers: Sequence[str]) -> str:
    for answer in answers:
        text = re.sub(re.escape(answer), "", text, flags=re.IGNORECASE)
    return text


def _place(article: Article, asked: Asked, tokenizer: Tokenizer) -> tuple[int, int]:
    """Token at which the answer begins, nearly, and tokens of the article."""
    size = len(_encoded(tokenizer, article.text))
    return round(size * asked.start / max(len(article.text), 1)), size


@functools.lru_cache(maxsize=512)
def _encoded(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode(text)


@dataclass(frozen=True)
class ParagraphQA:
    """The task asks about one of many paragraphs (RULER's question answering on SQuAD).

    The paragraph with the answer stands at the sample's depth, among others of all articles that
    do not hold the answer. The last other one is cut to fill the length.
    Peers: RULER numbers its documents; here they are not numbered, so that any length in tokens can
    be made. lm-evaluation-harness averages over the right answers, RULER and this take the best.
    """

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_part"

    def samples(
        self,
        documents: Sequence[Article],
        tokenizer: Tokenizer,
        *,
        length: int,
        count: int,
        seed: int,
        bos: str | int | None,
        control: str = "none",
        first: int = 0,
    ) -> Samples:
        """Returns samples, see `Task.samples`; there is no control "other".

        Raises:
            ValueError: as `Task.samples`, or the articles do not fill the length.
        """
        check_control(control, ("none", "removed"))
        paragraphs = [p for article in documents for p in article.text.split("\n\n")]

        def draw(rng: np.random.Generator, i: int, depth: float):
            article = documents[i % len(documents)]
            asked = article.questions[int(rng.integers(len(article.questions)))]
            return article.name, _NO_TEXT, self._ask(rng, article, asked, depth, paragraphs)

        return drawn(
            draw,
            tokenizer,
            length=length,
            count=count,
            seed=seed,
            bos=bos,
            control=control,
            first=first,
        )

    def _ask(self, rng, article: Article, asked: Asked, depth: float, paragraphs) -> Question:
        before, after = article.text[: asked.start], article.text[asked.start :]
        gold = before.rpartition("\n\n")[2] + after.partition("\n\n")[0]
        seed = vocabulary.child(rng)

        def haystack(room: int, encode: Encode, removed: bool) -> list[np.ndarray]:
            others, left = [], room
            for number in np.random.default_rng(seed).permutation(len(paragraphs)).tolist():
                if any(answer.lower() in paragraphs[number].lower() for answer in asked.answers):
                    continue
                others.append(encode(_document(paragraphs[number]))[:left])
                left -= len(others[-1])
                if not left:
                    return others
            raise ValueError(f"the articles do not fill {room} tokens: take a smaller length")

        return Question(
            (Fact(_document(gold), depth),),
            f"Answer the question based on the given documents.\n\nQuestion: {asked.question}\n"
            "Answer:",
            f" {asked.answers[0]}",
            asked.answers,
            opening="Answer the question based on the given documents. The following are given "
            "documents.\n\n",
            haystack=haystack,
        )


def _document(paragraph: str) -> str:
    return f"Document:\n{paragraph}\n\n"
