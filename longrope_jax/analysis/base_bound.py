"""The lower bound on RoPE's base for a context length is searched here: Men et al. (2405.14591).

A base b meets the requirement if B_b(m) = sum_j cos(m b^(-2j/H)) >= 0 at every integer distance m
below the length. Such bases form several intervals, so bisection finds none of their ends reliably.
Here ln b is swept from left to right. With u = ln b, c_j = 2j/H and x_j = m e^(-c_j u),

    dB/du = sum_j c_j x_j sin x_j,    |d2B/du2| <= sum_j c_j^2 (x_j^2 + min(x_j, x_j^2)) =: C,

and C only falls as u grows. So one distance with B < 0 at u excludes every base up to u + h, where
the parabola B + B' h + C h^2/2 reaches 0; and where B >= 0 at all distances, the smallest h at
which any of the parabolas B + B' h - C h^2/2 reaches 0 is safe. Each sweep thus proves its answer
up to rounding, which is below 1e-9 for a million tokens; the margin against it is 1e-8.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from longrope_jax.rotary import check_base, rope_inv_freq

_MARGIN = 1e-8  # in B, against rounding
_RESOLUTION = 1e-8  # in ln b; where steps get shorter, the base is left undecided
_COLUMNS = 1024  # distances per row of the table that is one matrix product
_REFINED = 256  # distances whose slope is computed; for the others it is bounded


@dataclasses.dataclass(frozen=True)
class Infimum:
    """The smallest base that meets the requirement for a length lies between two certified ends.

    Attributes:
        length: the length L in tokens.
        low: no base above the search's start and below this one meets the requirement.
        high: this base meets the requirement.
        distance: the distance m at which B_b(m) is smallest, about 0, for the base `high`.
    """

    length: int
    low: float
    high: float
    distance: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """All bases from `low` to `high`, which may be infinite, meet the requirement."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A stretch of ln b that a sweep decided ("fails", "holds") or could not decide ("open")."""

    kind: str
    low: float
    high: float


def criterion(base: float, distances: ArrayLike, *, head_dim: int) -> np.ndarray:
    """Returns B_b(m) = sum_j cos(m base^(-2j/H)) at distances m [...], dimensionless.

    It is proportional to how much more attention a similar key gets than a random one, on average,
    and H/2 at m = 0. It equals `decay.score` of RoPE times sqrt(H)/2.
    Source: 2405.14591.

    Raises:
        ValueError: the base is not above 1, or the head dimension is odd.
    """
    check_base(base)
    angles = np.multiply.outer(np.asarray(distances, np.float64), rope_inv_freq(base, head_dim))
    return np.cos(angles).sum(-1)


def first_failure(base: float, length: int, *, head_dim: int) -> int | None:
    """Returns the first distance m below `length` with B_b(m) < 0, None if the base meets it.

    Raises:
        ValueError: the base is not above 1, the length is below 2, or the head dimension is odd or
            below 6.
    """
    check_base(base)
    found = np.flatnonzero(_scan(math.log(base), _check(length, head_dim), head_dim) < 0)
    return int(found[0]) if found.size else None


def infimum(length: int, *, head_dim: int, above: float = 1.0) -> Infimum:
    """Returns the smallest base above `above` that meets the requirement for `length`.

    It lies between two certified ends. A base that fails a length fails all longer ones, so the
    search may start at the `low` that was found for a shorter length. In such steps it takes 2 s up
    to 32k tokens and a minute up to 1M, for H = 128.

    Args:
        length: tokens.
        head_dim: H, even and at least 6, since for less no base is sure to exist.
        above: where the search starts, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(length, head_dim, above)
    low = None
    for piece in _sweep(length, math.log(above), math.inf, head_dim):
        if piece.kind == "fails":
            continue
        low = piece.low if low is None else low
        if piece.kind == "holds":
            values = _scan(piece.low, length, head_dim)
            return Infimum(length, math.exp(low), math.exp(piece.low), int(values.argmin()))
    raise AssertionError("a sweep without an end reaches the sufficient base")


def intervals(
    length: int, *, head_dim: int, above: float = 1.0, count: int | None = None
) -> list[Interval]:
    """Returns all intervals of bases above `above` that meet the requirement, in order.

    They are certified. The last one is infinite, see `sufficient_base`. Ends are exact to 1e-8 of
    the base; an interval or a hole narrower than that may go unseen.

    Args:
        length: tokens.
        head_dim: H, even, at least 6.
        above: where the sweep starts, at least 1.
        count: stop after this many intervals; default: all.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(length, head_dim, above)
    stop = math.log(sufficient_base(length, head_dim=head_dim))
    found, low, high = [], None, math.nan
    for piece in _sweep(length, math.log(above), stop, head_dim):
        if piece.kind == "holds":
            low, high = piece.low if low is None else low, piece.high
        elif piece.kind == "fails" and low is not None:
            found.append(Interval(math.exp(low), math.exp(high)))
            low = None
            if len(found) == count:
                return found
    last = math.exp(stop if low is None else low)
    return [*found, Interval(max(above, last), math.inf)]


