"""In-context recall of a value in a long JSON object (Lost in the Middle, 2307.03172)."""

from dataclasses import dataclass

import numpy as np

from longrope_jax.tasks import vocabulary
from longrope_jax.tasks.samples import (
    AboutText,
    Encode,
    Fact,
    Question,
    until_full,
)


@dataclass(frozen=True)
class KeyValues(AboutText):
    """The task asks for the value of a key in a JSON object with as many pairs as fit.

    Keys and values are random UUIDs. What no further pair fits into is text before the object. The
    published sets have 75, 140 and 300 pairs; here the length decides.
    Source: Liu et al. (2307.03172), section 3, whose wording this is.
    """

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del length
        # The first pair, which no comma precedes, is never the one that is asked for.
        first_key, first_value, key, value, wrong = (vocabulary.uuid(rng) for _ in range(5))
        seed = vocabulary.child(rng)

        def haystack(room: int, encode: Encode, _: bool) -> list[np.ndarray]:
            own = np.random.default_rng(seed)
            pairs = (_pair(vocabulary.uuid(own), vocabulary.uuid(own)) for _ in range(room))
            return until_full(pairs, room, encode)

        return Question(
            (Fact(_pair(key, value), depth, other=_pair(key, wrong)),),
            f'}}\n\nKey: "{key}"\nCorresponding value: "',
            value,
            opening="\n\nExtract the value corresponding to the specified key in the JSON object "
            f'below.\n\nJSON data:\n{{"{first_key}": "{first_value}"',
            haystack=haystack,
        )


def _pair(key: str, value: str) -> str:
    return f',\n "{key}": "{value}"'
