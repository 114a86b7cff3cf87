"""Context parallelism on eight devices equals one device: values and gradients, packed or not."""

import os
import socket
import subprocess
import sys
from functools import partial

import context_driver as driver
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import rotary, sharding
from longrope_jax.attention import attend, blockwise, context

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
        return out, *back(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

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


@pytest.mark.parametrize("text", ["alibi", "rerope:window=7", "self_extend:window=6,group=3"])
@pytest.mark.parametrize("mesh", [{"sequence": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_score_rules_hold_across_devices(text, mesh):
    """ALiBi's slopes are those of all heads, relative positions those of the whole sequence."""
    rot = rotary.make(rotary.parse(text), head_dim=H, seq_len=T)
    where = packing()
    phases = rotary.phases(rot, jnp.arange(T) - where)
    q, k, v = draw()
    args = rotary.rotate(q, phases.query), rotary.rotate(k, phases.key), v
    one = value_and_gradients(args, where, backend="reference", score_rule=rot.score_rule)
    devices = jax.devices()[:4]
    with jax.set_mesh(sharding.make_mesh(**mesh, devices=devices)):
        many = value_and_gradients(args, where, score_rule=rot.score_rule)
    for mine, right in zip(many, one, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5)


def test_ring_and_kernels_refuse_score_rules():
    rule = rotary.make(rotary.ALiBi(), head_dim=H, seq_len=T).score_rule
    with pytest.raises(ValueError, match=r"backend 'splash' does not support .* ALiBi"):
        attend(*draw(), score_rule=rule, backend="splash")
    with (
        jax.set_mesh(sharding.make_mesh(sequence=8)),
        pytest.raises(ValueError, match=r"'ring' does not support .* ALiBi"),
    ):
        attend(*draw(), score_rule=rule, context_parallel="ring")


def test_bfloat16_loses_no_more_than_rounding():
    """The ring merges parts in float32, so the parts do not add up to more rounding."""
    args = draw(dtype=jnp.bfloat16)
    exact = value_and_gradients([x.astype(jnp.float32) for x in args], backend="reference")
    with jax.set_mesh(sharding.make_mesh(sequence=8)):
        many = value_and_gradients(args, context_parallel="ring")
    assert all(x.dtype == jnp.bfloat16 for x in many)
    np.testing.assert_allclose(np.float32(many[0]), exact[0], atol=0.02)
    for mine, right in zip(many[1:], exact[1:], strict=True):
        np.testing.assert_allclose(np.float32(mine), right, atol=0.03 * np.abs(right).max())


# Order and balance


@pytest.mark.parametrize("P", [1, 2, 3, 8])
def test_zigzag_order_shares_causal_work_evenly(P):
    order = context.zigzag_order(P, 12 * P)
    assert sorted(order) == list(range(12 * P))
    seen = (order + 1).reshape(P, -1).sum(1)  # keys that each device's queries see
    assert len(set(seen)) == 1


def test_exchange_brings_zigzag_order_and_takes_it_back():
    mesh = sharding.make_mesh(sequence=8)
    tokens = jnp.arange(48, dtype=jnp.int32)[None]

    def there_and_back(x):
        return context.to_zigzag(x), context.from_zigzag(context.to_zigzag(x))

    row = ("batch", "sequence")
    with jax.set_mesh(mesh):
        there, back = jax.jit(sharding.per_device(there_and_back, (row,), (row, row)))(tokens)
    np.testing.assert_array_equal(there[0], context.zigzag_order(8, 48))
    np.testing.assert_array_equal(back, tokens)


def test_ring_never_holds_all_keys():
    def program(how):
        q, k, v = (jax.ShapeDtypeStruct((1, 96, n, H), jnp.float32) for n in (N, K, K))
        with jax.set_mesh(sharding.make_mesh(sequence=8)):
            f = jax.grad(lambda *x: attend(*x, context_parallel=how).sum(), argnums=(0, 1, 2))
            return jax.jit(f).lower(q, k, v).as_text()

    held = f"tensor<1x96x{K}x{H}xf32>"  # inside the manual part: after the first gather
    assert "all_gather" in program("all_gather") and "all_gather" not in program("ring")
    inside = program("ring").split("manual_computation")[2]
    assert held not in inside.split("return")[0]


# Refusals


def shapes(T, S=None):
    sizes = (T, N), (S or T, K), (S or T, K)
    return [jax.ShapeDtypeStruct((B, t, n, H), jnp.float32) for t, n in sizes]


@pytest.mark.parametrize(
    "args, how, message",
    [
        (shapes(24), {}, "24 tokens do not divide into 16 half chunks"),
        (
            shapes(1, 16),
            {"query_start": 15},
            "cache does not support a sequence axis",
        ),
        (shapes(16), {"query_start": jnp.zeros(B, int)}, "decoding with a cache"),
        (shapes(16), {"context_parallel": "rings"}, "did you mean 'ring'"),
        (
            shapes(16),
            {"context_parallel": "ring", "backend": "cudnn"},
            "'ring' does not support backend 'cudnn'",
        ),
        (
            shapes(1024),
            {"context_parallel": "ring", "backend": "splash"},
            "multiple of 2048 tokens, got 1024: use backend 'blockwise'",
        ),
        (shapes(16), {"backend": "splash"}, "needs a multiple of 1024 tokens"),
    ],
)
def test_what_context_parallelism_cannot_do_is_refused(args, how, message):
    mesh = sharding.make_mesh(sequence=8)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *x: attend(*x, **how), *args)


# Processes


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    start = partial(subprocess.Popen, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    command = [sys.executable, driver.__file__, address]
    started = [
        start([*command, str(i), str(tmp_path / "out.npz")], stderr=subprocess.PIPE)
        for i in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in started:
            process.kill()
    right = jax.tree.leaves(jax.jit(driver.loss_and_gradients)(driver.params(), driver.batch()))
    with np.load(tmp_path / "out.npz") as found:
        for how in driver.MESHES:
            for i, x in enumerate(right):
                np.testing.assert_allclose(found[f"{how}.{i}"], x, rtol=2e-5, atol=1e-5)
