"""Dynamic PI: positions squeezed by as much as the current length needs."""

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

    Radians per token; L = original_length. Plain RoPE up to L.

    Source: YaRN (2309.00071) section 3.3, "dynamic scaling" of Position Interpolation.
    Cache: no, all keys change with the length.
    Peers: the yarn repo's dynamic linear scaling; Hugging Face has none.

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
        """[H/2] radians per token at `seq_len`."""
        scale = max(1.0, seq_len / self.original_length)
        return Frequencies(rope_inv_freq(self.base, head_dim) / scale)
