"""LongRoPE's search proposes monotone factors and start tokens (2402.13753, Algorithm 1).

The authors' code is evolution/algorithms/dim_mono.py of LongRoPE's repo.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from longrope_jax.search.individuals import Individual, Target, draw, is_monotone, published

_TRIES = 1000  # how often a mutation is drawn until it gives a new individual
_SWEEPS = 20  # max_crossover_try of LongRoPE's repo


@dataclasses.dataclass(frozen=True)
class LongRoPESpace:
    """LongRoPE searches monotone factors from 1 to 1.25 s on a grid of 0.01, and start tokens.

    These bounds are those of the paper's Table 4; the repo allows factors up to 1 + s and does not
    search start tokens.

    Attributes:
        target: the extension that is searched for.
        start_counts: numbers of start tokens to choose n-hat from.
        probability: p, the probability of changing each pair and the start tokens.

    Raises:
        ValueError: `probability` lies outside 0..1 or is 0, or `start_counts` lacks 0.
    """

    target: Target
    start_counts: tuple[int, ...] = (0,)
    probability: float = 0.3

    def __post_init__(self):
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must lie in 0..1 and above 0, got {self.probability}")
        if 0 not in self.start_counts:
            raise ValueError(f"start_counts must include 0, got {self.start_counts}")

    def initial(self, size: int, rng: np.random.Generator) -> list[Individual]:
        """Returns `size` individuals: PI, NTK and YaRN first, then mutants of them."""
        start = list(published(self.target).values())[:size]
        population = list(start)
        while len(population) < size:
            population.append(self.mutate(start[rng.integers(len(start))], rng, set(population)))
        return population

    def mutate(
        self, parent: Individual, rng: np.random.Generator, seen: Collection[Individual]
    ) -> Individual:
        """Returns a monotone mutant that is not in `seen`, with factors between their neighbours.

        Raises:
            ValueError: none is found, because the space is too small for the population.
        """
        for _ in range(_TRIES):
            factors = list(parent.factors)
            for j in np.flatnonzero(rng.random(len(factors)) < self.probability):
                low = factors[j - 1] if j else 1.0
                high = factors[j + 1] if j + 1 < len(factors) else 1.25 * self.target.factor
                value = draw(rng, low, high)
                factors[j] = factors[j] if value is None else value
            start = parent.start_count
            if rng.random() < self.probability:
                start = int(rng.choice(self.start_counts))
            child = Individual(tuple(factors), start)
            if child not in seen:
                return child
        raise ValueError(
            f"no new mutant in {_TRIES} tries with {len(seen)} individuals seen: search fewer"
        )

    def cross(
        self,
        better: Individual,
        other: Individual,
        rng: np.random.Generator,
        seen: Collection[Individual],
    ) -> Individual:
        """Returns the better parent with some genes of the other, not in `seen`.

        If no such child is found, it is a mutant of the better parent.

        Raises:
            ValueError: no new mutant is found either.
        """
        factors, start = list(better.factors), better.start_count
        for _ in range(_SWEEPS):
            for j in range(len(factors)):
                if rng.random() < self.probability and rng.random() < 0.5:
                    factors[j] = other.factors[j]
            if rng.random() < self.probability and rng.random() < 0.5:
                start = other.start_count
            child = Individual(tuple(factors), start)
            if child not in seen and is_monotone(child.factors):
                return child
        return self.mutate(better, rng, seen)
