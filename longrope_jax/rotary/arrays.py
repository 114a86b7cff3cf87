"""Phases that are exact at every position: fixed-point turns in two 32-bit words.

A float32 angle is wrong by 4e-3 at position 131,071. Here a frequency is a 64-bit fraction of a
turn; its integer product with the position wraps modulo one turn for free, so what reaches cos and
sin is always in half a turn of zero, on devices without float64.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Num

from longrope_jax.rotary.frequencies import MAX_POSITION, Frequencies, check_tokens
from longrope_jax.rotary.registry import Method, parse
from longrope_jax.rotary.score_rule import ScoreRule
from longrope_jax.shapes import AnyArray

# Opposite gains of xPos stay within 2^-120 .. 2^120, which leaves float32's normal range (2^-126 to
# 2^127) room for the entries of q and k; devices flush what is smaller to zero.
_MAX_LOG_GAIN = 120 * math.log(2)
_RADIANS_PER_WORD = np.float32(2 * np.pi / 2**32)
# The same in parts of 8, 8 and 24 bits: a 16-bit integer times one of the first two is exact.
_RADIANS_1 = np.float32(201 * 2.0**-37)
_RADIANS_2 = np.float32(15 * 2.0**-45)
_RADIANS_3 = np.float32(2 * np.pi / 2**32 - 201 * 2.0**-37 - 15 * 2.0**-45)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "hi", "lo", "delta", "amplitude", "log_decay", "centre",
        "start_hi", "start_lo", "start_count", "logn_length", "max_length", "mixing",
    ],
    meta_fields=["score_rule"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Rotary:
    """A method as the compiled model gets it: the same arrays for each, neutral where unused.

    The structural methods (see `is_structural`) have a static rule, and then a first axis in hi and
    lo for the rule's branches, or the array `mixing`; they compile on their own.

    R is the number of rotated pairs. Leading axes appear when rotaries are stacked for `vmap`.

    Attributes:
        hi, lo: uint32 [R], turns per token times 2^64, high and low word.
        delta: float32 [R], zero; radians per token; carries tangents of the frequencies.
        amplitude: float32 [], factor on queries and on keys.
        log_decay: float32 [R], natural log per token.
        centre: float32 [], the position where xPos gains are one.
        start_hi, start_lo: uint32 [R], words of the first `start_count` positions.
        start_count: int32 [].
        logn_length: float32 [], tokens; infinity is off.
        max_length: int32 [], tokens that the frequencies are for: what the Rotary was made for
            where its method depends on the length, else MAX_POSITION. Longer sequences are an error
            wherever positions are known, see `check_length`.
        mixing: float32 [2, K, R + 1, P], see `Frequencies`, or None.
        score_rule: static; what attention must be told, or None.
    """

    hi: jax.Array
    lo: jax.Array
    delta: jax.Array
    amplitude: jax.Array
    log_decay: jax.Array
    centre: jax.Array
    start_hi: jax.Array
    start_lo: jax.Array
    start_count: jax.Array
    logn_length: jax.Array
    max_length: jax.Array
    mixing: jax.Array | None = None
    score_rule: ScoreRule | None = None


class Phase(NamedTuple):
    """cos and sin with the gain folded in, float32 [..., T, R]."""

    cos: jax.Array
    sin: jax.Array


class HeadPhase(NamedTuple):
    """As Phase, for each key head its own: float32 [..., T, K, P] (FoPE)."""

    cos: jax.Array
    sin: jax.Array


class Phases(NamedTuple):
    """What queries and what keys are rotated by; they differ for xPos and log-n scaling.

    A method with a score rule has a tuple of them each: queries by branch, keys by rotation.
    """

    query: Phase | HeadPhase | tuple
    key: Phase | HeadPhase | tuple


def make(spec: Method | str, *, head_dim: int, seq_len: int | Sequence[int]) -> Rotary:
    """The arrays of `spec` for sequences of up to `seq_len` tokens.

    A method whose frequencies do not depend on the length is usable beyond `seq_len`, too.

    Args:
        spec: a rotary method, or its text as `parse` reads it.
        head_dim: H, even.
        seq_len: tokens; a sequence of lengths gives leaves stacked on a new first axis.

    Raises:
        ValueError: no method, a length that is not whole, out of range for positions, or too long
            for xPos in float32.
    """
    spec = parse(spec) if isinstance(spec, str) else spec
    if isinstance(spec, type) or not callable(getattr(spec, "frequencies", None)):
        raise ValueError(f"spec must be a method, got {spec!r}; rotary.parse('rope') makes one")
    if isinstance(seq_len, Sequence | np.ndarray):
        if isinstance(seq_len, str):
            raise ValueError(f"seq_len must be a whole number of tokens, got {seq_len!r}")
        return stack_rotaries([make(spec, head_dim=head_dim, seq_len=n) for n in seq_len])
    check_tokens(seq_len=seq_len)
    f = spec.frequencies(head_dim=head_dim, seq_len=seq_len)
    rot = from_frequencies(f, seq_len=seq_len)
    if _depends_on_length(spec, f, head_dim):
        return rot
    return dataclasses.replace(rot, max_length=jnp.int32(MAX_POSITION))


def _depends_on_length(spec: Method, f: Frequencies, head_dim: int) -> bool:
    """Whether longer sequences than those of `f` have other frequencies or, in xPos, gains."""
    if f.log_decay.any():
        return True
    try:
        return not f.equals(spec.frequencies(head_dim=head_dim, seq_len=MAX_POSITION))
    except ValueError:  # the method is not defined so far
        return True


def as_rotary(method: Method | Rotary | str, *, head_dim: int, seq_len: int) -> Rotary:
    """The Rotary that a function of `seq_len` tokens needs, whatever it was given.

    Args:
        method: a rotary method or its text, which is made for `seq_len` tokens; or a Rotary, which
            stays as it is.
        head_dim: H, even.
        seq_len: tokens.

    Raises:
        ValueError: As `make`, or a Rotary that was made for fewer tokens, see `check_length`.
    """
    if not isinstance(method, Rotary):
        return make(method, head_dim=head_dim, seq_len=seq_len)
    check_length(method, seq_len)
    return method


def check_length(rotary: Rotary, length: int) -> None:
    """Checks that sequences of `length` tokens are not longer than a Rotary's frequencies are for.

    Under `jit` a Rotary that is an argument has no known numbers and is not checked: check it
    where the program is called.

    Raises:
        ValueError: The method depends on the length, and the Rotary was made for fewer tokens.
    """
    if _is_known(rotary.max_length):
        _compare_lengths(int(np.asarray(rotary.max_length).min()), length)


def _is_known(x) -> bool:
    """Whether the numbers of an array are at hand: not under jit, nor on another host."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)


