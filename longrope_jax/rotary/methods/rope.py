"""RoPE rotates pair j by position * base^(-2j/H); RoPE ABF is RoPE with a larger base."""

import dataclasses

from longrope_jax.rotary.frequencies import Frequencies, check_base, rope_inv_freq
from longrope_jax.rotary.registry import register


@register("abf", base=500_000.0)
@register("rope")
@dataclasses.dataclass(frozen=True)
class RoPE:
    """Rotary position embedding: theta_j = base^(-2j/H), angle = position * theta_j.

    j = 0..H/2-1 counts pairs, H is the head dimension and theta_j is in radians per token.

    Source: RoFormer (2104.09864) eqs. 14-16. With base 500,000 (beta = 50) it is RoPE ABF, the
        adjusted base frequency of Llama 2 Long (2309.16039) section 4.1, registered as `abf`.
    Cache: rotated keys.
    Peers: Hugging Face, Meta and the yarn repo agree up to float32, in which cos is off by up to
        7.7e-3 below position 131,072; torchscale fixes base 10,000. Meta, torchscale and GGUF pair
        features 2j and 2j+1 (layout "interleaved"), Hugging Face pairs j and j+H/2 ("half").

    Attributes:
        base: dimensionless; default 10,000 as in RoFormer, LLaMA and Llama 2.
    """

    HF_KEYS = frozenset(), frozenset()

    base: float = 10_000.0

    def __post_init__(self):
        check_base(self.base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        return Frequencies(rope_inv_freq(self.base, head_dim))

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config (transformers 5)."""
        return {"rope_type": "default", "rope_theta": self.base}

    @classmethod
    def from_hf(cls, parameters: dict) -> "RoPE":
        """Reads the `rope_parameters` that `to_hf` writes."""
        return cls(base=parameters["rope_theta"])


PLAIN = RoPE()  # the inner method by default
