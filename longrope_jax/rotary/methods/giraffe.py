"""Giraffe's bases: damped by a power, or cut off, after scaling."""

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
    """Giraffe's order: divide by the scale, then damp."""
    theta = rope_inv_freq(base, head_dim)
    return theta / factor * (1 - np.arange(len(theta)) / len(theta)) ** power


def _check_power(power: float) -> None:
    if not (is_finite(power) and power >= 0):
        raise ValueError(f"power must be finite and not negative, got {power!r}")


@register("giraffe_power")
@dataclasses.dataclass(frozen=True)
class GiraffePower:
    """Giraffe's power basis: base^(-2j/d)/s (1-2j/d)^k.

    Radians per token; d = head_dim, s = factor, k = power: slow pairs slow down further, the last
    by (2/d)^k, none to zero.

    Source: Giraffe (2308.10882), `ScaledLlamaRotaryEmbedding` of abacusai/Long-Context (scaling
        first, then the power).
    Cache: rotated keys.
    Peers: the authors' repo alone, with base fixed at 10,000.

    Attributes:
        power: k, not negative; default 0.5 (the run in its figure).
        factor: s, at least 1; default 1, no scaling.
        base: as in RoPE; default 10,000 (fixed in the repo).
    """

    power: float = 0.5
    factor: float = 1.0
    base: float = 10_000.0

    def __post_init__(self):
        _check_power(self.power)
        check_factor(self.factor)
        check_base(self.base)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """[H/2] radians per token; the same at every `seq_len`."""
        return Frequencies(_power_basis(self.base, self.factor, self.power, head_dim))


@register("giraffe_truncated")
@dataclasses.dataclass(frozen=True)
class GiraffeTruncated:
    """Giraffe's truncated basis: phi_j if phi_j >= b, else rho if phi_j >= a, else 0.

    Radians per token; phi is `GiraffePower`'s basis (truncation comes after scaling and power), and
    T = original_length, tokens. The three rules:
      repository: b = 2 pi/T, a = b/8, rho = b/16, which lies below a.
        `ScaledLlamaRotaryEmbedding` of abacusai/Long-Context.
      period: a = b = 2 pi/T: what makes no full period in training does not turn. The prose.
      cutoffs: a = low, b = high and rho, given. The paper's form, which sends
        phi_j = a to 0; its own values are not known here.

    Source: Giraffe (2308.10882) and abacusai/Long-Context.
    Cache: rotated keys.
    Peers: the authors' repo alone; its slow frequency lies below its zero cut-off, unlike the
        paper's form.

    Attributes:
        rule: default "repository", the one that was run.
        original_length: T, tokens, for the first two rules; default 2048 (the run in its figure).
        low, high, rho: radians per token, 0 <= low <= high < 2 pi, for "cutoffs" alone.
        power: as in `GiraffePower`; default 0.
        factor: s, at least 1; default 1, no scaling.
        base: as in RoPE; default 10,000 (fixed in the repo).
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
        """[H/2] radians per token, zero for cut-off pairs; the same at every `seq_len`."""
        phi = _power_basis(self.base, self.factor, self.power, head_dim)
        if self.rule == "cutoffs":
            low, high, rho = (getattr(self, name) for name in ("low", "high", "rho"))
            return Frequencies(np.where(phi >= high, phi, np.where(phi > low, rho, 0.0)))
        turn = 2 * np.pi / self.original_length
        low, rho = (turn / 8, turn / 16) if self.rule == "repository" else (turn, 0.0)
        return Frequencies(np.where(phi >= turn, phi, np.where(phi >= low, rho, 0.0)))