def _compare_lengths(made_for: int, length: int) -> None:
    if length > made_for:
        raise ValueError(
            f"this Rotary was made for {made_for} tokens and its method depends on the length, so "
            f"{length} tokens need another: rotary.make(method, head_dim=..., seq_len={length})"
        )


def from_frequencies(f: Frequencies, *, seq_len: int) -> Rotary:
    """As `make`, from frequencies that are already computed (e.g. after `rescale`).

    Sequences longer than `seq_len` are refused, since nothing says what their frequencies are.
    """
    if not 0 < seq_len <= MAX_POSITION:
        raise ValueError(f"seq_len must be between 1 and {MAX_POSITION}, got {seq_len}")
    centre = seq_len // 2
    _check_gain(f, seq_len, centre)
    inv_freq = f.inv_freq
    if f.score_rule is not None:
        inv_freq = inv_freq / np.asarray(f.score_rule.scales)[:, None]
    hi, lo = _turn_words(inv_freq)
    start_hi, start_lo = _turn_words(f.start_inv_freq)
    return Rotary(
        hi=jnp.asarray(hi),
        lo=jnp.asarray(lo),
        delta=jnp.zeros(f.inv_freq.shape, jnp.float32),
        amplitude=jnp.float32(f.amplitude),
        log_decay=jnp.asarray(f.log_decay, jnp.float32),
        centre=jnp.float32(centre),
        start_hi=jnp.asarray(start_hi),
        start_lo=jnp.asarray(start_lo),
        start_count=jnp.int32(f.start_count),
        logn_length=jnp.float32(f.logn_length),
        max_length=jnp.int32(seq_len),
        mixing=None if f.mixing is None else jnp.asarray(f.mixing, jnp.float32),
        score_rule=f.score_rule,
    )


def is_structural(spec: Method, *, head_dim: int) -> bool:
    """Whether the method needs a compiled program other than plain RoPE's for this head.

    So do remapped positions, ALiBi's bias, FoPE's mixtures, and a rotary part smaller than the
    head. All other methods are data of one shape: they share a program and can be stacked.
    """
    f = spec.frequencies(head_dim=head_dim, seq_len=1)
    return f.score_rule is not None or f.mixing is not None or 2 * f.pairs != head_dim


