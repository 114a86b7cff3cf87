"""Blockwise attention uses an online softmax and a custom backward pass: memory linear in T.

For each block of queries, a loop runs over the blocks of keys that at least one of the queries can
see, so keys hidden by causality or packing cost nothing. If a length is not a multiple of the block
size, the last block is moved back to end at the last token and the overlap is masked; nothing is
padded. The forward pass saves the log of each row's normaliser, from which the backward pass
recomputes the weights (Rabe and Staats 2112.05682; Dao 2307.08691).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from longrope_jax import sharding
from longrope_jax.attention import branches
from longrope_jax.shapes import AnyArray

_MASKED = -1e30  # finite, so that a row whose keys are all masked gives 0 instead of NaN
BLOCK_Q = 256  # fastest of all pairs of 128, 256 and 512 on 2 CPU cores at T = 2,048
BLOCK_K = 256
BLOCK_ONE = 1024  # keys per block when one token is decoded
_FEW_HEADS = 8  # with more key heads the zeros of `_one_token` cost too much


def attention(
    q: Float[jax.Array, "B T N RH"],
    k: Float[jax.Array, "B S K CH"],
    v: Float[jax.Array, "B S K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    scale,
    rule=None,
) -> Float[jax.Array, "B T N H"]:
    """Returns attention [B, T, N, H]; query t of row b sees keys first_key[b, t] to last_key[b, t].

    first_key and last_key are [B, T], or [1, T] if all rows are alike.
    """
    q, k, v = heads_first(q, k, v)
    blocks = min(BLOCK_Q, q.shape[3]), min(BLOCK_K, k.shape[2])
    return heads_last(_attention(rule, scale, *blocks, q, k, v, first_key, last_key))


def heads_first(q, k, v):
    """Returns q as [B, K, G, T, H], and k and v as [B, K, S, H]."""
    return _grouped(q, k.shape[2]), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _grouped(q, K: int):
    B, T, N = q.shape[:3]
    return q.reshape(B, T, K, N // K, -1).transpose(0, 2, 3, 1, 4)


def heads_last(out):
    """Transposes [B, K, G, T, H] back to [B, T, N, H]."""
    B, K, G, T, H = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def cached(
    q: Float[jax.Array, "B T N RH"],
    k: Shaped[jax.Array, "L B S K CH"],
    v: Shaped[jax.Array, "L B S K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    layer: Int[AnyArray, ""],
    scale,
    rule=None,
) -> Float[jax.Array, "B T N H"]:
    """Computes `attention` over one layer of a cache k, v [L, B, S, K, H]; forward pass only.

    Each block is sliced directly from the cache, so memory beyond the last key is never read.
    """
    few = v.shape[3] <= _FEW_HEADS and sharding.platform() == "cpu"
    if few and rule is None and q.shape[1] == 1:
        return _one_token(q, k, v, first_key, last_key, layer, scale)
    B, T = q.shape[:2]
    S, K, H = v.shape[2:]
    block_q, size = min(BLOCK_Q, T), min(BLOCK_K, S)

    def blocks_of(x, order) -> Callable:
        def take(block: _Block):
            start, shape = _index(layer, 0, block.start, 0, 0), (1, B, size, K, x.shape[-1])
            part = _as_it_lies(lax.dynamic_slice(x, start, shape))[0]
            return from_cache(part.transpose(order), q.dtype)

        return take

    keys, values = blocks_of(k, (0, 2, 3, 1)), blocks_of(v, (0, 2, 1, 3))
    q = _grouped(q, K)
    return heads_last(
        _forward(rule, scale, block_q, size, S, H, q, keys, values, first_key, last_key)[0]
    )


def _index(*index: ArrayLike) -> list[jax.Array]:
    """Returns indices of one dtype, which dynamic_slice asks for, with jax_enable_x64 too."""
    return [jnp.asarray(at, jnp.int32) for at in index]


def _one_token(q, k, v, first, last, layer, scale):
    """Computes `cached` for q [B, 1, N, H] by a single product over the keys of all heads.

    Each query is padded with zeros where keys belong to another head. On a CPU, multiplying the
    zeros takes less time than moving the keys of each head together. A TPU would copy the cache
    into another layout, 28 times the memory traffic of a decoded token (`longrope fits`, 7B).
    """
    B, _, N, H = q.shape
    S, K = v.shape[2:4]
    size, own = min(BLOCK_ONE, S), jnp.eye(K, dtype=q.dtype)[None, :, None, :, None]
    q = (q.reshape(B, K, N // K, 1, H) * own).reshape(B, N, K * H)

    def take(x, start):
        x = x.reshape(*x.shape[:3], K * H)
        part = lax.dynamic_slice(x, _index(layer, 0, start, 0), (1, B, size, K * H))[0]
        return from_cache(part, q.dtype)

    def key_block(j, state):
        top, total, out = state
        columns = _block(j, size, S)
        scores = _dot("BND,BSD->BNS", q, take(k, columns.start)) * scale
        scores = jnp.where(_pairs(first, last, columns).visible, scores, _MASKED)
        new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights, decay = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        value = _dot("BNS,BSD->BND", weights.astype(q.dtype), take(v, columns.start))
        return new_top, total * decay + weights.sum(-1, keepdims=True), out * decay + value

    start = (
        jnp.full((B, N, 1), 0.5 * _MASKED, jnp.float32),
        jnp.zeros((B, N, 1), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    _, total, out = lax.fori_loop(*_key_blocks(first, last, size, S), key_block, start)
    out = (out / jnp.where(total == 0, 1.0, total)).reshape(B, K, N // K, K, H)
    return (out * own.astype(out.dtype)).sum(3).astype(q.dtype).reshape(B, 1, N, H)


def _as_it_lies(x):
    """Pins the layout; otherwise XLA on TPU copies the whole cache to transpose its blocks."""
    if sharding.platform() != "tpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def to_cache(x: Shaped[jax.Array, "*shape"], dtype) -> Shaped[jax.Array, "*shape"]:
    """Converts `x` to the `dtype` of a cache; uint16 stores the bits of bfloat16.

    The bits are stored because XLA on CPU turns each write to a bfloat16 array inside a loop into
    float32 copies of the whole array.
    """
    if dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def from_cache(x: Shaped[jax.Array, "*shape"], dtype) -> Float[jax.Array, "*shape"]:
    """Inverts `to_cache` and converts to `dtype`."""
    if x.dtype == jnp.uint16:
        x = lax.bitcast_convert_type(x, jnp.bfloat16)
    return x.astype(dtype)


class _Block(NamedTuple):
    """A block is described by its first token and a mask of the tokens that are its own.

    The last block starts early enough to end at the last token, and so overlaps the one before it;
    `own` is False in the overlap.
    """

    start: jax.Array
    own: jax.Array


def _block(i, size: int, length: int) -> _Block:
    start = jnp.minimum(i * size, length - size)
    return _Block(start, start + jnp.arange(size, dtype=start.dtype) >= i * size)


def _take(x, block: _Block, axis: int):
    return lax.dynamic_slice_in_dim(x, block.start, block.own.shape[0], axis)


def _add(x, block: _Block, value, axis: int):
    return lax.dynamic_update_slice_in_dim(x, _take(x, block, axis) + value, block.start, axis)


def _key_blocks(first, last, size: int, length: int):
    """Returns the loop bounds of the key blocks that a block of queries sees."""
    low = jnp.maximum(first.min(), 0) // size
    high = jnp.minimum(last.max(), length - 1) // size + 1
    return low, high


class _Pairs(NamedTuple):
    """Positions of queries m [B, T, 1] and keys n [B, T, S] in their document, and a mask."""

    m: jax.Array
    n: jax.Array
    visible: jax.Array


def _pairs(first, last, block: _Block) -> _Pairs:
    first, last = first[..., None], last[..., None]
    own = block.own[None, None]
    key = block.start + jnp.arange(own.shape[-1], dtype=block.start.dtype)[None, None]
    return _Pairs(last - first, key - first, (key >= first) & (key <= last) & own)


def _scores(rule, scale, q, k, pairs: _Pairs):
    """Returns masked scores [B, K, G, Tq, Sk] in float32; k is [B, K, H, Sk]."""
    if rule is None:
        scores = _dot("BKGTH,BKHS->BKGTS", q, k) * scale
    else:
        scores = branches.scores(rule, q, k.mT, scale, *pairs)
    return jnp.where(pairs.visible[:, None, None], scores, _MASKED)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attention(rule, scale, block_q, block_k, q, k, v, first, last):
    return _forward_rule(rule, scale, block_q, block_k, q, k, v, first, last)[0]


def forward(rule, scale, block_q, block_k, q, k, v, first, last, dtype=None):
    """Returns the output and the log of each row's normaliser, float32 [B, K, G, T].

    The output has `dtype`, or that of q if it is None. For a slice of the keys that starts at index
    c, pass `first - c` and `last - c`; the outputs of several slices merge by their normalisers.
    """
    keys, values = partial(_take, k.mT, axis=3), partial(_take, v, axis=2)
    S, H = v.shape[2:]
    return _forward(rule, scale, block_q, block_k, S, H, q, keys, values, first, last, dtype)


def _forward(rule, scale, block_q, block_k, S, H, q, keys, values, first, last, dtype=None):
    """Computes `forward` with functions that return the keys and values of a _Block.

    `keys` returns [B, K, H, S] and `values` [B, K, S, H].
    """
    dtype = dtype or q.dtype
    T = q.shape[3]

    def query_block(i, carry):
        rows = _block(i, block_q, T)
        q_i, first_i, last_i = _take(q, rows, 3), _take(first, rows, 1), _take(last, rows, 1)

        def key_block(j, state):
            top, total, out = state
            columns = _block(j, block_k, S)
            pairs = _pairs(first_i, last_i, columns)
            scores = _scores(rule, scale, q_i, keys(columns), pairs)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - new_top[..., None])
            decay = jnp.exp(top - new_top)
            value = _dot("BKGTS,BKSH->BKGTH", weights.astype(q.dtype), values(columns))
            return new_top, total * decay + weights.sum(-1), out * decay[..., None] + value

        # A finite floor above the mask keeps weights at exactly 0 in rows that see no key.
        start = (
            jnp.full(q_i.shape[:-1], 0.5 * _MASKED, jnp.float32),
            jnp.zeros(q_i.shape[:-1], jnp.float32),
            jnp.zeros((*q_i.shape[:-1], H), jnp.float32),
        )
        bounds = _key_blocks(first_i, last_i, block_k, S)
        top, total, out = lax.fori_loop(*bounds, key_block, start)
        total = jnp.where(total == 0, 1.0, total)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=rows.start, axis=3)
        all_out, all_lse = carry
        return (
            put(all_out, (out / total[..., None]).astype(dtype)),
            put(all_lse, top + jnp.log(total)),
        )

    empty = jnp.zeros((*q.shape[:-1], H), dtype), jnp.zeros(q.shape[:-1], jnp.float32)
    return lax.fori_loop(0, -(-T // block_q), query_block, empty)


def _forward_rule(rule, scale, block_q, block_k, q, k, v, first, last):
    out, lse = forward(rule, scale, block_q, block_k, q, k, v, first, last)
    # Named so that a remat policy can save them, which spares the backward pass a second forward.
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, first, last, out, lse)


def _backward_rule(rule, scale, block_q, block_k, saved, d_out):
    q, k, v, first, last, out, lse = saved
    rows = lse, row_dot(out, d_out), d_out
    grads = backward(rule, scale, block_q, block_k, q, k, v, first, last, *rows)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)), None, None


def row_dot(out, d_out):
    """Returns the dot product of each output row and its cotangent, float32 [B, K, G, T]."""
    product = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    # A product with ones, because XLA on CPU is slow at sums over a short last axis.
    ones = jnp.ones(out.shape[-1], jnp.float32)
    return jnp.einsum("...H,H->...", product, ones, precision=lax.Precision.HIGHEST)


def backward(rule, scale, block_q, block_k, q, k, v, first, last, lse, out_dot, d_out):
    """Returns the cotangents of q, k and v in float32.

    They are also exact for a slice of the keys, as in `forward`, if lse and out_dot come from all
    keys.
    """
    T, S = q.shape[3], k.shape[2]
    k_T, v_T = k.mT, v.mT

    def query_block(i, carry):
        d_q, d_k, d_v = carry
        rows = _block(i, block_q, T)
        q_i, d_out_i = _take(q, rows, 3), _take(d_out, rows, 3)
        lse_i, out_dot_i = _take(lse, rows, 3)[..., None], _take(out_dot, rows, 3)[..., None]
        first_i, last_i = _take(first, rows, 1), _take(last, rows, 1)
        last_i = jnp.where(rows.own, last_i, -1)  # so that gradients in the overlap count once

        def key_block(j, state):
            d_q_i, d_k, d_v = state
            columns = _block(j, block_k, S)
            k_j, v_j = _take(k_T, columns, 3), _take(v_T, columns, 3)
            pairs = _pairs(first_i, last_i, columns)
            weights = jnp.exp(_scores(rule, scale, q_i, k_j, pairs) - lse_i)
            d_weights = _dot("BKGTH,BKHS->BKGTS", d_out_i, v_j)
            d_scores = weights * (d_weights - out_dot_i) * scale
            weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
            if rule is None:
                d_q_j = _dot("BKGTS,BKSH->BKGTH", d_scores, _take(k, columns, 2))
                d_k_j = _dot("BKGTH,BKGTS->BKHS", q_i, d_scores)
            else:
                d_q_j, d_k_j = branches.gradients(rule, d_scores, q_i, k_j.mT, *pairs)
                d_k_j = d_k_j.mT
            d_k = _add(d_k, columns, d_k_j, 3)
            d_v = _add(d_v, columns, _dot("BKGTH,BKGTS->BKHS", d_out_i, weights), 3)
            return d_q_i + d_q_j, d_k, d_v

        bounds = _key_blocks(first_i, last_i, block_k, S)
        start = jnp.zeros(q_i.shape, jnp.float32), d_k, d_v
        d_q_i, d_k, d_v = lax.fori_loop(*bounds, key_block, start)
        return _add(d_q, rows, d_q_i, 3), d_k, d_v

    # Keys and values have tokens last wherever a product would otherwise transpose the scores.
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k_T, v_T))
    d_q, d_k, d_v = lax.fori_loop(0, -(-T // block_q), query_block, zeros)
    return d_q, d_k.mT, d_v.mT


def _dot(spec: str, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


_attention.defvjp(_forward_rule, _backward_rule)
