"""LongRoPE: a factor of its own for every pair, found by search."""

import dataclasses
import math

import numpy as np

from longrope_jax.rotary.frequencies import (
    MAX_POSITION,
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    check_positive,
    is_finite,
    rope_inv_freq,
)
from longrope_jax.rotary.registry import register


def su_amplitude(factor: float, length: float) -> float:
    """LongRoPE's attention factor sqrt(1 + ln(s)/ln(L)): "su" in its repo."""
    return math.sqrt(1 + math.log(factor) / math.log(length))


@register("longrope")
@dataclasses.dataclass(frozen=True)
class LongRoPE:
    """LongRoPE: theta_j = base^(-2j/H) / lambda_j, plain RoPE at the first start_count positions.

    Radians per token; lambda = long_factor if seq_len > original_length else short_factor, for all
    tokens of a sequence. Queries and keys are multiplied by sqrt(1 + ln(factor)/ln(L)) with either
    list (L = original_length), by 1 for factor 1. Start tokens make scores depend on absolute
    positions.

    Source: LongRoPE (2402.13753) section 3, whose equation has the start tokens as n < n-hat; the
        two lists and the attention factor are in its repo ("su") and Hugging Face, not in the
        paper.
    Cache: rotated keys, up to the switch at original_length, where all keys change.
    Peers: Hugging Face switches per forward at n > L (as here), unsloth had n >= L, vLLM and
        llama.cpp once, by the longest length they are started for; Hugging Face without a length
        gives the short list. microsoft/LongRoPE takes the scale from max/original, not from a
        `factor`; its search starts from a blend of factors, not of frequencies as YaRN's. Its
        dynamic form is `DynamicLongRoPE`.

    Attributes:
        long_factor: lambda_j, dimensionless and above 0: one per rotated pair, or one number for
            all; no default, since they are searched for a model.
        original_length: L, tokens; no default.
        factor: s, extended over trained length, at least 1; no default. Used for the attention
            factor alone.
        short_factor: as long_factor; default 1, plain RoPE.
        base: as in RoPE; default 10,000.
        start_count: n-hat, tokens; default 0 (Hugging Face has none; the paper's search tries up to
            256).
        attention_factor: replaces the formula above; default None.
    """

    HF_KEYS = (
        frozenset({"factor", "original_max_position_embeddings", "short_factor", "long_factor"}),
        frozenset({"attention_factor"}),
    )

    long_factor: float | tuple[float, ...]
    original_length: float
    factor: float
    short_factor: float | tuple[float, ...] = 1.0
    base: float = 10_000.0
    start_count: int = 0
    attention_factor: float | None = None

    def __post_init__(self):
        for name in ("long_factor", "short_factor"):
            value = getattr(self, name)
            if isinstance(value, list | np.ndarray):
                value = tuple(float(x) for x in value)  # hashable, whatever it came as
                object.__setattr__(self, name, value)
            for one in value if isinstance(value, tuple) else (value,):
                check_positive(**{name: one})
        check_original_length(self.original_length)
        check_factor(self.factor)
        check_base(self.base)
        count = self.start_count
        if not (is_finite(count) and 0 <= count <= MAX_POSITION and count == int(count)):
            raise ValueError(
                f"start_count must be a whole number of tokens up to {MAX_POSITION}, got {count!r}"
            )
        if self.attention_factor is not None:
            check_positive(attention_factor=self.attention_factor)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """[H/2] radians per token, of start tokens too, and the amplitude.

        Raises:
            ValueError: another number of factors than of pairs, in either list.
        """
        theta = rope_inv_freq(self.base, head_dim)
        for name in ("long_factor", "short_factor"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(theta):
                raise ValueError(
                    f"{name} has {len(value)} factors, head_dim {head_dim} has {len(theta)} pairs"
                )
        extended = seq_len > self.original_length
        factors = np.asarray(self.long_factor if extended else self.short_factor, np.float64)
        return Frequencies(
            theta / factors,
            amplitude=self.amplitude,
            start_inv_freq=theta if self.start_count else theta / factors,
            start_count=int(self.start_count),
        )

    @property
    def amplitude(self) -> float:
        """Factor on queries and on keys; scores get its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        return su_amplitude(self.factor, self.original_length)

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Hugging Face `rope_parameters`.

        Raises:
            ValueError: start tokens, which Hugging Face lacks, or one number in place of a list
                without `head_dim` to tell its length.
        """
        if self.start_count:
            raise ValueError("Hugging Face's longrope has no start tokens: start_count must be 0")
        parameters = {
            "rope_type": "longrope",
            "rope_theta": self.base,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_length,
        }
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                if head_dim is None:
                    raise ValueError(f"{name} is one number, Hugging Face's a list: pass head_dim")
                value = (value,) * (head_dim // 2)
            parameters[name] = list(value)
        if self.attention_factor is not None:
            parameters["attention_factor"] = self.attention_factor
        return parameters

    @classmethod
    def from_hf(cls, parameters: dict) -> "LongRoPE":
        """Inverse of `to_hf`."""
        return cls(
            long_factor=tuple(parameters["long_factor"]),
            original_length=parameters["original_max_position_embeddings"],
            factor=parameters["factor"],
            short_factor=tuple(parameters["short_factor"]),
            base=parameters["rope_theta"],
            attention_factor=parameters.get("attention_factor"),
        )
