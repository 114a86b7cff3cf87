"""LongRoPE2's proposals (2502.20082, Algorithms 1 and 2): a critical pair and the factors above."""

import dataclasses
import math
from collections.abc import Collection

import numpy as np

from longrope_jax.search.individuals import Individual, Target, draw

_TRIES = 1000


def critical_pair(target: Target, *, periods: float = 1.0) -> int:
    """First pair that turns fewer than `periods` times in the trained length L.

    ceil((H/2) log_base(L / (2 pi periods))); with 1 period half the paper's d_tcd. Clipped to the
    pairs there are.
    """
    turns = target.length / (2 * math.pi * periods)
    pair = math.ceil(target.pairs * math.log(turns) / math.log(target.base))
    return min(max(pair, 0), target.pairs - 1)


@dataclasses.dataclass(frozen=True)
class LongRoPE2Space:
    """Factors of s to 2s from the critical pair on, NTK's curve below it.

    Below the critical pair i the base is solved so that theta_i is divided by lambda_i, which
    makes lambda_j = lambda_i^(j/i). The facts of the paper name no crossover: where the evolution
    asks for one, the better parent mutates. At 2x an integer s of Algorithm 1 would have three
    values, so it is drawn from LongRoPE's grid of 0.01.

    Attributes:
        target: of the extension.
        probability: p, of changing each pair.
    """

    target: Target
    probability: float = 0.3

    def __post_init__(self):
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must lie in 0..1 and above 0, got {self.probability}")

    def initial(self, size: int, rng: np.random.Generator) -> list[Individual]:
        """Critical pairs from ten periods in L to one, in turn, each with one factor from it on."""
        first, last = critical_pair(self.target, periods=10), critical_pair(self.target)
        population: list[Individual] = []
        while len(population) < size:
            critical = first + len(population) % (last - first + 1)
            # The grid is finer than the factor, so a point of it lies between the two.
            scale = draw(rng, self.target.factor, 2 * self.target.factor) or self.target.factor
            child = self._filled([scale] * self.target.pairs, critical)
            if child in population:
                child = self.mutate(child, rng, population)
            population.append(child)
        return population

    def mutate(
        self, parent: Individual, rng: np.random.Generator, seen: Collection[Individual]
    ) -> Individual:
        """New factors from the critical pair on, monotone; the curve below follows.

        Raises:
            ValueError: nothing new found; the space is too small for the population.
        """
        for _ in range(_TRIES):
            factors = list(parent.factors)
            for j in range(parent.critical, len(factors)):
                if rng.random() < self.probability:
                    low = factors[j - 1] if j > parent.critical else self.target.factor
                    end = j + 1 == len(factors)
                    value = draw(rng, low, 2 * self.target.factor if end else factors[j + 1])
                    factors[j] = factors[j] if value is None else value
            child = self._filled(factors, parent.critical)
            if child not in seen:
                return child
        raise ValueError(f"no new mutant in {_TRIES} tries: search fewer individuals")

    def cross(
        self,
        better: Individual,
        other: Individual,
        rng: np.random.Generator,
        seen: Collection[Individual],
    ) -> Individual:
        """A mutant of the better parent."""
        return self.mutate(better, rng, seen)

    def _filled(self, factors: list[float], critical: int) -> Individual:
        below = [factors[critical] ** (j / critical) for j in range(critical)]
        return Individual((*below, *factors[critical:]), critical=critical)
