"""Attention on NVIDIA GPUs by cuDNN's fused kernel, through `jax.nn.dot_product_attention`.

JAX's interface to it has no packed documents: they would need a [T, T] mask, so they are refused.
Nor has what its backward needs a name, so under every remat policy but "none" the backward runs the
kernel's forward again.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

HALF = ("bfloat16", "float16")


def attention(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S K H"],
    v: Float[jax.Array, "B S K H"],
    first_key: Int[jax.Array, "_ T"],
    last_key: Int[jax.Array, "_ T"],
    scale,
) -> Float[jax.Array, "B T N H"]:
    """[B, T, N, H]; query t sees keys 0 to t. What `refusal` refuses must not come here."""
    del first_key, last_key
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, implementation="cudnn"
    )


def refusal(q, *, packed: bool, whole: bool, parts: int) -> str | None:
    """Why this back end cannot do it; None if it can."""
    H = q.shape[3]
    if jnp.dtype(q.dtype).name not in HALF:
        return f"cudnn attention works in {' or '.join(HALF)}, not {q.dtype}"
    if packed:
        return "cudnn attention does not take packed documents"
    if not whole:
        return "cudnn attention needs as many queries as keys (no cache)"
    if parts > 1:
        return "cudnn attention does not work over a sequence axis"
    if H % 8 or H > 128:
        return f"cudnn attention needs a head_dim that is a multiple of 8 up to 128, not {H}"
    return None
