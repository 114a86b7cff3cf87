"""What is searched: factors per pair, start tokens, a critical pair; and the published methods."""

import dataclasses
import functools
import itertools

import numpy as np

from longrope_jax import rotary
from longrope_jax.rotary import LongRoPE

STEP = 0.01  # grid of mutated factors (LongRoPE, Table 4)


@dataclasses.dataclass(frozen=True)
class Individual:
    """One candidate; hashable, so that none is scored twice.

    Attributes:
        factors: lambda_j, one per pair, dimensionless.
        start_count: n-hat, positions that keep the plain frequencies (LongRoPE).
        critical: first pair that is searched by itself (LongRoPE2); 0 elsewhere.
    """

    factors: tuple[float, ...]
    start_count: int = 0
    critical: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """The extension that is searched for.

    Attributes:
        base: of the trained RoPE.
        head_dim: H.
        length: L, tokens the model was trained on.
        factor: s, target over trained length.

    Raises:
        ValueError: as `LongRoPE` does, a factor of 1, or a head of fewer than two pairs.
    """

    base: float
    head_dim: int
    length: int
    factor: float

    def __post_init__(self):
        if self.head_dim < 4:
            raise ValueError(f"a search needs head_dim of at least 4, got {self.head_dim}")
        if not self.seq_len > self.length:
            raise ValueError(f"the factor of a search must be above 1, got {self.factor}")
        self.spec(Individual((self.factor,) * self.pairs))

    @property
    def pairs(self) -> int:
        """R = H/2."""
        return self.head_dim // 2

    @property
    def seq_len(self) -> int:
        """Tokens of the extended context."""
        return round(self.length * self.factor)

    @functools.cached_property
    def inv_freq(self) -> np.ndarray:
        """theta_j of the trained RoPE, float64 [R] radians per token."""
        return rotary.rope_inv_freq(self.base, self.head_dim)

    def spec(self, individual: Individual) -> LongRoPE:
        """The individual as a rotary method, with LongRoPE's attention factor."""
        return LongRoPE(
            long_factor=individual.factors,
            original_length=self.length,
            factor=self.factor,
            base=self.base,
            start_count=individual.start_count,
        )

    def rotary(self, individual: Individual) -> rotary.Rotary:
        """The individual as arrays: fixed-point words from float64, delta 0."""
        f = self.spec(individual).frequencies(head_dim=self.head_dim, seq_len=self.seq_len)
        return rotary.from_frequencies(f, seq_len=self.seq_len)


def published(target: Target) -> dict[str, Individual]:
    """PI, NTK-aware and YaRN as factors, lambda_j = theta_j / theta'_j, exact in float64.

    YaRN blends frequencies, so lambda_j = 1 / ((1 - m_j)/s + m_j), not LongRoPE's code's
    s (1 - m_j) + m_j. Their own attention factors are left out.
    """
    methods = {
        "PI": rotary.PositionInterpolation(target.factor, base=target.base),
        "NTK": rotary.NTKAware(target.factor, base=target.base),
        "YaRN": rotary.YaRN(target.factor, target.length, base=target.base),
    }
    return {name: Individual(_factors(target, method)) for name, method in methods.items()}


def _factors(target: Target, method: rotary.Method) -> tuple[float, ...]:
    f = method.frequencies(head_dim=target.head_dim, seq_len=target.seq_len)
    return tuple((target.inv_freq / f.inv_freq).tolist())


def is_monotone(factors: tuple[float, ...]) -> bool:
    """Whether no factor is below the one of the faster pair before it."""
    return all(a <= b + 1e-12 for a, b in itertools.pairwise(factors))


def draw(rng: np.random.Generator, low: float, high: float) -> float | None:
    """A random point of the grid between `low` and `high`, both included; None if there is none."""
    first, last = int(np.ceil(low / STEP - 1e-9)), int(np.floor(high / STEP + 1e-9))
    return None if first > last else round(int(rng.integers(first, last + 1)) * STEP, 10)
