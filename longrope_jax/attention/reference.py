"""Causal attention written out in full: the truth the other back ends are tested against."""

import jax
import jax.numpy as jnp


def attention(q, k, v, first_key, last_key, scale) -> jax.Array:
    """[B, T, N, H] by one softmax over [B, K, G, T, S] scores; memory grows with T times S."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * scale
    key = jnp.arange(S)
    visible = ((key >= first_key[..., None]) & (key <= last_key[..., None]))[:, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
    weights = jnp.where(visible, weights, 0)  # a row that sees nothing gives 0
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v.dtype), v)
    return out.reshape(B, T, N, H).astype(q.dtype)
