"""RULER's aggregation: the commonest words of a list, and of a coded text (2404.06654)."""

import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import zeta

from longrope_jax.tasks import vocabulary
from longrope_jax.tasks.samples import (
    AboutText,
    Encode,
    Fact,
    Question,
    until_full,
)

_SHORT = 4096  # tokens below which RULER repeats words less often


@dataclass(frozen=True)
class CommonWords(AboutText):
    """The task asks for the commonest words of a list that fills the context (RULER's CWE).

    As in RULER, 10 words come 30 times and others 3 times; below 4,096 tokens 6 times and once.
    Peers: RULER numbers its words and shows a solved list first; here words are not numbered, so
    that a list of any length in tokens can be made, and no list is shown.

    Attributes:
        common: how many words are common.

    Raises:
        ValueError: `common` is below 1.
    """

    common: int = 10

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def __post_init__(self):
        if self.common < 1:
            raise ValueError(f"common must be at least 1, got {self.common}")

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del depth  # a common word is everywhere
        often, seldom = (6, 1) if length < _SHORT else (30, 3)
        common = list(itertools.islice(vocabulary.word_keys(rng), self.common))
        places = rng.random((self.common, often)).tolist()
        facts = (
            Fact(f"{word}\n", at) for word, own in zip(common, places, strict=True) for at in own
        )
        seed = vocabulary.child(rng)

        def haystack(room: int, encode: Encode, _: bool) -> list[np.ndarray]:
            words = _others(np.random.default_rng(seed), seldom, frozenset(common))
            return until_full(words, room, encode)

        return Question(
            tuple(facts),
            f"Question: What are the {self.common} most common words in the above list? Answer: "
            f"The top {self.common} words that appear most often in the list are:",
            f" {', '.join(common)}",
            tuple(common),
            opening="\nBelow is a list of words. In these words, some appear more often than "
            "others. Memorize the ones that appear most often.\n",
            haystack=haystack,
            depth=0.5,
        )


def _others(rng: np.random.Generator, times: int, common: frozenset[str]) -> Iterator[str]:
    """Yields uncommon words, each so many times, in groups of 24 that are shuffled."""
    keys = (key for key in vocabulary.word_keys(rng) if key not in common)
    while group := [key for key, _ in zip(keys, range(24), strict=False)]:
        yield from (f"{word}\n" for word in rng.permutation(group * times).tolist())


@dataclass(frozen=True)
class FrequentWords(AboutText):
    """The task asks for the three most frequent words of a coded text (RULER's FWE).

    Words of six letters come as often as Zipf's law says; the most frequent one is shown as "..."
    and does not count.

    Attributes:
        alpha: exponent of Zipf's law.

    Raises:
        ValueError: `alpha` is not above 1.
    """

    alpha: float = 2.0

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def __post_init__(self):
        if not self.alpha > 1:
            raise ValueError(f"alpha must be above 1, got {self.alpha}")

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del depth
        found: dict[str, None] = {}
        while len(found) < max(length // 50, 8):
            found[vocabulary.letters(rng, 6, string.ascii_lowercase)] = None
        words, seed = ["...", *found], vocabulary.child(rng)

        def haystack(room: int, encode: Encode, removed: bool) -> list[np.ndarray]:
            shown = [word for i, word in enumerate(words) if not (removed and 1 <= i <= 3)]
            pieces = [encode(f" {word}") for word in shown]
            sizes = np.array([len(piece) for piece in pieces])
            total = _largest(lambda n: int(sizes @ _counts(n, len(shown), self.alpha)), room)
            counts = _counts(total, len(shown), self.alpha)
            if counts[3] <= counts[4]:
                raise ValueError(
                    f"length={length} tokens do not hold a text in which three words come more "
                    "often than all others: take a greater one"
                )
            order = np.random.default_rng(seed).permutation(np.repeat(range(len(shown)), counts))
            return [pieces[i] for i in order]

        answers = tuple(words[1:4])
        return Question(
            (),
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are "
            "the three most frequently appeared words in the above coded text? Answer: According "
            "to the coded text above, the three most frequently appeared words are:",
            f" {', '.join(answers)}",
            answers,
            opening="\nRead the following coded text and track the frequency of each coded word. "
            "Find the three most frequently appeared coded words.",
            haystack=haystack,
            depth=0.5,
        )


def _counts(total: int, words: int, alpha: float) -> np.ndarray:
    """How often each rank comes among `total` draws of Zipf's law, int [words]."""
    return (total * np.arange(1, words + 1) ** -alpha / zeta(alpha)).astype(int)


def _largest(size, room: int) -> int:
    """The largest number of draws, up to twice the room, whose words fit."""
    low, high = 0, 2 * max(room, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= room else (low, middle - 1)
    return low
