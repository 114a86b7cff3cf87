"""Dynamic NTK scales by as much as the current length needs, in the NTK-aware way."""

import dataclasses

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    rope_inv_freq,
)
from longrope_jax.rotary.methods.ntk_aware import ntk_base
from longrope_jax.rotary.registry import register


@register("dynamic_ntk")
@dataclasses.dataclass(frozen=True)
class DynamicNTK:
    """Dynamic NTK: theta_j = (base (f n/L - (f-1))^(d/(d-2)))^(-2j/d), n = max(seq_len, L).

    theta_j is in radians per token, f is the factor, L the original_length and d the head_dim. Up
    to L tokens this is plain RoPE.

    Source: emozilla's rule as the yarn repo and Hugging Face ("dynamic") compute it; with f = 1 it
        is "dynamic scaling" of YaRN (2309.00071) section 3.3, s = n/L in NTK-aware.
    Cache: no, all keys change with n.
    Peers: Hugging Face rotates new queries with a new base while cached keys keep the old one
        (huggingface/transformers#25104); vLLM builds one table at n = L f, so short prompts differ
        (vllm-project/vllm#3488).

    Attributes:
        original_length: the trained length L in tokens; required.
        factor: the factor f, at least 1; default 1, the paper's rule. Hugging Face configs often
            say 2.
        base: RoPE's base; default 10,000.
    """

    HF_KEYS = frozenset({"factor"}), frozenset({"original_max_position_embeddings"})

    original_length: float
    factor: float = 1.0
    base: float = 10_000.0

    def __post_init__(self):
        check_original_length(self.original_length)
        check_factor(self.factor)
        check_base(self.base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token at `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        if seq_len <= self.original_length:
            return Frequencies(theta)
        scale = self.factor * seq_len / self.original_length - (self.factor - 1)
        return Frequencies(rope_inv_freq(ntk_base(self.base, scale, head_dim), head_dim))

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config.

        transformers 5 reads the trained length from the config's `max_position_embeddings`, so set
        that to `original_length` too.
        """
        return {
            "rope_type": "dynamic",
            "rope_theta": self.base,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_length,
        }

    @classmethod
    def from_hf(cls, parameters: dict) -> "DynamicNTK":
        """Reads the `rope_parameters` that `to_hf` writes."""
        return cls(
            original_length=parameters["original_max_position_embeddings"],
            factor=parameters["factor"],
            base=parameters["rope_theta"],
        )
