"""LongRoPE divides every pair's frequency by a factor of its own, found by search."""

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
    """Returns LongRoPE's attention factor sqrt(1 + ln(s)/ln(L)), called "su" in its repo."""
    return math.sqrt(1 + math.log(factor) / math.log(length))


@register("longrope")
@dataclasses.dataclass(frozen=True)
class LongRoPE:
    """LongRoPE: theta_j = base^(-2j/H) / lambda_j, plain RoPE at the first start_count positions.

    theta_j is in radians per token and L is the original_length. lambda is long_factor where the
    sequence is longer than L, else short_factor, for all tokens of the sequence. Queries and keys
    are multiplied by sqrt(1 + ln(factor)/ln(L)) with either list, which is 1 for factor 1. Start
    tokens make scores depend on absolute positions.

    Source: LongRoPE (2402.13753) section 3, whose equation has the start tokens as n < n-hat; the
        two lists and the attention factor are in its repo ("su") and Hugging Face, not in the
        paper.
    Cache: rotated keys, up to the switch at original_length, where all keys change.
    Peers: Hugging Face switches at n > L in each forward pass (as here), unsloth did at n >= L,
        vLLM and llama.cpp decide once, by the longest length they are started for. Hugging Face
        takes the short list where no length is given. microsoft/LongRoPE takes the scale from
        max/original, not from a `factor`; its search starts from a blend of factors, YaRN's ramp
        blends frequencies. Its dynamic form is `DynamicLongRoPE`.

    Attributes:
        long_factor: the factors lambda_j beyond L, dimensionless and above 0: one per rotated pair,
            or one number for all; required, since they are searched for each model.
        original_length: the trained length L in tokens; required.
        factor: the extension s, extended over trained length, at least 1; required. It decides the
            attention factor alone.
        short_factor: the factors lambda_j up to L, written like long_factor; default 1, plain RoPE.
        base: RoPE's base; default 10,000.
        start_count: how many tokens at the start keep plain RoPE, n-hat; default 0 (Hugging Face
            has none; the paper's search tries up to 256).
        attention_factor: a number in place of the formula above; default None.
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
        """Returns [H/2] frequencies in radians per token, those of start tokens, and the amplitude.

        Raises:
            ValueError: the number of factors in either list is not the number of pairs.
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
        """The factor on queries and on keys; scores get its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        return su_amplitude(self.factor, self.original_length)

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config.

        Raises:
            ValueError: there are start tokens, which Hugging Face lacks, or one number stands for a
                list and `head_dim` does not say how long that is.
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
        """Reads the `rope_parameters` that `to_hf` writes."""
        return cls(
            long_factor=tuple(parameters["long_factor"]),
            original_length=parameters["original_max_position_embeddings"],
            factor=parameters["factor"],
            short_factor=tuple(parameters["short_factor"]),
            base=parameters["rope_theta"],
            attention_factor=parameters.get("attention_factor"),
        )
