"""An individual is one candidate of a search: factors per pair, start tokens, a critical pair."""

import dataclasses
import functools
import itertools

import numpy as np

from longrope_jax import rotary
from longrope_jax.rotary import LongRoPE

STEP = 0.01  # grid of mutated factors (LongRoPE, Table 4)


@dataclasses.dataclass(frozen=True)
class Individual:
    """An Individual is one candidate of a search; it is hashable, so that none is scored twice.

    Attributes:
        factors: lambda_j, one dimensionless factor per pair.
        start_count: n-hat, how many first positions keep the plain frequencies (LongRoPE).
        critical: first pair whose factor is searched and not derived (LongRoPE2); 0 elsewhere.
    """

    factors: tuple[float, ...]
    start_count: int = 0
    critical: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """A Target is the extension that a search is for.

    Attributes:
        base: base of the trained RoPE.
        head_dim: H, features of a head.
        length: L, tokens per sequence that the model was trained on.
        factor: s, target length over trained length.

    Raises:
        ValueError: `factor` is not above 1, the head has fewer than two pairs, or `LongRoPE`
            refuses the values.
    """

    base: float
    head_dim: int
    length: int
    factor: float

    def __post_init__(self):
        if self.head_dim < 4:
            raise ValueError(f"head_dim must be at least 4 for a search, got {self.head_dim}")
        if not self.seq_len > self.length:
            raise ValueError(f"factor must be above 1 for a search, got {self.factor}")
        self.spec(Individual((self.factor,) * self.pairs))

    @property
    def pairs(self) -> int:
        """R = H/2, the number of pairs."""
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
        """Returns an individual as a rotary method, with LongRoPE's attention factor."""
        return LongRoPE(
            long_factor=individual.factors,
            original_length=self.length,
            factor=self.factor,
            base=self.base,
            start_count=individual.start_count,
        )

    def rotary(self, individual: Individual) -> rotary.Rotary:
        """Returns an individual as arrays: fixed-point words from float64, delta 0."""
        return rotary.make(self.spec(individual), head_dim=self.head_dim, seq_len=self.seq_len)


def published(target: Target) -> dict[str, Individual]:
    """Returns PI, NTK-aware and YaRN as factors lambda_j = theta_j / theta'_j, in float64.

    YaRN blends frequencies, so lambda_j = 1 / ((1 - m_j)/s + m_j); LongRoPE's code has
    s (1 - m_j) + m_j instead. The attention factors of the methods are left out.
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
    """Says whether no factor is below the factor of the faster pair before it."""
    return all(a <= b + 1e-12 for a, b in itertools.pairwise(factors))


def draw(rng: np.random.Generator, low: float, high: float) -> float | None:
    """Draws a point of the grid from `low` to `high`, both included; None if there is none."""
    first, last = int(np.ceil(low / STEP - 1e-9)), int(np.floor(high / STEP + 1e-9))
    return None if first > last else round(int(rng.integers(first, last + 1)) * STEP, 10)
