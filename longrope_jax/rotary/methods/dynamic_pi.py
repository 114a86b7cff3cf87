"""Dynamic PI squeezes positions by as much as the current length needs."""

import dataclasses

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_original_length,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import register


@register("dynamic_pi")
@dataclasses.dataclass(frozen=True)
class DynamicPI:
    """Dynamic PI: theta_j = base^(-2j/H) / max(1, seq_len/L).

    theta_j is in radians per token and L is the original_length. Up to L tokens this is plain RoPE.

    Source: YaRN (2309.00071) section 3.3, "dynamic scaling" of Position Interpolation.
    Cache: no, all keys change with the length.
    Peers: it is the yarn repo's dynamic linear scaling; Hugging Face does not have it.

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
        """Returns [H/2] frequencies in radians per token at `seq_len`."""
        scale = max(1.0, seq_len / self.original_length)
        return Frequencies(rope_inv_freq(self.base, head_dim) / scale)
