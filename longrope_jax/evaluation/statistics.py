"""Intervals, verdicts and sample sizes are for measurements that share documents and seeds.

Tokens of one document are not independent, nor are samples of one trained seed, so both are
resampled whole. All of it is host code in numpy float64. Dimensions: `s` seeds, `n` samples,
`g` clusters (documents), `c` columns (e.g. positions), `r` resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from longrope_jax.errors import unknown_name

CLAIMS = ("difference > margin", "difference < -margin", "|difference| <= margin")


@dataclass(frozen=True)
class Interval:
    """An Interval is an estimate with its confidence limits.

    The fields are floats, or arrays [c] with one interval per column.
    """

    estimate: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


@dataclass(frozen=True)
class PowerNeeded:
    """PowerNeeded holds the variance of a paired difference and the sizes that resolve a gap.

    Variances are in squared units of the values (nats^2 for losses). A size is None if no number
    is enough, or if it is unknown because there is a single seed.

    Attributes:
        between_documents: variance between documents.
        between_seeds: variance between seeds; None with a single seed.
        residual: variance of the interaction; None with a single seed.
        documents: number of documents needed with the present seeds.
        seeds: number of seeds needed with the present documents.
        balanced: (documents, seeds) needed if seeds may cause at most half of the variance.
    """

    between_documents: float
    between_seeds: float | None
    residual: float | None
    documents: int | None
    seeds: int | None
    balanced: tuple[int, int] | None


@dataclass(frozen=True)
class _Table:
    sums: np.ndarray  # [s, g, c] weighted sums of the values
    weights: np.ndarray  # [g]

    @property
    def means(self) -> np.ndarray:
        """The weighted mean of each seed, [s, c]."""
        return self.sums.sum(1) / self.weights.sum()

    @property
    def influence(self) -> np.ndarray:
        """The linearised contributions [s, g, c] to the grand mean, a ratio of weighted sums."""
        shares = self.weights / self.weights.mean()
        return self.sums / self.weights.mean() - shares[:, None] * self.means.mean(0)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns an interval of the weighted mean by resampling whole clusters.

    It is the percentile interval of g-1 draws per resample, which gives an unbiased variance (Rao &
    Wu 1988, JASA 83:231). Plain percentiles are too narrow with few documents, so the interval is
    stretched about the estimate by the ratio of the t quantile with g-1 degrees of freedom to the
    normal one (Hesterberg 2015, Am. Stat. 69:371, section 3.2). Columns share their resamples, and
    each interval is pointwise.

    Args:
        values: values [n] or [n, c].
        clusters: the cluster [n] of each sample, such as its document.
        weights: token counts [n]; None is 1 each.
        n_resamples: number of resamples.
        confidence: probability that the interval covers the mean.
        seed: seed of the resampling.

    Raises:
        ValueError: shapes differ, there are fewer than 2 clusters, a value is not finite, a weight
            is not positive, or an option is out of range.
    """
    return two_way_bootstrap(
        np.asarray(values, np.float64)[None],
        clusters,
        weights=weights,
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )


