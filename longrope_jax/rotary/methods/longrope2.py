"""LongRoPE2 has factors from a critical pair on, and NTK-aware scaling below it."""

import dataclasses
import math

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    check_positive,
    is_finite,
    rope_inv_freq,
)
from longrope_jax.rotary.methods.longrope import LongRoPE, su_amplitude
from longrope_jax.rotary.registry import register


def critical_pair(base: float, head_dim: int, length: float) -> int:
    """Returns the first pair whose period exceeds `length` tokens: ceil((d/2) log_b(L/(2 pi))).

    The theoretical critical dimension d_tcd of LongRoPE2 (2502.20082) is twice this index; Liu et
    al. (2310.05209) call the same number the critical dimension.
    """
    return max(0, math.ceil(head_dim / 2 * math.log(length / (2 * math.pi), base)))


@register("longrope2")
@dataclasses.dataclass(frozen=True)
class LongRoPE2:
    """LongRoPE2: theta_j = base^(-2j/d)/lambda_j for j >= r, (base lambda_r^(d/2r))^(-2j/d) below.

    theta_j is in radians per token, d is the head_dim and r the critical pair. Below r the method
    is NTK-aware scaling with the base for which theta is the same from both sides at pair r; with r
    beyond the last pair (all pairs turn fully within L) it is that scaling alone. Sequences of up
    to L = original_length tokens turn as in plain RoPE. Queries and keys are multiplied by
    LongRoPE's attention factor at every length.

    Source: LongRoPE2 (2502.20082): critical dimension, algorithm 1 (the base below it), and the
        switch from original to rescaled RoPE when prompt and answer exceed L. No attention factor
        is published; this one is LongRoPE's, as in checkpoints of "longrope" (attention_factor=1
        leaves it out).
    Cache: rotated keys, up to the switch at original_length, where all keys change.
    Peers: no other implementation is known; Microsoft has not released its code (users ask:
        microsoft/LongRoPE#22, #26). Hugging Face has no type for it, but `as_longrope` gives the
        same frequencies as lists of LongRoPE, which Hugging Face reads.

    Attributes:
        factor: the extension s, extended over trained length, at least 1; required.
        original_length: the trained length L in tokens; required.
        long_factor: the factors lambda_j from the critical pair on, above 0: one per pair, or one
            number for all; default None, which is s (theory wants at least s; the search tries s to
            2s).
        critical: the critical pair r, half of the paper's d_rcd; default None, the theoretical
            ceil((d/2) log_base(L/(2 pi))) (31 for Phi3-mini, 35 for LLaMA3-8B; their searches found
            25 and 30).
        base: RoPE's base; default 10,000.
        attention_factor: a number in place of sqrt(1 + ln(s)/ln(L)); default None.
    """

    factor: float
    original_length: float
    long_factor: float | tuple[float, ...] | None = None
    critical: int | None = None
    base: float = 10_000.0
    attention_factor: float | None = None

    def __post_init__(self):
        check_factor(self.factor)
        check_original_length(self.original_length)
        check_base(self.base)
        if isinstance(self.long_factor, list | np.ndarray):
            factors = tuple(float(x) for x in self.long_factor)
            object.__setattr__(self, "long_factor", factors)
        given = self.long_factor
        for one in given if isinstance(given, tuple) else (given,):
            if one is not None:
                check_positive(long_factor=one)
        r = self.critical
        if r is not None and not (is_finite(r) and r >= 0 and r == int(r)):
            raise ValueError(f"critical must be a pair index (half of d_rcd), got {r!r}")
        if self.attention_factor is not None:
            check_positive(attention_factor=self.attention_factor)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, RoPE's up to `original_length` tokens.

        Raises:
            ValueError: the number of factors is not that of the pairs from the critical one on.
        """
        return self.as_longrope(head_dim).frequencies(head_dim=head_dim, seq_len=seq_len)

    def as_longrope(self, head_dim: int) -> LongRoPE:
        """Returns the `LongRoPE` with the same frequencies, which Hugging Face can hold."""
        return LongRoPE(
            long_factor=tuple(float(x) for x in self.factors(head_dim)),
            original_length=self.original_length,
            factor=self.factor,
            base=self.base,
            attention_factor=self.attention_factor,
        )

    def factors(self, head_dim: int) -> np.ndarray:
        """Returns every pair's factor lambda_j, [H/2]: lambda_r^(j/r) below the critical pair."""
        pairs, r = len(rope_inv_freq(self.base, head_dim)), self.critical_pair(head_dim)
        above = self.factor if self.long_factor is None else self.long_factor
        beyond = max(0, pairs - r)
        if isinstance(above, tuple) and not 0 < len(above) == beyond:
            raise ValueError(
                f"long_factor has {len(above)} factors, head_dim {head_dim} has {beyond} pairs "
                f"from the critical one, {r}, on"
            )
        above = np.broadcast_to(np.asarray(above, np.float64), max(1, beyond))
        # (base lambda^(d/2r))^(-2j/d) = base^(-2j/d) / lambda^(j/r)
        below = above[0] ** (np.arange(min(r, pairs)) / max(r, 1))
        return np.concatenate([below, above[:beyond]])

    def critical_pair(self, head_dim: int) -> int:
        """Returns the critical pair r: the option `critical`, or the theoretical one."""
        if self.critical is not None:
            return int(self.critical)
        return critical_pair(self.base, head_dim, self.original_length)

    @property
    def amplitude(self) -> float:
        """The factor on queries and on keys; scores get its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        return su_amplitude(self.factor, self.original_length)
