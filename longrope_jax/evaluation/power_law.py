"""The power law L(c) = (alpha/c)^beta + gamma is fitted to loss over context length.

It is equation 1 of Llama 2 Long, with Figure 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import least_squares, minimize_scalar, nnls, root_scalar

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


@dataclass(frozen=True)
class Profile:
    """A Profile says how well each exponent describes a measured curve, and how well the best does.

    Attributes:
        law: the best law.
        betas: exponents [P].
        gammas: the best irreducible loss [P] in nats under each of them.
        excess: by how much each exponent describes the curve worse than the best one [P], in units
            of the limit: those below 1 cannot be excluded.
        beta: the best exponent and the ends of those that cannot be excluded; an end at the edge of
            `betas` is no bound.
        p_value: probability that a curve which follows the law lies as far from it as this one.
    """

    law: PowerLaw
    betas: np.ndarray
    gammas: np.ndarray
    excess: np.ndarray
    beta: Interval
    p_value: float


def profile(
    lengths: ArrayLike,
    losses_by_document: ArrayLike,
    clusters: Sequence | np.ndarray,
    betas: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Profile:
    """Returns the profile likelihood of beta: for each, the best alpha and gamma.

    alpha, beta and gamma trade against each other, so intervals of each alone hide what the data
    tell. The curve is the mean over documents; its covariance is that of the documents' curves,
    with Hotelling's correction for having been estimated from few of them.

    Args:
        lengths: context [C] in tokens.
        losses_by_document: losses [n, C] in nats of the same tokens under each context.
        clusters: the document [n] of each row of losses.
        betas: exponents to try, rising.
        confidence: probability that the interval covers beta, if the law holds.

    Raises:
        ValueError: `fit` refuses the lengths, or there are not more documents than lengths.
    """
    lengths, rows = np.asarray(lengths, np.float64), np.asarray(losses_by_document, np.float64)
    names, at = np.unique(np.asarray(clusters), return_inverse=True)
    curves = np.stack([rows[at == i].mean(0) for i in range(len(names))])
    (n, C), mean, betas = curves.shape, curves.mean(0), np.asarray(betas, np.float64)
    _check(lengths, mean)
    if n <= C:
        raise ValueError(f"{n} documents cannot tell how {C} lengths vary together: take more")
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(curves, rowvar=False) / n))
    goal = whiten @ mean

    def solved(beta: float) -> tuple[np.ndarray, float]:
        """Scale and gamma, neither negative, and the misfit: with beta given the law is linear."""
        given, residual = nnls(whiten @ np.stack([lengths**-beta, np.ones(C)], 1), goal)
        return given, residual**2

    def limit(parameters: int) -> float:
        """What Hotelling's T-squared of so many parameters stays below, with `confidence`."""
        degrees = n - C - 1 + parameters
        share = stats.f.ppf(confidence, parameters, degrees)
        return share * parameters * (n - 1) / degrees

    misfit = np.array([solved(beta)[1] for beta in betas])
    around = betas[np.clip(int(np.argmin(misfit)) + np.array([-1, 1]), 0, len(betas) - 1)]
    found: Any = minimize_scalar(lambda b: solved(b)[1], bounds=around, method="bounded")
    beta = float(found.x)
    (scale, gamma), best = solved(beta)
    excess = (misfit - best) / limit(1)

    def end(far: np.ndarray, edge: float) -> float:
        """Returns the exponent at which the excess passes 1 on the way from the best to `far`."""
        beyond = next((b for b in far if (solved(b)[1] - best) / limit(1) > 1), None)
        if beyond is None:
            return edge
        passes = root_scalar(lambda b: (solved(b)[1] - best) / limit(1) - 1, bracket=(beta, beyond))
        return float(passes.root)

    low = end(betas[betas < beta][::-1], float(betas[0]))
    high = end(betas[betas > beta], float(betas[-1]))
    free, degrees = C - 3, n - C + 2
    tail = stats.f.sf(best * degrees / (free * (n - 1)), free, degrees)
    gammas = np.array([solved(b)[0][1] for b in betas])
    law = PowerLaw(float(scale ** (1 / beta)), beta, float(gamma))
    return Profile(law, betas, gammas, excess, Interval(beta, low, high), float(tail))


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
