"""Position Interpolation: positions squeezed into the trained range."""

import dataclasses

from longrope_jax.rotary.frequencies import Frequencies, check_base, check_factor, rope_inv_freq
from longrope_jax.rotary.registry import register


@register("pi")
@dataclasses.dataclass(frozen=True)
class PositionInterpolation:
    """Position Interpolation: theta_j = base^(-2j/H) / factor.

    The same as dividing every position by `factor` = L'/L, extended over trained length.

    Source: Position Interpolation, Chen et al. (2306.15595) eq. 4; alpha = 1/factor in Llama 2 Long
        (2309.16039) section 4.1.
    Cache: rotated keys.
    Peers: equal in Hugging Face ("linear"), vLLM and llama.cpp (whose freq_scale is 1/factor).

    Attributes:
        factor: dimensionless, at least 1; no default, since it is the ratio of your two lengths.
        base: as in RoPE; default 10,000.
    """

    HF_KEYS = frozenset({"factor"}), frozenset()

    factor: float
    base: float = 10_000.0

    def __post_init__(self):
        check_base(self.base)
        check_factor(self.factor)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """[H/2] radians per token; the same at every `seq_len`."""
        return Frequencies(rope_inv_freq(self.base, head_dim) / self.factor)

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Hugging Face `rope_parameters` (transformers 5)."""
        return {"rope_type": "linear", "rope_theta": self.base, "factor": self.factor}

    @classmethod
    def from_hf(cls, parameters: dict) -> "PositionInterpolation":
        """Inverse of `to_hf`."""
        return cls(factor=parameters["factor"], base=parameters["rope_theta"])
