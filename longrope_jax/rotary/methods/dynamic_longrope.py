"""Dynamic LongRoPE approaches searched factors as the sequence grows."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies
from longrope_jax.rotary.methods.longrope import LongRoPE
from longrope_jax.rotary.registry import register


@register("dynamic_longrope")
@dataclasses.dataclass(frozen=True)
class DynamicLongRoPE:
    """Dynamic LongRoPE: theta_j = base^(-2j/d) / (1 + (lambda_j-1) (n/L-1)/(s-1)), n = seq_len.

    theta_j is in radians per token, s is the factor and L the original_length. Up to L tokens this
    is plain RoPE; at s L tokens the factors are LongRoPE's long factors, and beyond they go on
    along the same line. The attention factor is LongRoPE's for s at every length.

    Source: `DynamicLongRoPEScaledRotaryEmbedding` of microsoft/LongRoPE; not in the paper
        (2402.13753).
    Cache: no, all keys change with the length.
    Peers: microsoft/LongRoPE follows its line below L too, where factors fall below 1 and reach
        zero or less at length 0; here they stop at 1.

    Attributes:
        long_factor: the factors lambda_j, as in `LongRoPE`; required.
        original_length: the trained length L in tokens; required.
        factor: the extension s, extended over trained length, above 1; required.
        base: RoPE's base; default 10,000.
        attention_factor: a number in place of sqrt(1 + ln(s)/ln(L)); default None.
    """

    long_factor: float | tuple[float, ...]
    original_length: float
    factor: float
    base: float = 10_000.0
    attention_factor: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "long_factor", self._at(self.long_factor).long_factor)
        if self.factor == 1:
            raise ValueError("factor must be above 1: at 1 there is nothing to grow towards")

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token at `seq_len`, and the amplitude.

        Raises:
            ValueError: the number of factors is not the number of pairs, or a factor below 1 has
                fallen to zero at this length.
        """
        share = max(0.0, seq_len / self.original_length - 1) / (self.factor - 1)
        now = 1 + (np.asarray(self.long_factor, np.float64) - 1) * share
        if np.any(now <= 0):
            raise ValueError(
                f"a long_factor below 1 falls to {now.min():.3g} at {seq_len} tokens; shorten the "
                "sequence or raise that factor"
            )
        now = tuple(now.tolist()) if now.ndim else float(now)
        longrope = dataclasses.replace(self._at(now), short_factor=now)
        return longrope.frequencies(head_dim=head_dim, seq_len=seq_len)

    def _at(self, long_factor) -> LongRoPE:
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return LongRoPE(**options | {"long_factor": long_factor})
