"""Giraffe's bases scale the frequencies and then damp them by a power or cut them off."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    is_finite,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import check_choice, register

RULES = ("repository", "period", "cutoffs")


def _power_basis(base: float, factor: float, power: float, head_dim: int) -> np.ndarray:
    """Divides RoPE's frequencies by the scale, then damps them: Giraffe's order."""
    theta = rope_inv_freq(base, head_dim)
    return theta / factor * (1 - np.arange(len(theta)) / len(theta)) ** power


def _check_power(power: float) -> None:
    if not (is_finite(power) and power >= 0):
        raise ValueError(f"power must be finite and not negative, got {power!r}")


@register("giraffe_power")
@dataclasses.dataclass(frozen=True)
class GiraffePower:
    """Giraffe's power basis: base^(-2j/d)/s (1-2j/d)^k.

    The frequencies are in radians per token; d is the head_dim, s the factor and k the power. Slow
    pairs slow down further, the last one by (2/d)^k, and no pair stops.

    Source: Giraffe (2308.10882), `ScaledLlamaRotaryEmbedding` of abacusai/Long-Context (scaling
        first, then the power).
    Cache: rotated keys.
    Peers: only the authors' repo has it, with base fixed at 10,000.

    Attributes:
        power: the power k, not negative; default 0.5 (the run in the paper's figure).
        factor: the extension s, at least 1; default 1, no scaling.
        base: RoPE's base; default 10,000 (fixed in the repo).
    """

    power: float = 0.5
    factor: float = 1.0
    base: float = 10_000.0

    def __post_init__(self):
        _check_power(self.power)
        check_factor(self.factor)
        check_base(self.base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        return Frequencies(_power_basis(self.base, self.factor, self.power, head_dim))


@register("giraffe_truncated")
@dataclasses.dataclass(frozen=True)
class GiraffeTruncated:
    """Giraffe's truncated basis: phi_j if phi_j >= b, else rho if phi_j >= a, else 0.

    phi is `GiraffePower`'s basis in radians per token (truncation comes after scaling and power),
    and T is the original_length in tokens. There are three rules:
      repository: b = 2 pi/T, a = b/8 and rho = b/16, which lies below a, as in
        `ScaledLlamaRotaryEmbedding` of abacusai/Long-Context.
      period: a = b = 2 pi/T, so that a pair without a full period in training does not turn, as the
        paper says in words.
      cutoffs: a = low, b = high and rho are given, and phi_j = a goes to 0. This is the paper's
        formula, whose own values are not known here.

    Source: Giraffe (2308.10882) and abacusai/Long-Context.
    Cache: rotated keys.
    Peers: only the authors' repo has it; its slow frequency lies below its zero cut-off, unlike in
        the paper's formula.

    Attributes:
        rule: "repository", "period" or "cutoffs", as above; default "repository", the one that was
            run.
        original_length: the trained length T in tokens, for the first two rules; default 2048 (the
            run in the paper's figure).
        low, high, rho: radians per token, 0 <= low <= high < 2 pi; only for rule "cutoffs".
        power: the power of `GiraffePower`; default 0.
        factor: the extension s, at least 1; default 1, no scaling.
        base: RoPE's base; default 10,000 (fixed in the repo).
    """

    rule: str = "repository"
    original_length: float = 2048
    low: float | None = None
    high: float | None = None
    rho: float | None = None
    power: float = 0.0
    factor: float = 1.0
    base: float = 10_000.0

    def __post_init__(self):
        check_choice("rule of giraffe_truncated", self.rule, RULES)
        check_original_length(self.original_length)
        _check_power(self.power)
        check_factor(self.factor)
        check_base(self.base)
        cut = {name: getattr(self, name) for name in ("low", "high", "rho")}
        if self.rule == "cutoffs":
            if not all(is_finite(x) and x >= 0 for x in cut.values()) or cut["low"] > cut["high"]:
                raise ValueError(f"rule cutoffs needs 0 <= low <= high and rho >= 0, got {cut}")
        elif any(x is not None for x in cut.values()):
            raise ValueError(f"low, high and rho belong to rule 'cutoffs', not to {self.rule!r}")

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, zero for cut-off pairs.

        They are the same at every `seq_len`.
        """
        phi = _power_basis(self.base, self.factor, self.power, head_dim)
        if self.rule == "cutoffs":
            low, high, rho = (getattr(self, name) for name in ("low", "high", "rho"))
            return Frequencies(np.where(phi >= high, phi, np.where(phi > low, rho, 0.0)))
        turn = 2 * np.pi / self.original_length
        low, rho = (turn / 8, turn / 16) if self.rule == "repository" else (turn, 0.0)
        return Frequencies(np.where(phi >= turn, phi, np.where(phi >= low, rho, 0.0)))
