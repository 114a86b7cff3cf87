"""HoPE rotates fast pairs; the other pairs carry no position."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_original_length,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import register


@register("hope")
@dataclasses.dataclass(frozen=True)
class HoPE:
    """HoPE: theta_j = base^(-2j/H) where a period fits into L, else 0.

    theta_j is in radians per token, its period is 2 pi/theta_j tokens, and L is the
    original_length. This is p-RoPE with p derived from the trained length.

    Source: HoPE, Chen et al. (2410.21216). The rule is known from third-party descriptions; the cut
        (one full period within the trained length) has not been checked against the paper.
    Cache: rotated keys.
    Peers: unofficial implementations disagree about the cut; some invert it.

    Attributes:
        original_length: the trained length L in tokens; required.
        base: RoPE's base; default 10,000.
    """

    original_length: float
    base: float = 10_000.0

    def __post_init__(self):
        check_original_length(self.original_length)
        check_base(self.base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, zero for slow pairs.

        They are the same at every `seq_len`.
        """
        theta = rope_inv_freq(self.base, head_dim)
        return Frequencies(np.where(theta * self.original_length >= 2 * np.pi, theta, 0.0))
