"""xPos rotates with an exponential decay per pair; xPos ABF is xPos with a larger base."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies, check_base, check_positive, rope_inv_freq
from longrope_jax.rotary.registry import register


@register("xpos_abf", base=500_000.0, gamma=0.8, scale_base=4096.0)
@register("xpos")
@dataclasses.dataclass(frozen=True)
class XPos:
    """xPos: RoPE whose pair j is damped by zeta_j^(distance/scale_base).

    zeta_j = (2j/H + gamma) / (1 + gamma) is below 1 and smallest for the fastest pair. Queries at
    position m are multiplied by zeta_j^((m-c)/S) and keys at n by zeta_j^(-(n-c)/S), with a common
    centre c and S the scale_base, so scores depend on m-n alone.

    Source: xPos, Sun et al. (2212.10554) section 3 and its torchscale code. `xpos_abf` is the row
        "xPos ABF" of Llama 2 Long (2309.16039): base 500,000 and, as recovered from the drawn curve
        of its Figure 4 (the text gives no numbers), gamma 0.8 and scale base 4096.
    Cache: rotated keys, with one centre for all of them (the middle of seq_len).
    Peers: torchscale centres at -ceil(T/2), lucidrains at T//2, Giraffe at max_pos//2, which gives
        the same scores from other vectors. lucidrains' rotate_queries_with_cached_keys centres
        queries and keys apart (8e-3 off at 7 tokens); torchscale's decoding is right for one new
        token at a time.

    Attributes:
        base: RoPE's base; default 10,000.
        gamma: the larger, the weaker the decay; above 0; default 0.4 (paper and torchscale).
        scale_base: the length S of the decay in tokens; default 512 (paper and torchscale).
    """

    base: float = 10_000.0
    gamma: float = 0.4
    scale_base: float = 512.0

    def __post_init__(self):
        check_base(self.base)
        check_positive(gamma=self.gamma, scale_base=self.scale_base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, and the log decay per token.

        They are the same at every `seq_len`.
        """
        inv_freq = rope_inv_freq(self.base, head_dim)
        share = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        zeta = (share + self.gamma) / (1 + self.gamma)
        return Frequencies(inv_freq, log_decay=np.log(zeta) / self.scale_base)
