"""Partial rotary rotates the first features of a head and lets the others pass."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies, check_fraction, rope_inv_freq
from longrope_jax.rotary.registry import Method, check_method, register


@register("partial")
@dataclasses.dataclass(frozen=True)
class PartialRotary:
    """Partial rotary: `inner` evaluated for the first int(fraction * H) features of a head.

    Exponents run over the rotary dimension, theta_j = base^(-2j/(fraction H)) for plain RoPE, and
    the amplitude falls on rotated features alone. Exponents over the whole head, the other reading
    of a fraction, are `Proportional`. GPT-NeoX and GPT-J rotate this way, and so does Hugging
    Face's `partial_rotary_factor` for all its rope_types but "proportional".

    The number of pairs, int(fraction * H)/2, is smaller than H/2. The structure differs, so a model
    compiles again for it (the half layout pairs feature j with j + R, which zeros cannot imitate).

    Source: code of GPT-NeoX and GPT-J; Hugging Face `partial_rotary_factor`; no paper has it.
    Cache: as for the inner method.
    Peers: in Hugging Face, vLLM and llama.cpp (n_dims) exponents run over the rotary part; over the
        whole head they are `Proportional`, and pie-project/pie#603 shipped the wrong one. Hugging
        Face's default type ignored the key for Llama and GPT-NeoX-J (PR#48652).

    Attributes:
        inner: the method that rotates the first features; required. Written inner=(abf).
        fraction: share of the head's features that turn, 0 to 1; required (GPT-NeoX-20B 0.25, Phi-2
            0.4).
    """

    inner: Method
    fraction: float

    def __post_init__(self):
        check_method("inner", self.inner)
        check_fraction(self.fraction)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [R] frequencies in radians per token, R = int(fraction * head_dim)/2."""
        rope_inv_freq(2.0, head_dim)  # refuses a head_dim that no head can have
        rotary_dim = self.rotary_dim(head_dim)
        if rotary_dim == 0:
            return Frequencies(np.zeros(0))
        if rotary_dim % 2:
            raise ValueError(
                f"fraction {self.fraction} of head_dim {head_dim} is {rotary_dim}, an odd number"
            )
        return self.inner.frequencies(head_dim=rotary_dim, seq_len=seq_len)

    def rotary_dim(self, head_dim: int) -> int:
        """Returns how many features of a head turn."""
        return int(self.fraction * head_dim)
