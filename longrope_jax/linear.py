"""The model's matrix products, each device on its own part, with the collectives written out.

Tensor parallelism with the residual stream divided along the sequence (Korthikanti et al.
2205.05198): tokens are gathered before a product over columns (heads, F) and their sums scattered
after one over rows, which the compiler left to itself would make two all-reduces. Weights are
gathered over `fsdp` and `sequence`, their gradients scattered. What was gathered is gathered again
in the backward, not saved. Without a mesh these are plain products.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from longrope_jax import sharding
from longrope_jax.shapes import AnyArray

TOKENS = ("batch", "sequence", "residual")
# Between the blocks; where a single token is decoded it stays whole.
RESIDUAL = ("batch", "residual_sequence", "residual")
Names = tuple[str, ...]


def column_parallel(
    x: Float[jax.Array, "B T D"], *weights: tuple[jax.Array, Names], names: Names
) -> tuple[Float[jax.Array, "B T ..."], ...]:
    """Products [B, T, ...] of x [B, T, D] with several weights [D, ...].

    Args:
        x: the tokens.
        weights: each with the logical names of its axes, "embed" first.
        names: of the axes of x, RESIDUAL or TOKENS.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def local(x, *weights):
        if names == RESIDUAL:
            x = lax.all_gather(x, _axes("tensor"), axis=1, tiled=True)
        return tuple(_product(x, _whole(w, x.dtype, axis=0)) for w in weights)

    arrays, weight_names = zip(*weights, strict=True)
    out = tuple((*TOKENS[:2], *w[1:]) for w in weight_names)
    return sharding.per_device(local, (names, *weight_names), out)(x, *arrays)


def row_parallel(
    x: Float[jax.Array, "B T *width"],
    weight: Float[jax.Array, "*width D"],
    weight_names: Names,
    *,
    names: Names,
) -> Float[jax.Array, "B T D"]:
    """Product [B, T, D] of x [B, T, ...] with a weight [..., D], "embed" its last axis.

    The result lies as `names` says, RESIDUAL or TOKENS.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def local(x, weight):
        weight = _whole(weight, x.dtype, axis=weight.ndim - 1)
        return _scattered(_product(x, weight), names)

    x_names = (*TOKENS[:2], *weight_names[:-1])
    return sharding.per_device(local, (x_names, weight_names), names)(x, weight)


def lookup(
    table: Float[jax.Array, "V D"], tokens: Int[AnyArray, "B T"], dtype, *, names: Names
) -> Float[jax.Array, "B T D"]:
    """Rows [B, T, D] of the embedding table [V, D]; gradients are summed in the table's dtype."""

    @partial(jax.checkpoint, prevent_cse=False)
    def local(table, tokens):
        table = _whole(table, table.dtype, axis=1)
        V = table.shape[0]
        row = tokens - lax.axis_index(_axes("tensor")) * V
        found = jnp.take(table, row.clip(0, V - 1), axis=0).astype(dtype)
        return _scattered(jnp.where(((row >= 0) & (row < V))[..., None], found, 0), names)

    if sizes := sharding.context_shape():
        sharding.check_divides(tokens.shape, sharding.partition_spec(*names[:2]), sizes)
    run = sharding.per_device(local, (("vocab", "embed"), TOKENS[:2]), names)
    return run(table, tokens)


_TOKEN_AXES = (0, 1)  # B and T


@jax.custom_vjp
def _product(x, weight):
    """x [B, T, ...] times weight [..., out ...], over all that x has beyond B and T."""
    return jnp.tensordot(x, weight, x.ndim - 2)


def _product_rule(x, weight):
    return _product(x, weight), (x, weight)


def _product_gradients(saved, d_out):
    x, weight = saved
    out = tuple(range(x.ndim - 2 - weight.ndim, 0))
    d_x = jnp.tensordot(d_out, weight, (out, out))
    # A CPU transposes the left operand, with all that computes it: the narrower one stands there.
    if math.prod(x.shape[2:]) <= math.prod(d_out.shape[2:]):
        return d_x, jnp.tensordot(x, d_out, (_TOKEN_AXES, _TOKEN_AXES))
    d_weight = jnp.tensordot(d_out, x, (_TOKEN_AXES, _TOKEN_AXES))
    return d_x, jnp.moveaxis(d_weight, range(len(out)), out)


_product.defvjp(_product_rule, _product_gradients)

_axes = sharding.manual_axes


def _whole(weight, dtype, axis: int):
    """A weight gathered along "embed", in the dtype of the products."""
    divided = _axes(*sharding.PARAMETER_AXES)
    return lax.all_gather(weight.astype(dtype), divided, axis=axis, tiled=True)


def _scattered(x, names: Names):
    """Parts [B, T, D] summed over tensor: each device its share of the tokens, or all of them."""
    if names == RESIDUAL:
        return lax.psum_scatter(x, _axes("tensor"), scatter_dimension=1, tiled=True)
    return lax.psum(x, _axes("tensor"))
