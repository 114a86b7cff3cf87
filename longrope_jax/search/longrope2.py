"""LongRoPE2's search proposes a critical pair and factors from it on (2502.20082, Alg. 1, 2)."""

import dataclasses
import math
from collections.abc import Collection

import numpy as np

from longrope_jax.search.individuals import Individual, Target, draw

_TRIES = 1000  # how often a mutation is drawn until it gives a new individual


def critical_pair(target: Target, *, periods: float = 1.0) -> int:
    """Returns the first pair that turns fewer than `periods` times in the trained length L.

    It is ceil((H/2) log_base(L / (2 pi periods))), clipped to the existing pairs; for 1 period that
    is half the paper's d_tcd.
    """
    turns = target.length / (2 * math.pi * periods)
    pair = math.ceil(target.pairs * math.log(turns) / math.log(target.base))
    return min(max(pair, 0), target.pairs - 1)


@dataclasses.dataclass(frozen=True)
class LongRoPE2Space:
    """LongRoPE2 searches factors from s to 2s from a critical pair on, above NTK's curve.

    Below the critical pair i the base is solved so that theta_i is divided by lambda_i, which makes
    lambda_j = lambda_i^(j/i). The paper has no crossover, so the better parent mutates where the
    evolution asks for one. An integer factor, as in Algorithm 1, would have only three values at
    s = 2, so factors are drawn from LongRoPE's grid of 0.01.

    Attributes:
        target: the extension that is searched for.
        probability: p, the probability of changing each pair.

    Raises:
        ValueError: `probability` lies outside 0..1 or is 0.
    """

    target: Target
    probability: float = 0.3

    def __post_init__(self):
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must lie in 0..1 and above 0, got {self.probability}")

    def initial(self, size: int, rng: np.random.Generator) -> list[Individual]:
        """Returns `size` individuals whose factor is constant from the critical pair on.

        Critical pairs cycle from the pair of ten periods in L to the pair of one period.
        """
        first, last = critical_pair(self.target, periods=10), critical_pair(self.target)
        population: list[Individual] = []
        while len(population) < size:
            critical = first + len(population) % (last - first + 1)
            # The grid is finer than s, so there is a point between s and 2s.
            scale = draw(rng, self.target.factor, 2 * self.target.factor) or self.target.factor
            child = self._filled([scale] * self.target.pairs, critical)
            if child in population:
                child = self.mutate(child, rng, population)
            population.append(child)
        return population

    def mutate(
        self, parent: Individual, rng: np.random.Generator, seen: Collection[Individual]
    ) -> Individual:
        """Returns a mutant that is not in `seen`, with monotone factors from the critical pair on.

        The factors below the critical pair follow from its factor.

        Raises:
            ValueError: none is found, because the space is too small for the population.
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
        """Returns a mutant of the better parent.

        Raises:
            ValueError: see `mutate`.
        """
        return self.mutate(better, rng, seen)

    def _filled(self, factors: list[float], critical: int) -> Individual:
        below = [factors[critical] ** (j / critical) for j in range(critical)]
        return Individual((*below, *factors[critical:]), critical=critical)
