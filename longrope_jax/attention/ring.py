"""Ring attention keeps queries on their device while keys and values travel between devices.

Every device runs it on its own shard (`sharding.per_device`). After P steps every device has seen
every key. Partial outputs merge by the logs of their normalisers, so memory per device is
proportional to 1/P. In the backward pass the cotangents of keys and values travel along with them
and end on the device where they belong (Liu, Zaharia, Abbeel 2310.01889). The zigzag order in
`context` shares causal work evenly.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from longrope_jax.attention import blockwise
from longrope_jax.shapes import AnyArray

AXIS = "sequence"
_NOTHING_SEEN = 0.5 * blockwise._MASKED  # lse of a row that has seen no key


def attention(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T K H"],
    v: Float[jax.Array, "B T K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    scale,
) -> Float[jax.Array, "B T N H"]:
    """Returns this device's part [B, t, N, H] of the output.

    first_key and last_key are [B or 1, t], indices in the whole sequence. The shards are in zigzag
    order: an even half chunk, then an odd one (see `half_starts`).
    """
    q, k, v = blockwise.heads_first(q, k, v)
    return blockwise.heads_last(_attention(scale, q, _halves(k), _halves(v), first_key, last_key))


def half_starts(device, half: int) -> jax.Array:
    """Returns the first token of both half chunks that a device holds, the even one first.

    Of 2P half chunks of `half` tokens, device i holds numbers i and 2P - 1 - i, so that all devices
    have the same work under a causal mask. One of the two numbers is even, the other odd.
    """
    other = 2 * lax.axis_size(AXIS) - 1 - device
    even = jnp.where(device % 2 == 0, device, other)
    return half * jnp.stack([even, device + other - even])


def _halves(x):
    """Splits [B, K, t, H] into [2, B, K, t/2, H]."""
    return jnp.stack(jnp.split(x, 2, axis=2))


def _pass_on(tree):
    """Sends every array of a tree to the next device of the ring."""
    P = lax.axis_size(AXIS)
    ring = [(i, (i + 1) % P) for i in range(P)]
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, ring), tree)


def _starts(step, half: int):
    """Returns the first tokens of the half chunks that this device holds after `step` steps."""
    P = lax.axis_size(AXIS)
    return half_starts((lax.axis_index(AXIS) - step) % P, half)


def _blocks(q, k) -> tuple[int, int]:
    return min(blockwise.BLOCK_Q, q.shape[3]), min(blockwise.BLOCK_K, k.shape[3])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(scale, q, k, v, first, last):
    return _forward(scale, q, k, v, first, last)[0].astype(q.dtype)


def _forward(scale, q, k, v, first, last):
    """Returns the output and the log of each row's normaliser, both float32."""
    attend = partial(blockwise.forward, None, scale, *_blocks(q, k), q, dtype=jnp.float32)

    def half(sofar, chunk):
        k, v, start = chunk
        return _merge(*sofar, *attend(k, v, first - start, last - start)), None

    def step(i, carry):
        sofar, kv = carry
        chunks = (*kv, _starts(i, k.shape[3]))
        return lax.scan(half, sofar, chunks)[0], _pass_on(kv)

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], _NOTHING_SEEN, jnp.float32)
    return lax.fori_loop(0, lax.axis_size(AXIS), step, (nothing, (k, v)))[0]


def _merge(out_a, lse_a, out_b, lse_b):
    """Merges the outputs and log normalisers of two sets of keys."""
    lse = jnp.logaddexp(lse_a, lse_b)
    share_a, share_b = jnp.exp(lse_a - lse)[..., None], jnp.exp(lse_b - lse)[..., None]
    return out_a * share_a + out_b * share_b, lse


def _forward_rule(scale, q, k, v, first, last):
    out, lse = _forward(scale, q, k, v, first, last)
    out = checkpoint_name(out.astype(q.dtype), "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, first, last, out, lse)


def _backward_rule(scale, saved, d_out):
    q, k, v, first, last, out, lse = saved
    out_dot = blockwise.row_dot(out, d_out)

    def half(d_q, chunk):
        k, v, start = chunk
        here = first - start, last - start, lse, out_dot, d_out
        new, d_k, d_v = blockwise.backward(None, scale, *_blocks(q, k[None]), q, k, v, *here)
        return d_q + new, (d_k, d_v)

    def step(i, carry):
        d_q, kv, d_kv = carry
        d_q, new = lax.scan(half, d_q, (*kv, _starts(i, k.shape[3])))
        return d_q, _pass_on(kv), _pass_on(jax.tree.map(jnp.add, d_kv, new))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (q, (k, v)))
    start = zeros[0], (k, v), zeros[1]
    d_q, _, (d_k, d_v) = lax.fori_loop(0, lax.axis_size(AXIS), step, start)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attention.defvjp(_forward_rule, _backward_rule)
