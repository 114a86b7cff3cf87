"""Chunked cross-entropy equals float64 and never holds [T, V]."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, sharding
from longrope_jax.training.loss import token_scores

CONFIG = llama.LlamaConfig(97, 16, 1, 2, 2, 8, 32)
TIED = llama.LlamaConfig(97, 16, 1, 2, 2, 8, 32, tie_embeddings=True)


def example(T=50, B=2, config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    V, D = config.vocab_size, config.d_model
    params = {"embed": rng.normal(size=(V, D)), "unembed": rng.normal(size=(D, V))}
    hidden, targets = 3 * rng.normal(size=(B, T, D)), rng.integers(0, V, (B, T))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), jnp.float32(hidden), targets


def truth(head, hidden, targets):
    """nll, greedy choice, and gradients of sum(weights * nll), in float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logits = hidden @ head
    top = logits.max(-1, keepdims=True)
    logsumexp = top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
    nll = logsumexp - np.take_along_axis(logits, targets[..., None], -1)
    d_logits = np.exp(logits - logsumexp)
    B, T = targets.shape
    d_logits[np.arange(B)[:, None], np.arange(T), targets] -= 1
    return nll[..., 0], logits.argmax(-1), d_logits


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("chunk", [10, 7, 512])
def test_scores_and_gradients_equal_float64(config, chunk):
    params, hidden, targets = example(config=config)
    name = "embed" if config.tie_embeddings else "unembed"
    head = np.asarray(params["embed"].T if config.tie_embeddings else params["unembed"])
    weights = np.random.default_rng(1).normal(size=targets.shape).astype(np.float32)

    @jax.jit
    def run(params, hidden):
        def loss(params, hidden):
            scores = token_scores(config, params, hidden, targets, chunk=chunk)
            return (weights * scores.nll).sum(), scores

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, hidden)

    (d_params, d_hidden), scores = run(params, hidden)
    nll, greedy, d_logits = truth(head, hidden, targets)
    assert scores.nll.shape == targets.shape and scores.nll.dtype == jnp.float32
    np.testing.assert_allclose(scores.nll, nll, rtol=1e-6, atol=2e-5)
    np.testing.assert_array_equal(scores.correct, greedy == targets)
    d_logits = weights[..., None] * d_logits
    np.testing.assert_allclose(d_hidden, d_logits @ head.T.astype(np.float64), atol=5e-5)
    d_head = np.einsum("BTD,BTV->DV", np.asarray(hidden, np.float64), d_logits)
    d_head = d_head.T if config.tie_embeddings else d_head
    np.testing.assert_allclose(d_params[name], d_head, atol=2e-4)
    other = "unembed" if config.tie_embeddings else "embed"
    assert not np.asarray(d_params[other]).any()


def test_correct_is_the_greedy_choice():
    params, hidden, _ = example()
    greedy = np.asarray(hidden @ params["unembed"]).argmax(-1)
    right = token_scores(CONFIG, params, hidden, greedy, chunk=16).correct
    wrong = token_scores(CONFIG, params, hidden, (greedy + 1) % 97, chunk=16).correct
    assert right.dtype == bool and right.all() and not wrong.any()


def test_large_logits_stay_finite():
    params, hidden, targets = example()
    scores = token_scores(CONFIG, params, 1e4 * hidden, targets, chunk=16)
    head = np.asarray(params["unembed"])
    np.testing.assert_allclose(scores.nll, truth(head, 1e4 * hidden, targets)[0], rtol=1e-5, atol=1)


def test_bfloat16_hidden_gives_float32_scores():
    params, hidden, targets = example()
    scores = token_scores(CONFIG, params, hidden.astype(jnp.bfloat16), targets, chunk=16)
    assert scores.nll.dtype == jnp.float32
    head = np.asarray(params["unembed"].astype(jnp.bfloat16), np.float64)
    rounded = hidden.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(scores.nll, truth(head, rounded, targets)[0], atol=1e-4)


def largest_times_vocabulary(hlo, V):
    """Most logits that any array of the program holds: its elements over V, if V is an axis."""
    shapes = [[int(n) for n in s.split(",")] for s in re.findall(r"\w\d+\[([\d,]+)\]", hlo)]
    return max(int(np.prod(s)) // V for s in shapes if V in s)


def test_no_array_holds_every_tokens_logits():
    T, chunk, config = 4096, 512, llama.LlamaConfig(997, 16, 1, 2, 2, 8, 32)
    params, hidden, targets = example(T, 1, config)

    def loss(params, hidden, chunk):
        return token_scores(config, params, hidden, targets, chunk=chunk).nll.mean()

    def rows(f, chunk):
        compiled = jax.jit(f, static_argnums=2).lower(params, hidden, chunk).compile()
        return largest_times_vocabulary(compiled.as_text(), 997)

    assert rows(loss, chunk) == chunk
    assert rows(jax.grad(loss, argnums=(0, 1)), chunk) == chunk
    assert rows(loss, T) == T  # what is looked for would be seen


@pytest.mark.parametrize("sizes", [None, {"sequence": 2, "tensor": 2}], ids=["one", "mesh"])
def test_the_first_of_equal_logits_is_the_greedy_choice(sizes):
    config = llama.LlamaConfig(64, 16, 1, 2, 2, 8, 32)
    params, hidden, _ = example(12, config=config)
    columns = np.asarray(params["unembed"]).copy()
    columns[:, [3, 40]] = 9 * np.sign(columns[:, :1])  # the best, twice, on both devices of tensor
    hidden = jnp.asarray(np.sign(columns[:, 0]) * np.ones_like(hidden))
    params = params | {"unembed": jnp.asarray(columns)}

    def right(word):
        targets = jnp.full((2, 12), word)
        return jax.jit(lambda h: token_scores(config, params, h, targets, chunk=5).correct)(hidden)

    mesh = sizes and sharding.make_mesh(**sizes, devices=jax.devices()[:4])
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        assert right(3).all() and not right(40).any() and not right(2).any()
