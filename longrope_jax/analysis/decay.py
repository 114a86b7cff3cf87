"""The attention score of all-ones queries and keys is a function of distance, here in float64.

Figure 4 of Llama 2 Long (2309.16039) draws these curves. Its axis says "score before softmax"; the
drawn values are divided by sqrt(H).
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from longrope_jax.errors import unknown_name
from longrope_jax.rotary import LAYOUTS, Frequencies, Method, ScoreRule


def score(
    method: Method | Frequencies,
    distances: ArrayLike,
    *,
    head_dim: int,
    seq_len: int | None = None,
) -> np.ndarray:
    """Returns the score of an all-ones query and key at each distance, divided by sqrt(H).

    It is (1/sqrt(H)) * (sum_j 2 A^2 exp(log_decay_j * distance) cos(inv_freq_j * distance)
    + H - 2R) as in Figure 4 of Llama 2 Long, with A the amplitude (1 except for YaRN and related
    methods) and H - 2R the number of features that partial rotary leaves alone. Only what depends
    on distance alone is included: the frequencies of LongRoPE's first positions and log-n scaling
    are left out. Memory grows with the number of distances, not with their product with H.

    Under remapped positions (ReRoPE, Self-Extend, dual chunk ...) it is what the last of `seq_len`
    tokens sees. Where the score does not depend on the relative position alone, that is one row of
    `heatmap`.

    Args:
        method: a rotary method, or its frequencies.
        distances: query position minus key position in tokens, not negative; any shape.
        head_dim: H, even.
        seq_len: the length in tokens at which the method is evaluated; default just enough for the
            largest distance.

    Returns:
        float64 in the shape of `distances`, dimensionless.

    Raises:
        ValueError: there is no distance, a distance is negative, `head_dim` is odd, distances under
            remapped positions are not whole or not below `seq_len`, or the method is ALiBi or FoPE
            (see `heatmap`).
    """
    d = np.asarray(distances, np.float64)
    if d.size == 0 or d.min() < 0:
        raise ValueError("distances must be one or more numbers that are not negative")
    f, d = _at_distances(method, d, head_dim, seq_len)
    total = np.zeros_like(d)
    for speed, log_decay in zip(f.inv_freq, f.log_decay, strict=True):
        total += np.exp(log_decay * d) * np.cos(speed * d)
    return _normalize(total, f, head_dim)


def heatmap(
    method: Method | Frequencies,
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    head_dim: int,
    seq_len: int | None = None,
) -> np.ndarray:
    """Returns the score of an all-ones query at m and key at n, divided by sqrt(H).

    Unlike `score` it uses the angles at both positions, so that LongRoPE's first positions, log-n
    scaling and every remapping of positions act. For FoPE it is the score of head 0.
    Source: the quantity of footnote 3 of Llama 2 Long for all-ones vectors.

    Args:
        method: a rotary method, or its frequencies.
        queries: [T] positions m in tokens, not negative.
        keys: [S] positions n in tokens, not negative.
        head_dim: H, even.
        seq_len: the length in tokens at which the method is evaluated; default just enough for the
            last position.

    Returns:
        float64 [T, S], NaN where the key comes after the query.

    Raises:
        ValueError: there is no position, a position is negative, `head_dim` is odd, remapped
            positions are not whole, or the method is ALiBi.
    """
    m, n = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    if m.size == 0 or n.size == 0 or min(m.min(), n.min()) < 0:
        raise ValueError("positions must be one or more numbers that are not negative")
    f = _frequencies(method, head_dim, seq_len or int(max(m.max(), n.max())) + 1)
    scores = _normalize(_pair_totals(f, m, n), f, head_dim) * _log_n(f, m)[:, None]
    return np.where(m[:, None] >= n, scores, np.nan)


def _pair_totals(f: Frequencies, m: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Returns [T, S], the sum over pairs of cos(query angle - key angle), with decay."""
    query_angle, key_angle = _angles(f, m), _angles(f, n)
    distance = np.maximum(m[:, None] - n, 0)
    if f.mixing is not None:
        cosines, sines = (
            _mixed(weights, query_angle, i) @ _mixed(weights, key_angle, i).T
            for i, weights in enumerate(f.mixing[:, 0])
        )
        return cosines + sines
    total = np.zeros_like(distance)
    if f.score_rule is not None:
        relative = _relative(f.score_rule, m[:, None], n)
        for speed in f.inv_freq:
            total += np.cos(speed * relative)
        return total
    for j, log_decay in enumerate(f.log_decay):
        total += np.exp(log_decay * distance) * np.cos(query_angle[:, j, None] - key_angle[:, j])
    return total