def sufficient_base(length: int, *, head_dim: int) -> float:
    """Returns a base from which on all bases meet the requirement; it is far from the smallest.

    It is the smallest base, to 0.1%, with sum_j cos(min(L theta_j, pi)) >= 0: no distance below L
    gives a pair a smaller cosine, and the sum grows with the base.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(length, head_dim)
    c, u = np.arange(head_dim // 2) * 2 / head_dim, 0.0
    while np.cos(np.minimum(length * np.exp(-c * u), np.pi)).sum() < 0:
        u += 1e-3
    return math.exp(u)


def _sweep(length: int, start: float, stop: float, head_dim: int) -> Iterator[_Piece]:
    """Yields pieces of ln b from `start` to `stop`, left to right, without a gap."""
    u = start
    while u < stop:
        values = _scan(u, length, head_dim)
        kind, step = "fails", _excluded(u, values, head_dim)
        if step < _RESOLUTION:
            kind, step = "holds", _safe(u, values, head_dim)
        if step < _RESOLUTION:
            kind, step = "open", _RESOLUTION
        yield _Piece(kind, u, min(u + step, stop))
        u += step


def _scan(u: float, length: int, head_dim: int) -> np.ndarray:
    """Returns B [length] at ln b = u as one product: cos(r + s) = cos r cos s - sin r sin s."""
    theta = np.exp(-_exponents(head_dim) * u)
    rows = np.outer(np.arange(0, length, _COLUMNS), theta)
    columns = np.outer(theta, np.arange(min(length, _COLUMNS)))
    left = np.hstack([np.cos(rows), -np.sin(rows)])
    return (left @ np.vstack([np.cos(columns), np.sin(columns)])).ravel()[:length]


def _excluded(u: float, values: np.ndarray, head_dim: int) -> float:
    """Returns the longest step in ln b over which a distance stays below zero; 0 without one."""
    m = np.flatnonzero(values < -_MARGIN)
    if not m.size:
        return 0.0
    if m.size > _REFINED:  # deep and near distances stay negative longest
        m = m[np.argpartition(values[m] / m, _REFINED)[:_REFINED]]
    slope, curvature = _slope(u, m, head_dim), _curvature(u, m, head_dim)
    return _reach(-values[m] - _MARGIN, -slope, curvature).max()


def _safe(u: float, values: np.ndarray, head_dim: int) -> float:
    """Returns the longest step in ln b that keeps all distances above zero; 0 if one is below."""
    m, gap = np.arange(1, len(values)), values[1:] - _MARGIN
    if gap.min() <= 0:
        return 0.0
    c = _exponents(head_dim)
    curvature = _curvature(u, m, head_dim)
    steps = _reach(gap, -m * (c * np.exp(-c * u)).sum(), curvature)
    near = np.argpartition(steps, min(_REFINED, m.size - 1))[:_REFINED]
    steps[near] = _reach(gap[near], _slope(u, m[near], head_dim), curvature[near])
    return steps.min()


def _reach(gap: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Returns the largest h with gap + slope h - curvature h^2/2 >= 0, without cancellation."""
    root = np.sqrt(slope**2 + 2 * curvature * gap)
    down = np.where(slope < 0, root - slope, 1.0)
    return np.where(slope < 0, 2 * gap / down, (slope + root) / curvature)


def _slope(u: float, m: np.ndarray, head_dim: int) -> np.ndarray:
    c = _exponents(head_dim)
    x = np.outer(m, np.exp(-c * u))
    return (x * np.sin(x)) @ c


def _curvature(u: float, m: np.ndarray, head_dim: int) -> np.ndarray:
    c = _exponents(head_dim)
    theta, m = np.exp(-c * u), np.asarray(m, np.float64)
    squares = m**2 * ((c * theta) ** 2).sum()
    return squares + np.minimum(squares, m * (c**2 * theta).sum())


def _exponents(head_dim: int) -> np.ndarray:
    return np.arange(0, head_dim, 2) / head_dim


def _check(length: int, head_dim: int, above: float = 1.0) -> int:
    if head_dim < 6 or head_dim % 2:
        raise ValueError(f"head_dim must be even and at least 6, got {head_dim}")
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    if not above >= 1:
        raise ValueError(f"above must be at least 1, got {above}")
    return int(length)
