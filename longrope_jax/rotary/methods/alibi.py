"""ALiBi: no rotation, a penalty on distance."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies, rope_inv_freq
from longrope_jax.rotary.registry import register
from longrope_jax.rotary.score_rule import ScoreRule


@register("alibi")
@dataclasses.dataclass(frozen=True)
class ALiBi:
    """ALiBi: score q.k/sqrt(H) - slope_i (m - n), nothing rotates.

    m, n positions of query and key in tokens, i = 1..N query heads, slope_i = 2^(-8i/N) per token
    (see `alibi_slopes` where N is no power of two). A baseline, for models trained with it.

    Source: Press et al. (2108.12409) section 3.
    Cache: keys as they are, nothing rotates.
    Peers: not among the rotary methods of the compared codes.
    """

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """[H/2] zeros, with `score_rule` set."""
        return Frequencies(np.zeros_like(rope_inv_freq(2.0, head_dim)), score_rule=ALiBiRule())


@dataclasses.dataclass(frozen=True)
class ALiBiRule(ScoreRule):
    """One branch, with a bias per head."""

    def slopes(self, n_heads):
        """As in ScoreRule."""
        return alibi_slopes(n_heads)


def alibi_slopes(n_heads: int) -> np.ndarray:
    """float64 [N] slopes per token of distance.

    2^(-8i/N) for i = 1..N where N is a power of two. Else, as in the authors' code, those of the
    largest power of two P below N, followed by every second one of 2P's.
    """
    if n_heads < 1:
        raise ValueError(f"n_heads must be at least 1, got {n_heads}")
    power = 2 ** (n_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return np.concatenate([slopes, between])[:n_heads]
