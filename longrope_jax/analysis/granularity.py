"""Position encodings are points on a sphere: Llama 2 Long (2309.16039) appendix B, corrected.

A vector x of H features is encoded at position t as f(x, t)_j = (x_2j + i x_2j+1) e^(i theta_j t),
whose length is always ||x|| (an amplitude such as YaRN's is left out). The appendix asks how close
a method brings neighbouring positions. Its Theorem 1 is false as printed, in two ways:

- Its upper bound lacks a factor 2, since the energy of a pair is up to 2 max_k x_k^2. All-ones x
  breaks it, with a sine of (2/H) C where the bound says C/H (`SineBounds.printed_holds`).
- C = sum_j sin theta_j grows like H/2, so it has no limit. The limits that the paper prints, 0.076
  and 0.027, are those of (2/H) C, and approximate the sine integral in `limit`.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import sici

from longrope_jax.rotary import Frequencies, Method, check_base

_ROWS = 256  # positions per block of pairwise products


@dataclasses.dataclass(frozen=True)
class SineBounds:
    """Theorem 1 for one vector x bounds the sine of the angle between f(x, n+1) and f(x, n).

    Attributes:
        lower: 2 min_k x_k^2 C/||x||^2, which always holds; the printed bound lacks the 2.
        sine: the sine of the angle.
        upper: 2 max_k x_k^2 C/||x||^2, which always holds; the printed bound lacks the 2.
    """

    lower: float
    sine: float
    upper: float

    @property
    def printed_lower(self) -> float:
        """The lower bound as printed, min_k x_k^2 C / ||x||^2."""
        return self.lower / 2

    @property
    def printed_upper(self) -> float:
        """The upper bound as printed, max_k x_k^2 C / ||x||^2."""
        return self.upper / 2

    @property
    def printed_holds(self) -> bool:
        """True where the sine lies within the printed bounds."""
        return self.printed_lower <= self.sine <= self.printed_upper


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance says how far the encodings of one method are from another's, in units of ||x||.

    Attributes:
        printed: the definition as printed, the maximum over x of the minimum over positions of
            both. It is always 0, since both methods return x at position 0.
        farthest: the maximum over x and the first method's positions of the minimum over the
            second's: how far from all that it was trained on a model may find itself.
    """

    printed: float
    farthest: float


def sine_sum(method: Method | Frequencies, *, head_dim: int) -> float:
    """Returns C = sum_j sin theta_j, the constant of Theorem 1, which grows like H/2.

    A method that depends on the length is evaluated at 2 tokens; give its `frequencies` for another
    length.

    Raises:
        ValueError: the head dimension is odd, or the method's encodings do not lie on a sphere.
    """
    return float(np.sin(_speeds(method, head_dim, 2)).sum())


def mean_sine(method: Method | Frequencies, *, head_dim: int) -> float:
    """Returns (2/H) C, the sine of the angle between neighbours for all-ones x; see `limit`."""
    return sine_sum(method, head_dim=head_dim) * 2 / head_dim


def limit(base: float, *, alpha: float = 1.0) -> float:
    """Returns the limit of `mean_sine` for H to infinity: (Si(alpha) - Si(alpha/base)) / ln base.

    Args:
        base: the base of the frequencies, above 1; for ABF the adjusted one.
        alpha: trained over extended length of Position Interpolation, above 0, at most 1.

    Raises:
        ValueError: `base` or `alpha` is out of range.
    """
    check_base(base)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}; it is 1/factor")
    return float(sici(alpha)[0] - sici(alpha / base)[0]) / math.log(base)


def printed_limit(base: float, *, alpha: float = 1.0) -> float:
    """Returns alpha / ln base, the paper's approximation of `limit` (ABF 0.076, PI 1/4 0.027)."""
    check_base(base)
    return alpha / math.log(base)


def chord_limit(base: float, *, alpha: float = 1.0) -> float:
    """Returns the limit for H to infinity of the distance between neighbours for all-ones x.

    It is sqrt(2 (Cin(alpha) - Cin(alpha/base)) / ln base) in units of ||x||, the paper's own
    distance (its definition of q), of which the sine in its Theorem 1 is not a bound. At a finite H
    it is `granularity` of an all-ones vector at 2 positions.

    Args:
        base: the base of the frequencies, above 1.
        alpha: as in `limit`.

    Raises:
        ValueError: `base` or `alpha` is out of range.
    """
    limit(base, alpha=alpha)
    low, high = (np.euler_gamma + math.log(x) - float(sici(x)[1]) for x in (alpha / base, alpha))
    return math.sqrt(2 * (high - low) / math.log(base))


