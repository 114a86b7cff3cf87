"""The reference computes causal attention in full; the other back ends are tested against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from longrope_jax.shapes import AnyArray


def attention(
    q: Float[jax.Array, "B T N RH"],
    k: Float[jax.Array, "B S K CH"],
    v: Float[jax.Array, "B S K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    scale,
    rule=None,
) -> Float[jax.Array, "B T N H"]:
    """Returns [B, T, N, H] by one softmax over scores [B, K, G, T, S]; memory is O(T S)."""
    B, T, N = q.shape[:3]
    S, K, H = v.shape[1:]
    q = q.reshape(B, T, K, N // K, -1)
    first, last = first_key[..., None], last_key[..., None]
    key = jnp.arange(S)[None, None]
    if rule is None:
        scores = _dots(q, k) * scale
    else:
        scores = _ruled(rule, q, k, scale, last - first, key - first)
    visible = ((key >= first) & (key <= last))[:, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
    weights = jnp.where(visible, weights, 0)  # so that a row that sees no key gives 0
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v.dtype), v)
    return out.reshape(B, T, N, H).astype(q.dtype)


def _dots(q, k) -> jax.Array:
    return jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)


def _ruled(rule, q, k, scale, m, n) -> jax.Array:
    """Computes the scores of all branches and selects those chosen by m [B, T, 1], n [B, T, S]."""
    queries = jnp.split(q, len(rule.keys), axis=-1)
    keys = jnp.split(k, rule.key_copies, axis=-1)
    chosen = rule.choose(m, n)[:, None, None]
    scores = jnp.float32(0)
    for branch, q_r in enumerate(queries):
        scores = jnp.where(chosen == branch, _dots(q_r, keys[rule.keys[branch]]) * scale, scores)
    slopes = rule.slopes(q.shape[2] * q.shape[3])
    if slopes is None:
        return scores
    slopes = jnp.asarray(slopes, jnp.float32).reshape(1, *q.shape[2:4], 1, 1)
    return scores - slopes * (m - n)[:, None, None]
