"""Frequencies are what a rotary method gives, in float64 on the host; shared checks are here."""

import dataclasses
import math
import numbers
from typing import TypeGuard

import numpy as np
from jaxtyping import Float64

from longrope_jax.rotary.score_rule import ScoreRule

# Below this bound positions are exact in float32 and in the fixed-point phases.
MAX_POSITION = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Frequencies:
    """Frequencies hold a method evaluated for one head dimension and one length, in float64.

    Attributes:
        inv_freq: [R] radians per token, one for each rotated pair; R is half the rotary dimension,
            at most H/2. A pair of frequency zero does not rotate.
        amplitude: the factor on queries and on keys, so scores get its square (YaRN's mscale).
        log_decay: [R] natural log of the factor on scores per token of distance, negative for decay
            (xPos); None is no decay.
        start_inv_freq: [R] radians per token at the first `start_count` positions (LongRoPE); None
            is `inv_freq`.
        start_count: how many positions at the start use `start_inv_freq`.
        logn_length: the length L in tokens of log-n scaling, which multiplies a query at position n
            by max(1, ln(n+1)/ln(L)); infinity switches it off.
        score_rule: what attention does beyond one rotation (remapped positions, ALiBi's bias).
        mixing: only for FoPE, [2, K, R + 1, P]: mixing[0] and mixing[1] map the R cosines and the R
            sines, each followed by a constant 1, to those of P output pairs per key head. None
            gives each pair its own frequency.
    """

    inv_freq: np.ndarray
    amplitude: float = 1.0
    # None is replaced when the object is made, so that who reads them finds arrays.
    log_decay: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    start_inv_freq: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    start_count: int = 0
    logn_length: float = math.inf
    score_rule: ScoreRule | None = None
    mixing: np.ndarray | None = None

    def __post_init__(self):
        inv_freq = np.asarray(self.inv_freq, np.float64)
        object.__setattr__(self, "inv_freq", inv_freq)
        fill = {"log_decay": np.zeros_like(inv_freq), "start_inv_freq": inv_freq}
        for name, default in fill.items():
            value = getattr(self, name)
            value = default if value is None else np.asarray(value, np.float64)
            if value.shape != inv_freq.shape:
                raise ValueError(f"{name} has shape {value.shape}, inv_freq {inv_freq.shape}")
            object.__setattr__(self, name, value)
        for name in ("inv_freq", "start_inv_freq"):
            _check_turns(name, getattr(self, name))
        rows = len(inv_freq) + 1
        if self.mixing is not None and np.shape(self.mixing)[::2] != (2, rows):
            shape = np.shape(self.mixing)
            raise ValueError(f"mixing has shape {shape}, needs [2, K, {rows}, P]")

    def equals(self, other: "Frequencies") -> bool:
        """Says whether every number of both is the same."""
        fields = [field.name for field in dataclasses.fields(self)]
        return all(np.array_equal(getattr(self, f), getattr(other, f)) for f in fields)

    @property
    def pairs(self) -> int:
        """The number of pairs of features that rotate in a head."""
        return len(self.inv_freq) if self.mixing is None else self.mixing.shape[-1]


def _check_turns(name: str, inv_freq: np.ndarray) -> None:
    if not np.all(np.isfinite(inv_freq)) or np.any(inv_freq < 0):
        raise ValueError(f"{name} must be finite and not negative, got {inv_freq.min()} at least")
    if np.any(inv_freq >= 2 * np.pi):
        raise ValueError(f"{name} reaches {inv_freq.max():.4g} rad per token, a whole turn or more")


def rescale(frequencies: Frequencies, scale: float) -> Frequencies:
    """Divides every frequency by `scale`, which evaluates the method at another scale.

    Giraffe's matrix (2308.10882) evaluates a model at 1/2 to 2 times the scale it was trained with.
    Amplitude and decay stay as they are.

    Raises:
        ValueError: `scale` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return dataclasses.replace(
        frequencies,
        inv_freq=frequencies.inv_freq / scale,
        start_inv_freq=frequencies.start_inv_freq / scale,
    )


def rope_inv_freq(base: float, head_dim: int) -> Float64[np.ndarray, " R"]:
    """Returns RoPE's theta_j = base^(-2j/H), [H/2] radians per token in float64 (RoFormer eq. 15).

    Raises:
        ValueError: `head_dim` is odd or not positive, or `base` is infinite.
    """
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and positive, got {head_dim}")
    if not is_finite(base):
        raise ValueError(f"base must be finite, got {base}: take a smaller base or factor")
    return np.float64(base) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def is_finite(value) -> TypeGuard[float]:
    """Says whether `value` is a finite number; a typo in a command line is text."""
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # for an int of 400 digits
        return False


def check_positive(**values: float) -> None:
    """Raises ValueError, naming the option, unless each value is finite and above 0."""
    for name, value in values.items():
        if not (is_finite(value) and value > 0):
            raise ValueError(f"{name} must be finite and positive, got {value!r}")


def check_original_length(length: float | None) -> float:
    """Raises ValueError unless `length`, the trained length in tokens, is at least 2."""
    if not (is_finite(length) and length >= 2):
        raise ValueError(
            f"original_length must be at least 2 tokens, got {length!r}; it is the length the "
            "model was trained on before its extension"
        )
    return length


def check_fraction(fraction: float) -> None:
    """Raises ValueError unless `fraction` lies in 0..1."""
    if not (is_finite(fraction) and 0 <= fraction <= 1):
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction!r}")


def check_base(base: float) -> None:
    """Raises ValueError unless `base` is finite and above 1."""
    if not (is_finite(base) and base > 1):
        raise ValueError(f"base must be finite and above 1, got {base!r}")


def check_factor(factor: float) -> None:
    """Raises ValueError unless `factor` (extended length over trained length) is at least 1."""
    if not (is_finite(factor) and factor >= 1):
        raise ValueError(
            f"factor must be at least 1, got {factor!r}; it is extended length / trained length, "
            "the inverse of Llama 2 Long's alpha"
        )


def check_tokens(minimum: int = 1, **values: int) -> None:
    """Raises ValueError, naming the option, unless each is a whole number of tokens in range."""
    for name, value in values.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (whole and minimum <= value <= MAX_POSITION):
            raise ValueError(
                f"{name} must be a whole number from {minimum} to {MAX_POSITION}, got {value!r}"
            )


def remapped(method: str, f: Frequencies, rule: ScoreRule) -> Frequencies:
    """Returns the inner method's frequencies `f` with `rule` as their score rule.

    Raises:
        ValueError: the inner method does something that relative positions alone cannot express.
    """
    if f.score_rule is not None:
        raise ValueError(f"{method} around {f.score_rule}: only one method may remap positions")
    if f.log_decay.any():
        raise ValueError(f"{method} around xPos, whose decay has no branch: take inner=(abf)")
    if f.start_count:
        raise ValueError(f"{method} around start tokens of their own: take start_count=0")
    if f.mixing is not None:
        raise ValueError(f"{method} around fope, whose scores are not relative: take inner=(hope)")
    return dataclasses.replace(f, score_rule=rule)
