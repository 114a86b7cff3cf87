"""The context-length power law L(c) = (alpha/c)^beta + gamma (Llama 2 Long, eq. 1 and Figure 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from longrope_jax.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    resampled_means,
    stretched_interval,
)

# Shares of the lowest loss tried as gamma: the sum of squares can have more than one minimum.
STARTS = (0.05, 0.5, 0.9, 0.99, 0.9999)


@dataclass(frozen=True)
class PowerLaw:
    """L(c) = (alpha/c)^beta + gamma: alpha in tokens, gamma (the irreducible loss) in nats."""

    alpha: float
    beta: float
    gamma: float

    def __call__(self, lengths: ArrayLike) -> np.ndarray:
        """Loss in nats at context `lengths` in tokens, of the same shape."""
        return (self.alpha / np.asarray(lengths, np.float64)) ** self.beta + self.gamma


@dataclass(frozen=True)
class PowerLawIntervals:
    """Intervals of the three parameters; they are strongly correlated, so don't combine ends."""

    alpha: Interval
    beta: Interval
    gamma: Interval


def fit(lengths: ArrayLike, losses: ArrayLike) -> PowerLaw:
    """Fit the law to `losses` [C] nats at `lengths` [C] tokens by least squares in log L.

    The paper names no fitting method; this one, on the points of its Figure 1, gives its triples
    back to a few percent. ValueError: fewer than 4 different lengths, shapes that differ, a length
    or loss that isn't positive and finite, losses that don't fall with length.
    """
    lengths, losses = np.asarray(lengths, np.float64), np.asarray(losses, np.float64)
    _check(lengths, losses)
    x, y = np.log(lengths), np.log(losses)
    solutions = [_solve(x, y, start) for start in _starts(x, y)]
    best = min(solutions, key=lambda solution: solution.cost)
    return PowerLaw(*np.exp(_log_triple(best.x, x)).tolist())


def bootstrap_fit(
    lengths: ArrayLike,
    losses_by_document: ArrayLike,
    clusters: Sequence | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    n_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> PowerLawIntervals:
    """Intervals of alpha, beta, gamma from `losses_by_document` [n, C] in nats, clusters [n].

    Whole documents are resampled and the law refitted to each mean curve, from the full fit.
    Percentiles of the logarithms, stretched as in `cluster_bootstrap`, so limits stay positive.
    Errors as in `fit` and `cluster_bootstrap`.
    """
    mean = cluster_bootstrap(losses_by_document, clusters, weights=weights, n_resamples=1).estimate
    law = fit(lengths, mean)
    x = np.log(np.asarray(lengths, np.float64))
    start = _free(np.log([law.alpha, law.beta, law.gamma]), x)
    curves = resampled_means(
        losses_by_document, clusters, weights=weights, n_resamples=n_resamples, seed=seed
    )
    draws = np.stack([_log_triple(_solve(x, np.log(y), start).x, x) for y in curves])
    logs = stretched_interval(
        _log_triple(start, x), draws, len(np.unique(np.asarray(clusters))) - 1, confidence
    )
    with np.errstate(over="ignore"):  # an end at infinity says that the data do not bound it
        ends = np.exp(np.stack([logs.estimate, logs.low, logs.high]))
    return PowerLawIntervals(*(Interval(*map(float, column)) for column in ends.T))


def _solve(x: np.ndarray, y: np.ndarray, start: np.ndarray):
    """Minimise over (log excess at the middle length, log beta, log gamma): all free of sign."""
    centred = x - x.mean()

    def model(free):
        excess = free[0] - np.exp(free[1]) * centred
        return excess, np.logaddexp(excess, free[2])

    def jacobian(free):
        excess, total = model(free)
        share = np.exp(excess - total)
        return np.stack([share, -share * np.exp(free[1]) * centred, 1 - share], 1)

    bounds = ([-60, np.log(1e-4), -60], [60, np.log(1e3), 60])
    start = np.clip(start, np.add(bounds[0], 1e-3), np.subtract(bounds[1], 1e-3))
    return least_squares(
        lambda free: model(free)[1] - y,
        start,
        # Its type stub knows the names of finite differences alone.
        jac=jacobian,  # pyright: ignore[reportArgumentType]
        bounds=bounds,
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )


def _starts(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """For each guessed gamma, the straight line through log(L - gamma)."""
    gammas = [share * np.exp(y.min()) for share in STARTS]
    lines = [np.polyfit(x - x.mean(), np.log(np.exp(y) - gamma), 1) for gamma in gammas]
    return [
        np.array([line[1], np.log(max(-line[0], 1e-3)), np.log(gamma)])
        for line, gamma in zip(lines, gammas, strict=True)
    ]


def _log_triple(free: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Logarithms of (alpha, beta, gamma), kept where exp stays finite."""
    log_alpha = np.clip(free[0] / np.exp(free[1]) + x.mean(), -700, 700)
    return np.array([log_alpha, free[1], free[2]])


def _free(log_triple: np.ndarray, x: np.ndarray) -> np.ndarray:
    log_alpha, log_beta, log_gamma = log_triple
    return np.array([np.exp(log_beta) * (log_alpha - x.mean()), log_beta, log_gamma])


def _check(lengths: np.ndarray, losses: np.ndarray) -> None:
    if lengths.ndim != 1 or lengths.shape != losses.shape:
        raise ValueError(f"need as many losses as lengths, got {losses.shape} and {lengths.shape}")
    for name, array in (("lengths", lengths), ("losses", losses)):
        usable = np.isfinite(array) & (array > 0)
        if not usable.all():
            raise ValueError(f"{name} must be positive and finite, got {array[~usable]}")
    if len(np.unique(lengths)) < 4:
        raise ValueError(
            f"3 parameters need at least 4 different lengths, got {np.unique(lengths)}"
        )
    if np.polyfit(np.log(lengths), np.log(losses), 1)[0] >= 0:
        raise ValueError("losses don't fall with length: this power law can't describe them")
