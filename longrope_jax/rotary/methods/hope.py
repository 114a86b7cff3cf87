"""HoPE: fast pairs rotate, the rest carry no position."""

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

    Radians per token; a period is 2 pi/theta_j tokens, L = original_length. p-RoPE with p derived
    from the trained length.

    Source: HoPE, Chen et al. (2410.21216). The shape is known from third-party descriptions; the
        cut (one full period within the trained length) is recalled, not checked against the paper.
    Cache: rotated keys.
    Peers: unofficial codes disagree about the cut; some invert it.

    Attributes:
        original_length: L, tokens; no default.
        base: as in RoPE; default 10,000.
    """

    original_length: float
    base: float = 10_000.0

    def __post_init__(self):
        check_original_length(self.original_length)
        check_base(self.base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """[H/2] radians per token, zero for slow pairs; the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        return Frequencies(np.where(theta * self.original_length >= 2 * np.pi, theta, 0.0))
