"""ALiBi rotates nothing and puts a penalty on distance."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies, rope_inv_freq
from longrope_jax.rotary.registry import register
from longrope_jax.rotary.score_rule import ScoreRule


@register("alibi")
@dataclasses.dataclass(frozen=True)
class ALiBi:
    """ALiBi: score q.k/sqrt(H) - slope_i (m - n), nothing rotates.

    m and n are the positions of query and key in tokens, and i = 1..N counts the query heads.
    slope_i is 2^(-8i/N) per token; `alibi_slopes` says what it is where N is not a power of two.
    ALiBi is a baseline, and serves models that were trained with it.

    Source: Press et al. (2108.12409) section 3.
    Cache: keys as they are, since nothing rotates.
    Peers: none of the compared implementations has it.
    """

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] zeros and a score rule that holds the bias."""
        return Frequencies(np.zeros_like(rope_inv_freq(2.0, head_dim)), score_rule=ALiBiRule())


@dataclasses.dataclass(frozen=True)
class ALiBiRule(ScoreRule):
    """The score rule of ALiBi: one branch, and a bias that differs by head."""

    def slopes(self, n_heads):
        """Returns the slope of each query head, float64 [N] per token."""
        return alibi_slopes(n_heads)


def alibi_slopes(n_heads: int) -> np.ndarray:
    """Returns ALiBi's slope of each query head, float64 [N], per token of distance.

    The slopes are 2^(-8i/N) for i = 1..N where N is a power of two. For any other N they are, as
    in the authors' code, the slopes of the largest power of two P below N, followed by every
    second slope of 2P.

    Raises:
        ValueError: `n_heads` is below 1.
    """
    if n_heads < 1:
        raise ValueError(f"n_heads must be at least 1, got {n_heads}")
    power = 2 ** (n_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return np.concatenate([slopes, between])[:n_heads]
