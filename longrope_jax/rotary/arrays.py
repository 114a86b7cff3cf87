"""Phases are exact at every position because frequencies are fixed-point turns of two words.

A float32 angle is wrong by 4e-3 at position 131,072. Here a frequency is a 64-bit fraction of a
turn, held in two 32-bit words. Its integer product with the position wraps modulo one turn for
free, so the angle that reaches cos and sin always lies within half a turn of zero, on devices
without float64.
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
from longrope_jax.rotary.methods.by_layer import ByLayer, distinct
from longrope_jax.rotary.registry import Method, parse
from longrope_jax.rotary.score_rule import ScoreRule
from longrope_jax.shapes import AnyArray

# The opposite gains of xPos stay within 2^-120 .. 2^120, which leaves room for the entries of q and
# k in float32's normal range (2^-126 to 2^127); devices flush smaller numbers to zero.
_MAX_LOG_GAIN = 120 * math.log(2)
_RADIANS_PER_WORD = np.float32(2 * np.pi / 2**32)
# The same in parts of 8, 8 and 24 bits: a 16-bit integer times either of the first two is exact.
_RADIANS_1 = np.float32(201 * 2.0**-37)
_RADIANS_2 = np.float32(15 * 2.0**-45)
_RADIANS_3 = np.float32(2 * np.pi / 2**32 - 201 * 2.0**-37 - 15 * 2.0**-45)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "hi", "lo", "delta", "amplitude", "log_decay", "centre",
        "start_hi", "start_lo", "start_count", "logn_length", "max_length", "mixing", "pattern",
    ],
    meta_fields=["score_rule"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Rotary:
    """A Rotary is a method as the compiled model gets it: arrays that are neutral where unused.

    Every method has the same arrays. Structural methods (see `is_structural`) also have a static
    score rule, and then hi and lo have a first axis for its branches, or they have `mixing`; they
    need compiled programs of their own.

    R is the number of rotated pairs. Leading axes appear when rotaries are stacked for `vmap`. A
    method per layer (`ByLayer`) has a last leading axis over its methods, and `pattern`.

    Attributes:
        hi, lo: uint32 [R], high and low word of the turns per token times 2^64.
        delta: float32 [R], zero radians per token; it carries tangents of the frequencies.
        amplitude: float32 [], the factor on queries and on keys.
        log_decay: float32 [R], natural log of the factor on scores per token of distance.
        centre: float32 [], the position where the gains of xPos are one.
        start_hi, start_lo: uint32 [R], hi and lo for the first `start_count` positions.
        start_count: int32 [], how many positions at the start have words of their own.
        logn_length: float32 [], length in tokens of log-n scaling; infinity switches it off.
        max_length: int32 [], tokens that the frequencies are for: what the Rotary was made for
            where its method depends on the length, else MAX_POSITION. Longer sequences are an error
            wherever positions are known, see `check_length`.
        mixing: float32 [2, K, R + 1, P], see `Frequencies`, or None.
        pattern: int32 [P], the method of layer i is pattern[i mod P]; None where all layers have
            one method.
        score_rule: static; what attention does beyond one rotation, or None.
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
    pattern: jax.Array | None = None
    score_rule: ScoreRule | None = None


# What every function takes that needs a Rotary: one, or a method or its text to make it of.
RotaryLike = Method | Rotary | str


class Phase(NamedTuple):
    """A phase is cos and sin with the gain folded in, float32 [..., T, R]."""

    cos: jax.Array
    sin: jax.Array


class HeadPhase(NamedTuple):
    """A phase that differs by key head is cos and sin, float32 [..., T, K, P] (FoPE)."""

    cos: jax.Array
    sin: jax.Array


class Phases(NamedTuple):
    """Phases hold what queries and keys are rotated by; the two differ for xPos and log-n scaling.

    Under a score rule each is a tuple: one phase per branch for queries, one per rotation for keys.
    """

    query: Phase | HeadPhase | tuple
    key: Phase | HeadPhase | tuple


def make(spec: Method | str, *, head_dim: int, seq_len: int | Sequence[int]) -> Rotary:
    """Returns the arrays of a method for sequences of up to `seq_len` tokens.

    A method whose frequencies do not depend on the length is usable beyond `seq_len`, too.

    Args:
        spec: a rotary method, or its text as `parse` reads it.
        head_dim: H, even.
        seq_len: tokens; a sequence of lengths gives leaves stacked on a new first axis.

    Raises:
        ValueError: `spec` is not a method, or a length is not whole, out of range for positions, or
            too long for xPos in float32.
    """
    spec = parse(spec) if isinstance(spec, str) else spec
    if isinstance(spec, type) or not callable(getattr(spec, "frequencies", None)):
        raise ValueError(
            f"rotary must be a method, its text such as 'yarn:factor=4', or a Rotary, got {spec!r}"
        )
    if isinstance(seq_len, Sequence | np.ndarray):
        if isinstance(seq_len, str):
            raise ValueError(f"seq_len must be a whole number of tokens, got {seq_len!r}")
        return stack_rotaries([make(spec, head_dim=head_dim, seq_len=n) for n in seq_len])
    check_tokens(seq_len=seq_len)
    if isinstance(spec, ByLayer):
        made = [make(one, head_dim=head_dim, seq_len=seq_len) for one in spec.methods]
        return by_layer(made, spec.pattern)
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


