"""Arithmetic of the reports: medians, ratios with their spread, exponents. No array library."""

import math
from collections.abc import Sequence
from statistics import median


def process_medians(runs: Sequence[dict], what: str) -> list[float]:
    """Per process the median of its samples (or the number that it has) of `what`."""
    values = (run[what] for run in runs)
    return [median(v) if isinstance(v, Sequence) else v for v in values]


def ratio(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and the smallest and largest of the ratios of pairs.

    Pairs ran one after the other, so that what else the machine did hit both.

    Raises:
        ValueError: unequal numbers, or none.
    """
    if not top or len(top) != len(bottom):
        raise ValueError(f"{len(top)} and {len(bottom)} processes: a ratio needs pairs")
    pairs = [a / b for a, b in zip(top, bottom, strict=True)]
    return median(top) / median(bottom), min(pairs), max(pairs)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the least-squares fit y = c x^p in logarithms.

    Raises:
        ValueError: fewer than two points, or one that is not positive.
    """
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"no exponent fits {len(x)} and {len(y)} points: need two, positive")
    x, y = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return top / sum((a - mean_x) ** 2 for a in x)


def disagreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest difference of two lists, relative to the size of each pair's second number.

    Raises:
        ValueError: unequal lengths.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} values do not compare with {len(other)}")
    return max(
        (abs(a - b) / max(abs(b), 1e-30) for a, b in zip(one, other, strict=True)), default=0
    )
