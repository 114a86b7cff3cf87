"""Attention on TPUs by the Pallas kernel that JAX ships (splash): memory linear in T.

The kernel is causal, takes packed documents as segment numbers and shares key heads among query
heads. It does not scale scores, wants [N, T, H] per example and whole blocks of 128 tokens; under a
mesh it runs per shard, since the compiler cannot divide a kernel by itself.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)

_LANES = 128  # the kernel's blocks are multiples of this
BLOCK = 512  # tokens of queries and of keys per block


def attention(q, k, v, first_key, scale, *, interpret: bool = False) -> jax.Array:
    """[B, T, N, H]; query t of row b sees keys first_key[b, t] to t.

    q is [B, T, N, H], k and v [B, T, K, H], first_key [B, T] or [1, T].
    """
    B, T = q.shape[:2]
    padding = -T % _LANES
    kernel = _kernel(T + padding, q.shape[2], interpret)

    def heads_first(x):
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    # A document's first key numbers it; padded keys come after every query that counts.
    segments = jnp.pad(jnp.broadcast_to(first_key, (B, T)), ((0, 0), (0, padding)), "edge")
    one = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=SegmentIds(q=s, kv=s)))
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    out = one(heads_first(scaled), heads_first(k), heads_first(v), segments)
    return out.swapaxes(1, 2)[:, :T].astype(q.dtype)


def _kernel(T: int, N: int, interpret: bool):
    """The kernel for N heads of T queries and T keys; its mask tables are numpy constants."""
    block = max(b for b in range(_LANES, min(BLOCK, T) + 1, _LANES) if T % b == 0)
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    mask = MultiHeadMask([CausalMask((T, T))] * N)
    return make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name="attention_lse"
    )
