"""Position Interpolation squeezes positions into the trained range."""

import dataclasses

from longrope_jax.rotary.frequencies import Frequencies, check_base, check_factor, rope_inv_freq
from longrope_jax.rotary.registry import register


@register("pi")
@dataclasses.dataclass(frozen=True)
class PositionInterpolation:
    """Position Interpolation: theta_j = base^(-2j/H) / factor.

    theta_j is in radians per token. It is the same as dividing every position by `factor` = L'/L,
    extended over trained length.

    Source: Position Interpolation, Chen et al. (2306.15595) eq. 4; alpha = 1/factor in Llama 2 Long
        (2309.16039) section 4.1.
    Cache: rotated keys.
    Peers: Hugging Face ("linear"), vLLM and llama.cpp (whose freq_scale is 1/factor) agree.

    Attributes:
        factor: extended over trained length, at least 1; required.
        base: RoPE's base; default 10,000.
    """

    HF_KEYS = frozenset({"factor"}), frozenset()

    factor: float
    base: float = 10_000.0

    def __post_init__(self):
        check_base(self.base)
        check_factor(self.factor)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        return Frequencies(rope_inv_freq(self.base, head_dim) / self.factor)

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config (transformers 5)."""
        return {"rope_type": "linear", "rope_theta": self.base, "factor": self.factor}

    @classmethod
    def from_hf(cls, parameters: dict) -> "PositionInterpolation":
        """Reads the `rope_parameters` that `to_hf` writes."""
        return cls(factor=parameters["factor"], base=parameters["rope_theta"])
