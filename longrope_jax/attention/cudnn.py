"""cuDNN's fused kernel computes attention on NVIDIA GPUs, by `jax.nn.dot_product_attention`.

JAX's interface to the kernel takes packed documents only as a [T, T] mask, so this back end refuses
them. The interface also gives no names to the residuals of the backward pass, so under every remat
policy but "none" the backward pass runs the kernel's forward again.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from longrope_jax.shapes import AnyArray

HALF = ("bfloat16", "float16")


def attention(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S K H"],
    v: Float[jax.Array, "B S K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    scale,
) -> Float[jax.Array, "B T N H"]:
    """Returns attention [B, T, N, H]; query t sees keys 0 to t. Check `refusal` first."""
    del first_key, last_key
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, implementation="cudnn"
    )


def refusal(q, *, packed: bool, whole: bool, parts: int) -> str | None:
    """Returns the reason why this back end does not support the inputs, or None if it does."""
    H = q.shape[3]
    if jnp.dtype(q.dtype).name not in HALF:
        return f"cudnn attention needs q of dtype {' or '.join(HALF)}, got {q.dtype}"
    if packed:
        return "cudnn attention does not support packed documents (segment_start)"
    if not whole:
        return "cudnn attention needs as many queries as keys and does not support a cache"
    if parts > 1:
        return f"cudnn attention does not support a sequence axis, and the mesh has one of {parts}"
    if H % 8 or H > 128:
        return f"cudnn attention needs a head_dim that is a multiple of 8 up to 128, got {H}"
    return None
