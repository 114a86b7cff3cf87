"""Intervals, verdicts and sample sizes for measurements that share documents and seeds.

Tokens of one document are not independent, nor are samples of one trained seed: both are resampled
whole. Host code, numpy float64. Dimensions: `s` seeds, `n` samples, `g` clusters (documents),
`c` columns (e.g. positions), `r` resamples.
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
    """An estimate with its confidence limits; floats, or arrays [c], one interval per column."""

    estimate: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


@dataclass(frozen=True)
class PowerNeeded:
    """Variance components of a paired difference and the sample sizes that would resolve a gap.

    Components are in squared units of the values (nats^2 for losses). `documents` is the number
    needed at the present seeds, `seeds` at the present documents, `balanced` = (documents, seeds)
    with at most half of the variance left to seeds. None: out of reach, or, with a single seed,
    unknown.
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
        """Weighted means of the seeds [s, c]."""
        return self.sums.sum(1) / self.weights.sum()

    @property
    def influence(self) -> np.ndarray:
        """Linearised contributions [s, g, c] to the grand mean, a ratio of weighted sums."""
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
    """Interval of the weighted mean of `values` [n] or [n, c], resampling whole clusters [n].

    `weights` [n] are token counts (default 1). Percentile interval of g-1 draws per resample
    (unbiased variance: Rao & Wu 1988, JASA 83:231), stretched about the estimate by the ratio of
    the t quantile (g-1 degrees of freedom) to the normal one (Hesterberg 2015, Am. Stat. 69:371,
    section 3.2), since plain percentiles are too narrow with few documents. Columns share their
    resamples; each interval is pointwise. ValueError: shapes that differ, fewer than 2 clusters,
    values that aren't finite, weights that aren't positive.
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
    """Interval of the mean of `values` [s, n] or [s, n, c], resampling seeds and clusters [n].

    Seeds and documents are resampled independently (pigeonhole bootstrap, Owen 2007, Ann. Appl.
    Stat. 1:386), n-1 draws of each, and the percentiles are stretched as in `cluster_bootstrap`
    with Satterthwaite's degrees of freedom. With one seed only documents are resampled: the
    interval then says nothing of other seeds. Two or three seeds give wide intervals, as they
    should. Weights and errors as in `cluster_bootstrap`.
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
    """Interval of mean(a - b) for `a`, `b` [s, n] (or [s, n, c]) on the same seeds and samples.

    What documents and seeds do to both models cancels before resampling. Errors as in
    `two_way_bootstrap`, and ValueError where the shapes of `a` and `b` differ.
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
    """How many documents and seeds make a true mean(a - b) = `gap` significant with chance `power`.

    `a`, `b` [s, n], `gap` in their units (0.003 nats: the distance of ABF and PI on Books in
    Llama 2 Long, Table 5). Two-way random effects by moments, none below 0; then the smallest
    sizes with (z_{1-alpha/2} + z_power)^2 (s_d^2/n_d + s_s^2/n_s + s_r^2/(n_d n_s)) <= gap^2.
    s_r^2 is how documents and seeds interact; with one seed it is part of s_d^2, and no size is
    given. Normal quantiles: with fewer than about 5 seeds the answer is optimistic. ValueError as
    in `paired_difference`, and for a gap, power or alpha out of range.
    """
    if not (0 < gap < math.inf and 0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"need gap > 0, 0 < power, alpha < 1; got {gap=}, {power=}, {alpha=}")
    difference = _difference(a, b)
    if difference.ndim != 2:
        raise ValueError(f"power_needed takes [seeds, samples], got shape {difference.shape}")
    table = _tabulate(difference, clusters, weights).influence[..., 0]
    if len(table) == 1:
        return PowerNeeded(float(table.var(ddof=1)), None, None, None, None, None)
    quantiles = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    budget = (gap / quantiles) ** 2
    n_seeds, n_documents = table.shape
    return _sizes(*_components(table), n_seeds, n_documents, budget)


def verdict(interval: Interval, claim: str, margin: float = 0.0) -> str:
    """Say whether an interval of a difference bears a claim out: one of three words.

    `claim` is one of `CLAIMS`. "holds": the whole interval satisfies it; "reversed": the whole
    interval lies strictly on the other side of the margin (for the equivalence claim: outside
    +-margin on one side); else "indistinguishable". `margin` >= 0 in units of the difference.
    ValueError: unknown claim (names the nearest), bad margin, an interval with columns or NaN.
    """
    if claim not in CLAIMS:
        raise ValueError(unknown_name("claim", claim, CLAIMS))
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and at least 0, got {margin}")
    if np.ndim(interval.low) or not interval.low <= interval.high:
        raise ValueError(f"a verdict needs one interval with low <= high, got {interval}")
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
    """Weighted column means [r, c] of `values` [n, c] under resampling of whole clusters [n].

    For statistics of the means, such as a fitted curve. Errors as in `cluster_bootstrap`.
    """
    table = _tabulate(np.asarray(values, np.float64)[None], clusters, weights)
    return _resampled_means(table, n_resamples, seed)


def stretched_interval(
    estimate: np.ndarray, draws: np.ndarray, degrees: ArrayLike, confidence: float
) -> Interval:
    """Percentiles of `draws` [r, c] about `estimate` [c], widened from normal to t `degrees`."""
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
        raise ValueError("an interval over documents needs at least 2 clusters, got 1")
    sums = np.zeros((len(names), len(values), values[0, 0].size))
    weighted = values.reshape(*values.shape[:2], -1) * weights[:, None]
    np.add.at(sums, index, weighted.swapaxes(0, 1))
    return _Table(sums.swapaxes(0, 1), np.bincount(index, weights))


def _resampled_means(table: _Table, n_resamples: int, seed: int) -> np.ndarray:
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    rng = np.random.default_rng(seed)
    seeds, clusters = (_counts(rng, size, n_resamples) for size in table.sums.shape[:2])
    # One matrix product per seed: [r, s, c] at once would not fit for long contexts.
    total = sum(
        count[:, None] * (clusters @ sums) for count, sums in zip(seeds.T, table.sums, strict=True)
    )
    return total / (seeds.sum(1) * (clusters @ table.weights))[:, None]


def _counts(rng: np.random.Generator, size: int, n_resamples: int) -> np.ndarray:
    draws = max(size - 1, 1)
    return rng.multinomial(draws, np.full(size, 1 / size), n_resamples).astype(np.float64)


def _degrees(table: _Table) -> np.ndarray:
    """Satterthwaite's degrees of freedom [c] of the grand mean."""
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
        raise ValueError(f"pairs need equal shapes, got {a.shape} and {b.shape}")
    return a - b


def _components(table: np.ndarray) -> tuple[float, float, float]:
    """Variances between documents, between seeds and of the residual, from a table [s, g]."""
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
    """Smallest n with wanted/n + other/n_other + residual/(n n_other) <= budget, if any."""
    room = budget - other / n_other
    return max(1, math.ceil((wanted + residual / n_other) / room)) if room > 0 else None