def stack_rotaries(rotaries: Sequence[Rotary]) -> Rotary:
    """Stacks rotaries of the same structure on a new first axis, ready for `vmap`.

    Raises:
        ValueError: nothing to stack, or rotaries that differ in more than numbers.
    """
    forms = [(r.score_rule, [jnp.shape(x) for x in jax.tree.leaves(r)]) for r in rotaries]
    if any(form != forms[0] for form in forms) or not forms:
        rules = sorted({str(rule) for rule, _ in forms})
        raise ValueError(
            f"only rotaries of one structure can be stacked, got {len(forms)} with score rules "
            f"{rules} and other shapes: run them one by one"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rotaries)


def _check_gain(f: Frequencies, seq_len: int, centre: int) -> None:
    steepest = float(np.abs(f.log_decay).max(initial=0))
    if steepest * (seq_len - centre) > _MAX_LOG_GAIN:
        limit = 2 * int(_MAX_LOG_GAIN / steepest)
        raise ValueError(
            f"xPos holds its opposite gains in float32 up to {limit} tokens with this decay, got "
            f"seq_len {seq_len}; take a larger scale_base or gamma, or a shorter sequence"
        )


def _turn_words(inv_freq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = np.mod(inv_freq / (2 * np.pi), 1.0) * 2.0**32
    hi = np.floor(scaled)
    return hi.astype(np.uint32), np.floor((scaled - hi) * 2.0**32).astype(np.uint32)


def phases(rotary: Rotary, positions: Num[AnyArray, "..."], *, precision: str = "exact") -> Phases:
    """cos and sin for every position and pair, with amplitude, decay and log-n folded in.

    Args:
        rotary: from `make`; stacked over rows [B], each row of positions [B, T] has its own.
        positions: [..., T] integers from 0 to 2^24 - 1, or float32 (their integer part is exact,
            their fraction is multiplied in float32).
        precision: "exact", within 1e-6 at every position; or "float32", the rounded product that
            other software computes, to compare with it.

    Returns:
        Query and key (cos, sin), float32 [..., T, R]; tuples of them under a score rule.

    Raises:
        ValueError: concrete positions out of range or beyond what the Rotary was made for,
            positions in 16 bits or not whole under a score rule, unknown precision, another number
            of stacked rotaries than of rows.
    """
    if not isinstance(rotary, Rotary):
        raise ValueError(f"phases takes a Rotary, got {rotary!r:.80}: rotary.make makes it")
    _check_positions(rotary, positions)
    if jnp.ndim(rotary.amplitude):
        rows = len(rotary.amplitude)
        if jnp.ndim(positions) < 2 or len(positions) != rows:
            raise ValueError(f"{rows} stacked rotaries, positions of shape {jnp.shape(positions)}")
        return jax.vmap(partial(phases, precision=precision))(rotary, jnp.asarray(positions))
    position = jnp.asarray(positions)
    if not jnp.issubdtype(position.dtype, jnp.floating):
        position = position.astype(jnp.int32)  # rules subtract and shift: uint32 or int8 would wrap
    turn = partial(_turn, precision=precision)
    query_gain, key_gain = _gains(rotary, position[..., None].astype(jnp.float32))
    if rotary.score_rule is None:
        both = turn(rotary, position)
        return Phases(_scaled(both, query_gain), _scaled(both, key_gain))
    if jnp.issubdtype(position.dtype, jnp.floating):
        raise ValueError(f"{rotary.score_rule} takes whole positions, got {position.dtype}")
    rule = rotary.score_rule
    branch = partial(_branch, rotary, rule)
    queries = enumerate(rule.query_positions(position))
    keys = enumerate(rule.key_positions(position))
    return Phases(
        tuple(_scaled(turn(branch(r), at), query_gain) for r, at in queries),
        tuple(_scaled(turn(branch(rule.keys.index(c)), at), key_gain) for c, at in keys),
    )


def _branch(rotary: Rotary, rule: ScoreRule, r: int) -> Rotary:
    delta = rotary.delta / rule.scales[r]
    return dataclasses.replace(rotary, hi=rotary.hi[r], lo=rotary.lo[r], delta=delta)


def _turn(rotary: Rotary, position: jax.Array, precision: str) -> Phase | HeadPhase:
    """cos and sin without gain."""
    position = position[..., None]
    if precision == "exact":
        angle = _exact_angle(rotary, position)
    elif precision == "float32":
        hi, lo = _words(rotary, jnp.floor(position).astype(jnp.uint32))
        angle = position.astype(jnp.float32) * _float32_inv_freq(hi, lo)
    else:
        raise ValueError(f"unknown precision {precision!r}: use 'exact' or 'float32'")
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if rotary.mixing is None:
        return Phase(cos, sin)
    return HeadPhase(_mix(rotary.mixing[0], cos), _mix(rotary.mixing[1], sin))


def _mix(weights: jax.Array, waves: jax.Array) -> jax.Array:
    """[..., T, K, P] from [K, R + 1, P] and [..., T, R]."""
    waves = jnp.concatenate([waves, jnp.ones_like(waves[..., :1])], axis=-1)
    # At the highest precision: rounding cos to bfloat16 would undo its exactness.
    return jnp.einsum("...R,KRP->...KP", waves, weights, precision=jax.lax.Precision.HIGHEST)


def _gains(rotary: Rotary, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What queries and keys are multiplied by, [..., T, R]."""
    log_gain = rotary.log_decay * (position - rotary.centre)
    logn = jnp.maximum(1.0, jnp.log(position + 1) / jnp.log(rotary.logn_length))
    return rotary.amplitude * jnp.exp(log_gain) * logn, rotary.amplitude * jnp.exp(-log_gain)


def _scaled(phase: Phase | HeadPhase, gain: jax.Array) -> Phase | HeadPhase:
    if isinstance(phase, HeadPhase):
        gain = gain[..., None, :1]  # the same for all pairs: no decay is mixed
    return type(phase)(phase.cos * gain, phase.sin * gain)


def _check_positions(rotary: Rotary, positions) -> None:
    dtype = jnp.result_type(positions)
    if dtype in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"positions in {dtype} are rounded beyond 256 or 2048: take int32")
    if not _is_known(positions) or np.size(positions) == 0:
        return
    low, high = np.min(positions).item(), np.max(positions).item()  # int8 < 2^24 would wrap
    if not (low >= 0 and high < MAX_POSITION):  # so written, NaN is refused too
        raise ValueError(f"positions must lie in 0..{MAX_POSITION - 1}, got {low}..{high}")
    if np.ndim(rotary.max_length) and _is_known(rotary.max_length):
        for made_for, row in zip(np.asarray(rotary.max_length), positions, strict=False):
            _compare_lengths(int(made_for), math.floor(np.max(row)) + 1)
    else:
        check_length(rotary, math.floor(high) + 1)


def _exact_angle(rotary: Rotary, position: jax.Array) -> jax.Array:
    whole = jnp.floor(position).astype(jnp.uint32)
    hi, lo = _words(rotary, whole)
    angle = _turn_angle(hi, lo, rotary.delta, whole)
    if jnp.issubdtype(position.dtype, jnp.floating):
        angle += (position - jnp.floor(position)) * (_float32_inv_freq(hi, lo) + rotary.delta)
    return angle


def _words(rotary: Rotary, whole: jax.Array) -> tuple[jax.Array, jax.Array]:
    start = whole < rotary.start_count.astype(jnp.uint32)
    hi = jnp.where(start, rotary.start_hi, rotary.hi)
    return hi, jnp.where(start, rotary.start_lo, rotary.lo)


def _float32_inv_freq(hi: jax.Array, lo: jax.Array) -> jax.Array:
    """Radians per token rounded once, as if from float64 (1 stays 1): 3 roundings are 0.1 at 1M."""
    a, b = (hi >> 16).astype(jnp.float32) * 65536.0, (hi & 0xFFFF).astype(jnp.float32)
    rest = a * _RADIANS_3 + b * (_RADIANS_2 + _RADIANS_3)
    rest += lo.astype(jnp.float32) * np.float32(2 * np.pi / 2**64)
    high, low = a * _RADIANS_1, b * _RADIANS_1
    total = high + low
    return total + (a * _RADIANS_2 + (low - (total - high)) + rest)


@jax.custom_jvp
def _turn_angle(hi, lo, delta, n):
    """Angle of n tokens in [-pi, pi): the high word of the 64-bit product n * (hi, lo)."""
    n_hi, n_lo = n >> 16, n & 0xFFFF
    lo_hi, lo_lo = lo >> 16, lo & 0xFFFF
    low = n_hi * lo_lo + ((n_lo * lo_lo) >> 16)
    middle = n_lo * lo_hi + (low & 0xFFFF)
    carry = n_hi * lo_hi + (low >> 16) + (middle >> 16)
    word = n * hi + carry
    return jax.lax.bitcast_convert_type(word, jnp.int32).astype(jnp.float32) * _RADIANS_PER_WORD


@_turn_angle.defjvp
def _turn_angle_jvp(primals, tangents):
    n, delta_dot = primals[3], tangents[2]
    angle = _turn_angle(*primals)
    return angle, jnp.broadcast_to(n.astype(jnp.float32) * delta_dot, angle.shape)
