"""The model's products against plain einsums, values and gradients, with and without a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import linear, sharding

B, T, D, N, H, F = 4, 8, 16, 4, 6, 24
HEADS, MLP = ("embed", "heads", "head_dim"), ("embed", "mlp")
BACK = {HEADS: ("heads", "head_dim", "embed"), MLP: ("mlp", "embed")}
MESHES = [None, {"fsdp": 4, "tensor": 2}, {"data": 2, "sequence": 2, "tensor": 2}]


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def same_with_gradients(ours, plain, arrays, mesh):
    cotangent = draw(plain(*arrays).shape, 9)
    truth, back = jax.vjp(plain, *arrays)

    @jax.jit
    def run(*arrays):
        out, back = jax.vjp(ours, *arrays)
        return out, back(cotangent)

    if mesh is None:
        out, grads = run(*arrays)
    else:
        with jax.set_mesh(sharding.make_mesh(**mesh)):
            out, grads = run(*arrays)
    np.testing.assert_allclose(out, truth, atol=2e-5)
    for ours, true in zip(grads, back(cotangent), strict=True):
        np.testing.assert_allclose(ours, true, atol=5e-5)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("names", "shape"), [(HEADS, (D, N, H)), (MLP, (D, F))], ids=["qkv", "up"])
def test_columns_and_their_gradients_equal_an_einsum(names, shape, mesh):
    def ours(x, w):
        return linear.column_parallel(x, (w, names), names=linear.RESIDUAL)[0]

    def plain(x, w):
        return jnp.einsum("btd,dnh->btnh", x, w) if w.ndim == 3 else x @ w

    same_with_gradients(ours, plain, (draw((B, T, D), 0), draw(shape, 1)), mesh)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("names", "shape"), [(HEADS, (N, H)), (MLP, (F,))], ids=["out", "down"])
def test_rows_and_their_gradients_equal_an_einsum(names, shape, mesh):
    def ours(x, w):
        return linear.row_parallel(x, w, BACK[names], names=linear.RESIDUAL)

    def plain(x, w):
        return jnp.einsum("btnh,nhd->btd", x, w) if w.ndim == 3 else x @ w

    same_with_gradients(ours, plain, (draw((B, T, *shape), 2), draw((*shape, D), 3)), mesh)
