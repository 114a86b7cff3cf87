"""Context parallelism on eight devices equals one device: values and gradients, packed or not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import sharding
from longrope_jax.attention import attend, blockwise

B, T, N, K, H = 2, 48, 4, 2, 8
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK_Q", 4)
        patch.setattr(blockwise, "BLOCK_K", 5)  # no divisor of any chunk
        yield


def draw(T=T, H=H, dtype=jnp.float32, B=B):
    return [jnp.asarray(RNG.normal(size=(B, T, n, H)), dtype) for n in (N, K, K)]


def packing(T=T, lengths=(1, 20, 3), rows=B):
    """Documents that begin within shards and span several; the rows differ."""
    rows = [np.cumsum([0, *np.roll(lengths, b)]) for b in range(rows)]
    token = np.arange(T)
    return jnp.asarray([r[np.searchsorted(r, token, side="right") - 1] for r in rows], jnp.int32)


def value_and_gradients(args, segment_start=None, **how):
    @jax.jit
    def run(args, segment_start):
        f = partial(attend, segment_start=segment_start, **how)
        out, back = jax.vjp(f, *args)
        return out, *back(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return run(args, segment_start)


@pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])
@pytest.mark.parametrize(
    "how, mesh",
    [
        ("all_gather", {"sequence": 8}),
        ("ring", {"sequence": 8}),
        ("all_gather", {"data": 2, "sequence": 2, "tensor": 2}),
        ("ring", {"fsdp": 2, "sequence": 2, "tensor": 2}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_values_and_gradients_equal_one_device(how, mesh, packed):
    args, where = draw(), packing() if packed else None
    one = value_and_gradients(args, where, backend="reference")
    with jax.set_mesh(sharding.make_mesh(**mesh)):
        many = value_and_gradients(args, where, context_parallel=how)
    for mine, right in zip(many, one, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5)
