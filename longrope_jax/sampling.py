"""Choosing the next token: greedy, temperature, top-p; seeded per row."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p: draws from the smallest set of most likely tokens that has at least this much
            probability (Holtzman et al. 1904.09751), after the temperature; 1 is all of them.
            Tokens tied with the last of the set belong to it.
        seed: of the draws. One number gives row i the seed `seed + i`; or one number per row. A row
            depends on its own seed alone, not on the other rows.

    Raises:
        ValueError: an option out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | Sequence[int] = 0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be finite and not below 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and not above 1, got {self.top_p}")
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError(f"top_p {self.top_p} needs a temperature: 0 takes the likeliest token")

    def data(self) -> "_Sampling":
        """What the compiled step gets; changing it compiles nothing."""
        return _Sampling(np.float32(self.temperature), np.float32(self.top_p))


class _Sampling(NamedTuple):
    temperature: jax.Array | np.floating
    top_p: jax.Array | np.floating


def row_keys(sampling: Sampling, rows: int) -> Key[jax.Array, " B"]:
    """One random key per row, [B].

    Raises:
        ValueError: another number of seeds than of rows, or one out of range.
    """
    seeds = np.asarray(sampling.seed)
    if seeds.dtype.kind not in "iu" or not (seeds >= 0).all() or not (seeds < 2**32).all():
        raise ValueError(f"seed {sampling.seed!s:.40} must be whole, 0 to 2^32 - 1")
    seeds = seeds + np.arange(rows) if seeds.ndim == 0 else seeds
    if seeds.shape != (rows,):
        raise ValueError(f"{len(seeds)} seeds for {rows} rows: give one, or one per row")
    return jax.vmap(jax.random.key)(seeds.astype(np.uint32))


def choose(
    logits: Float[jax.Array, "B V"],
    sampling: _Sampling,
    keys: Key[jax.Array, " B"],
    at: Int[jax.Array, " B"],
) -> Int[jax.Array, " B"]:
    """Next tokens, int32 [B].

    Args:
        logits: float32 [B, V].
        sampling: from `Sampling.data`.
        keys: from `row_keys`.
        at: int32 [B], position of the token in its row; each has random numbers of its own.
    """
    kind = jnp.where(sampling.temperature == 0, 0, jnp.where(sampling.top_p < 1, 2, 1))
    return jax.lax.switch(kind, (_greedy, _draw, _draw_nucleus), logits, sampling, keys, at)


def _greedy(logits, sampling, keys, at):
    return logits.argmax(-1).astype(jnp.int32)


def _draw(logits, sampling, keys, at):
    return _categorical(_scaled(logits, sampling), keys, at)


def _draw_nucleus(logits, sampling, keys, at):
    scaled = _scaled(logits, sampling)
    inside = nucleus(jax.nn.softmax(scaled, axis=-1), sampling.top_p)
    return _categorical(jnp.where(inside, scaled, -jnp.inf), keys, at)


def _scaled(logits, sampling):
    # The largest is exactly 0, so that no temperature overflows.
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted / jnp.maximum(sampling.temperature, jnp.finfo(jnp.float32).tiny)


def _categorical(logits, keys, at):
    draw = jax.vmap(lambda key, at, row: jax.random.categorical(jax.random.fold_in(key, at), row))
    return draw(keys, at, logits).astype(jnp.int32)


def nucleus(probabilities: Float[jax.Array, "*B V"], top_p: jax.Array) -> Bool[jax.Array, "*B V"]:
    """Which tokens of [B, V] belong to the smallest set with at least `top_p`, bool [B, V].

    The set is what reaches a threshold: the largest float at which enough is left. It is found bit
    by bit, since floats that are not negative are ordered as their bits; a sort of 49,152 numbers
    takes a CPU half as long as the model.
    """
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def one(i, threshold):
        higher = threshold | (1 << (30 - i))
        mass = jnp.where(bits >= higher, probabilities, 0).sum(-1, keepdims=True)
        return jnp.where(mass >= top_p, higher, threshold)

    start = jnp.zeros((*bits.shape[:-1], 1), jnp.int32)
    return bits >= jax.lax.fori_loop(0, 31, one, start)
