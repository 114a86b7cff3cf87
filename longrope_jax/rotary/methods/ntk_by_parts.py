"""NTK-by-parts: fast pairs as they are, slow pairs interpolated, a ramp between them."""

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
    """Share of each pair that stays as it is: 0 at `few` turns in `length`, 1 at `many`."""
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
    """As `keep_by_rotations`, but linear in the pair's index between the two ends.

    The ends are (d/2) log_base(L/(2 pi turns)), rounded outwards if `truncate`, and cut to
    0..`highest` (default d-1, as all the original codes have it, not d/2-1).
    """
    low, high = (
        head_dim * np.log(length / (2 * np.pi * turns)) / (2 * np.log(base))
        for turns in (many, few)
    )
    if truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1 if highest is None else highest)
    # The codes guard high == low alone; below it (no pair between the ends) their ramp turns over.
    high = max(high, low + 0.001) if high <= low else high
    return 1 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)


def blend(theta: np.ndarray, factor: float, keep: np.ndarray) -> np.ndarray:
    """(1-keep) theta/factor + keep theta, exactly theta where keep is 1 or factor is 1."""
    return theta * (keep + (1 - keep) / factor)


@register("ntk_by_parts")
@dataclasses.dataclass(frozen=True)
class NTKByParts:
    """NTK-by-parts: theta_j ((1-g)/s + g), g = clip((r_j-alpha)/(beta-alpha), 0, 1).

    Radians per token; s = factor, r_j = L theta_j/(2 pi) turns of pair j within L =
    original_length. Llama 3.1's smoothing is this with (1, 4). YaRN's code ramps by the pair's
    index instead: see `YaRN`.

    Source: YaRN (2309.00071) section 3.2, Definition 2 (its eq. 17 prints b' for b).
    Cache: rotated keys.
    Peers: none under this name; every code of YaRN replaced the ramp (`YaRN`), Llama 3.1 kept it.

    Attributes:
        factor: s, at least 1; no default.
        original_length: L, tokens; no default.
        base: as in RoPE; default 10,000.
        alpha: turns below which a pair is interpolated; default 1 (paper, for LLaMA).
        beta: turns above which a pair stays; default 32 (paper, for LLaMA).
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
        """[H/2] radians per token; the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        keep = keep_by_rotations(theta, self.original_length, self.alpha, self.beta)
        return Frequencies(blend(theta, self.factor, keep))


@register("ntk_by_parts_3way")
@dataclasses.dataclass(frozen=True)
class NTKByPartsThreeWay:
    """NTK-by-parts before YaRN: slow pairs by PI, middle ones NTK-aware, fast ones unchanged.

    Radians per token. With m(few, many) = share kept, linear in the pair's index with its ends
    rounded outwards: inner = PI + m(beta_few, beta_many) (NTK - PI), then
    theta = inner + m(gamma_few, gamma_many) (RoPE - inner).

    Source: code of the yarn repo, LlamaPartNTKScaledRotaryEmbedding (bloc97); in no paper.
    Cache: rotated keys.
    Peers: the yarn repo alone.

    Attributes:
        factor: s, at least 1; no default.
        original_length: L, tokens; no default (the repo's 2048 is LLaMA's).
        base: as in RoPE; default 10,000.
        beta_few, beta_many: turns in L between PI and NTK-aware; default 0.75 and 1.25 (repo).
        gamma_few, gamma_many: turns in L between those and RoPE; default 2 and 16 (repo).
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
        """[H/2] radians per token; the same at every `seq_len`."""
        theta = rope_inv_freq(self.base, head_dim)
        ntk = rope_inv_freq(ntk_base(self.base, self.factor, head_dim), head_dim)
        where = self.base, head_dim, self.original_length
        to_ntk = keep_by_dimension(*where, self.beta_few, self.beta_many)
        to_rope = keep_by_dimension(*where, self.gamma_few, self.gamma_many)
        inner = (1 - to_ntk) * theta / self.factor + to_ntk * ntk
        return Frequencies((1 - to_rope) * inner + to_rope * theta)
