"""Tests of what XLA makes of our programs, in one place: a new jax may change it and be right.

Each says why it stands although it counts operations or reaches into jax. A failure after an
upgrade asks for a look at the program, not at once for a change of ours.
"""

import contextlib
import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from longrope_jax import llama, rotary, sharding
from longrope_jax.attention import attend

TINY = llama.LlamaConfig(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
)
TOKENS = jnp.zeros((2, 24), jnp.int32)
ROPE = rotary.make(rotary.RoPE(), head_dim=8, seq_len=24)


# A remat policy is a promise of memory against time, and only the program says which products it
# computes again; times on a shared machine would not.


def gradient_program(mesh=None, **changes):
    """Lowered forward and backward; the layers are a loop, so each product of a layer is there once
    for each time it is computed."""
    config = dataclasses.replace(TINY, **changes)
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))

    def loss(params):
        return llama.Llama(config).apply({"params": params}, TOKENS, rotary=ROPE)[0].sum()

    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        return jax.jit(jax.grad(loss)).lower(params)


def dots(program):
    return program.as_text().count("stablehlo.dot_general")


def test_remat_policies_compute_again_what_they_say():
    programs = {remat: gradient_program(remat=remat) for remat in llama.REMAT}
    plain = 3 * 7 + 2 + 5 + 1  # seven projections, attention forward and backward, its row sums
    assert dots(programs["none"]) == plain
    assert dots(programs["linear"]) == plain
    assert dots(programs["attention"]) == plain + 6  # q, k, v, attention out, gate, up
    assert dots(programs["full"]) == plain + 8  # and attention's two
    assert len(re.findall(r" dot\(", programs["linear"].compile().as_text())) == plain


@pytest.mark.parametrize("how", ["all_gather", "ring"])
def test_linear_remat_computes_nothing_again_on_a_mesh(how):
    mesh = sharding.make_mesh(sequence=2, tensor=2, devices=jax.devices()[:4])
    none, linear, full = (
        dots(gradient_program(mesh, remat=remat, context_parallel=how))
        for remat in ("none", "linear", "full")
    )
    assert none == linear < full


# Where there is no GPU only the lowered program can show that our call becomes cuDNN attention,
# causal and with its backward. jax asks for the version of cuDNN in private functions.


@pytest.fixture
def cudnn_at_hand(monkeypatch):
    """As if this host had cuDNN: its version checks are all that asks for a GPU in lowering."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(checks, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda capability: False)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cudnn_forward_and_backward_lower_for_cuda(dtype, cudnn_at_hand):
    q, k = (jax.ShapeDtypeStruct((2, 64, n, 64), dtype) for n in (4, 2))

    def loss(q, k, v):
        return attend(q, k, v, backend="cudnn").astype(jnp.float32).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = step.trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line.replace("\\22", '"') for line in text.splitlines() if "@__cudnn" in line]
    assert [call.split("@")[1].split("(")[0] for call in calls] == [
        "__cudnn$fmhaSoftmax",
        "__cudnn$fmhaSoftmaxBackward",
    ]
    for call in calls:
        assert '"mask_type": "CAUSAL"' in call and '"fmha_scale": 0.125' in call
    assert "dot_general" not in text  # no plain attention beside it