def as_rotary(method: RotaryLike, *, head_dim: int, seq_len: int) -> Rotary:
    """Returns the Rotary that `seq_len` tokens need, from a method, its text or a Rotary.

    Args:
        method: a rotary method or its text, which is made for `seq_len` tokens; or a Rotary, which
            stays as it is.
        head_dim: H, even.
        seq_len: tokens.

    Raises:
        ValueError: the text cannot be read, `make` refuses the method, or a Rotary was made for
            fewer tokens, see `check_length`.
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
    """Returns a Rotary from frequencies that are already computed, e.g. by `rescale`.

    Sequences longer than `seq_len` are refused, since nothing says what their frequencies are.

    Raises:
        ValueError: `seq_len` is out of range for positions, or too long for xPos in float32.
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
    """Says whether the method needs another compiled program than plain RoPE for this head.

    A method per layer, remapped positions, ALiBi's bias, FoPE's mixtures and a rotary part smaller
    than the head do.
    All other methods are data of one shape: they share a program and can be stacked.
    """
    if isinstance(spec, ByLayer):
        return True
    f = spec.frequencies(head_dim=head_dim, seq_len=1)
    return f.score_rule is not None or f.mixing is not None or 2 * f.pairs != head_dim


def stack_rotaries(rotaries: Sequence[Rotary]) -> Rotary:
    """Stacks rotaries of the same structure on a new first axis, ready for `vmap`.

    Raises:
        ValueError: there is nothing to stack, or the rotaries differ in more than numbers.
    """
    forms = [(r.score_rule, [jnp.shape(x) for x in jax.tree.leaves(r)]) for r in rotaries]
    if any(form != forms[0] for form in forms) or not forms:
        rules = sorted({str(rule) for rule, _ in forms})
        raise ValueError(
            f"only rotaries of one structure can be stacked, got {len(forms)} with score rules "
            f"{rules} and other shapes: run them one by one"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rotaries)


def frequencies_of(spec: Method, *, head_dim: int, seq_len: int) -> list[Frequencies]:
    """Returns the frequencies of a method, or of each method of a `ByLayer`, in their order."""
    return [one.frequencies(head_dim=head_dim, seq_len=seq_len) for one in distinct(spec)]


def assemble(spec: Method, frequencies: Sequence[Frequencies], *, seq_len: int) -> Rotary:
    """Returns the Rotary of a method from what `frequencies_of` gave, as `from_frequencies`."""
    made = [from_frequencies(f, seq_len=seq_len) for f in frequencies]
    return by_layer(made, spec.pattern) if isinstance(spec, ByLayer) else made[0]


def by_layer(rotaries: Sequence[Rotary], pattern: Sequence[int]) -> Rotary:
    """Returns one Rotary of several for the layers of a model, see `Rotary.pattern`.

    Raises:
        ValueError: the rotaries differ in more than numbers.
    """
    index = jnp.asarray(pattern, jnp.int32)
    return dataclasses.replace(stack_rotaries(rotaries), pattern=index)


def check_layers(rotary: Rotary, layers: int) -> None:
    """Checks that a Rotary whose method differs by layer is for a model of so many layers.

    Raises:
        ValueError: the pattern is longer than the model is deep, so that its end acts nowhere.
    """
    if rotary.pattern is not None and rotary.pattern.shape[-1] > layers:
        raise ValueError(
            f"the pattern of by_layer has {rotary.pattern.shape[-1]} entries, but the model has "
            f"{layers} layers: shorten the pattern"
        )


def method_of_layer(rotary: Rotary, layers: int) -> jax.Array | None:
    """Returns the index of each layer's method, int32 [layers]; None where all have one method."""
    if rotary.pattern is None:
        return None
    pattern = rotary.pattern.reshape(-1, rotary.pattern.shape[-1])[0]  # rows share their method
    return pattern[jnp.arange(layers) % len(pattern)]


def phases_of(phases: Phases, method: jax.Array | int | None) -> Phases:
    """Returns the phases of one method out of those of a method per layer; None takes them all."""
    if method is None:
        return phases
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, method, keepdims=False), phases)