def sine_bounds(method: Method | Frequencies, x: np.ndarray) -> SineBounds:
    """Returns Theorem 1 for a vector x [H], corrected and as printed.

    A method that depends on the length is evaluated at 2 tokens.

    Raises:
        ValueError: x is zero or has an odd size, the method's encodings do not lie on a sphere, or
            its pairs turn by more than pi per token, where the theorem says nothing.
    """
    x = np.asarray(x, np.float64)
    speeds = _speeds(method, x.size, 2)
    if x.ndim != 1 or not np.any(x) or speeds.max() > np.pi:
        raise ValueError("needs one vector that is not zero, and pairs that turn by at most pi")
    energy, sines = _energy(x), np.sin(speeds)
    scale = 2 * sines.sum() / energy.sum()
    sine = float(energy @ sines / energy.sum())
    return SineBounds(float(scale * np.min(x**2)), sine, float(scale * np.max(x**2)))


def granularity(method: Method | Frequencies, x: np.ndarray, *, positions: int) -> float:
    """Returns q(f), the smallest distance between the encodings of two positions over ||x||.

    The distance is Euclidean, and smallest over all pairs of positions 0..positions-1 and all
    vectors x [..., H], none of them zero. It depends on the difference of positions alone. The
    method is evaluated at that length.
    Source: definition in appendix B, section B.1.

    Raises:
        ValueError: there are fewer than 2 positions, a vector is zero, or the method's encodings do
            not lie on a sphere.
    """
    if positions < 2:
        raise ValueError(f"positions must be at least 2, got {positions}")
    x = np.asarray(x, np.float64)
    speeds = _speeds(method, x.shape[-1], positions)
    chords = 4 * np.sin(np.outer(np.arange(1, positions), speeds) / 2) ** 2
    return float(np.sqrt((chords @ _weights(x).T).min()))


def distance(
    first: Method | Frequencies,
    second: Method | Frequencies,
    x: np.ndarray,
    *,
    positions: Sequence[int],
) -> Distance:
    """Returns d(f, f^), how far f's encodings are from f^'s in units of ||x||; see `Distance`.

    Args:
        first: the method f.
        second: the method f^.
        x: [..., H] vectors, none of them zero.
        positions: how many positions, counted from 0, of f and of f^; each method is evaluated at
            that length.

    Raises:
        ValueError: there is no position, a vector is zero, or a method's encodings do not lie on a
            sphere.
    """
    if min(positions) < 1:
        raise ValueError(f"positions must be at least 1 each, got {tuple(positions)}")
    weights = _weights(x)
    angles = [
        np.outer(np.arange(count), _speeds(method, np.shape(x)[-1], count))
        for method, count in zip((first, second), positions, strict=True)
    ]
    nearest = np.array([_nearest(angles[0], angles[1], weight) for weight in weights])
    return Distance(float(nearest.min(1).max()), float(nearest.max()))


def _nearest(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns the distance [N] of each encoding of `first` to the nearest one of `second`."""
    waves = np.hstack([np.cos(second), np.sin(second)]).T
    closest = []
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS]
        products = np.hstack([weight * np.cos(rows), weight * np.sin(rows)]) @ waves
        closest.append(products.max(1))
    return np.sqrt(np.maximum(2 - 2 * np.concatenate(closest), 0))


def _speeds(method: Method | Frequencies, head_dim: int, seq_len: int) -> np.ndarray:
    if isinstance(method, Frequencies):
        f = method
    else:
        f = method.frequencies(head_dim=head_dim, seq_len=seq_len)
    several = f.score_rule is not None or f.mixing is not None
    if several or np.any(f.log_decay) or f.start_count or np.isfinite(f.logn_length):
        raise ValueError(
            f"{method} changes lengths, mixes pairs or treats some positions differently, so its "
            "encodings do not lie on a sphere; granularity is not defined for it"
        )
    speeds = np.zeros(head_dim // 2)
    speeds[: len(f.inv_freq)] = f.inv_freq
    return speeds


def _energy(x: np.ndarray) -> np.ndarray:
    return np.square(x).reshape(*x.shape[:-1], -1, 2).sum(-1)


def _weights(x: np.ndarray) -> np.ndarray:
    """Returns the share of each pair in ||x||^2, [X, H/2]."""
    energy = _energy(np.atleast_2d(np.asarray(x, np.float64)))
    energy = energy.reshape(-1, energy.shape[-1])
    if not np.all(energy.sum(1) > 0):
        raise ValueError("x holds a zero vector, which has no direction")
    return energy / energy.sum(1, keepdims=True)
