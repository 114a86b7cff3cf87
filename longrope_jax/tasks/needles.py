"""Needles: facts with a key that a long text states, and is asked for (RULER; NoLiMa)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope_jax.errors import unknown_name
from longrope_jax.tasks import vocabulary
from longrope_jax.tasks.samples import (
    AboutText,
    Encode,
    Fact,
    Question,
    until_full,
)

HAYSTACKS = ("text", "noise", "needles")
KINDS = ("words", "numbers", "uuids")
NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)


@dataclass(frozen=True)
class Needles(AboutText):
    """The task asks for the values of keys, RULER's needles in a haystack (2404.06654, Table 2).

    The first value asked for stands at the sample's depth, all others at random ones.
    Peers: RULER puts needles between sentences, here they may stand between any two words, on lines
    of their own; its essays are here the text of the documents.

    Attributes:
        keys: how many keys the text states, beside what the haystack says.
        values: values of each key that is asked for.
        queries: how many keys are asked for.
        haystack: "text" of the documents, "noise" that repeats five sentences, or "needles" with
            other keys.
        key: what keys are: "words", "numbers" or "uuids".
        value: what values are.

    Raises:
        ValueError: a number is below 1, more is asked than stated, or a name is unknown.
    """

    keys: int = 1
    values: int = 1
    queries: int = 1
    haystack: str = "text"
    key: str = "words"
    value: str = "numbers"

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def __post_init__(self):
        if not 1 <= self.queries <= self.keys or self.values < 1:
            raise ValueError(
                f"queries must be from 1 to keys={self.keys} and values at least 1, got "
                f"queries={self.queries}, values={self.values}"
            )
        for what, given, known in (
            ("haystack", self.haystack, HAYSTACKS),
            ("kind of key", self.key, KINDS),
            ("kind of value", self.value, KINDS),
        ):
            if given not in known:
                raise ValueError(unknown_name(what, given, known))

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del length
        taken: set[str] = set()

        def new(kind: str, rng: np.random.Generator = rng) -> str:
            found = vocabulary.other_than(lambda: _draw(kind, rng), taken)
            taken.add(found)
            return found

        keys = [new(self.key) for _ in range(self.keys)]
        facts, wanted = [], []
        for i, key in enumerate(keys):
            asked = i < self.queries
            for _ in range(self.values if asked else 1):
                value, wrong = new(self.value), new(self.value)
                at = depth if not facts else float(rng.random())
                said, other = self._fact(key, value), self._fact(key, wrong)
                facts.append(Fact(said, at, asked, other))
                wanted += [value] * asked
        seed, known = vocabulary.child(rng), frozenset(taken)

        def distractors(own: np.random.Generator):
            while True:
                pair = (
                    vocabulary.other_than(lambda kind=kind: _draw(kind, own), known)
                    for kind in (self.key, self.value)
                )
                yield self._fact(*pair)

        def haystack(room: int, encode: Encode, _: bool) -> list[np.ndarray]:
            own = np.random.default_rng(seed)
            lines = distractors(own) if self.haystack == "needles" else iter(lambda: NOISE, "")
            return until_full(lines, room, encode)

        what, of = f"special magic {self.value}", _listed(keys[: self.queries])
        return Question(
            tuple(facts),
            f"\nWhat are all the {what} for {of} mentioned in the provided text? The {what} for "
            f"{of} mentioned in the provided text are",
            f" {_listed(wanted)}",
            tuple(wanted),
            opening=f"\nSome {what} are hidden within the following text. Make sure to memorize "
            f"it. I will quiz you about the {self.value} afterwards.\n",
            haystack=None if self.haystack == "text" else haystack,
        )

    def _fact(self, key: str, value: str) -> str:
        begin = "\n" if self.haystack == "text" else ""
        return f"{begin}One of the special magic {self.value} for {key} is: {value}.\n"


def _draw(kind: str, rng: np.random.Generator) -> str:
    if kind == "numbers":
        return str(rng.integers(10**6, 10**7))
    if kind == "uuids":
        return vocabulary.uuid(rng)
    return f"{rng.choice(vocabulary.ADJECTIVES)}-{rng.choice(vocabulary.NOUNS)}"


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


# What a text says of somebody, and how the same is asked for without a word of it.
ASSOCIATIONS = (
    ("keeps bees behind the house", "sells honey"),
    ("lives next to the Eiffel Tower", "is at home in Paris"),
    ("repairs violins for a living", "could mend a broken musical instrument"),
    ("never eats meat or fish", "is a vegetarian"),
    ("drives a lorry through the night", "works as a trucker"),
    ("was bitten by a cobra", "met a venomous snake"),
    ("trains for the marathon every morning", "runs long distances"),
    ("speaks with patients at the surgery", "is a doctor"),
    ("grew up beside the pyramids of Giza", "had a childhood in Egypt"),
    ("lost both parents very young", "is an orphan"),
    ("counts the votes of the town", "helps with elections"),
    ("sleeps in a tent all summer", "goes camping"),
    ("has two sisters born the same day", "belongs to a family with twins"),
    ("sits in a wheelchair", "cannot climb stairs"),
    ("writes verses by candlelight", "is a poet"),
    ("milks forty cows before breakfast", "owns a dairy farm"),
)


@dataclass(frozen=True)
class Association(AboutText):
    """The task asks for a person by what follows from the text, without a word that it has.

    The needle and its question share no word but articles and the like, so that matching words
    finds nothing; the statements are our own.
    Source: NoLiMa (2502.05167) for the idea.

    Attributes:
        others: statements about other people in the text.

    Raises:
        ValueError: `others` is not from 0 to 15.
    """

    others: int = 3

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def __post_init__(self):
        if not 0 <= self.others < len(ASSOCIATIONS):
            raise ValueError(f"others must be from 0 to {len(ASSOCIATIONS) - 1}, got {self.others}")

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del length
        (said, asked), *rest = (
            ASSOCIATIONS[i] for i in rng.permutation(len(ASSOCIATIONS))[: self.others + 1]
        )
        names = [vocabulary.NAMES[i] for i in rng.permutation(len(vocabulary.NAMES))]
        name, wrong, *others = names
        facts = [Fact(_said(name, said), depth, other=_said(wrong, said))]
        for person, (statement, _) in zip(others, rest, strict=False):
            facts.append(Fact(_said(person, statement), float(rng.random()), False))
        prompt = f"\nQuestion: Which person {asked}?\nAnswer: The person who {asked} is"
        return Question(tuple(facts), prompt, f" {name}")


def _said(name: str, what: str) -> str:
    return f"\n{name} {what}.\n"
