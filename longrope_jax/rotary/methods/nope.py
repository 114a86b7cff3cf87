"""NoPE has no position encoding at all."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies, rope_inv_freq
from longrope_jax.rotary.registry import register


@register("nope")
@dataclasses.dataclass(frozen=True)
class NoPE:
    """NoPE: theta_j = 0 for every pair, so no query or key turns.

    NoPE is a baseline: positions reach the model through the causal mask alone. It has H/2 pairs
    like RoPE, all of zero frequency, so that it runs in the same compiled program.

    Source: Kazemnejad et al. (2305.19466).
    Cache: keys, which never turn.
    Peers: Llama 4 uses it in every nope_layer_interval-th layer, with scaled queries.
    """

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] zeros."""
        return Frequencies(np.zeros_like(rope_inv_freq(2.0, head_dim)))
