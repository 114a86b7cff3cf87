"""Pass key retrieval asks for a random number that a long text states once (2305.16300)."""

from dataclasses import dataclass

import numpy as np

from longrope_jax.tasks.samples import (
    AboutText,
    Fact,
    Question,
)

_CONSONANTS = "bcdfghjklmnpqrstvwxz"


@dataclass(frozen=True)
class Passkey(AboutText):
    """The task asks for a random number that the text states once (2305.16300).

    Attributes:
        fact: text that states the key, with the field {key}. With a field {name} as well, the key
            has a random name of three letters, so that one text can state several keys.
        prompt: text of the question, with {name} where the fact has it; the answer is the digits of
            the key.
        digits: number of digits of the key, which has no leading zero.

    Raises:
        ValueError: `fact` has no field {key}, `prompt` has {key}, one of them alone has {name},
            there is another field, or `digits` is not from 1 to 18.
    """

    fact: str = "The pass key is {key}. Remember it. {key} is the pass key. "
    prompt: str = "What is the pass key? The pass key is "
    digits: int = 5

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "first_integer"

    def __post_init__(self):
        if not 1 <= self.digits <= 18:  # a key is a 64-bit number
            raise ValueError(f"digits must be from 1 to 18, got {self.digits}")
        rest = self.fact.replace("{key}", "").replace("{name}", "")
        if "{key}" not in self.fact or "{" in rest:
            raise ValueError(
                f"fact must hold {{key}}, with or without {{name}}, and no other field, got "
                f"{self.fact!r}"
            )
        if "{" in self.prompt.replace("{name}", ""):
            raise ValueError(f"prompt must hold no field but {{name}}, got {self.prompt!r}")
        if self.is_named != ("{name}" in self.prompt):
            raise ValueError(
                f"fact and prompt must both hold {{name}} or neither, got {self.fact!r} and "
                f"{self.prompt!r}"
            )

    @property
    def is_named(self) -> bool:
        """Whether keys have names, so that one text can state several."""
        return "{name}" in self.fact

    def draw(self, rng: np.random.Generator) -> str:
        """Returns a random key of `digits` digits."""
        return str(rng.integers(10 ** (self.digits - 1), 10**self.digits))

    def draw_name(self, rng: np.random.Generator) -> str:
        """Returns a random name of three consonants, or "" where keys have no names."""
        return "".join(rng.choice(list(_CONSONANTS), 3)) if self.is_named else ""

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del length
        key, other = self.draw(rng), self.draw(rng)
        while other == key:
            other = self.draw(rng)
        name = self.draw_name(rng)
        said, wrong = (self.fact.format(key=stated, name=name) for stated in (key, other))
        return Question((Fact(said, depth, other=wrong),), self.prompt.format(name=name), key)
