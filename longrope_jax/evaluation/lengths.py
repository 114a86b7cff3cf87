"""Scores of a task over lengths and depths: intervals, the effective length, a grid for a picture.

Scores are 0 to 1, one per sample, the same task at several lengths.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from longrope_jax.evaluation.statistics import Interval, resampled_means

SHARE = 0.85  # of the score at the shortest length that a length must keep to be effective


class Effective(NamedTuple):
    """The effective length in tokens, and its limits; None where no length is effective."""

    length: int | None
    low: int | None
    high: int | None


def wilson(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns the mean of scores [n] with Wilson's interval (JASA 1927, 22:209).

    It is that of n samples that are right or wrong, taken as independent; where scores lie between,
    it is wider than need be.

    Raises:
        ValueError: there are no scores, or one lies outside 0..1.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"scores must be [n] from 0 to 1, got {values.shape} {values!r:.60}")
    n, p = len(values), float(values.mean())
    z = float(stats.norm.ppf((1 + confidence) / 2))
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + side * half) / (1 + z * z / n) for side in (-1, 1))
    return Interval(p, float(max(low, 0)), float(min(high, 1)))


def effective_length(
    scores: Mapping[int, ArrayLike],
    clusters: Mapping[int, Sequence] | None = None,
    *,
    share: float = SHARE,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Effective:
    """Returns the longest length up to which each length keeps `share` of the shortest's score.

    The limits are the 2.5th and 97.5th percentile over resampled documents, or samples where all
    are of one document.

    Args:
        scores: the samples' scores [n] by length in tokens.
        clusters: the document [n] of each sample by length; None takes samples as independent.
        share: what a length must keep, as a share.
        n_resamples: number of resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: there is no length, or `share` lies outside 0..1.
    """
    if not scores or not 0 < share <= 1:
        raise ValueError(f"give scores of 1 length or more and a share in 0..1, got {share=}")
    lengths = sorted(scores)
    means = np.array([[np.mean(np.asarray(scores[n])) for n in lengths]])
    draws = []
    for i, n in enumerate(lengths):
        values = np.asarray(scores[n], np.float64)
        of = np.arange(len(values)) if clusters is None else np.asarray(clusters[n])
        if len(np.unique(of)) < 2:
            of = np.arange(len(values))
        if len(values) < 2:
            draws.append(np.full(n_resamples, values.mean()))
            continue
        options = {"n_resamples": n_resamples, "seed": seed + i}
        draws.append(resampled_means(values[:, None], of, **options)[:, 0])
    reached = _reached(np.stack(draws, 1), share)
    low, high = np.quantile(reached, [0.025, 0.975], method="nearest").tolist()
    named = [None, *lengths]
    return Effective(named[int(_reached(means, share)[0])], named[low], named[high])


def _reached(means: np.ndarray, share: float) -> np.ndarray:
    """How many of the shortest lengths are effective, for each row of means [r, lengths]."""
    kept = (means >= share * means[:, :1]) & (means[:, :1] > 0)
    return np.cumprod(kept, axis=1).sum(1)


def by_depth(
    scores: Mapping[int, ArrayLike], depths: Mapping[int, ArrayLike], bins: int = 5
) -> np.ndarray:
    """Returns mean scores [bins, lengths] by depth and length; NaN where there is no sample.

    Args:
        scores: the samples' scores [n] by length in tokens.
        depths: the samples' depths [n] from 0 to 1 by length.
        bins: equal parts of the depth.

    Raises:
        ValueError: `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    grid = np.full((bins, len(scores)), np.nan)
    for column, n in enumerate(sorted(scores)):
        values = np.asarray(scores[n], np.float64)
        rows = np.minimum((np.asarray(depths[n]) * bins).astype(int), bins - 1)
        for row in np.unique(rows):
            grid[row, column] = values[rows == row].mean()
    return grid


def summary(found: Mapping[int, Mapping[str, Any]], shortest: int) -> dict[str, Any]:
    """Returns the line of a table: a task under a method at every length.

    Args:
        found: by length in tokens `scores`, `depths`, `documents`, `exact`, `share` and `nll` [n],
            as `retrieval.measured` gives them.
        shortest: the length that others are compared with.

    Returns:
        `lengths`: by length the score with Wilson's limits, means and the scores by depth;
        `effective`: the effective length with its limits, where `shortest` was measured.
    """
    line: dict[str, Any] = {"lengths": {}}
    for n in sorted(found):
        one, of_n = found[n], wilson(found[n]["scores"])
        means = {k: float(np.mean(np.asarray(one[k]))) for k in ("exact", "share", "nll")}
        grid = by_depth({n: one["scores"]}, {n: one["depths"]})[:, 0].tolist()
        limits = {"score": of_n.estimate, "low": of_n.low, "high": of_n.high}
        line["lengths"][n] = limits | means | {"by depth": grid}
    if shortest in found:
        scores, clusters = ({n: x[k] for n, x in found.items()} for k in ("scores", "documents"))
        line["effective"] = effective_length(scores, clusters)._asdict()
    return line


def shown(one: Mapping[str, float] | None) -> str:
    """A score of `summary` with its limits as tables show it; "-" where there is none."""
    return f"{one['score']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" if one else "-"


def shown_effective(reached: Mapping[str, int | None] | None) -> str:
    """An effective length of `summary` with its limits as tables show it."""
    if reached is None:
        return "-"
    length, low, high = ("none" if n is None else f"{n:,}" for n in reached.values())
    return f"{length} [{low}, {high}]"
