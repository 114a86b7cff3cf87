"""Context parallelism: attention over a sequence that lies on the mesh's `sequence` axis.

Both ways run on each device's shard and give what one device would. Queries are dealt out in zigzag
order first: cut into 2P half chunks, device i computes numbers i and 2P - 1 - i, an early one that
sees few keys and a late one that sees many, so that all devices have the same work. The rest of
the model keeps the natural order; four half chunks per token and layer travel for that.
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
    """Every device gathers all keys and values: memory of all S keys, one collective."""
    k, v = gather(k), gather(v)
    if attention is splash.attention:
        order = zigzag_order(lax.axis_size(AXIS), k.shape[1])
        parts = {"key_start": gather(first_key), "order": order, "part": lax.axis_index(AXIS)}
        attention = functools.partial(attention, **parts)
    q, first_key, last_key = (to_zigzag(x) for x in (q, first_key, last_key))
    return from_zigzag(attention(q, k, v, first_key, last_key, scale))


def around_ring(q, k, v, first_key, last_key, scale) -> jax.Array:
    """Keys and values travel around the ring of devices: memory of S / P keys, P steps."""
    q, k, v, first_key, last_key = (to_zigzag(x) for x in (q, k, v, first_key, last_key))
    return from_zigzag(ring.attention(q, k, v, first_key, last_key, scale))


def gather(x):
    """[B, t, ...] of all devices side by side."""
    return lax.all_gather(x, AXIS, axis=1, tiled=True)


def _device_of(half_chunk: int, P: int) -> int:
    return min(half_chunk, 2 * P - 1 - half_chunk)


def _routes(P: int):
    """Where the first and the second half of each device's natural chunk go.

    All first halves have even numbers and all second ones odd numbers, and every device is due
    one of each: two permutations.
    """
    return [[(i, _device_of(2 * i + odd, P)) for i in range(P)] for odd in (0, 1)]


def to_zigzag(x):
    """[B, t, ...] in natural order to this device's even half chunk and then its odd one."""
    routes = _routes(lax.axis_size(AXIS))
    halves = zip(jnp.split(x, 2, axis=1), routes, strict=True)
    return jnp.concatenate([lax.ppermute(half, AXIS, route) for half, route in halves], axis=1)


def from_zigzag(x):
    """The way back."""
    routes = _routes(lax.axis_size(AXIS))
    back = [[(target, source) for source, target in route] for route in routes]
    halves = zip(jnp.split(x, 2, axis=1), back, strict=True)
    return jnp.concatenate([lax.ppermute(half, AXIS, route) for half, route in halves], axis=1)


def zigzag_order(P: int, T: int) -> np.ndarray:
    """int32 [T]: the token that lies at each place when all devices' shards stand side by side."""
    tokens = np.arange(T, dtype=np.int32).reshape(2 * P, -1)
    held = [c for i in range(P) for c in sorted((i, 2 * P - 1 - i), key=lambda c: c % 2)]
    return tokens[held].ravel()