def _rows(rotary: Rotary) -> int | None:
    """Returns how many rows a Rotary is stacked over, or None where it is for all rows alike."""
    plain = 0 if rotary.pattern is None else 1
    return len(rotary.amplitude) if jnp.ndim(rotary.amplitude) > plain else None


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
    """Returns cos and sin of every position and pair, with amplitude, decay and log-n folded in.

    Args:
        rotary: a Rotary from `make`; one that is stacked over rows [B] serves positions [B, T] row
            by row.
        positions: [..., T] integers from 0 to 2^24 - 1, or float32 (their integer part is exact,
            their fraction is multiplied in float32).
        precision: "exact" is within 1e-6 at every position; "float32" is the rounded product that
            other software computes, for comparison.

    Returns:
        (cos, sin) of queries and of keys, float32 [..., T, R]; tuples of them under a score rule.
        A method per layer has a first axis over its methods, see `phases_of`.

    Raises:
        ValueError: concrete positions are out of range or beyond what the Rotary was made for,
            positions have 16 bits or are not whole under a score rule, the precision is unknown, or
            there are not as many stacked rotaries as rows.
    """
    if not isinstance(rotary, Rotary):
        raise ValueError(f"phases takes a Rotary, got {rotary!r:.80}: rotary.make makes it")
    _check_positions(rotary, positions)
    one = partial(phases, precision=precision)
    if (rows := _rows(rotary)) is not None:
        if jnp.ndim(positions) < 2 or len(positions) != rows:
            raise ValueError(f"{rows} stacked rotaries, positions of shape {jnp.shape(positions)}")
        axis = 0 if rotary.pattern is None else 1  # the methods come first
        return jax.vmap(one, out_axes=axis)(rotary, jnp.asarray(positions))
    if rotary.pattern is not None:
        methods = dataclasses.replace(rotary, pattern=None)
        return jax.vmap(one, in_axes=(0, None))(methods, jnp.asarray(positions))
    position = jnp.asarray(positions)
    if not jnp.issubdtype(position.dtype, jnp.floating):
        # Score rules subtract and shift positions, which would wrap in uint32 or int8.
        position = position.astype(jnp.int32)
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
    """Returns cos and sin without the gain."""
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
    """Mixes waves [..., T, R] by weights [K, R + 1, P] into [..., T, K, P]."""
    waves = jnp.concatenate([waves, jnp.ones_like(waves[..., :1])], axis=-1)
    # Lower precision would round cos to bfloat16, which undoes its exactness.
    return jnp.einsum("...R,KRP->...KP", waves, weights, precision=jax.lax.Precision.HIGHEST)


def _gains(rotary: Rotary, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the factors on queries and on keys, each [..., T, R]."""
    per_pair = (1,) * (position.ndim - 1) + (-1,)  # written out for jax_numpy_rank_promotion
    log_gain = rotary.log_decay.reshape(per_pair) * (position - rotary.centre)
    logn = jnp.maximum(1.0, jnp.log(position + 1) / jnp.log(rotary.logn_length))
    return rotary.amplitude * jnp.exp(log_gain) * logn, rotary.amplitude * jnp.exp(-log_gain)


def _scaled(phase: Phase | HeadPhase, gain: jax.Array) -> Phase | HeadPhase:
    if isinstance(phase, HeadPhase):
        gain = gain[..., None, :1]  # no method mixes and decays, so all pairs have the same gain
    return type(phase)(phase.cos * gain, phase.sin * gain)


def _check_positions(rotary: Rotary, positions) -> None:
    dtype = jnp.result_type(positions)
    if dtype in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"positions in {dtype} are rounded beyond 256 or 2048: take int32")
    if not _is_known(positions) or np.size(positions) == 0:
        return
    # Python ints, since int8 < 2^24 would wrap.
    low, high = np.min(positions).item(), np.max(positions).item()
    if not (low >= 0 and high < MAX_POSITION):  # written so that NaN is refused too
        raise ValueError(f"positions must lie in 0..{MAX_POSITION - 1}, got {low}..{high}")
    if _rows(rotary) is not None and _is_known(rotary.max_length):
        for made_for, row in zip(np.asarray(rotary.max_length), positions, strict=False):
            _compare_lengths(int(np.min(made_for)), math.floor(np.max(row)) + 1)
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
    """Returns radians per token rounded once, as if from float64; 3 roundings make 0.1 at 1M."""
    a, b = (hi >> 16).astype(jnp.float32) * 65536.0, (hi & 0xFFFF).astype(jnp.float32)
    rest = a * _RADIANS_3 + b * (_RADIANS_2 + _RADIANS_3)
    rest += lo.astype(jnp.float32) * np.float32(2 * np.pi / 2**64)
    high, low = a * _RADIANS_1, b * _RADIANS_1
    total = high + low
    return total + (a * _RADIANS_2 + (low - (total - high)) + rest)


@jax.custom_jvp
def _turn_angle(hi, lo, delta, n):
    """Returns the angle of n tokens in [-pi, pi): the high word of the product n * (hi, lo)."""
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
