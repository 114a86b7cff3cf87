"""Llama 3.1 scales each pair by its wavelength against the trained length."""

import dataclasses

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    check_positive,
    rope_inv_freq,
)
from longrope_jax.rotary.methods.ntk_by_parts import blend, keep_by_rotations
from longrope_jax.rotary.registry import register


@register("llama3")
@dataclasses.dataclass(frozen=True)
class Llama3:
    """Llama 3.1: theta_j ((1-g)/s + g), g = clip((L/w_j - low)/(high - low), 0, 1).

    theta_j is in radians per token, s is the factor, w_j = 2 pi/theta_j the wavelength in tokens
    and L the original_length; low and high are low_freq_factor and high_freq_factor. The method is
    NTK-by-parts with (alpha, beta) = (low, high). It has no attention factor.

    Source: `apply_scaling` in Meta's llama-models (Llama 3.1); Hugging Face "llama3".
    Cache: rotated keys.
    Peers: Meta, Hugging Face, vLLM and llama.cpp (which stores the reciprocals as freq_factors)
        agree; MaxText and ChunkLlama fix factor 8 and L 8192, wrong for Llama 3.2's 32.

    Attributes:
        factor: the extension s, at least 1; default 8 (Llama 3.1; Llama 3.2 1B and 3B say 32).
        original_length: the trained length L in tokens; default 8192 (Llama 3).
        base: RoPE's base; default 500,000 (Llama 3).
        low_freq_factor: turns in L below which a pair is divided by s; default 1 (Llama 3.1).
        high_freq_factor: turns in L above which a pair stays; default 4 (Llama 3.1).
    """

    HF_KEYS = (
        frozenset(
            {
                "factor",
                "original_max_position_embeddings",
                "low_freq_factor",
                "high_freq_factor",
            }
        ),
        frozenset(),
    )

    factor: float = 8.0
    original_length: float = 8192
    base: float = 500_000.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self):
        check_factor(self.factor)
        check_original_length(self.original_length)
        check_base(self.base)
        low, high = self.low_freq_factor, self.high_freq_factor
        check_positive(low_freq_factor=low, high_freq_factor=high)
        if low >= high:
            raise ValueError(
                f"low_freq_factor must be below high_freq_factor, got {low} and {high}"
            )

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        ends = self.low_freq_factor, self.high_freq_factor
        keep = keep_by_rotations(theta, self.original_length, *ends)
        return Frequencies(blend(theta, self.factor, keep))

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config."""
        return {
            "rope_type": "llama3",
            "rope_theta": self.base,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_length,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
        }

    @classmethod
    def from_hf(cls, parameters: dict) -> "Llama3":
        """Reads the `rope_parameters` that `to_hf` writes."""
        return cls(
            factor=parameters["factor"],
            original_length=parameters["original_max_position_embeddings"],
            base=parameters["rope_theta"],
            low_freq_factor=parameters["low_freq_factor"],
            high_freq_factor=parameters["high_freq_factor"],
        )
