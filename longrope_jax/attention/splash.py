"""Splash, the Pallas kernel that JAX ships, computes attention on TPUs: memory linear in T.

The kernel is causal, takes packed documents as segment numbers and shares key heads among query
heads. It does not scale scores, and expects [N, T, H] per example and a multiple of 128 tokens. On
other platforms it is interpreted, which is correct but slow.
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Float, Int

from longrope_jax import sharding
from longrope_jax.attention.splash_kernel import BLOCK, LANES, fitting
from longrope_jax.shapes import AnyArray


def attention(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S K H"],
    v: Float[jax.Array, "B S K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    scale,
    *,
    key_start: Int[AnyArray, "_ S"] | None = None,
    order: Int[np.ndarray, " S"] | None = None,
    part=None,
) -> Float[jax.Array, "B T N H"]:
    """Returns attention [B, t, N, H]; query t of row b sees keys first_key[b, t] to last_key[b, t].

    first_key is [B or 1, t], the same for all queries of a document. On one device t = S, and
    last_key counts up from 0. With context parallelism, `order` [S] lists the queries of all
    devices, `part` is the index of this device's equal share of that list, and key_start
    [B or 1, S] is the first_key of every key.
    """
    B, T = q.shape[:2]
    S, padding = k.shape[1], -T % (BLOCK if T > BLOCK and part is None else LANES)
    key_start = first_key if order is None else key_start
    order = np.arange(S + padding, dtype=np.int32) if order is None else order
    kernel = _kernel(q.shape[2], order, S + padding, (S + padding) // (T + padding))
    kernel = kernel if part is None else _part_of(kernel, part, S // T)

    def heads_first(x):
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    def numbers(start):
        # The index of its first key serves as a document's number. Padding keys need no number of
        # their own, since they come after every real query and the kernel is causal.
        rows = jnp.broadcast_to(start, (B, start.shape[1]))
        return jnp.pad(rows, ((0, 0), (0, padding)), "edge")

    one = jax.vmap(lambda q, k, v, *s: kernel(q, k, v, segment_ids=SegmentIds(*s)))
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    documents = numbers(first_key), numbers(key_start)
    # The kernel returns more than one array only if residuals are requested.
    out = cast(jax.Array, one(heads_first(scaled), heads_first(k), heads_first(v), *documents))
    return out.swapaxes(1, 2)[:, :T].astype(q.dtype)


def _kernel(N: int, order: np.ndarray, S: int, parts: int):
    """Makes the kernel for N heads and all queries and keys; mask tables are numpy constants."""
    rows = len(order) // parts
    block = fitting(rows, BLOCK)
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    mask = CausalMask((len(order), S))
    mask.q_sequence = order
    return make_splash_mha(
        MultiHeadMask([mask] * N),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        interpret=sharding.platform() != "tpu",
        residual_checkpoint_name="attention_lse",
    )


def _part_of(kernel, part, parts: int):
    """Returns the kernel with one device's share of the mask tables, cut along the queries."""

    def cut(x, axis):
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    def share(tables):
        by_block = {"data_next": 1, "mask_next": 1, "block_mask": 1, "q_sequence": 0}
        found = {name: getattr(tables, name) for name in by_block}
        return tables._replace(
            **{n: None if x is None else cut(x, by_block[n]) for n, x in found.items()}
        )

    tables, static = kernel.tree_flatten()
    return type(kernel)(*map(share, tables), **static)


def refusal(q, *, packed: bool, whole: bool, parts: int) -> str | None:
    """Returns the reason why this back end does not support the inputs, or None if it does."""
    del packed
    T = q.shape[1]
    if not whole:
        return "splash attention needs as many queries as keys and does not support a cache"
    if parts > 1 and T % (parts * LANES):
        return (
            f"splash attention over a sequence axis of {parts} needs a multiple of "
            f"{parts * LANES} tokens, got {T}"
        )
    return None
