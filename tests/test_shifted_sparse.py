"""S2-Attn: the recorded masks, a written-out numpy softmax, no leak, linear cost."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import llama, rotary
from longrope_jax.attention.shifted_sparse import shifted_sparse

# dvlab-research/LongLoRA@d4eb344 llama_attn_replace.py, 8 tokens in groups of 4, shifted half of
# the heads: the path without FlashAttention rolls, the one with it has groups of unequal length.
ROLLED = json.loads(
    "[[1,0,0,0,0,0,1,1],[1,1,0,0,0,0,1,1],[0,0,1,0,0,0,0,0],[0,0,1,1,0,0,0,0],"
    "[0,0,1,1,1,0,0,0],[0,0,1,1,1,1,0,0],[0,0,0,0,0,0,1,0],[0,0,0,0,0,0,1,1]]"
)
VARLEN = json.loads(
    "[[1,0,0,0,0,0,0,0],[1,1,0,0,0,0,0,0],[0,0,1,0,0,0,0,0],[0,0,1,1,0,0,0,0],"
    "[0,0,1,1,1,0,0,0],[0,0,1,1,1,1,0,0],[0,0,0,0,0,0,1,0],[0,0,0,0,0,0,1,1]]"
)


jitted = jax.jit(shifted_sparse, static_argnames=("group", "leak", "backend"))


def masks(T, group, N=2, **options):
    """[N, T, T] of booleans: which keys each query of each head sees, read off the weights."""
    v = jnp.broadcast_to(jnp.eye(T)[None, :, None], (1, T, N, T))
    out = shifted_sparse(jnp.zeros_like(v), jnp.zeros_like(v), v, group=group, **options)
    return np.asarray(out[0]).swapaxes(0, 1) > 0


def written_out(q, k, v, mask):
    """Softmax over the keys of a mask [B, N, T, T], in float64; k and v have N heads."""
    scores = np.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    weights = np.where(mask, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def expected_mask(T, group, N, starts):
    """[N, T, T] by the definition: same group, same document, not later."""
    t = np.arange(T)
    causal = (t[None] <= t[:, None]) & (t[None] >= starts[:, None])
    straight = t[:, None] // group == t[None] // group
    shifted = (t[:, None] + group // 2) // group == (t[None] + group // 2) // group
    return np.stack([causal & (shifted if n >= N // 2 else straight) for n in range(N)])


@pytest.mark.parametrize(("leak", "recorded"), [(False, VARLEN), (True, ROLLED)])
def test_masks_are_those_of_the_released_code(leak, recorded):
    found = masks(8, 4, leak=leak)
    np.testing.assert_array_equal(found[1], np.asarray(recorded, bool))
    block = np.tril(np.ones((4, 4), bool))
    np.testing.assert_array_equal(found[0], np.kron(np.eye(2, dtype=bool), block))


def test_nothing_sees_its_future_unless_asked_to():
    future = np.triu(np.ones((24, 24), bool), 1)
    assert not masks(24, 6)[:, future].any()
    assert masks(24, 6, leak=True)[1][future].any()


@settings(max_examples=10, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    heads=st.sampled_from([(4, 2), (9, 3)]),
    borders=st.sets(st.integers(1, 23), max_size=4),
    seed=st.integers(0, 99),
)
def test_equals_a_written_out_softmax(groups, heads, borders, seed):
    (N, K), T, B, H = heads, 24, 2, 4
    group = T // groups
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K))
    starts = np.zeros(T, np.int32)
    for border in sorted(borders):
        starts[border:] = border
    packed = np.stack([starts, np.zeros(T, np.int32)])
    found = jitted(q, k, v, group=group, segment_start=jnp.asarray(packed), backend="reference")
    mask = np.stack([expected_mask(T, group, N, row) for row in packed])
    expected = written_out(q, k.repeat(N // K, 2), v.repeat(N // K, 2), mask)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_both_back_ends_agree_with_gradients():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 16, n, 4)).astype(np.float32) for n in (4, 2, 2))

    def total(q_k_v, backend):
        return jnp.sin(shifted_sparse(*q_k_v, group=8, backend=backend)).sum()

    value_and_grad = jax.jit(jax.value_and_grad(total), static_argnums=1)
    one, other = (value_and_grad((q, k, v), b) for b in ("reference", "blockwise"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def flops(T, group):
    """Of attention in one compiled forward."""
    q = jax.ShapeDtypeStruct((1, T, 4, 16), jnp.float32)

    def run(q, k, v):
        return shifted_sparse(q, k, v, group=group, backend="reference")

    return jax.jit(run).lower(q, q, q).compile().cost_analysis()["flops"]


def test_cost_is_linear_in_length_and_a_quarter_at_the_papers_group():
    """At a fixed group the cost doubles with T; at G = T / 4 it is a quarter of full attention."""
    fixed = flops(1024, 128) / flops(512, 128)
    assert 1.95 < fixed < 2.05
    assert 0.24 < flops(1024, 256) / flops(1024, 1024) < 0.26


CONFIG = llama.LlamaConfig(32, 16, 2, 4, 2, 8, 32, attention="reference")


def test_in_the_model_groups_bound_what_is_seen_and_shifting_crosses_them(random_params):
    """Two layers, G = 8: positions below 4 are as with full attention, 5 is seen from group 2."""
    params = random_params(CONFIG)
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=16)
    tokens = np.random.default_rng(0).integers(0, 32, (2, 16), dtype=np.int32)
    tokens[1] = tokens[0]
    tokens[1, 5] = (tokens[0, 5] + 1) % 32

    def logits(config):
        return np.asarray(jax.jit(lambda p: llama.logits(config, p, tokens, rot))(params))

    full, sparse = logits(CONFIG), logits(dataclasses.replace(CONFIG, sparse_group=8))
    np.testing.assert_allclose(sparse[:, :4], full[:, :4], atol=1e-5)
    assert (np.abs(sparse - full)[:, 4:].max(-1) > 1e-3).all()
    moved = np.abs(sparse[1] - sparse[0]).max(-1) > 1e-6
    assert not moved[:5].any()
    assert moved[8:12].any()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 2, 2), {"group": 3}, "even and divide the 8 tokens, got 3"),
        ((8, 2, 2), {"group": 6}, "even and divide the 8 tokens, got 6"),
        ((8, 2, 2), {"group": 0}, "got 0"),
        ((8, 1, 1), {"group": 4}, "needs 2 or more, got 1"),
        ((8, 3, 2), {"group": 4}, "3 query heads .* multiple of 2"),
        ((8, 2, 2), {"group": 4, "leak": True, "segment_start": jnp.zeros((1, 8), int)}, "leak"),
        ((8, 2, 2), {"group": 4, "backend": "blockwize"}, "blockwize.*'blockwise'"),
    ],
)
def test_what_does_not_fit_is_one_line(shape, options, message):
    T, N, K = shape
    q, k = jnp.zeros((1, T, N, 4)), jnp.zeros((1, T, K, 4))
    with pytest.raises(ValueError, match=message) as error:
        shifted_sparse(q, k, k, **options)
    assert "\n" not in str(error.value)


def test_decoding_and_score_rules_with_it_are_refused(random_params):
    config = dataclasses.replace(CONFIG, sparse_group=8)
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=16)
    with pytest.raises(ValueError, match="sparse_group=0"):
        llama.Llama(config).apply(
            {"params": random_params(CONFIG)},
            jnp.zeros((1, 8), jnp.int32),
            rotary=rot,
            cache=llama.init_cache(config, 1, 8),
        )
    alibi = rotary.make(rotary.ALiBi(), head_dim=8, seq_len=16)
    with pytest.raises(ValueError, match=r"not .*: use sparse_group=0"):
        llama.logits(config, random_params(CONFIG), jnp.zeros((1, 8), jnp.int32), alibi)
    with pytest.raises(ValueError, match="sparse_group"):
        dataclasses.replace(CONFIG, sparse_group=-4)