def _mixed(weights: np.ndarray, angle: np.ndarray, which: int) -> np.ndarray:
    """Returns mixed cosines (0) or sines (1) of head 0, [T, P], from angles [T, R]."""
    waves = (np.cos, np.sin)[which](angle)
    return np.hstack([waves, np.ones((len(waves), 1))]) @ weights


def _relative(rule: ScoreRule, m, n) -> np.ndarray:
    """Returns the distance at which query and key are scored; those above the diagonal are moot."""
    if rule.slopes(1) is not None:
        raise ValueError(
            "alibi rotates nothing and has another bias in each head: its scores fall by "
            "rotary.alibi_slopes(n_heads) per token"
        )
    m, n = np.asarray(m), np.asarray(n)
    if np.any(m % 1) or np.any(n % 1):
        raise ValueError(f"{rule} takes whole positions and distances")
    if n.min() < 0:
        raise ValueError(f"distances reach beyond the first of seq_len tokens under {rule}")
    return rule.relative_position(m.astype(np.int64), n.astype(np.int64))


def expected_score(
    method: Method | Frequencies,
    distances: ArrayLike,
    moments: ArrayLike,
    *,
    layout: str = "half",
    seq_len: int | None = None,
) -> np.ndarray:
    """Returns the mean score of a head's queries and keys at each distance, divided by sqrt(H).

    It is (1/sqrt(H)) * (sum_j A^2 exp(log_decay_j * distance) Re(c_j exp(i inv_freq_j * distance))
    + r), with c_j the mean of q_j conj(k_j) over pair j as a complex number and r the mean product
    of the features that partial rotary leaves alone. This is the expectation over queries and keys
    of Llama 2 Long's footnote 3, for content that does not depend on the distance. All-ones moments
    give `score`. It is defined where `depends_on_distance_alone` is true.

    Args:
        method: a rotary method, or its frequencies.
        distances: [S] query position minus key position in tokens, not negative.
        moments: [..., H, H] mean of q_a k_b before rotation, measured on a model by
            `evaluation.attention_statistics`, or assumed.
        layout: how the model pairs features, see `rotary.rotate`.
        seq_len: the length in tokens at which the method is evaluated; default just enough for the
            largest distance.

    Returns:
        float64 [..., S].

    Raises:
        ValueError: `score` refuses the method or a distance, the moments are not square, or the
            layout is unknown.
    """
    d, moments = np.asarray(distances, np.float64), np.asarray(moments, np.float64)
    if d.ndim != 1 or d.size == 0 or d.min() < 0:
        raise ValueError("distances must be a list of one or more numbers that are not negative")
    if moments.ndim < 2 or moments.shape[-1] != moments.shape[-2]:
        raise ValueError(f"moments must be [..., H, H], got {moments.shape}")
    head_dim = moments.shape[-1]
    f, d = _at_distances(method, d, head_dim, seq_len)
    pairs, rest = _pair_moments(moments, len(f.inv_freq), layout)
    turn = np.exp(np.outer(f.log_decay + 1j * f.inv_freq, d))
    return (f.amplitude**2 * np.real(pairs @ turn) + rest[..., None]) / np.sqrt(head_dim)


def depends_on_distance_alone(frequencies: Frequencies) -> bool:
    """Says whether scores are a function of distance.

    They are not with start tokens, log-n scaling or FoPE, nor where the relative position follows
    chunks or groups of tokens (dual chunk, Self-Extend).
    """
    f = frequencies
    if f.start_count or np.isfinite(f.logn_length) or f.mixing is not None:
        return False
    if f.score_rule is None:
        return True
    distances = np.unique(np.geomspace(1, 2**20, 200).astype(np.int64))
    # 797 is prime, so that every place in a chunk or group occurs.
    n = 797 * np.arange(400)[:, None]
    relative = f.score_rule.relative_position(n + distances, n)
    return bool(np.all(relative == relative[0]))


