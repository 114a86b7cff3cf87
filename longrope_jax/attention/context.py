"""Context parallelism computes attention over a sequence divided over the mesh's `sequence` axis.

Both variants run on each device's shard and return what a single device would. They first
distribute the queries in zigzag order: of 2P half chunks, device i computes numbers i and
2P - 1 - i, an early one that sees few keys and a late one that sees many, so that all devices have
the same work. The rest of the model keeps the natural order, at the cost of permuting inputs and
outputs in each layer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from longrope_jax.attention import ring, splash

AXIS = ring.AXIS
WAYS = ("all_gather", "ring")


def all_gather(attention, q, k, v, first_key, last_key, scale) -> jax.Array:
    """Gathers all keys and values on every device: memory for all S keys, one collective."""
    k, v = gather(k), gather(v)
    if attention is splash.attention:
        order = zigzag_order(lax.axis_size(AXIS), k.shape[1])
        parts = {"key_start": gather(first_key), "order": order, "part": lax.axis_index(AXIS)}
        attention = functools.partial(attention, **parts)
    q, first_key, last_key = (to_zigzag(x) for x in (q, first_key, last_key))
    return from_zigzag(attention(q, k, v, first_key, last_key, scale))


def around_ring(attention, q, k, v, first_key, last_key, scale) -> jax.Array:
    """Passes keys and values around the ring of devices: memory for S / P keys, P steps.

    `attention` is that of `ring` (blockwise, any platform) or of `splash_ring` (TPU kernel).
    """
    q, k, v, first_key, last_key = (to_zigzag(x) for x in (q, k, v, first_key, last_key))
    return from_zigzag(attention(q, k, v, first_key, last_key, scale))


def gather(x):
    """Concatenates the shards [B, t, ...] of all devices along the tokens."""
    return lax.all_gather(x, AXIS, axis=1, tiled=True)


def _device_of(half_chunk: int, P: int) -> int:
    return min(half_chunk, 2 * P - 1 - half_chunk)


def _routes(P: int):
    """Returns where the first and the second half of each device's natural chunk are sent.

    All first halves have even numbers and all second halves odd numbers. Every device receives one
    of each, so the routes are two permutations.
    """
    return [[(i, _device_of(2 * i + odd, P)) for i in range(P)] for odd in (0, 1)]


def to_zigzag(x):
    """Exchanges [B, t, ...] in natural order for this device's even and odd half chunks."""
    routes = _routes(lax.axis_size(AXIS))
    halves = zip(jnp.split(x, 2, axis=1), routes, strict=True)
    return jnp.concatenate([lax.ppermute(half, AXIS, route) for half, route in halves], axis=1)


def from_zigzag(x):
    """Inverts `to_zigzag`."""
    routes = _routes(lax.axis_size(AXIS))
    back = [[(target, source) for source, target in route] for route in routes]
    halves = zip(jnp.split(x, 2, axis=1), back, strict=True)
    return jnp.concatenate([lax.ppermute(half, AXIS, route) for half, route in halves], axis=1)


def zigzag_order(P: int, T: int) -> np.ndarray:
    """Returns which token is at each place of the concatenated zigzag shards, int32 [T]."""
    tokens = np.arange(T, dtype=np.int32).reshape(2 * P, -1)
    held = [c for i in range(P) for c in sorted((i, 2 * P - 1 - i), key=lambda c: c % 2)]
    return tokens[held].ravel()
