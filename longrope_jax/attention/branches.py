"""A score rule gives a block of scores, and their gradients, by several rotations or a bias.

q is [B, K, G, T, R H] with R branches side by side, and k is [B, K, S, C H] with C rotations. Each
query and key use one branch. A block skips the matrix products of a branch that none of its pairs
uses.
"""

import jax
import jax.numpy as jnp
from jax import lax

from longrope_jax import sharding
from longrope_jax.rotary import ScoreRule


def scores(rule: ScoreRule, q, k, scale, m, n, visible):
    """Returns scores [B, K, G, T, S] in float32, which are wrong where `visible` is False.

    m [B, T, 1] and n [B, T, S] are positions in the document; visible is [B, T, S]; B may be 1.
    """
    chosen, total = rule.choose(m, n), 0.0
    for branch, (q_r, k_r) in enumerate(_branches(rule, q, k)):
        used = (chosen == branch) & visible
        total += jnp.where(used[:, None, None], _if_any(used, _dots, q_r, k_r), 0.0)
    return total * scale - bias(rule, q.shape[1], q.shape[2], m - n)


def bias(rule: ScoreRule, K: int, G: int, distance):
    """Returns ALiBi's bias [B, K, G, T, S], or 0 if the rule has none; distance is [B, T, S]."""
    axes = sharding.manual_axes("tensor")  # slopes depend on the index among all devices' heads
    slopes = rule.slopes(K * G * sharding.axis_size(*axes))
    if slopes is None:
        return 0.0
    slopes = jnp.asarray(slopes.reshape(-1, 1, K, G, 1, 1), jnp.float32)[lax.axis_index(axes)]
    return slopes * distance[:, None, None].astype(jnp.float32)


def gradients(rule: ScoreRule, d_scores, q, k, m, n, visible):
    """Returns the gradients of q and k in float32, given those of the unscaled scores.

    d_scores is [B, K, G, T, S].
    """
    chosen = rule.choose(m, n)
    d_q, d_k = [], [0.0] * rule.key_copies
    for branch, (q_r, k_r) in enumerate(_branches(rule, q, k)):
        used = (chosen == branch) & visible
        d = jnp.where(used[:, None, None], d_scores, 0)
        d_q.append(_if_any(used, _query_gradient, d, k_r))
        d_k[rule.keys[branch]] += _if_any(used, _key_gradient, d, q_r)
    return jnp.concatenate(d_q, axis=-1), jnp.concatenate(d_k, axis=-1)


def _branches(rule: ScoreRule, q, k):
    """Returns the pair (q, k) of each branch."""
    queries = jnp.split(q, len(rule.keys), axis=-1)
    keys = jnp.split(k, rule.key_copies, axis=-1)
    return [(q_r, keys[c]) for q_r, c in zip(queries, rule.keys, strict=True)]


def _if_any(used, product, a, b):
    """Returns product(a, b) if any entry of `used` is True, otherwise zeros at no cost."""
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
