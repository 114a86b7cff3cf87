"""A score between two trained positions is bounded: PI (2306.15595) Theorem 2.1, corrected.

a(s) = Re sum_j h_j e^(i s theta_j), theta_j = base^(-2j/H), is the score at distance s of a query
and key whose pairs multiply to h_j. Between neighbouring integers it stays close to the straight
line through its values there. The printed bound on the difference, H max|h| / (32 ln base), is too
small: the proof takes sum_j base^(-4j/H) <= H/(4 ln base), but the sum is larger. With all h_j = 1,
H = 128 and base 10,000 the difference is 0.4596 and the printed bound 0.4343.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Shaped
from numpy.typing import ArrayLike

from longrope_jax.rotary import check_base, rope_inv_freq

_GRID = 2001  # points between two positions; the deviation is smooth and has one maximum


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A deviation from the straight line has its largest value, and the distance it occurs at."""

    value: float
    at: float


def printed_bound(head_dim: int, base: float = 10_000.0) -> float:
    """Returns H / (32 ln base), the printed bound on the deviation for max|h| = 1; it is violated.

    Raises:
        ValueError: the base is not above 1, or the head dimension is odd.
    """
    return 2 * len(_inv_freq(head_dim, base)) / (32 * math.log(base))


def corrected_bound(head_dim: int, base: float = 10_000.0) -> float:
    """Returns 1 / (8 (1 - base^(-4/H))), a bound that holds for max|h| = 1 at unit spacing.

    It follows from |a''| <= max|h| sum_j theta_j^2 and the geometric series.

    Raises:
        ValueError: the base is not above 1, or the head dimension is odd.
    """
    _inv_freq(head_dim, base)
    return -1 / (8 * math.expm1(-4 / head_dim * math.log(base)))


def worst_deviation(
    head_dim: int,
    base: float = 10_000.0,
    *,
    h: Shaped[np.ndarray, " R"] | None = None,
    start: float = 0,
) -> Deviation:
    """Returns the largest |a(s) - a_lin(s)| for s from `start` to `start` + 1, to 1e-6.

    Args:
        head_dim: H, even.
        base: the base of the frequencies, above 1.
        h: [H/2] complex products of query and key pairs; default the worst with all |h_j| <= 1 for
            each s, for which `start` does not matter.
        start: the first of the two neighbouring distances, in tokens.

    Raises:
        ValueError: the base is not above 1, the head dimension is odd, or `h` has another number of
            pairs.
    """
    theta, s = _inv_freq(head_dim, base), np.linspace(0, 1, _GRID)
    ends = np.exp(1j * theta * start), np.exp(1j * theta * (start + 1))
    gap = np.exp(1j * np.outer(s + start, theta)) - np.outer(1 - s, ends[0]) - np.outer(s, ends[1])
    if h is None:
        size = np.abs(gap).sum(1)
    elif np.shape(h) != theta.shape:
        raise ValueError(f"h has shape {np.shape(h)}, head_dim {head_dim} has {theta.size} pairs")
    else:
        size = np.abs((gap @ np.asarray(h, np.complex128)).real)
    worst = int(size.argmax())
    return Deviation(float(size[worst]), float(s[worst] + start))


def extrapolation_bound(
    distances: ArrayLike, *, head_dim: int, base: float = 10_000.0
) -> np.ndarray:
    """Returns B(s) = sum_{k=1}^{H/2} |sum_{j<k} e^(i s theta_j)|, with |a(s)| <= 2 max|h| B(s).

    It is dimensionless, has the shape of `distances` (in tokens), and is H/2 (H/2 + 1)/2 at 0. The
    inequality holds at any s, by Abel summation as in RoFormer's decay argument; PI compares it
    with the interpolation bound.

    Raises:
        ValueError: the base is not above 1, or the head dimension is odd.
    """
    angles = np.multiply.outer(np.asarray(distances, np.float64), _inv_freq(head_dim, base))
    return np.abs(np.exp(1j * angles).cumsum(-1)).sum(-1)


def _inv_freq(head_dim: int, base: float) -> np.ndarray:
    check_base(base)
    return rope_inv_freq(base, head_dim)
