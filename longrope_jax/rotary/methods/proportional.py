"""p-RoPE rotates the fastest pairs only, with the frequencies they have in the whole head."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_fraction,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import register


@register("p_rope", fraction=0.75)
@register("proportional")
@dataclasses.dataclass(frozen=True)
class Proportional:
    """Proportional RoPE: theta_j = base^(-2j/H)/s for j < int(fraction*H//2), else 0.

    theta_j is in radians per token and s is the factor. Exponents run over the whole head;
    exponents over the rotated part, the other reading of a fraction, are `PartialRotary`. All H/2
    pairs are there, the slow ones with zero frequency. `p_rope` is p-RoPE with p = fraction, where
    1 is RoPE and 0 is NoPE.

    Source: p-RoPE, Barbero et al. (2410.06205) appendix D; Hugging Face "proportional" (Gemma 4),
        which adds s.
    Cache: rotated keys.
    Peers: Hugging Face agrees; the other reading of a fraction is `PartialRotary`.

    Attributes:
        fraction: share p of the pairs that turn, 0 to 1; default 1 (Hugging Face), 0.75 as `p_rope`
            (the paper's best).
        base: RoPE's base; default 10,000.
        factor: the extension s, at least 1; default 1 (Hugging Face).
    """

    HF_KEYS = frozenset(), frozenset({"factor"})

    fraction: float = 1.0
    base: float = 10_000.0
    factor: float = 1.0

    def __post_init__(self):
        check_fraction(self.fraction)
        check_base(self.base)
        check_factor(self.factor)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, zero for slow pairs.

        They are the same at every `seq_len`.
        """
        theta = rope_inv_freq(self.base, head_dim)
        turning = np.arange(len(theta)) < int(self.fraction * head_dim // 2)
        return Frequencies(np.where(turning, theta / self.factor, 0.0))

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config."""
        return {
            "rope_type": "proportional",
            "rope_theta": self.base,
            "partial_rotary_factor": self.fraction,
            "factor": self.factor,
        }

    @classmethod
    def from_hf(cls, parameters: dict) -> "Proportional":
        """Reads the `rope_parameters` that `to_hf` writes."""
        return cls(
            fraction=parameters.get("partial_rotary_factor", 1.0),
            base=parameters["rope_theta"],
            factor=parameters.get("factor", 1.0),
        )
