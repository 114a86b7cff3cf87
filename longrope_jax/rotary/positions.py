"""Position transforms train at a short length with the positions of a long one.

A transform changes the positions that a method rotates by, not its frequencies, so it goes with any
method. It takes a key and gives positions [B, T] in increasing order; attention stays causal by the
order of tokens. Transforms are for training alone: evaluation counts positions as always.

    positions = ruoss(key, 8, 2048, max_length=32_768)
    hidden, _ = Llama(config).apply(params, tokens, rotary=rot, positions=positions)

Make the rotary for the longest position (`seq_len` = max_length or target_length), since the centre
of xPos, dynamic methods and LongRoPE's switch depend on it.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Num

from longrope_jax.errors import unknown_name
from longrope_jax.rotary.frequencies import MAX_POSITION
from longrope_jax.rotary.registry import read_options
from longrope_jax.shapes import AnyArray

Transform = Callable[[jax.Array, int, int], jax.Array]  # key, batch, length -> positions [B, T]


def parse(text: str) -> Transform:
    """Returns the transform that a text names, as a function of key, batch and length.

    Texts are `giraffe`, `ruoss:max_length=32768` or `pose:target_length=32768,chunks=2`.

    Raises:
        ValueError: the name or an option is unknown (the message says the nearest known one), or an
            option is missing.
    """
    name, options = read_options(text)
    if name not in _TRANSFORMS:
        raise ValueError(unknown_name("position transform", name, _TRANSFORMS))
    transform = _TRANSFORMS[name]
    known = inspect.signature(transform).parameters
    known = {k: p for k, p in known.items() if p.kind is p.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            raise ValueError(unknown_name(f"option of {name}", option, known))
        _check_count(option, value, 1)
    missing = [k for k, p in known.items() if p.default is p.empty and k not in options]
    if missing:
        raise ValueError(f"{name} needs {missing[0]}: write {name}:{missing[0]}=...")
    return functools.partial(transform, **options)


def longest(text: str) -> int:
    """Returns one more than the greatest position that a transform reaches; 0 for none, `""`.

    `giraffe` keeps to the window's length, for which 0 stands too.

    Raises:
        ValueError: as `parse`.
    """
    options = read_options(text)[1] if text and parse(text) else {}
    return max(options.get("max_length", 0), options.get("target_length", 0))


def restart(
    positions: Num[AnyArray, "B T"], segment_start: Int[AnyArray, "B T"]
) -> Num[jax.Array, "B T"]:
    """Shifts positions so that every packed document begins where its window begins.

    Distances inside a document stay as they were drawn; a row without packing does not change.

    Args:
        positions: [B, T] from a transform.
        segment_start: int32 [B, T], index of the first token of each token's document.
    """
    positions = jnp.asarray(positions)
    first = jnp.take_along_axis(positions, segment_start, axis=1)
    return positions - (first - positions[:, :1])


def giraffe(key: jax.Array, batch: int, length: int) -> Float[jax.Array, "{batch} {length}"]:
    """Draws Giraffe's randomised positions, cumsum(2 U[0,1)) times T/max(last, T); float32 [B, T].

    Neighbours are 0 to 2 apart, 1 on average, and the last position is at most T = length. The
    scheme differs from `ruoss`.
    Source: `random_init_forward` of abacusai/Long-Context, one draw per example and forward pass in
    training; Giraffe (2308.10882).
    """
    _check_lengths(length, length + 1)
    steps = 2 * jax.random.uniform(key, (batch, length))
    positions = jnp.cumsum(steps, axis=1)
    positions *= length / jnp.maximum(positions[:, -1:], length)
    return jnp.minimum(positions, length)  # rounding may carry the product beyond


def ruoss(
    key: jax.Array, batch: int, length: int, *, max_length: int
) -> Int[jax.Array, "{batch} {length}"]:
    """Draws randomised positions, a sorted random subset of 0..max_length-1; int32 [B, T].

    Every subset of T = length positions is equally likely, and rows are drawn independently. The
    cost grows with T, not with max_length.
    Source: Ruoss et al. (2305.16843), as PoSE (2309.10400) section 4 and its code have it.

    Raises:
        ValueError: `max_length` is below `length` or beyond the greatest position.
    """
    _check_lengths(length, max_length)
    if max_length <= 4 * length:
        keys = jax.random.split(key, batch)
        draw = functools.partial(jax.random.choice, a=max_length, shape=(length,), replace=False)
        return jnp.sort(jax.vmap(draw)(keys).astype(jnp.int32), axis=1)
    return _sparse_subset(key, batch, length, max_length)


def _sparse_subset(key, batch, length, max_length):
    """Returns the first `length` distinct values of uniform draws, by symmetry a uniform subset.

    Where max_length > 4 T, 2 T + 16 draws almost surely hold T distinct values; if they do not,
    they are drawn again.
    """
    count = 2 * length + 16

    def draw(carry):
        key, now = jax.random.split(carry[0])
        values = jax.random.randint(now, (batch, count), 0, max_length)
        order = jnp.argsort(values, axis=1, stable=True)
        ordered = jnp.take_along_axis(values, order, axis=1)
        repeated = jnp.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0)))
        drawn_at = jnp.where(repeated, count, order)  # when each distinct value was first drawn
        last = jnp.sort(drawn_at, axis=1)[:, length - 1 : length]
        kept = jnp.where(drawn_at <= last, ordered, max_length)
        return key, jnp.sort(kept, axis=1), jnp.all(last < count)

    start = key, jnp.zeros((batch, count), jnp.int32), jnp.bool_(False)
    return jax.lax.while_loop(lambda carry: ~carry[2], draw, start)[1][:, :length]


def pose(
    key: jax.Array, batch: int, length: int, *, target_length: int, chunks: int = 2
) -> Int[jax.Array, "{batch} {length}"]:
    """Draws PoSE's positions: the window is cut into chunks, chunk i shifted by u_i; int32 [B, T].

    u_0 = 0 and u_i is uniform in u_(i-1)..target_length - T, so positions are 1 apart inside a
    chunk and reach up to target_length - 1. All chunks but the last have U{1..ceil(T/chunks)}
    tokens. The window's text may be contiguous, or gathered from a longer text by `pose_text`.
    Source: PoSE (2309.10400) section 3.2. Chunk lengths follow its code (dwzhu-pku/PoSE) for two
    chunks, the case of the paper's runs; for more chunks they are this package's.

    Raises:
        ValueError: `target_length` is below `length` or out of range, or there are too many chunks
            for the length.
    """
    _check_lengths(length, target_length, "target_length")
    chunk, shifts = _pose_chunks(key, batch, length, chunks)
    shift = _rising(shifts, batch, chunks, target_length - length)
    return jnp.arange(length, dtype=jnp.int32) + jnp.take_along_axis(shift, chunk, axis=1)


def pose_text(
    key: jax.Array, batch: int, length: int, *, text_length: int, chunks: int = 2
) -> Int[jax.Array, "{batch} {length}"]:
    """Draws which tokens of a longer text fill PoSE's window; int32 [B, T] below text_length.

    Chunk i begins v_i tokens later than in a contiguous window, where v_0 = 0 and v_i is uniform in
    v_(i-1)..text_length - T; text_length = T is contiguous text. With the same key, batch, length
    and chunks as `pose` the chunks are the same, so a data pipeline takes `text[pose_text(...)]` as
    inputs and `pose(...)` as their positions. The last token of a chunk is followed by the first
    token of the next chunk, and the released code trains on that prediction too.
    """
    _check_lengths(length, text_length, "text_length")
    chunk, shifts = _pose_chunks(key, batch, length, chunks)
    shift = _rising(jax.random.fold_in(shifts, 1), batch, chunks, text_length - length)
    return jnp.arange(length, dtype=jnp.int32) + jnp.take_along_axis(shift, chunk, axis=1)


def _pose_chunks(key, batch, length, chunks):
    """Draws the chunk of each token, int32 [B, T]; returns a key for the shifts too."""
    _check_count("chunks", chunks, 2)
    longest = -(-length // chunks)
    if (chunks - 1) * longest >= length:
        raise ValueError(f"{length} tokens are too few for {chunks} chunks")
    key, shifts = jax.random.split(key)
    sizes = jax.random.randint(key, (batch, chunks - 1), 1, longest + 1)
    ends = jnp.cumsum(sizes, axis=1)[:, None]
    return (jnp.arange(length)[:, None] >= ends).sum(-1), shifts


def _rising(key, batch, chunks, most):
    """Draws shifts [B, chunks]: 0, then each uniform from the one before up to `most`."""
    shifts = [jnp.zeros(batch, jnp.int32)]
    for each in jax.random.split(key, chunks - 1):
        shifts.append(jax.random.randint(each, (batch,), shifts[-1], most + 1))
    return jnp.stack(shifts, axis=1)


def _check_lengths(length: int, longest: int, name: str = "max_length") -> None:
    _check_count("length", length, 1)
    _check_count(name, longest, 1)
    if not length <= longest <= MAX_POSITION:
        raise ValueError(
            f"{name} must lie between the window's {length} tokens and {MAX_POSITION}, "
            f"got {longest}"
        )


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


_TRANSFORMS = {"giraffe": giraffe, "ruoss": ruoss, "pose": pose}
