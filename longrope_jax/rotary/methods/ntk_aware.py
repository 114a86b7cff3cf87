"""NTK-aware scaling takes a larger base instead of squeezing positions; it has four forms."""

import dataclasses
import math

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    check_positive,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import check_choice, register

RULES = ("bloc97", "liu", "fixed", "mixed")


def ntk_base(base: float, factor: float, head_dim: int) -> float:
    """Returns b s^(d/(d-2)), the base that slows the slowest pair by s and the fastest not at all.

    Raises:
        ValueError: the head has one pair, which cannot be both.
    """
    if head_dim == 2:
        raise ValueError("NTK-aware scaling needs head_dim of at least 4, got 2")
    return base * factor ** (head_dim / (head_dim - 2))


@register("ntk")
@dataclasses.dataclass(frozen=True)
class NTKAware:
    """NTK-aware scaling: theta_j = (base s^(d/(d-2)))^(-2j/d), s = factor, d = head_dim.

    theta_j is in radians per token and j = 0..d/2-1 counts pairs. There are four rules:
      bloc97: the formula above, from the YaRN paper (2309.00071) section 3.1, Definition 1, and the
        code of the yarn repo.
      liu: base^(log_{L/2pi}(sL/2pi)) in place of the base, from Liu et al. (2310.05209), the "NTK"
        of LongRoPE2 (2502.20082); L is the original_length in tokens.
      fixed: theta_j / s^(2(j+1)/d) with RoPE's theta_j, from Su Jianlin (kexue.fm 9706) and vLLM's
        NTKScalingRotaryEmbedding.
      mixed: theta_j / exp(a (j+1)^c) with RoPE's theta_j and a (d/2)^c = ln s, from the same
        sources; vLLM calls c mixed_b.

    Source: bloc97's post, as printed in YaRN (2309.00071) section 3.1, Definition 1; the others as
        named above.
    Cache: rotated keys.
    Peers: the yarn repo has bloc97, vLLM has fixed and mixed; they are 3.3% apart at s = 8. Hugging
        Face dropped its type: write the new base as rope_theta.

    Attributes:
        factor: the extension s, extended over trained length, at least 1; required.
        base: RoPE's base; default 10,000.
        rule: "bloc97", "liu", "fixed" or "mixed", as above; default "bloc97", which "NTK-aware"
            means without more words.
        original_length: the trained length L in tokens; required by rule "liu", and only for it.
        exponent: the exponent c of rule "mixed"; default 0.625 (Su).
    """

    factor: float
    base: float = 10_000.0
    rule: str = "bloc97"
    original_length: float | None = None
    exponent: float = 0.625

    def __post_init__(self):
        check_base(self.base)
        check_factor(self.factor)
        check_choice("rule of ntk", self.rule, RULES)
        check_positive(exponent=self.exponent)
        if self.rule == "liu":
            length = check_original_length(self.original_length)
            if length <= 2 * math.pi:
                raise ValueError(f"rule liu needs original_length > 2 pi: {self.original_length}")
        elif self.original_length is not None:
            raise ValueError(f"original_length belongs to rule 'liu', the rule is {self.rule!r}")

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        pair = np.arange(1, head_dim // 2 + 1)
        if self.rule == "fixed":
            return Frequencies(theta / self.factor ** (2 * pair / head_dim))
        if self.rule == "mixed":
            share = (2 * pair / head_dim) ** self.exponent
            return Frequencies(theta / self.factor**share)
        return Frequencies(rope_inv_freq(self.new_base(head_dim), head_dim))

    def new_base(self, head_dim: int) -> float:
        """Returns the base of the RoPE that equals this method (rules bloc97 and liu)."""
        if self.rule == "bloc97":
            return ntk_base(self.base, self.factor, head_dim)
        if self.rule == "liu":
            turns = check_original_length(self.original_length) / (2 * math.pi)
            return self.base ** (math.log(self.factor * turns) / math.log(turns))
        raise ValueError(f"ntk with rule {self.rule!r} equals no RoPE of another base")

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of the equal RoPE; Hugging Face has no type for this."""
        if head_dim is None:
            if self.rule == "bloc97":
                raise ValueError("ntk exports as its base, which needs head_dim: pass head_dim")
            head_dim = 2  # the base of the other rules is the same for every head
        return {"rope_type": "default", "rope_theta": self.new_base(head_dim)}
