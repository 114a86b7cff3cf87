"""`attend` computes causal attention by one of several back ends, with context parallelism."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from longrope_jax import sharding
from longrope_jax.attention import (
    blockwise,
    context,
    cudnn,
    reference,
    ring,
    splash,
    splash_ring,
)
from longrope_jax.attention.blockwise import from_cache, to_cache
from longrope_jax.attention.splash_kernel import LANES
from longrope_jax.errors import unknown_name, warn
from longrope_jax.rotary import ScoreRule
from longrope_jax.shapes import AnyArray

_BACKENDS = {
    "blockwise": blockwise.attention,
    "reference": reference.attention,
    "splash": splash.attention,
    "cudnn": cudnn.attention,
}
_KERNELS = {"splash": splash, "cudnn": cudnn}  # `refusal` in each says what it cannot do
_KERNEL_OF = {"tpu": "splash", "gpu": "cudnn"}  # the first choice of "auto"
BACKENDS = ("auto", *_BACKENDS)
CONTEXTS = context.WAYS
__all__ = ["BACKENDS", "CONTEXTS", "attend", "check_cache", "to_cache"]


def attend(
    q: Float[AnyArray, "B T N RH"],
    k: Shaped[AnyArray, "*L B S K CH"],
    v: Shaped[AnyArray, "*L B S K H"],
    *,
    segment_start: Int[AnyArray, "B T"] | None = None,
    query_start: Int[AnyArray, "..."] | int = 0,
    score_rule: ScoreRule | None = None,
    layer: Int[AnyArray, ""] | int | None = None,
    window: Int[AnyArray, ""] | int | None = None,
    scale: float | None = None,
    backend: str = "auto",
    context_parallel: str = "all_gather",
) -> Float[jax.Array, "B T N H"]:
    """Computes causal, grouped-query attention; softmax in float32.

    Under a mesh (`jax.set_mesh`) each device computes its own rows and heads. If the mesh has a
    `sequence` axis, each device also computes only its own part of the queries (context
    parallelism).

    Args:
        q: [B, T, N, H] queries, already rotated.
        k: [B, S, K, H] keys, already rotated; N is a multiple of K.
        v: [B, S, K, H] values.
        segment_start: int32 [B, T], for each query the index of the first key of its packed
            document, the same for all queries of a document; None means 0 for every query.
        query_start: int or int32 [B], the index of the first query among the keys: 0 in training,
            the number of cached tokens in decoding.
        score_rule: the rotary's static `Rotary.score_rule`: remapped positions or ALiBi's bias.
            Queries [B, T, N, R H] and keys [B, S, K, C H] then hold rotated copies side by side, as
            `rotary.rotate` returns them; positions count from the start of each document.
        layer: index of the layer to read when k and v are caches of all layers, [L, B, S, K, H],
            written by `to_cache`; the back end reads it in place if it can. None: k and v belong to
            one layer. Attention over a cache is not differentiable.
        window: how many keys a query sees at most, its own included; None means all. It is data, so
            that layers of one program may differ. Kernels and score rules do not support it.
        scale: what scores are multiplied by; None is H^-1/2.
        backend: "blockwise" (any platform, memory linear in T), "splash" (TPU kernel, interpreted
            on other platforms), "cudnn" (GPU kernel), "reference" (memory T times S), or "auto":
            the kernel for the platform that the program is traced for if it supports the inputs,
            otherwise "blockwise".
        context_parallel: "all_gather" (each device gathers all keys and values) or "ring" (keys and
            values travel from device to device; each step is the splash kernel's on TPUs, blockwise
            elsewhere). It matters only if the mesh has a sequence axis above 1.

    Returns:
        [B, T, N, H] in the dtype of q.

    Raises:
        ValueError: A name is unknown, shapes do not fit together or do not divide over the mesh,
            queries lie beyond the last key, or the back end does not support the inputs.
    """
    if backend not in BACKENDS:
        raise ValueError(unknown_name("attention backend", backend, BACKENDS))
    if context_parallel not in CONTEXTS:
        raise ValueError(unknown_name("context parallelism", context_parallel, CONTEXTS))
    _check(q, k, v, segment_start, query_start, score_rule)
    whole = layer is None and q.shape[1] == k.shape[1] and isinstance(query_start, int | np.integer)
    work = {
        "packed": segment_start is not None,
        "whole": whole,
        "parts": sharding.axis_size("sequence"),
    }
    if layer is not None and backend not in ("auto", "blockwise"):
        k, v, layer = from_cache(k[layer], q.dtype), from_cache(v[layer], q.dtype), None
    attention = _attention(backend, context_parallel, q, work, score_rule, window)
    if layer is not None:
        attention = functools.partial(blockwise.cached, rule=score_rule)
    # A single row if all rows are alike, so that block bounds need no reduction over the batch.
    starts = jnp.atleast_1d(jnp.asarray(query_start, jnp.int32))
    last_key = starts[:, None] + jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    first_key = jnp.zeros_like(last_key) if segment_start is None else segment_start
    if window is not None:  # the back ends take any range of keys
        first_key = jnp.maximum(first_key, last_key - jnp.asarray(window, jnp.int32) + 1)
    attention = functools.partial(attention, scale=scale or v.shape[-1] ** -0.5)
    args = [q, k, v, first_key, last_key]
    keys = "batch", "sequence", "kv_heads", "head_dim"
    names = [("batch", "sequence", "heads", "head_dim"), keys, keys]
    names += [(None if len(x) == 1 else "batch", "sequence") for x in (first_key, last_key)]
    if layer is not None:
        names[1:3] = [("layers", *keys)] * 2
        args, names = [*args, jnp.asarray(layer)], [*names, ()]
    return sharding.per_device(attention, tuple(names), names[0])(*args)


def _attention(backend: str, context_parallel: str, q, work, rule, window):
    """Returns the function that each device runs on its shard."""
    if window is not None and (rule is not None or backend in _KERNELS):
        what = "remapped positions or ALiBi" if rule is not None else f"backend {backend!r}"
        raise ValueError(f"a window is not for {what}: use another method, or backend 'blockwise'")
    if rule is not None and (
        backend in _KERNELS or (work["parts"] > 1 and context_parallel == "ring")
    ):
        what = f"backend {backend!r}" if backend in _KERNELS else "context_parallel='ring'"
        method = type(rule).__name__.removesuffix("Rule")
        raise ValueError(
            f"attention with {what} does not support the rotary method {method}: use backend "
            "'blockwise' and context_parallel 'all_gather'"
        )
    if work["parts"] > 1:
        _check_context(q, backend, context_parallel, work)
        if context_parallel == "ring":
            step = _ring_step(backend, q.shape[1], work["parts"], window)
            return functools.partial(context.around_ring, step)
    if backend == "auto":
        backend = _KERNEL_OF.get(sharding.platform(), "blockwise")
        special = rule is not None or window is not None
        if backend in _KERNELS and (special or _KERNELS[backend].refusal(q, **work)):
            backend = "blockwise"
    elif backend in _KERNELS and (why := _KERNELS[backend].refusal(q, **work)):
        raise ValueError(f"{why}: use backend 'blockwise' or 'auto'")
    local = _BACKENDS[backend]
    local = local if rule is None else functools.partial(local, rule=rule)
    return functools.partial(context.all_gather, local) if work["parts"] > 1 else local


def _ring_step(backend: str, T: int, parts: int, window):
    """Returns the ring attention of a device; "auto" on a TPU says when it can't be splash."""
    on_tpu = backend == "auto" and _KERNEL_OF.get(sharding.platform()) == "splash"
    if window is not None or not (on_tpu or backend == "splash"):
        return ring.attention
    why = splash_ring.refusal(T, parts)
    if why and backend == "splash":
        raise ValueError(f"{why}: use backend 'blockwise' or 'auto', or pad the sequences")
    if why and 2 * parts * LANES < T:  # a few tokens, as for making parameters, gain nothing
        warn(f"{why}; it is computed blockwise, several times slower: pad the sequences")
    return ring.attention if why else splash_ring.attention


