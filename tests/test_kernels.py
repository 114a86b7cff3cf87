"""Kernels of TPUs (interpreted here) and GPUs (lowered here), and which back end "auto" takes."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, rotary, sharding
from longrope_jax.attention import (
    _attention,
    attend,
    blockwise,
    cudnn,
    ring,
    splash,
    splash_kernel,
    splash_ring,
)

RNG = np.random.default_rng(0)


def draw(T, N=2, K=1, H=32, B=1, dtype=jnp.float32):
    return [jnp.asarray(RNG.normal(size=(B, T, n, H)), dtype) for n in (N, K, K)]


def packing(T, *starts):
    starts = np.array(starts)
    return jnp.asarray(starts[np.searchsorted(starts, np.arange(T), side="right") - 1], jnp.int32)


def value_and_gradients(args, segment_start=None, **how):
    @jax.jit
    def run(args, segment_start):
        out, back = jax.vjp(lambda *x: attend(*x, segment_start=segment_start, **how), *args)
        return out, *back(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    return run(args, segment_start)


def check_splash(args, segment_start=None, tolerance=2e-5):
    mine = value_and_gradients(args, segment_start, backend="splash")
    right = value_and_gradients(args, segment_start, backend="reference")
    for a, b in zip(mine, right, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance)


# splash


@pytest.mark.parametrize("H", [32, 64, 80, 128, 256])
def test_splash_equals_reference_for_every_head_dim(H):
    check_splash(draw(128, H=H))


@pytest.mark.parametrize("T", [1, 100, 129, 700])
def test_splash_at_lengths_that_are_no_multiple_of_a_block(T):
    check_splash(draw(T))


def test_splash_packed_with_grouped_heads():
    first = jnp.stack([packing(300, 0, 1, 140), packing(300, 0, 257, 299)])
    check_splash(draw(300, N=6, K=2, B=2), first)


def test_splash_in_bfloat16():
    check_splash(draw(256, N=2, K=2, dtype=jnp.bfloat16), packing(256, 0, 90)[None], 0.05)


def test_splash_on_a_mesh_equals_one_device():
    args = draw(150, N=4, K=2, B=4)
    first = jnp.stack([packing(150, 0, 3 + 30 * b) for b in range(4)])
    one = value_and_gradients(args, first, backend="reference")
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
        many = value_and_gradients(args, first, backend="splash")
    for mine, right in zip(many, one, strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-5)


def test_splash_over_gathered_keys_equals_one_device():
    args, first = draw(512, N=4, K=2), packing(512, 0, 150, 400)[None]
    one = value_and_gradients(args, first, backend="reference")
    with jax.set_mesh(sharding.make_mesh(sequence=2, tensor=2, devices=jax.devices()[:4])):
        many = value_and_gradients(args, first, backend="splash")
    for mine, right in zip(many, one, strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-5)


# a ring of splash kernels

SPLASH_RING = {"backend": "splash", "context_parallel": "ring"}


def four(**axes):
    return jax.set_mesh(sharding.make_mesh(**axes, devices=jax.devices()[:4]))


@pytest.mark.parametrize(
    "mesh, T, packed",
    [
        ({"sequence": 4}, 1024, False),
        ({"sequence": 4}, 1024, True),
        ({"sequence": 2, "tensor": 2}, 512, True),
        ({"fsdp": 2, "sequence": 2}, 512, False),
    ],
)
def test_a_ring_of_splash_kernels_equals_one_device(mesh, T, packed):
    """Documents begin within half chunks and span several; some queries see no key of a square."""
    args = draw(T, N=4, K=2, B=2)
    first = jnp.stack([packing(T, 0, 1, 200 + b, 317, T - 24) for b in range(2)])
    first = first if packed else None
    one = value_and_gradients(args, first, backend="reference")
    with four(**mesh):
        many = value_and_gradients(args, first, **SPLASH_RING)
    for mine, right in zip(many, one, strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-6 * np.abs(right).max())


@pytest.mark.parametrize("parts", [16, 0], ids=["fused, dq in two parts", "dq by itself"])
def test_each_backward_kernel_gives_the_ring_the_same_gradients(parts, monkeypatch):
    for name, size in {"BLOCK": 128, "BLOCK_BACKWARD": 128, "FUSED_PARTS": parts}.items():
        monkeypatch.setattr(splash_kernel, name, size)
    sizes = splash_kernel.block_sizes(256)
    assert sizes.use_fused_bwd_kernel == (parts > 0) and sizes.block_kv_dkv == 128
    args, first = draw(1024, N=2, K=1), packing(1024, 0, 700)[None]
    one = value_and_gradients(args, first, backend="reference")
    with jax.set_mesh(sharding.make_mesh(sequence=2, devices=jax.devices()[:2])):
        many = value_and_gradients(args, first, **SPLASH_RING)
    for mine, right in zip(many, one, strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-6 * np.abs(right).max())


def test_a_ring_of_splash_kernels_in_bfloat16_rounds_like_one_kernel():
    """Hops merge in float32, so that eight of them add up to no more rounding than one."""
    args = draw(2048, N=1, dtype=jnp.bfloat16)
    exact = value_and_gradients([x.astype(jnp.float32) for x in args], backend="reference")
    kernel = value_and_gradients(args, backend="splash")
    with jax.set_mesh(sharding.make_mesh(sequence=8)):
        many = value_and_gradients(args, **SPLASH_RING)
    for mine, one, right in zip(many, kernel, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [np.sqrt(np.mean((np.float32(x) - right) ** 2)) for x in (mine, one)]
        assert errors[0] < 1.5 * errors[1]


def test_the_private_function_of_jax_is_the_one_that_the_ring_was_written_for():
    """If this fails, JAX changed it: read its new arguments, then mend splash_kernel.backward."""
    module = splash_kernel.splash_attention_kernel
    found = getattr(module, "_splash_attention_bwd", None)
    assert found is not None, "jax has no splash_attention_kernel._splash_attention_bwd any more"
    assert tuple(inspect.signature(found).parameters) == splash_kernel.BACKWARD
    kernel = splash_kernel.square(1, 256, causal=True)
    used = {"mask_value", "is_mqa", "block_sizes", "mask_function", "attn_logits_soft_cap"}
    assert used | {"interpret"} <= kernel.kwargs.keys()
    assert kernel.dkv_mask_info is not None  # and a fused backward has no tables of dq
    names = module.SplashResidualsType.__args__  # q, k, v, ids, sinks, out, lse, two tables
    assert len(names) == 9


def ring_step(platform, T, monkeypatch, *, parts=2, window=None, backend="auto"):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    work = {"packed": False, "whole": True, "parts": parts}
    around = _attention(backend, "ring", shape(T)[0], work, None, window)
    return around.args[0]


def test_the_ring_takes_the_kernel_on_tpus_and_says_when_it_cannot(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ring_step("tpu", 1024, monkeypatch) is splash_ring.attention
        assert ring_step("tpu", 1024, monkeypatch, window=9) is ring.attention  # any range of keys
        assert ring_step("tpu", 4, monkeypatch) is ring.attention  # as parameters are made
        for platform in ("cpu", "gpu"):
            assert ring_step(platform, 1024, monkeypatch) is ring.attention
        assert ring_step("tpu", 1024, monkeypatch, backend="blockwise") is ring.attention
        assert ring_step("cpu", 1024, monkeypatch, backend="splash") is splash_ring.attention
    with pytest.warns(UserWarning, match="multiple of 512 tokens, got 1100.* blockwise"):
        assert ring_step("tpu", 1100, monkeypatch) is ring.attention


def test_a_program_says_once_that_its_ring_is_blockwise(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    config = llama.LlamaConfig(32, 16, 3, 2, 2, 8, 24, context_parallel="ring")
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=1100)
    tokens = jnp.zeros((1, 1100), jnp.int32)
    with jax.set_mesh(sharding.make_mesh(sequence=2, devices=jax.devices()[:2])):
        params = jax.eval_shape(lambda: llama.init_params(config, jax.random.key(0)))
        run = lambda p: llama.logits(config, p, tokens, rot).sum()  # noqa: E731
        with warnings.catch_warnings(record=True) as said:
            jax.eval_shape(jax.grad(run), params)
    assert len([w for w in said if "blockwise" in str(w.message)]) == 1


# cudnn


def shape(T, dtype="bfloat16", H=64, S=None):
    return [jax.ShapeDtypeStruct((1, n, 2, H), dtype) for n in (T, S or T, S or T)]


@pytest.mark.parametrize(
    "backend, args, how, message",
    [
        ("cudnn", shape(8, "float32"), {}, "bfloat16 or float16, got float32"),
        ("cudnn", shape(8), {"segment_start": np.zeros((1, 8), int)}, "packed documents"),
        ("cudnn", shape(1, S=8), {"query_start": np.zeros(1, int)}, "as many queries as keys"),
        ("cudnn", shape(8, H=12), {}, "multiple of 8 up to 128, got 12"),
        ("splash", shape(1, S=8), {"query_start": 7}, "as many queries as keys"),
        ("splash", shape(8), {"query_start": np.zeros(1, int)}, "as many queries as keys"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(backend, args, how, message):
    with pytest.raises(ValueError, match=f"{message}.*: use backend 'blockwise'"):
        jax.eval_shape(lambda *x: attend(*x, backend=backend, **how), *args)


# auto


def chosen(platform, args, monkeypatch, *, packed=False, whole=True, parts=1):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    work = {"packed": packed, "whole": whole, "parts": parts}
    return _attention("auto", "all_gather", args[0], work, None, None)


def test_auto_takes_the_kernel_of_the_platform_where_it_applies(monkeypatch):
    half, single = shape(256), shape(256, "float32")
    for args, where, wanted in [
        (half, {"platform": "cpu"}, blockwise),
        (half, {"platform": "tpu"}, splash),
        (single, {"platform": "tpu", "packed": True}, splash),
        (half, {"platform": "tpu", "whole": False}, blockwise),
        (half, {"platform": "gpu"}, cudnn),
        (half, {"platform": "gpu", "packed": True}, blockwise),
        (half, {"platform": "gpu", "whole": False}, blockwise),
        (single, {"platform": "gpu"}, blockwise),
    ]:
        assert chosen(args=args, monkeypatch=monkeypatch, **where) is wanted.attention, where
    for args, parts, wanted in [(half, 2, splash), (half, 4, blockwise)]:
        gathering = chosen("tpu", args, monkeypatch, parts=parts)
        assert gathering.args == (wanted.attention,)


def test_the_devices_of_the_mesh_tell_the_platform():
    assert sharding.platform() == "cpu"
    # jax before 0.10.1 asks for no platform.
    fields = inspect.signature(jax.sharding.AbstractDevice).parameters.keys() - {"device_kind"}
    for kind, platform in [("TPU v5p", "tpu"), ("NVIDIA H200", "gpu"), ("cpu", "cpu")]:
        device = jax.sharding.AbstractDevice(device_kind=kind, **dict.fromkeys(fields))
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert sharding.platform() == platform
