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
    x: Float[AnyArray, "*B T N H"],
    phase: Phase | HeadPhase | tuple,
    *,
    layout: str = "half",
    by_product: bool = False,
) -> Float[jax.Array, "*B T N CH"]:
    """Rotates each pair of features by its phase, in float32.

    Args:
        x: [..., T, N, H] queries or keys.
        phase: (cos, sin), each [..., T, R] with 2R <= H; features beyond 2R pass unchanged
            (partial rotary). A HeadPhase [..., T, K, R] has one phase for each N/K heads. A tuple
            of C phases gives C rotated copies side by side, [..., T, N, C H].
        layout: "half" pairs feature j with j + R (Hugging Face, GPT-NeoX); "interleaved" pairs 2j
            with 2j + 1 (RoFormer, Meta). The weights decide which one a checkpoint needs.
        by_product: exchange the halves by a product with a permutation, which is exact, where `x`
            is bfloat16 and whole heads turn in the layout "half". TPUs then read and write half as
            much (see `_turned_by_product`).

    Returns:
        [..., T, N, H] in the dtype of `x`.

    Raises:
        ValueError: the layout is unknown, there are more pairs than the head holds, or the number
            of heads is not a multiple of the phase's.
    """
    if not isinstance(phase, Phase | HeadPhase):
        how = {"layout": layout, "by_product": by_product}
        return jnp.concatenate([rotate(x, one, **how) for one in phase], axis=-1)
    cos, sin = (_by_head(table, phase, x.shape[-2]) for table in phase)
    rows = (1,) * (x.ndim - cos.ndim)  # written out for jax_numpy_rank_promotion="raise"
    cos, sin = cos.reshape(rows + cos.shape), sin.reshape(rows + sin.shape)
    pairs = cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ValueError(f"{pairs} pairs do not fit into a head of {x.shape[-1]}")
    if by_product and layout == "half" and 2 * pairs == x.shape[-1] and x.dtype == jnp.bfloat16:
        return _turned_by_product(x, cos, sin)
    xf = x.astype(jnp.float32)
    if layout == "half":
        turned = _turned_halves(xf[..., : 2 * pairs], cos, sin)
    elif layout == "interleaved":
        a, b = xf[..., 0 : 2 * pairs : 2], xf[..., 1 : 2 * pairs : 2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        turned = turned.reshape(*turned.shape[:-2], 2 * pairs)
    else:
        raise ValueError(unknown_name("rotary layout", layout, LAYOUTS))
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * pairs :]], axis=-1)


def _turned_halves(x, cos, sin):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@jax.custom_vjp
def _turned_by_product(x, cos, sin):
    """Turns whole heads of bfloat16 without taking them apart.

    A TPU's lanes hold a head, so XLA writes both halves of it, once in float32, and joins them in
    another pass: 17.5 GB through HBM for an attention of 32k tokens and 32 heads, forward and
    backward, against 12.2 GB if the matrix unit exchanges the halves. Each element of that product
    is one element of `x` times 1.
    """
    H = x.shape[-1]
    exchange = np.roll(np.eye(H, dtype=np.float32), H // 2, axis=0)
    other = jnp.einsum(
        "...h,hg->...g", x, jnp.asarray(exchange, x.dtype), preferred_element_type=jnp.float32
    )
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)


def _turned_forward(x, cos, sin):
    primals = tuple(arg.value for arg in (x, cos, sin))
    # Only learned phases need x again.
    kept = primals[0] if cos.perturbed or sin.perturbed else None
    return _turned_by_product(*primals), (kept, *primals[1:])


def _turned_backward(saved, d_out):
    """Turns the cotangent back: its own rounding is all that it loses."""
    x, cos, sin = saved
    d_tables = None, None
    if x is not None:
        xf = x.astype(jnp.float32)
        _, back = jax.vjp(lambda *tables: _turned_halves(xf, *tables), cos, sin)
        d_tables = back(d_out.astype(jnp.float32))
    return _turned_by_product(d_out, cos, -sin), *d_tables


_turned_by_product.defvjp(_turned_forward, _turned_backward, symbolic_zeros=True)


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
