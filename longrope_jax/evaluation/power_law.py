"""The power law L(c) = (alpha/c)^beta + gamma is fitted to loss over context length.

It is equation 1 of Llama 2 Long, with Figure 1.
"""

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

# The fit starts from these shares of the lowest loss as gamma, because the sum of squares can have
# more than one minimum.
STARTS = (0.05, 0.5, 0.9, 0.99, 0.9999)


@dataclass(frozen=True)
class PowerLaw:
    """A PowerLaw is L(c) = (alpha/c)^beta + gamma, the loss at a context of c tokens.

    Attributes:
        alpha: scale of the context in tokens.
        beta: exponent, dimensionless.
        gamma: irreducible loss in nats.
    """

    alpha: float
    beta: float
    gamma: float

    def __call__(self, lengths: ArrayLike) -> np.ndarray:
        """Returns the loss in nats at context `lengths` in tokens, of the same shape."""
        return (self.alpha / np.asarray(lengths, np.float64)) ** self.beta + self.gamma


@dataclass(frozen=True)
class PowerLawIntervals:
    """PowerLawIntervals hold intervals of the three parameters, each on its own.

    The parameters are strongly correlated, so ends of different intervals do not go together.
    """

    alpha: Interval
    beta: Interval
    gamma: Interval

    @property
    def is_identified(self) -> bool:
        """Whether the data tell the exponent within a factor of 10; else the fit says nothing."""
        return bool(self.beta.high < 10 * self.beta.low)


def fit(lengths: ArrayLike, losses: ArrayLike) -> PowerLaw:
    """Fits the law to `losses` [C] in nats at `lengths` [C] in tokens by least squares in log L.

    The paper does not say how it fits; on the points of its Figure 1 this method gives the paper's
    parameters to a few percent.

    Raises:
        ValueError: there are fewer than 4 different lengths, the shapes differ, a length or loss is
            not positive and finite, or losses do not fall with length.
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
    """Returns intervals of alpha, beta and gamma by resampling whole documents.

    The law is fitted again to each resampled mean curve, starting from the fit to all documents.
    Limits are percentiles of the logarithms, stretched as in `cluster_bootstrap`, so they stay
    positive.

    Args:
        lengths: context [C] in tokens.
        losses_by_document: losses [n, C] in nats.
        clusters: the document [n] of each row of losses.
        weights: token counts [n]; None is 1 each.
        n_resamples: number of resamples.
        confidence: probability that an interval covers its parameter.
        seed: seed of the resampling.

    Raises:
        ValueError: `fit` or `cluster_bootstrap` refuses the data.
    """
    mean = cluster_bootstrap(losses_by_document, clusters, weights=weights, n_resamples=1).estimate
    law = fit(lengths, mean)
    x = np.log(np.asarray(lengths, np.float64))
    start = _free(np.log([law.alpha, law.beta, law.gamma]), x)
    curves = resampled_means(
        losses_by_document, clusters, weights=weights, n_resamples=n_resamples, seed=seed
    )
    # Where curves have no minimum at a finite law, more steps only go further away.
    rough = {"tolerance": 1e-10, "max_nfev": 50}
    draws = np.stack([_log_triple(_solve(x, np.log(y), start, **rough).x, x) for y in curves])
    logs = stretched_interval(
        _log_triple(start, x), draws, len(np.unique(np.asarray(clusters))) - 1, confidence
    )
    with np.errstate(over="ignore"):  # an infinite limit means that the data give no bound
        ends = np.exp(np.stack([logs.estimate, logs.low, logs.high]))
    return PowerLawIntervals(*(Interval(*map(float, column)) for column in ends.T))


def _solve(x, y, start, *, tolerance: float = 1e-15, max_nfev: int | None = None):
    """Minimises over (log excess at the middle length, log beta, log gamma), all of any sign."""
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
        # The type stub allows only the names of finite-difference schemes.
        jac=jacobian,  # pyright: ignore[reportArgumentType]
        bounds=bounds,
        ftol=tolerance,
        xtol=tolerance,
        gtol=tolerance,
        max_nfev=max_nfev,
    )


def _starts(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Returns a start for each guess of gamma, from the straight line through log(L - gamma)."""
    gammas = [share * np.exp(y.min()) for share in STARTS]
    lines = [np.polyfit(x - x.mean(), np.log(np.exp(y) - gamma), 1) for gamma in gammas]
    return [
        np.array([line[1], np.log(max(-line[0], 1e-3)), np.log(gamma)])
        for line, gamma in zip(lines, gammas, strict=True)
    ]


def _log_triple(free: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the logarithms of (alpha, beta, gamma), clipped to where exp is finite."""
    log_alpha = np.clip(free[0] / np.exp(free[1]) + x.mean(), -700, 700)
    return np.array([log_alpha, free[1], free[2]])


def _free(log_triple: np.ndarray, x: np.ndarray) -> np.ndarray:
    log_alpha, log_beta, log_gamma = log_triple
    return np.array([np.exp(log_beta) * (log_alpha - x.mean()), log_beta, log_gamma])


def _check(lengths: np.ndarray, losses: np.ndarray) -> None:
    if lengths.ndim != 1 or lengths.shape != losses.shape:
        raise ValueError(
            f"lengths and losses must have one shape [C], got {lengths.shape} and {losses.shape}"
        )
    for name, array in (("lengths", lengths), ("losses", losses)):
        usable = np.isfinite(array) & (array > 0)
        if not usable.all():
            raise ValueError(f"{name} must be positive and finite, got {array[~usable]}")
    if len(np.unique(lengths)) < 4:
        raise ValueError(
            f"lengths must hold at least 4 different ones for 3 parameters, got "
            f"{np.unique(lengths)}"
        )
    if np.polyfit(np.log(lengths), np.log(losses), 1)[0] >= 0:
        raise ValueError("losses do not fall with length, so this power law cannot describe them")
