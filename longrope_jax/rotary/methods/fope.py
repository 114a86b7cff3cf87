"""FoPE turns each pair with a mixture of frequencies instead of one."""

import dataclasses
import math

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_original_length,
    is_finite,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import check_choice, register

RESTS = ("ones", "identity")


@register("fope")
@dataclasses.dataclass(frozen=True)
class FoPE:
    """FoPE: cos'_o(t) = sum_i C_hio cos(theta_i t), sin'_o(t) = sum_i S_hio sin(theta_i t).

    The frequencies are those theta_i = base^(-2i/H), in radians per token, that make a full turn
    within the trained length L (theta_i >= 2 pi/L); I is their number. h counts key heads and o
    output pairs, of which there are O = min(I, H/4). C and S are each an identity (every
    ceil(I/O)-th input where I > O) plus normal noise of standard deviation
    gain * sqrt(2/(O(I + K))), which is Xavier's for the shape [K, I, O] as PyTorch reads it. The
    mixtures are not trained: the method serves models that were trained with it, and another seed
    is another model. Pairs are stretched as well as turned, so scores depend on absolute positions.

    Source: Hua et al. (2412.17739), appendix code.
    Cache: rotated keys.
    Peers: the authors' code draws its noise per layer and head with PyTorch; here numpy draws it
        once for all layers and for the queries of a group.

    Attributes:
        original_length: the trained length L in tokens; required.
        n_kv_heads: the number K of key heads with a mixture of their own; the model's number of key
            heads must be a multiple of it. Required.
        base: RoPE's base; default 10,000.
        gain: size of the noise; default 0.3 (paper: 0.3, 0.4, 0.6 at 60M, 180M, 1.2B parameters).
        seed: seed of the noise; default 0.
        normalize: whether C and S are divided by their sums over i, as the paper's appendix does;
            default False, as the authors' configuration has it.
        rest: what the H/2 - O other pairs get: "ones" sets cos and sin to 1 (default, as released;
            it is a turn of 45 degrees times sqrt(2)), "identity" leaves them unrotated.
    """

    original_length: float
    n_kv_heads: int
    base: float = 10_000.0
    gain: float = 0.3
    seed: int = 0
    normalize: bool = False
    rest: str = "ones"

    def __post_init__(self):
        check_original_length(self.original_length)
        check_base(self.base)
        check_choice("rest", self.rest, RESTS)
        if not (isinstance(self.n_kv_heads, int) and self.n_kv_heads >= 1):
            raise ValueError(f"n_kv_heads must be at least 1, got {self.n_kv_heads!r}")
        if not (is_finite(self.gain) and self.gain >= 0):
            raise ValueError(f"gain must be finite and not negative, got {self.gain!r}")
        if not (isinstance(self.seed, int) and self.seed >= 0):
            raise ValueError(f"seed must be a whole number from 0, got {self.seed!r}")

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [I] frequencies in radians per token, with `mixing` [2, K, I + 1, H/2].

        They are the same at every `seq_len`.

        Raises:
            ValueError: no pair makes a full turn within the trained length, or the head has fewer
                than 4 features.
        """
        theta = rope_inv_freq(self.base, head_dim)
        theta = theta[theta * self.original_length >= 2 * np.pi]
        if not len(theta) or head_dim < 4:
            raise ValueError(
                f"fope needs a head of 4 features and a full turn within original_length, got "
                f"head_dim {head_dim} and {self.original_length}: take at least 7 tokens"
            )
        return Frequencies(theta, mixing=self._mixing(len(theta), head_dim))

    def _mixing(self, inputs: int, head_dim: int) -> np.ndarray:
        """Returns the weights; the last input is a constant 1, which fills the remaining pairs."""
        outputs = min(inputs, head_dim // 4)
        shape = 2, self.n_kv_heads, inputs, outputs
        deviation = self.gain * math.sqrt(2 / (outputs * (inputs + self.n_kv_heads)))
        weights = deviation * np.random.default_rng(self.seed).normal(size=shape)
        step = math.ceil(inputs / outputs)
        picked = np.arange(0, inputs, step)[:outputs]
        weights[:, :, picked, np.arange(len(picked))] += 1
        if self.normalize:
            weights /= weights.sum(axis=-2, keepdims=True)
        mixing = np.zeros((2, self.n_kv_heads, inputs + 1, head_dim // 2))
        mixing[:, :, :-1, :outputs] = weights
        mixing[0, :, -1, outputs:] = 1
        mixing[1, :, -1, outputs:] = self.rest == "ones"
        return mixing