def first_negative(scores: ArrayLike, distances: ArrayLike | None = None) -> int | float | None:
    """Returns the first distance in tokens with a score below zero, or None.

    Args:
        scores: [N] scores.
        distances: [N] growing distances; default 0, 1, 2, ...
    """
    found = np.flatnonzero(np.asarray(scores) < 0)
    if not found.size:
        return None
    return int(found[0]) if distances is None else np.asarray(distances)[found[0]].item()


def oscillation(scores: np.ndarray, *, tail: float = 0.5) -> float:
    """Returns how much a curve swings at long range: RMS distance from its best non-increasing fit.

    It is taken over the last `tail` of the range, where Llama 2 Long (section 4.1) worries about
    oscillation; the fit is by least squares (isotonic regression). The measure is zero for any
    curve that only falls, however steeply, and has no scale of its own; half of peak to trough or a
    standard deviation would count decay itself as oscillation, and a moving average needs a window.

    Args:
        scores: [N] scores at growing, evenly spaced distances.
        tail: share of the range that counts, above 0, at most 1.

    Returns:
        The distance in the units of `scores`.

    Raises:
        ValueError: `tail` is out of range.
    """
    if not 0 < tail <= 1:
        raise ValueError(f"tail must be above 0 and at most 1, got {tail}")
    last = np.asarray(scores, np.float64)[-max(1, round(len(scores) * tail)) :]
    fit = isotonic_regression(last, increasing=False).x
    return float(np.sqrt(np.mean((last - fit) ** 2)))


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary has one curve in numbers; scores are dimensionless, distances are in tokens."""

    at_zero: float
    minimum: float
    minimum_distance: int
    at_end: float
    first_negative: int | None
    oscillation: float


def summarize(scores: np.ndarray) -> Summary:
    """Returns the summary of `scores` [N] at distances 0, 1, ..., N-1."""
    scores = np.asarray(scores, np.float64)
    lowest = int(np.argmin(scores))
    below = np.flatnonzero(scores < 0)
    return Summary(
        at_zero=float(scores[0]),
        minimum=float(scores[lowest]),
        minimum_distance=lowest,
        at_end=float(scores[-1]),
        first_negative=int(below[0]) if below.size else None,
        oscillation=oscillation(scores),
    )


def _at_distances(method, d, head_dim: int, seq_len: int | None):
    """Returns frequencies, and the distances at which the last token scores those in `d`."""
    last = seq_len - 1 if seq_len else int(d.max())
    f = _frequencies(method, head_dim, last + 1)
    if f.mixing is not None:
        raise ValueError("scores under fope depend on both positions: see decay.heatmap")
    return f, d if f.score_rule is None else _relative(f.score_rule, last, last - d)


def _frequencies(method: Method | Frequencies, head_dim: int, seq_len: int) -> Frequencies:
    if isinstance(method, Frequencies):
        f = method
    else:
        f = method.frequencies(head_dim=head_dim, seq_len=seq_len)
    if 2 * f.pairs > head_dim:
        raise ValueError(f"{f.pairs} pairs do not fit into a head of {head_dim}")
    return f


def _pair_moments(moments: np.ndarray, count: int, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of q conj(k) per rotated pair [..., count], and the sum over the rest."""
    if layout not in LAYOUTS:
        raise ValueError(unknown_name("rotary layout", layout, LAYOUTS))
    pairs = np.arange(2 * count).reshape((2, count) if layout == "half" else (count, 2))
    a, b = pairs if layout == "half" else pairs.T
    real = moments[..., a, a] + moments[..., b, b]
    imaginary = moments[..., b, a] - moments[..., a, b]
    rest = np.arange(2 * count, moments.shape[-1])
    return real + 1j * imaginary, moments[..., rest, rest].sum(-1)


def _angles(f: Frequencies, positions: np.ndarray) -> np.ndarray:
    start = positions[:, None] < f.start_count
    return positions[:, None] * np.where(start, f.start_inv_freq, f.inv_freq)


def _normalize(total: np.ndarray, f: Frequencies, head_dim: int) -> np.ndarray:
    unrotated = head_dim - 2 * f.pairs
    return (2 * f.amplitude**2 * total + unrotated) / np.sqrt(head_dim)


def _log_n(f: Frequencies, positions: np.ndarray) -> np.ndarray:
    return np.maximum(1.0, np.log(positions + 1) / np.log(f.logn_length))
