"""Causal attention: one function, its back ends behind it."""

import numbers

import jax
import jax.numpy as jnp

from longrope_jax.attention import blockwise, reference, splash
from longrope_jax.rotary import unknown

_BACKENDS = {
    "auto": blockwise.attention,
    "blockwise": blockwise.attention,
    "reference": reference.attention,
    "splash": None,
}
BACKENDS = tuple(_BACKENDS)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_start: jax.Array | None = None,
    query_start: jax.Array | int = 0,
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
        backend: "blockwise" (memory linear in T; also "auto"), or "reference" (memory T times S).

    Returns:
        [B, T, N, H] in the dtype of q.

    Raises:
        ValueError: unknown backend, shapes that do not fit, queries beyond the last key.
    """
    if backend not in _BACKENDS:
        raise ValueError(unknown("attention backend", backend, BACKENDS))
    _check(q, k, v, segment_start, query_start)
    T, H = q.shape[1], q.shape[3]
    # One row where all rows are alike: block bounds then need no reduction over a sharded batch.
    starts = jnp.atleast_1d(jnp.asarray(query_start, jnp.int32))
    last_key = starts[:, None] + jnp.arange(T, dtype=jnp.int32)
    first_key = jnp.zeros_like(last_key) if segment_start is None else segment_start
    if backend == "splash":
        return _splash(q, k, v, first_key, H**-0.5)
    return _BACKENDS[backend](q, k, v, first_key, last_key, H**-0.5)


def _check(q, k, v, segment_start, query_start) -> None:
    B, T, N, H = q.shape
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (B, H):
        raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    S, K = k.shape[1:3]
    if N % K:
        raise ValueError(f"{N} query heads are no multiple of {K} key heads")
    known = isinstance(query_start, numbers.Integral)
    if T > S or (known and not 0 <= query_start <= S - T):
        raise ValueError(f"{T} queries from {query_start} do not lie within {S} keys")
    if jnp.shape(query_start) not in ((), (B,)):  # remat turns an int into a traced scalar
        raise ValueError(f"query_start has shape {jnp.shape(query_start)}, needs {(B,)}")
    if segment_start is not None and segment_start.shape != (B, T):
        raise ValueError(f"segment_start has shape {segment_start.shape}, needs {(B, T)}")


def _splash(q, k, v, first_key, scale):
    from jax.sharding import PartitionSpec as P
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return splash.attention(q, k, v, first_key, scale)
    first_key = jnp.broadcast_to(first_key, q.shape[:2])
    s = P(("data", "fsdp"), None, "tensor", None)
    f = jax.shard_map(lambda *a: splash.attention(*a, scale), mesh=mesh, in_specs=(s, s, s, P(("data","fsdp"), None)), out_specs=s, check_vma=False)
    return f(q, k, v, first_key)
