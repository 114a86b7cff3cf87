"""RULER's variable tracking: a chain of assignments that a long text spreads (2404.06654)."""

import string
from dataclasses import dataclass

import numpy as np

from longrope_jax.tasks import vocabulary
from longrope_jax.tasks.needles import NOISE
from longrope_jax.tasks.samples import (
    AboutText,
    Encode,
    Fact,
    Question,
    until_full,
)


@dataclass(frozen=True)
class Variables(AboutText):
    """The task asks for all variables that hold a value, through a chain of assignments (RULER).

    The value is given to a first variable at the sample's depth, and passed on at random places
    after it, in order. An example with names of three letters comes first, as in RULER.
    There is no control "other".

    Attributes:
        hops: assignments after the first.
        chains: chains in the text, one of which is asked for.

    Raises:
        ValueError: a number is below 1.
    """

    hops: int = 4
    chains: int = 1

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def __post_init__(self):
        if self.hops < 1 or self.chains < 1:
            raise ValueError(f"hops and chains must be at least 1, got {self.hops}, {self.chains}")

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del length
        taken: set[str] = set()
        example, names, value = self._chain(rng, 3, taken)
        shown = "".join(example) + _question(value, len(names)) + f" {', '.join(names)}\n\n"
        facts: list[Fact] = []
        chains = [self._chain(rng, 5, taken) for _ in range(self.chains)]
        for i, (statements, _, _) in enumerate(chains):
            first = float(rng.random()) if i else depth
            later = np.sort(rng.uniform(first, 1, self.hops)).tolist()
            places = zip(statements, [first, *later], strict=True)
            facts += [Fact(said, at, needed=i == 0) for said, at in places]
        _, names, value = chains[0]

        def haystack(room: int, encode: Encode, _: bool) -> list[np.ndarray]:
            return until_full(iter(lambda: NOISE, ""), room, encode)

        return Question(
            tuple(facts),
            _question(value, len(names)),
            f" {', '.join(names)}",
            tuple(names),
            opening=f"{_TASK}{shown}{_TASK}",
            haystack=haystack,
        )

    def _chain(self, rng: np.random.Generator, size: int, taken: set[str]):
        """Statements of a chain, its names, and its value."""
        value = vocabulary.other_than(lambda: str(rng.integers(10_000, 99_999)), taken)
        names: list[str] = []
        for _ in range(self.hops + 1):
            names.append(
                vocabulary.other_than(
                    lambda: vocabulary.letters(rng, size, string.ascii_uppercase), taken
                )
            )
            taken.add(names[-1])
        taken.add(value)
        held = [value, *(f"VAR {name}" for name in names)]
        said = [f"VAR {name} = {of}\n" for name, of in zip(names, held, strict=False)]
        return said, names, value


_TASK = "\nMemorize and track the chain(s) of variable assignment hidden in the following text.\n\n"


def _question(value: str, count: int) -> str:
    return (
        f"Question: Find all variables that are assigned the value {value} in the text above. "
        f"Answer: According to the chain(s) of variable assignment in the text above, {count} "
        f"variables are assigned the value {value}, they are:"
    )
