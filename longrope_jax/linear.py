"""The model's matrix products run on each device's shard, with explicit collectives.

They implement tensor parallelism with a residual stream divided along the sequence (Korthikanti et
al. 2205.05198): tokens are gathered before a column-parallel product (heads, F), and partial sums
are reduce-scattered after a row-parallel one. Left to itself, the compiler would use two
all-reduces. Weights are gathered over `fsdp` and `sequence`, and their gradients are scattered. The
backward pass gathers weights and tokens again instead of saving them. Without a mesh these are
plain products.
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
# The residual stream between blocks. Decoding uses TOKENS, since one token cannot be divided.
RESIDUAL = ("batch", "residual_sequence", "residual")
Names = tuple[str, ...]


def column_parallel(
    x: Float[jax.Array, "B T D"], *weights: tuple[jax.Array, Names], names: Names
) -> tuple[Float[jax.Array, "B T ..."], ...]:
    """Returns the products [B, T, ...] of x [B, T, D] with several weights [D, ...].

    Args:
        x: activations of the tokens, [B, T, D].
        weights: pairs of a weight and the logical names of its axes, of which "embed" is the first.
        names: logical names of the axes of x, RESIDUAL or TOKENS.
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
    """Returns the product [B, T, D] of x [B, T, ...] with a weight [..., D].

    The last of `weight_names` is "embed". The result is sharded by `names`, RESIDUAL or TOKENS.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def local(x, weight):
        weight = _whole(weight, x.dtype, axis=weight.ndim - 1)
        return _scattered(_product(x, weight), names)

    x_names = (*TOKENS[:2], *weight_names[:-1])
    return sharding.per_device(local, (x_names, weight_names), names)(x, weight)


def lookup(
    table: Float[AnyArray, "V D"], tokens: Int[AnyArray, "B T"], dtype, *, names: Names
) -> Float[jax.Array, "B T D"]:
    """Looks up rows [B, T, D] of the table [V, D]; gradients are summed in the table's dtype."""

    @partial(jax.checkpoint, prevent_cse=False)
    def local(table, tokens):
        table = _whole(table, table.dtype, axis=1)
        V = table.shape[0]
        row = tokens - lax.axis_index(_axes("tensor")) * V
        found = jnp.take(table, row.clip(0, V - 1), axis=0).astype(dtype)
        return _scattered(jnp.where(((row >= 0) & (row < V))[..., None], found, 0), names)

    if sizes := sharding.context_shape():
        sharding.check_divides(tokens.shape, sharding.partition_spec(*names[:2]), sizes, "tokens")
    run = sharding.per_device(local, (("vocab", "embed"), TOKENS[:2]), names)
    return run(sharding.padded(jnp.asarray(table), axis=0), tokens)


_TOKEN_AXES = (0, 1)  # B and T


@jax.custom_vjp
def _product(x, weight):
    """Multiplies x [B, T, ...] by weight [..., out ...], over all axes of x after B and T."""
    return jnp.tensordot(x, weight, x.ndim - 2)


def _product_rule(x, weight):
    return _product(x, weight), (x, weight)


def _product_gradients(saved, d_out):
    x, weight = saved
    out = tuple(range(x.ndim - 2 - weight.ndim, 0))
    d_x = jnp.tensordot(d_out, weight, (out, out))
    # XLA on CPU transposes the left operand, including whatever is fused into it, so the narrower
    # operand goes on the left.
    if math.prod(x.shape[2:]) <= math.prod(d_out.shape[2:]):
        return d_x, jnp.tensordot(x, d_out, (_TOKEN_AXES, _TOKEN_AXES))
    d_weight = jnp.tensordot(d_out, x, (_TOKEN_AXES, _TOKEN_AXES))
    return d_x, jnp.moveaxis(d_weight, range(len(out)), out)


_product.defvjp(_product_rule, _product_gradients)

_axes = sharding.manual_axes


def _whole(weight, dtype, axis: int):
    """Gathers a weight along its "embed" axis and casts it to the dtype of the products."""
    divided = _axes(*sharding.PARAMETER_AXES)
    return lax.all_gather(weight.astype(dtype), divided, axis=axis, tiled=True)


def _scattered(x, names: Names):
    """Sums partial products [B, T, D] over the tensor axis.

    With RESIDUAL names each device keeps its share of the tokens, otherwise all of them.
    """
    if names == RESIDUAL:
        return lax.psum_scatter(x, _axes("tensor"), scatter_dimension=1, tiled=True)
    return lax.psum(x, _axes("tensor"))