def two_way_bootstrap(
    values: ArrayLike,
    clusters: Sequence | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns an interval of the weighted mean by resampling seeds and whole clusters.

    Seeds and documents are resampled independently (pigeonhole bootstrap, Owen 2007, Ann. Appl.
    Stat. 1:386), with s-1 and g-1 draws, and the percentiles are stretched as in
    `cluster_bootstrap` with Satterthwaite's degrees of freedom. With one seed only documents are
    resampled, and the interval does not hold for other seeds. Two or three seeds give wide
    intervals, as they should.

    Args:
        values: values [s, n] or [s, n, c].
        clusters: the cluster [n] of each sample, such as its document.
        weights: token counts [n]; None is 1 each.
        n_resamples: number of resamples.
        confidence: probability that the interval covers the mean.
        seed: seed of the resampling.

    Raises:
        ValueError: the data or options are refused as by `cluster_bootstrap`.
    """
    values = np.asarray(values, np.float64)
    table = _tabulate(values, clusters, weights)
    draws = _resampled_means(table, n_resamples, seed)
    interval = stretched_interval(table.means.mean(0), draws, _degrees(table), confidence)
    if values.ndim == 3:
        return interval
    only = (np.ravel(x)[0] for x in (interval.estimate, interval.low, interval.high))
    return Interval(*map(float, only))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns an interval of mean(a - b) on the same seeds and samples.

    Effects of documents and seeds that both models share cancel before resampling.

    Args:
        a, b: values [s, n] or [s, n, c] of two models.
        clusters: the cluster [n] of each sample, such as its document.
        weights: token counts [n]; None is 1 each.
        n_resamples: number of resamples.
        confidence: probability that the interval covers the difference.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes of `a` and `b` differ, or `two_way_bootstrap` refuses the data.
    """
    return two_way_bootstrap(
        _difference(a, b),
        clusters,
        weights=weights,
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )


def power_needed(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    gap: float = 0.003,
    power: float = 0.8,
    alpha: float = 0.05,
) -> PowerNeeded:
    """Returns how many documents and seeds make a true mean(a - b) = `gap` significant.

    Variances of two-way random effects are estimated by moments, none below 0. The sizes are then
    the smallest with
        (z_{1-alpha/2} + z_power)^2 (s_d^2/n_d + s_s^2/n_s + s_r^2/(n_d n_s)) <= gap^2,
    where s_d^2 is the variance between documents, s_s^2 between seeds, and s_r^2 that of their
    interaction. With one seed s_r^2 is part of s_d^2, and no size is given. Quantiles are normal,
    which is optimistic with fewer than about 5 seeds.

    Args:
        a, b: values [s, n] of two models on the same seeds and samples.
        clusters: the cluster [n] of each sample, such as its document.
        weights: token counts [n]; None is 1 each.
        gap: difference to resolve in units of the values; 0.003 nats is the distance of ABF and PI
            on Books in Llama 2 Long, Table 5.
        power: probability that the true gap turns out significant.
        alpha: level of the two-sided test.

    Raises:
        ValueError: `gap`, `power` or `alpha` is out of range, or `paired_difference` refuses the
            data.
    """
    if not (0 < gap < math.inf and 0 < power < 1 and 0 < alpha < 1):
        raise ValueError(
            f"gap must be above 0, power and alpha between 0 and 1, got {gap=}, {power=}, {alpha=}"
        )
    difference = _difference(a, b)
    if difference.ndim != 2:
        raise ValueError(f"a and b must be [seeds, samples], got shape {difference.shape}")
    table = _tabulate(difference, clusters, weights).influence[..., 0]
    if len(table) == 1:
        return PowerNeeded(float(table.var(ddof=1)), None, None, None, None, None)
    quantiles = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    budget = (gap / quantiles) ** 2
    n_seeds, n_documents = table.shape
    return _sizes(*_components(table), n_seeds, n_documents, budget)


def verdict(interval: Interval, claim: str, margin: float = 0.0) -> str:
    """Says whether the interval of a difference supports a claim.

    Args:
        interval: an interval of a difference, without columns.
        claim: one of `CLAIMS`.
        margin: at least 0, in units of the difference.

    Returns:
        "holds" if the whole interval satisfies the claim, "reversed" if it lies strictly on the
        other side of the margin (for the claim of equivalence, outside +-margin on one side), else
        "indistinguishable".

    Raises:
        ValueError: the claim is unknown, the margin is negative or not finite, or the interval has
            columns or NaN.
    """
    if claim not in CLAIMS:
        raise ValueError(unknown_name("claim", claim, CLAIMS))
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and at least 0, got {margin}")
    if np.ndim(interval.low) or not interval.low <= interval.high:
        raise ValueError(f"interval must be one interval with low <= high, got {interval}")
    low, high = interval.low, interval.high
    holds, fails = {
        CLAIMS[0]: (low > margin, high < margin),
        CLAIMS[1]: (high < -margin, low > -margin),
        CLAIMS[2]: (-margin <= low and high <= margin, low > margin or high < -margin),
    }[claim]
    return "holds" if holds else "reversed" if fails else "indistinguishable"


def resampled_means(
    values: ArrayLike,
    clusters: Sequence | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Returns weighted column means [r, c] of `values` [n, c], resampling whole clusters [n].

    They serve statistics of the means, such as a fitted curve.

    Raises:
        ValueError: the data or options are refused as by `cluster_bootstrap`.
    """
    table = _tabulate(np.asarray(values, np.float64)[None], clusters, weights)
    return _resampled_means(table, n_resamples, seed)


def stretched_interval(
    estimate: np.ndarray, draws: np.ndarray, degrees: ArrayLike, confidence: float
) -> Interval:
    """Returns percentiles of `draws` [r, c] about `estimate` [c], stretched to Student's t.

    The stretch is the ratio of the quantile of t with `degrees` degrees of freedom to the normal
    one.

    Raises:
        ValueError: `confidence` does not lie strictly between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    stretch = stats.t.ppf(tail, degrees) / stats.norm.ppf(tail)
    return Interval(
        estimate, estimate + stretch * (low - estimate), estimate + stretch * (high - estimate)
    )


def _tabulate(values: np.ndarray, clusters: ArrayLike, weights: ArrayLike | None) -> _Table:
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"values need one entry per sample (and column), got shape {values.shape}")
    samples = values.shape[1]
    weights = np.ones(samples) if weights is None else np.asarray(weights, np.float64)
    if np.shape(clusters) != (samples,) or weights.shape != (samples,):
        shapes = f"clusters {np.shape(clusters)}, weights {weights.shape}"
        raise ValueError(f"{samples} samples need clusters and weights to match, got {shapes}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite; drop the samples that were not measured")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("weights must be positive; drop samples without tokens")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError("clusters must name at least 2 clusters for an interval, got 1")
    sums = np.zeros((len(names), len(values), values[0, 0].size))
    weighted = values.reshape(*values.shape[:2], -1) * weights[:, None]
    np.add.at(sums, index, weighted.swapaxes(0, 1))
    return _Table(sums.swapaxes(0, 1), np.bincount(index, weights))


def _resampled_means(table: _Table, n_resamples: int, seed: int) -> np.ndarray:
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    rng = np.random.default_rng(seed)
    seeds, clusters = (_counts(rng, size, n_resamples) for size in table.sums.shape[:2])
    # One matrix product per seed, since [r, s, c] at once would not fit for long contexts.
    total = sum(
        count[:, None] * (clusters @ sums) for count, sums in zip(seeds.T, table.sums, strict=True)
    )
    return total / (seeds.sum(1) * (clusters @ table.weights))[:, None]


def _counts(rng: np.random.Generator, size: int, n_resamples: int) -> np.ndarray:
    draws = max(size - 1, 1)
    return rng.multinomial(draws, np.full(size, 1 / size), n_resamples).astype(np.float64)


def _degrees(table: _Table) -> np.ndarray:
    """Returns Satterthwaite's degrees of freedom [c] of the grand mean."""
    influence = table.influence
    n_seeds, n_clusters = influence.shape[:2]
    documents = influence.mean(0).var(0, ddof=1) / n_clusters
    seeds = influence.mean(1).var(0, ddof=1) / n_seeds if n_seeds > 1 else np.zeros_like(documents)
    spread = documents**2 / (n_clusters - 1) + seeds**2 / max(n_seeds - 1, 1)
    safe = np.where(spread > 0, spread, 1)
    return np.where(spread > 0, (documents + seeds) ** 2 / safe, n_clusters - 1)


def _difference(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must have equal shapes, got {a.shape} and {b.shape}")
    return a - b


def _components(table: np.ndarray) -> tuple[float, float, float]:
    """Returns the variances between documents, between seeds and of the rest of a table [s, g]."""
    n_seeds, n_documents = table.shape
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    rest = table - rows - columns + table.mean()
    residual = float((rest**2).sum() / ((n_seeds - 1) * (n_documents - 1)))
    documents = max(float(columns.var(ddof=1)) - residual / n_seeds, 0.0)
    seeds = max(float(rows.var(ddof=1)) - residual / n_documents, 0.0)
    return documents, seeds, residual


def _sizes(
    documents: float, seeds: float, residual: float, n_seeds: int, n_documents: int, budget: float
) -> PowerNeeded:
    half = max(1, math.ceil(2 * seeds / budget))
    n_balanced = _solve(documents, seeds, residual, half, budget)
    return PowerNeeded(
        documents,
        seeds,
        residual,
        documents=_solve(documents, seeds, residual, n_seeds, budget),
        seeds=_solve(seeds, documents, residual, n_documents, budget),
        balanced=None if n_balanced is None else (n_balanced, half),
    )


def _solve(wanted: float, other: float, residual: float, n_other: int, budget: float) -> int | None:
    """Returns the least n with wanted/n + other/n_other + residual/(n n_other) <= budget."""
    room = budget - other / n_other
    return max(1, math.ceil((wanted + residual / n_other) / room)) if room > 0 else None
