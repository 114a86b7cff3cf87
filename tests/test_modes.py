"""Modes of jax that users switch on: training and generation work in each, with its numbers.

`make test-modes` runs more of the suite in each.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import generate, llama, rotary, sharding
from longrope_jax.training import optimizer
from longrope_jax.training import step as steps

CONFIG = llama.LlamaConfig(31, 16, 1, 4, 2, 8, 32)
ADAMW = optimizer.OptimizerConfig(0.02, 6, warmup_steps=1)
MODES = {
    "none": {},
    "x64": {"jax_enable_x64": True},
    "debug_nans": {"jax_debug_nans": True},
    "matmul precision": {"jax_default_matmul_precision": "bfloat16"},
    "rank promotion": {"jax_numpy_rank_promotion": "raise"},
    "dtype promotion": {"jax_numpy_dtype_promotion": "strict"},
}


def numbers():
    """Losses of two steps, and greedy tokens."""
    mesh, rng = sharding.make_mesh(devices=jax.devices()[:1]), np.random.default_rng(0)
    state, losses = steps.init_state(CONFIG, ADAMW, mesh, seed=1), []
    rot = rotary.make(rotary.YaRN(4.0, 8), head_dim=8, seq_len=8)
    for _ in range(2):
        batch = {
            "tokens": rng.integers(0, 31, (2, 2, 9), dtype=np.int32),
            "weights": np.ones((2, 2, 8), np.float32),
            "segment_start": np.zeros((2, 2, 8), np.int32),
        }
        placed = sharding.shard_batch(mesh, batch, axis=1)
        state, logged = steps.make_train_step(CONFIG, ADAMW, mesh)(state, rot, placed)
        losses.append(float(logged["loss"]))
    tokens = generate.generate(CONFIG, state.params, rotary.YaRN(4.0, 8), [[1, 2, 3]], 4).tokens
    return losses, np.asarray(tokens)


@pytest.fixture(scope="module")
def plain():
    return numbers()


@pytest.mark.parametrize("mode", MODES)
def test_numbers_are_those_without_the_mode(mode, plain):
    before = {name: getattr(jax.config, name) for name in MODES[mode]}
    try:
        for name, value in MODES[mode].items():
            jax.config.update(name, value)
        losses, tokens = numbers()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    np.testing.assert_allclose(losses, plain[0], rtol=2e-2 if "precision" in mode else 1e-5)
    np.testing.assert_array_equal(tokens, plain[1])


@pytest.fixture
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def trace(config, method):
    """Traces a packed loss with its gradients, and a step of generation; compiles nothing."""
    rot = rotary.make(method, head_dim=config.head_dim, seq_len=16)
    params = jax.eval_shape(lambda: llama.init_params(config, jax.random.key(0)))
    batch = {
        "tokens": jax.ShapeDtypeStruct((2, 17), jnp.int32),
        "weights": jax.ShapeDtypeStruct((2, 16), jnp.float32),
        "segment_start": jax.ShapeDtypeStruct((2, 16), jnp.int32),
    }
    jax.eval_shape(
        jax.value_and_grad(lambda p, b: steps.weighted_nll(config, p, rot, b)), params, batch
    )
    if config.sparse_group:  # which is for training alone
        return
    cache = jax.eval_shape(lambda: llama.init_cache(config, 2, 16, rot))
    model, tokens = llama.Llama(config), jax.ShapeDtypeStruct((2, 1), jnp.int32)
    jax.eval_shape(
        lambda p, t, c: model.apply({"params": p}, t, rotary=rot, cache=c), params, tokens, cache
    )


def test_every_method_traces_without_implicit_promotion(spec, strict):
    trace(CONFIG, spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "reference"},
        {"dtype": "bfloat16", "remat": "full"},
        {"attention_bias": True, "output_bias": True, "mlp_bias": True},
        {"qk_norm": True, "norm_offset": True, "activation": "gelu_tanh", "embed_scale": 4.0},
        {
            "qk_norm_joint": True,
            "windows": (4, 0),
            "score_scale": 0.3,
            "rotary_layout": "interleaved",
        },
        {"sparse_group": 8},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_kind_of_block_traces_without_implicit_promotion(changes, strict):
    config = dataclasses.replace(CONFIG, n_layers=2, **changes)
    trace(config, rotary.YaRN(4.0, 8))
