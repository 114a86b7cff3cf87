"""NTK-by-parts leaves fast pairs as they are and interpolates slow ones, with a ramp between."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    check_positive,
    rope_inv_freq,
)
from longrope_jax.rotary.methods.ntk_aware import ntk_base
from longrope_jax.rotary.registry import register


def keep_by_rotations(theta: np.ndarray, length: float, few: float, many: float) -> np.ndarray:
    """Returns the share of each pair that stays: 0 at `few` turns in `length`, 1 at `many`."""
    turns = length * theta / (2 * np.pi)
    return np.clip((turns - few) / (many - few), 0, 1)


def keep_by_dimension(
    base: float,
    head_dim: int,
    length: float,
    few: float,
    many: float,
    *,
    truncate: bool = True,
    highest: int | None = None,
) -> np.ndarray:
    """Returns the share of each pair that stays, linear in the pair's index between two ends.

    The ends are the pairs that make `many` and `few` turns within `length` tokens,
    (d/2) log_base(L/(2 pi turns)), rounded outwards if `truncate`, and cut to 0..`highest` (default
    d-1, as in all the original implementations, not d/2-1).
    """
    low, high = (
        head_dim * np.log(length / (2 * np.pi * turns)) / (2 * np.log(base))
        for turns in (many, few)
    )
    if truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1 if highest is None else highest)
    # Peers guard high == low alone; where high < low (no pair lies between) their ramp turns over.
    high = max(high, low + 0.001) if high <= low else high
    return 1 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)


def blend(theta: np.ndarray, factor: float, keep: np.ndarray) -> np.ndarray:
    """Returns (1-keep) theta/factor + keep theta; exactly theta where keep or factor is 1."""
    return theta * (keep + (1 - keep) / factor)


@register("ntk_by_parts")
@dataclasses.dataclass(frozen=True)
class NTKByParts:
    """NTK-by-parts: theta_j ((1-g)/s + g), g = clip((r_j-alpha)/(beta-alpha), 0, 1).

    theta_j is in radians per token, s is the factor, L the original_length and
    r_j = L theta_j/(2 pi) the number of turns of pair j within L. Llama 3.1's smoothing is this
    method with alpha 1 and beta 4. YaRN's code ramps by the pair's index instead, see `YaRN`.

    Source: YaRN (2309.00071) section 3.2, Definition 2 (its eq. 17 prints b' for b).
    Cache: rotated keys.
    Peers: none has it under this name; every implementation of YaRN replaced the ramp (see `YaRN`),
        Llama 3.1 kept it.

    Attributes:
        factor: the extension s, at least 1; required.
        original_length: the trained length L in tokens; required.
        base: RoPE's base; default 10,000.
        alpha: turns within L below which a pair is interpolated; default 1 (paper, for LLaMA).
        beta: turns within L above which a pair stays; default 32 (paper, for LLaMA).
    """

    factor: float
    original_length: float
    base: float = 10_000.0
    alpha: float = 1.0
    beta: float = 32.0

    def __post_init__(self):
        check_factor(self.factor)
        check_original_length(self.original_length)
        check_base(self.base)
        check_positive(alpha=self.alpha, beta=self.beta)
        if self.alpha >= self.beta:
            raise ValueError(f"alpha must be below beta, got {self.alpha} and {self.beta}")

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        keep = keep_by_rotations(theta, self.original_length, self.alpha, self.beta)
        return Frequencies(blend(theta, self.factor, keep))


@register("ntk_by_parts_3way")
@dataclasses.dataclass(frozen=True)
class NTKByPartsThreeWay:
    """NTK-by-parts before YaRN: slow pairs by PI, middle ones NTK-aware, fast ones unchanged.

    Frequencies are in radians per token. With m(few, many) the share that stays, linear in the
    pair's index between ends that are rounded outwards, inner = PI + m(beta_few, beta_many)
    (NTK - PI) and theta = inner + m(gamma_few, gamma_many) (RoPE - inner).

    Source: LlamaPartNTKScaledRotaryEmbedding (bloc97) of the yarn repo; no paper has it.
    Cache: rotated keys.
    Peers: only the yarn repo has it.

    Attributes:
        factor: the extension s, at least 1; required.
        original_length: the trained length L in tokens; required (the repo's 2048 is LLaMA's).
        base: RoPE's base; default 10,000.
        beta_few, beta_many: turns within L at the ends of the ramp from PI to NTK-aware; default
            0.75 and 1.25 (repo).
        gamma_few, gamma_many: turns within L at the ends of the ramp from there to RoPE; default 2
            and 16 (repo).
    """

    factor: float
    original_length: float
    base: float = 10_000.0
    beta_few: float = 0.75
    beta_many: float = 1.25
    gamma_few: float = 2.0
    gamma_many: float = 16.0

    def __post_init__(self):
        check_factor(self.factor)
        check_original_length(self.original_length)
        check_base(self.base)
        for name in ("beta", "gamma"):
            few, many = getattr(self, f"{name}_few"), getattr(self, f"{name}_many")
            check_positive(**{f"{name}_few": few, f"{name}_many": many})
            if few >= many:
                raise ValueError(f"{name}_few must be below {name}_many, got {few} and {many}")

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        ntk = rope_inv_freq(ntk_base(self.base, self.factor, head_dim), head_dim)
        where = self.base, head_dim, self.original_length
        to_ntk = keep_by_dimension(*where, self.beta_few, self.beta_many)
        to_rope = keep_by_dimension(*where, self.gamma_few, self.gamma_many)
        inner = (1 - to_ntk) * theta / self.factor + to_ntk * ntk
        return Frequencies((1 - to_rope) * inner + to_rope * theta)