def check_cache() -> None:
    """Raises ValueError if the mesh has a sequence axis, over which a cache cannot be divided."""
    if sharding.axis_size("sequence") > 1:
        raise ValueError(
            f"decoding with a cache does not support a sequence axis of "
            f"{sharding.axis_size('sequence')}: use a mesh with sequence=1 and larger tensor, fsdp "
            "or data"
        )


def _check_context(q, backend, context_parallel, work) -> None:
    T, parts = q.shape[1], work["parts"]
    if not work["whole"]:
        check_cache()
    if T % (2 * parts):
        raise ValueError(
            f"{T} tokens do not divide into {2 * parts} half chunks for a sequence axis of {parts}"
            f": pad to a multiple of {2 * parts} tokens or use a smaller sequence axis"
        )
    if context_parallel == "ring" and backend not in ("auto", "blockwise", "splash"):
        raise ValueError(
            f"context_parallel='ring' does not support backend {backend!r}: use backend 'splash', "
            "'blockwise' or 'auto', or context_parallel='all_gather'"
        )


def _check(q, k, v, segment_start, query_start, rule) -> None:
    B, T, N, _ = q.shape
    H, copies = v.shape[-1], (1, 1) if rule is None else (len(rule.keys), rule.key_copies)
    widths = copies[0] * H, copies[1] * H
    if (k.shape[:-1], B) != (v.shape[:-1], k.shape[-4]) or (q.shape[3], k.shape[-1]) != widths:
        raise ValueError(
            f"q {q.shape}, k {k.shape} and v {v.shape} do not fit together: with head_dim {H}, "
            f"expected q [B, T, N, {widths[0]}], k [B, S, K, {widths[1]}] and v [B, S, K, {H}], "
            "and a leading layer axis on k and v if they are caches"
        )
    S, K = k.shape[-3:-1]
    if N % K:
        raise ValueError(f"{N} query heads in q are not a multiple of {K} key heads in k")
    known = isinstance(query_start, int | np.integer)
    if T > S or (known and not 0 <= query_start <= S - T):
        raise ValueError(
            f"{T} queries from query_start={query_start} do not lie within {S} keys: query_start "
            "is the index of the first query among the keys"
        )
    if jnp.shape(query_start) not in ((), (B,)):  # remat turns an int into a traced scalar
        raise ValueError(f"query_start must have shape () or {(B,)}, got {jnp.shape(query_start)}")
    if segment_start is not None and segment_start.shape != (B, T):
        raise ValueError(f"segment_start must have shape {(B, T)}, got {segment_start.shape}")
