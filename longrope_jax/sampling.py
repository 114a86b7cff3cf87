"""`choose` picks the next token by greedy, temperature or top-p sampling, seeded per row."""

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
    """A Sampling says how the next token is drawn from the logits.

    Attributes:
        temperature: the logits are divided by this; 0 takes the most likely token.
        top_p: tokens are drawn from the smallest set of most likely tokens that has at least this
            much probability after the temperature (Holtzman et al. 1904.09751); 1 is all tokens.
            Tokens tied with the last of the set belong to it.
        seed: the seed of the draws. A single number gives row i the seed `seed + i`; a sequence
            gives one seed per row. A row depends on its own seed alone, not on the other rows.

    Raises:
        ValueError: An option is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | Sequence[int] = 0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError(
                f"top_p={self.top_p} needs a temperature above 0: temperature=0 always takes "
                "the most likely token"
            )

    def data(self) -> "_Sampling":
        """Returns the options as arrays, so that another value needs no new compilation."""
        return _Sampling(np.float32(self.temperature), np.float32(self.top_p))


class _Sampling(NamedTuple):
    temperature: jax.Array | np.floating
    top_p: jax.Array | np.floating


def row_keys(sampling: Sampling, rows: int) -> Key[jax.Array, " B"]:
    """Returns one random key per row, [B].

    Raises:
        ValueError: The number of seeds is not that of rows, or a seed is out of range.
    """
    seeds = np.asarray(sampling.seed)
    if seeds.dtype.kind not in "iu" or not (seeds >= 0).all() or not (seeds < 2**32).all():
        raise ValueError(f"seed must be an integer from 0 to 2^32 - 1, got {sampling.seed!s:.40}")
    seeds = seeds + np.arange(rows) if seeds.ndim == 0 else seeds
    if seeds.shape != (rows,):
        raise ValueError(f"got {len(seeds)} seeds for {rows} rows: give a single seed or {rows}")
    return jax.vmap(jax.random.key)(seeds.astype(np.uint32))


def choose(
    logits: Float[jax.Array, "B V"],
    sampling: _Sampling,
    keys: Key[jax.Array, " B"],
    at: Int[jax.Array, " B"],
) -> Int[jax.Array, " B"]:
    """Chooses the next token of each row, int32 [B].

    Args:
        logits: the logits of the next token, float32 [B, V].
        sampling: the options, from `Sampling.data`.
        keys: one random key per row, from `row_keys`.
        at: int32 [B], position of the token in its row; every position draws its own random number.
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
    # With the largest logit at exactly 0, no temperature overflows.
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted / jnp.maximum(sampling.temperature, jnp.finfo(jnp.float32).tiny)


def _categorical(logits, keys, at):
    draw = jax.vmap(lambda key, at, row: jax.random.categorical(jax.random.fold_in(key, at), row))
    return draw(keys, at, logits).astype(jnp.int32)


def nucleus(probabilities: Float[jax.Array, "*B V"], top_p: jax.Array) -> Bool[jax.Array, "*B V"]:
    """Returns which tokens form the smallest set of probability at least `top_p`, bool [B, V].

    The set holds all tokens whose probability reaches a threshold, the largest float for which the
    set's probability is at least `top_p`. The threshold is found bit by bit, since non-negative
    floats have the order of their bits. Sorting 49,152 numbers on a CPU would take half as long as
    the model's forward pass.
    """
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def one(i, threshold):
        higher = threshold | (1 << (30 - i))
        mass = jnp.where(bits >= higher, probabilities, 0).sum(-1, keepdims=True)
        return jnp.where(mass >= top_p, higher, threshold)

    start = jnp.zeros((*bits.shape[:-1], 1), jnp.int32)
    return bits >= jax.lax.fori_loop(0, 31, one, start)
