"""Scores of a block under a score rule, and their gradients: several rotations, or a bias.

q is [B, K, G, T, R H] with R branches side by side, k [B, K, S, C H] with C rotations. A pair of
tokens uses one branch; a block of queries and keys of which no pair uses a branch skips its matrix
products.
"""

import jax
import jax.numpy as jnp
from jax import lax

from longrope_jax import sharding
from longrope_jax.rotary import ScoreRule


def scores(rule: ScoreRule, q, k, scale, m, n, visible):
    """[B, K, G, T, S] in float32, wrong where not visible.

    m [B, T, 1] and n [B, T, S] are positions in the document, visible [B, T, S]; B may be 1.
    """
    chosen, total = rule.choose(m, n), 0.0
    for branch, (q_r, k_r) in enumerate(_branches(rule, q, k)):
        used = (chosen == branch) & visible
        total += jnp.where(used[:, None, None], _if_any(used, _dots, q_r, k_r), 0.0)
    return total * scale - bias(rule, q.shape[1], q.shape[2], m - n)


def bias(rule: ScoreRule, K: int, G: int, distance):
    """ALiBi's [B, K, G, T, S], or 0; distance is [B, T, S]."""
    axes = sharding.manual_axes("tensor")  # heads of other devices
    slopes = rule.slopes(K * G * sharding.axis_size(*axes))
    if slopes is None:
        return 0.0
    slopes = jnp.asarray(slopes.reshape(-1, K, G, 1, 1), jnp.float32)[lax.axis_index(axes)]
    return slopes * distance[:, None, None].astype(jnp.float32)


def gradients(rule: ScoreRule, d_scores, q, k, m, n, visible):
    """Of q and of k in float32, from those of the scores before scaling [B, K, G, T, S]."""
    chosen = rule.choose(m, n)
    d_q, d_k = [], [0.0] * rule.key_copies
    for branch, (q_r, k_r) in enumerate(_branches(rule, q, k)):
        used = (chosen == branch) & visible
        d = jnp.where(used[:, None, None], d_scores, 0)
        d_q.append(_if_any(used, _query_gradient, d, k_r))
        d_k[rule.keys[branch]] += _if_any(used, _key_gradient, d, q_r)
    return jnp.concatenate(d_q, axis=-1), jnp.concatenate(d_k, axis=-1)


def _branches(rule: ScoreRule, q, k):
    """(q, k) of each branch."""
    queries = jnp.split(q, len(rule.keys), axis=-1)
    keys = jnp.split(k, rule.key_copies, axis=-1)
    return [(q_r, keys[c]) for q_r, c in zip(queries, rule.keys, strict=True)]


def _if_any(used, product, a, b):
    """product(a, b), or zeros without computing it."""
    out = jax.eval_shape(product, a, b)

    def skip(a, b):
        return jnp.zeros(out.shape, out.dtype)

    return lax.cond(used.any(), product, skip, a, b)


def _dots(q, k):
    return jnp.einsum("BKGTH,BKSH->BKGTS", q, k, preferred_element_type=jnp.float32)


def _query_gradient(d, k):
    return jnp.einsum("BKGTS,BKSH->BKGTH", d, k, preferred_element_type=jnp.float32)


def _key_gradient(d, q):
    return jnp.einsum("BKGTS,BKGTH->BKSH", d, q, preferred_element_type=jnp.float32)
