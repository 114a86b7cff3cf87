"""Applying phases to queries and keys, in both memory layouts."""

import jax
import jax.numpy as jnp
import numpy as np

from longrope_jax.rotary.phases import Phase
from longrope_jax.rotary.registry import unknown

LAYOUTS = ("half", "interleaved")


def rotate(x: jax.Array, phase: Phase, *, layout: str = "half") -> jax.Array:
    """Rotates each pair of features by its phase, in float32.

    Args:
        x: [..., T, N, H] queries or keys.
        phase: (cos, sin), each [..., T, R] with 2R <= H; features beyond 2R pass unchanged
            (partial rotary).
        layout: "half" pairs feature j with j + R (Hugging Face, GPT-NeoX); "interleaved" pairs 2j
            with 2j + 1 (RoFormer, Meta). The weights decide which one a checkpoint needs.

    Returns:
        [..., T, N, H] in the dtype of `x`.

    Raises:
        ValueError: unknown layout, or more pairs than the head holds.
    """
    cos, sin = phase.cos[..., None, :], phase.sin[..., None, :]
    pairs = cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ValueError(f"{pairs} pairs do not fit into a head of {x.shape[-1]}")
    xf = x.astype(jnp.float32)
    if layout == "half":
        a, b = xf[..., :pairs], xf[..., pairs : 2 * pairs]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    elif layout == "interleaved":
        a, b = xf[..., 0 : 2 * pairs : 2], xf[..., 1 : 2 * pairs : 2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        turned = turned.reshape(*turned.shape[:-2], 2 * pairs)
    else:
        raise ValueError(unknown("rotary layout", layout, LAYOUTS))
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * pairs :]], axis=-1)


def half_from_interleaved(head_dim: int) -> np.ndarray:
    """Permutation p [H] with half[i] = interleaved[p[i]]: 0, 2, ..., H-2, 1, 3, ..., H-1."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
