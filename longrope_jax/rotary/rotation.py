"""Phases are applied to queries and keys here, in both memory layouts."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from longrope_jax.errors import unknown_name
from longrope_jax.rotary.arrays import HeadPhase, Phase
from longrope_jax.shapes import AnyArray

LAYOUTS = ("half", "interleaved")


def rotate(
    x: Float[AnyArray, "*B T N H"], phase: Phase | HeadPhase | tuple, *, layout: str = "half"
) -> Float[jax.Array, "*B T N CH"]:
    """Rotates each pair of features by its phase, in float32.

    Args:
        x: [..., T, N, H] queries or keys.
        phase: (cos, sin), each [..., T, R] with 2R <= H; features beyond 2R pass unchanged
            (partial rotary). A HeadPhase [..., T, K, R] has one phase for each N/K heads. A tuple
            of C phases gives C rotated copies side by side, [..., T, N, C H].
        layout: "half" pairs feature j with j + R (Hugging Face, GPT-NeoX); "interleaved" pairs 2j
            with 2j + 1 (RoFormer, Meta). The weights decide which one a checkpoint needs.

    Returns:
        [..., T, N, H] in the dtype of `x`.

    Raises:
        ValueError: the layout is unknown, there are more pairs than the head holds, or the number
            of heads is not a multiple of the phase's.
    """
    if not isinstance(phase, Phase | HeadPhase):
        return jnp.concatenate([rotate(x, one, layout=layout) for one in phase], axis=-1)
    cos, sin = (_by_head(table, phase, x.shape[-2]) for table in phase)
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
        raise ValueError(unknown_name("rotary layout", layout, LAYOUTS))
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * pairs :]], axis=-1)


def _by_head(table: jax.Array, phase: Phase | HeadPhase, heads: int) -> jax.Array:
    if isinstance(phase, Phase):
        return table[..., None, :]
    K = table.shape[-2]
    if heads % K:
        raise ValueError(
            f"{heads} heads are not a multiple of the method's {K}: set its option n_kv_heads"
        )
    return jnp.repeat(table, heads // K, axis=-2)


def half_from_interleaved(head_dim: int) -> Int[np.ndarray, " H"]:
    """Returns the permutation p [H] with half[i] = interleaved[p[i]]: 0, 2, ..., H-2, 1, 3, ...."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
