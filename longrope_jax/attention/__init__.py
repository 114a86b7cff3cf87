"""Causal attention: one function, its back ends behind it."""

import numbers

import jax
import jax.numpy as jnp

from longrope_jax.attention import blockwise, reference
from longrope_jax.attention.blockwise import from_cache, to_cache
from longrope_jax.rotary import ScoreRule, unknown

_BACKENDS = {
    "auto": blockwise.attention,
    "blockwise": blockwise.attention,
    "reference": reference.attention,
}
BACKENDS = tuple(_BACKENDS)
__all__ = ["BACKENDS", "attend", "to_cache"]
_TAKE_RULES = ("auto", "blockwise", "reference")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_start: jax.Array | None = None,
    query_start: jax.Array | int = 0,
    layer: jax.Array | int | None = None,
    score_rule: ScoreRule | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Causal, grouped-query attention with softmax in float32 and scores scaled by H^-1/2.

    Args:
        q: [B, T, N, H] queries, already rotated.
        k: [B, S, K, H] keys, already rotated; N is a multiple of K.
        v: [B, S, K, H] values.
        segment_start: int32 [B, T], for each query the index of the first key of its packed
            document; None means 0.
        query_start: int or int32 [B], the index of the first query among the keys: 0 in training,
            the number of cached tokens in decoding.
        layer: k and v are then caches of all layers, [L, B, S, K, H], as `to_cache` holds them;
            this one is read, in place where the back end can. Not differentiable.
        score_rule: static, of the rotary (`Rotary.score_rule`): remapped positions or ALiBi's bias.
            Queries [B, T, N, R H] and keys [B, S, K, C H] then hold rotated copies side by side, as
            `rotary.rotate` gives them; positions count from the start of each document.
        backend: "blockwise" (memory linear in T; also "auto"), or "reference" (memory T times S).

    Returns:
        [B, T, N, H] in the dtype of q.

    Raises:
        ValueError: unknown backend or one that takes no score rule, shapes that do not fit,
            queries beyond the last key.
    """
    if backend not in _BACKENDS:
        raise ValueError(unknown("attention backend", backend, BACKENDS))
    if score_rule is not None and backend not in _TAKE_RULES:
        raise ValueError(f"attention {backend!r} takes no {score_rule}: use one of {_TAKE_RULES}")
    if layer is not None and backend not in ("auto", "blockwise"):
        k, v, layer = from_cache(k[layer], q.dtype), from_cache(v[layer], q.dtype), None
    _check(q, k, v, segment_start, query_start, score_rule)
    T, H = q.shape[1], v.shape[-1]
    # One row where all rows are alike: block bounds then need no reduction over a sharded batch.
    starts = jnp.atleast_1d(jnp.asarray(query_start, jnp.int32))
    last_key = starts[:, None] + jnp.arange(T, dtype=jnp.int32)
    first_key = jnp.zeros_like(last_key) if segment_start is None else segment_start
    if layer is not None:
        return blockwise.cached(q, k, v, layer, first_key, last_key, H**-0.5, score_rule)
    return _BACKENDS[backend](q, k, v, first_key, last_key, H**-0.5, score_rule)


def _check(q, k, v, segment_start, query_start, rule) -> None:
    B, T, N, _ = q.shape
    H, copies = v.shape[-1], (1, 1) if rule is None else (len(rule.keys), rule.key_copies)
    widths = copies[0] * H, copies[1] * H
    if (k.shape[:-1], B) != (v.shape[:-1], k.shape[-4]) or (q.shape[3], k.shape[-1]) != widths:
        raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    S, K = k.shape[-3:-1]
    if N % K:
        raise ValueError(f"{N} query heads are no multiple of {K} key heads")
    known = isinstance(query_start, numbers.Integral)
    if T > S or (known and not 0 <= query_start <= S - T):
        raise ValueError(f"{T} queries from {query_start} do not lie within {S} keys")
    if jnp.shape(query_start) not in ((), (B,)):  # remat turns an int into a traced scalar
        raise ValueError(f"query_start has shape {jnp.shape(query_start)}, needs {(B,)}")
    if segment_start is not None and segment_start.shape != (B, T):
        raise ValueError(f"segment_start has shape {segment_start.shape}, needs {(B, T)}")
