"""The parts of a splash attention that a ring needs: log normalisers out, and gradients by them.

JAX has no public name for the gradients of one part of the keys, given the log normalisers of all:
`_splash_attention_bwd` is private, and nothing else here or in the package is. The signature that
this file was written for is `BACKWARD`, which tests/test_kernels.py compares with the one that is
installed.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
    splash_attention_kernel,
)

from longrope_jax import sharding

LANES = 128  # block sizes of the kernel must be multiples of this
BLOCK = 512  # tokens of queries and of keys per block
# Keys that the backward kernel keeps on the chip. The fused one writes dq once per so many keys.
BLOCK_BACKWARD = 2048
# Partial arrays dq that the fused backward kernel may write, each of the size of q. Beyond, dq has
# a kernel of its own, which computes the scores once more: 7 matrix products instead of 5.
FUSED_PARTS = 16
BACKWARD = (
    "save_residuals", "mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name",
    "mask_function", "attn_logits_soft_cap", "interpret", "res", "do",
)  # fmt: skip


def fitting(tokens: int, most: int, unit: int = LANES) -> int:
    """The largest multiple of `unit` up to `most` that divides a number of tokens."""
    return max(b for b in range(unit, min(most, tokens) + 1, unit) if tokens % b == 0)


def block_sizes(tokens: int) -> BlockSizes:
    """Block sizes for as many queries as keys, a multiple of LANES, with the backward fused."""
    block = fitting(tokens, BLOCK)
    wide = fitting(tokens, BLOCK_BACKWARD, block)
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=wide, block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    if tokens // wide <= FUSED_PARTS:
        return sizes
    return dataclasses.replace(
        sizes, use_fused_bwd_kernel=False, block_q_dq=block, block_kv_dq=block
    )


def square(heads: int, tokens: int, *, causal: bool):
    """Makes the kernel of as many queries as keys, causal or without a mask."""
    mask = (CausalMask if causal else FullMask)((tokens, tokens))
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        block_sizes=block_sizes(tokens),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        interpret=sharding.platform() != "tpu",
    )


def forward(kernel, q, k, v, q_document, k_document):
    """Returns the output [..., N, T, H] and the log of each row's normaliser, both float32.

    q is [..., N, T, H], already scaled, k and v are [..., K, S, H], documents are [..., T] and
    [..., S]. A row that sees no key has some output and a log normaliser near -1e38.
    """

    def one(q, k, v, *documents):
        out, (lse,) = kernel(q, k, v, segment_ids=SegmentIds(*documents))
        return out.astype(jnp.float32), lse

    return _over_rows(one, q, k, v, q_document, k_document)


def backward(kernel, q, k, v, q_document, k_document, out, lse, d_out):
    """Returns the cotangents of q, k and v from these keys, float32.

    out, lse and d_out are those of the attention over all keys.
    """
    how = kernel.kwargs

    def one(q, k, v, q_document, k_document, out, lse, d_out):
        documents = SegmentIds(q_document, k_document)
        tables = kernel.dq_mask_info, kernel.dkv_mask_info
        saved = q, k, v, documents, None, out, lse, *tables
        found = splash_attention_kernel._splash_attention_bwd(
            False,
            how["mask_value"],
            how["is_mqa"],
            how["block_sizes"],
            None,
            how["mask_function"],
            how["attn_logits_soft_cap"],
            how["interpret"],
            saved,
            d_out,
        )
        return tuple(grad.astype(jnp.float32) for grad in found[3:6])

    return _over_rows(one, q, k, v, q_document, k_document, out, lse, d_out)


def _over_rows(one, q, *rest):
    """Runs `one` for every example, however many axes they have."""
    axes = q.shape[:-3]
    flat = [x.reshape(-1, *x.shape[len(axes) :]) for x in (q, *rest)]
    found = jax.vmap(one)(*flat)
    return tuple(x.reshape(*axes, *x.shape[1:]) for x in found)
