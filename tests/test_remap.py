"""Remapped positions and ALiBi: scores equal the papers' relative positions, in every back end."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import generate, llama, rotary
from longrope_jax.analysis import decay
from longrope_jax.attention import attend, blockwise

BASE, H = 30.0, 8  # the base makes the slow pairs act within 24 tokens


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK_Q", 8)
        patch.setattr(blockwise, "BLOCK_K", 4)
        yield


# The relative position of each paper, for one pair, in plain Python.


def rerope(m, n, window):
    return min(m - n, window)


def leaky_rerope(m, n, window, factor):
    return m - n if m - n < window else window + (m - n - window) / factor


def self_extend(m, n, window, group):
    return m - n if m - n < window else m // group - n // group + window - window // group


def string(m, n, shift, window, original_length=999):
    return m - n if m - n < shift else m - n - shift + window


def dual_chunk(m, n, original_length, chunk):
    """Equations 2 to 8, with the three lists of query positions written out."""
    c, s, w = original_length, chunk, original_length - chunk
    ahead = m // s - n // s
    successive = [*range(s, s + w), *[c - 1] * s][:s]
    return [m % s, successive[m % s], c - 1][min(ahead, 2)] - n % s


METHODS = [
    (rotary.ReRoPE, rerope, {"window": 5}),
    (rotary.LeakyReRoPE, leaky_rerope, {"window": 4, "factor": 3.5}),
    (rotary.SelfExtend, self_extend, {"window": 7, "group": 3}),
    (rotary.DualChunk, dual_chunk, {"original_length": 10, "chunk": 6}),
    (rotary.STRING, string, {"original_length": 999, "shift": 9, "window": 2}),
]
IDS = [truth.__name__ for _, truth, _ in METHODS]
SPECS = [method(**options, inner=rotary.RoPE(BASE)) for method, _, options in METHODS]


def make(spec, seq_len=64):
    return rotary.make(spec, head_dim=H, seq_len=seq_len)


def rule_of(spec):
    return spec.frequencies(head_dim=H, seq_len=64).score_rule


# Relative positions


WINDOWS = st.integers(1, 40)
OPTIONS = {
    "rerope": {"window": WINDOWS},
    "leaky_rerope": {"window": WINDOWS, "factor": st.integers(1, 9)},
    "self_extend": {"window": WINDOWS, "group": st.integers(1, 9)},
    "dual_chunk": {"original_length": st.integers(21, 60), "chunk": st.integers(1, 20)},
    "string": {
        "original_length": st.just(999),
        "shift": st.integers(20, 60),
        "window": st.integers(1, 20),
    },
}


@pytest.mark.parametrize("method, truth, _", METHODS, ids=IDS)
@given(data=st.data(), n=st.integers(0, 200), distance=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_relative_positions_are_the_papers(method, truth, _, data, n, distance):
    options = {name: data.draw(values, name) for name, values in OPTIONS[truth.__name__].items()}
    rule, m = rule_of(method(**options)), n + distance
    found = rule.relative_position(np.array([m]), np.array([n]))
    assert found[0] == pytest.approx(truth(m, n, **options), abs=1e-12)


def test_the_example_of_dual_chunk_attention():
    """Figure 2 of 2402.17463: c = 10, s = 6, w = 4, twelve tokens."""
    rule = rule_of(rotary.DualChunk(10, 6))
    intra, successive, inter = rule.query_positions(np.arange(12))
    np.testing.assert_array_equal(intra, [0, 1, 2, 3, 4, 5] * 2)
    np.testing.assert_array_equal(successive, [6, 7, 8, 9, 9, 9] * 2)
    np.testing.assert_array_equal(inter, [9] * 12)
    np.testing.assert_array_equal(rule.key_positions(np.arange(12))[0], [0, 1, 2, 3, 4, 5] * 2)
    assert rule.key_copies == 1
    near = rule.relative_position(np.arange(12)[:, None], np.arange(12))
    for distance in range(4):  # the w nearest tokens and the query itself keep their distance
        np.testing.assert_array_equal(np.diag(near, -distance), [distance] * (12 - distance))
    assert rule_of(rotary.DualChunk(4096)).chunk == 3072  # three quarters, as in the paper


def test_no_position_reaches_the_trained_length_under_dual_chunk():
    rule, m = rule_of(rotary.DualChunk(100)), np.arange(5000)
    assert max(np.max(x) for x in rule.query_positions(m)) == 99
    assert np.max(rule.key_positions(m)[0]) == 74


# Attention against float64


def inputs(B, T, K, G, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, K * G, H), (B, T, K, H), (B, T, K, H)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def packing(B, T, seed=0):
    starts = np.where(np.random.default_rng(seed).random((B, T)) < 0.1, np.arange(T), 0)
    return np.maximum.accumulate(starts, axis=1).astype(np.int32)


def float64_attention(q, k, v, first, score):
    """Softmax attention, one pair after the other; score(q, k, head, m, n) before softmax."""
    B, T, N, _ = q.shape
    out, G = np.zeros(q.shape), N // k.shape[2]
    for b, t, h in np.ndindex(B, T, N):
        seen = range(first[b, t], t + 1)
        scores = [score(q[b, t, h], k[b, s, h // G], h, t - seen[0], s - seen[0]) for s in seen]
        weights = np.exp(np.array(scores) - max(scores))
        out[b, t, h] = weights @ v[b, seen, h // G] / weights.sum()
    return out


def turned_score(relative):
    """q . R(relative position) k / sqrt(H), by complex numbers."""
    theta = BASE ** (-np.arange(H // 2) / (H // 2))

    def score(q, k, _, m, n):
        q, k = (x[: H // 2] + 1j * x[H // 2 :] for x in (q.astype(float), k.astype(float)))
        return (q * k.conj() * np.exp(1j * theta * relative(m, n))).real.sum() / np.sqrt(H)

    return score


def biased_score(n_heads):
    slopes = [2 ** (-8 * i / n_heads) for i in range(1, n_heads + 1)]

    def score(q, k, h, m, n):
        return q.astype(float) @ k.astype(float) / np.sqrt(H) - slopes[h] * (m - n)

    return score


@partial(jax.jit, static_argnames=("backend", "backward"))
def attention(rot, q, k, v, segment_start, backend, backward=True):
    """Values, and gradients of a fixed function, through rotation and attention."""
    T = q.shape[1]
    positions = jnp.arange(T) if segment_start is None else jnp.arange(T) - segment_start
    phases = rotary.phases(rot, positions)

    def f(q, k, v):
        q, k = rotary.rotate(q, phases.query), rotary.rotate(k, phases.key)
        rule = rot.score_rule
        return attend(q, k, v, segment_start=segment_start, score_rule=rule, backend=backend)

    if not backward:
        return f(q, k, v), None
    out, back = jax.vjp(f, q, k, v)
    return out, back(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


CASES = [*zip(SPECS, [turned_score(partial(t, **o)) for _, t, o in METHODS], strict=True)]
CASES.append((rotary.ALiBi(), biased_score(4)))


def test_attention_without_packing():
    spec, score = CASES[3]
    args = inputs(1, 27, K=1, G=2)
    for backend in ("blockwise", "reference"):
        out, _ = attention(make(spec), *args, None, backend, False)
        np.testing.assert_allclose(
            out, float64_attention(*args, np.zeros((1, 27), int), score), atol=3e-6
        )


@pytest.mark.parametrize("spec, score", CASES, ids=[*IDS, "alibi"])
def test_attention_equals_float64_and_back_ends_agree(spec, score):
    """27 tokens, the first row one document: beyond every switch, no multiple of the blocks."""
    B, T = 2, 27
    q, k, v = inputs(B, T, K=2, G=2)
    first = packing(B, T) * np.array([[0], [1]], np.int32)
    block, plain = (attention(make(spec), q, k, v, first, b) for b in ("blockwise", "reference"))
    truth = float64_attention(q, k, v, first, score)
    np.testing.assert_allclose(plain[0], truth, atol=3e-6)
    np.testing.assert_allclose(block[0], truth, atol=3e-6)
    for mine, theirs in zip(block[1], plain[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_a_branch_that_no_pair_uses_is_not_computed():
    """Its copies hold NaN; times zero they would be seen in the gradients."""
    rule = rule_of(rotary.ReRoPE(27))
    q, k, v = inputs(1, 27, K=1, G=2)
    q, k = (np.concatenate([x, np.full_like(x, np.nan)], axis=-1) for x in (q, k))

    def f(q, k, v):
        return attend(q, k, v, score_rule=rule).sum()

    value, gradients = jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    "spec",
    [
        rotary.ReRoPE(24, rotary.RoPE(BASE)),
        rotary.LeakyReRoPE(5, 1, rotary.RoPE(BASE)),
        rotary.SelfExtend(5, 1, rotary.RoPE(BASE)),
        rotary.DualChunk(64, 24, rotary.RoPE(BASE)),
        rotary.STRING(999, 24, 2, rotary.RoPE(BASE)),
        rotary.STRING(999, 9, 9, rotary.RoPE(BASE)),
    ],
    ids=str,
)
def test_without_remapped_pairs_it_is_the_inner_method(spec):
    args = inputs(1, 24, K=1, G=2)
    ours, inner = (attention(make(s), *args, None, "reference", False) for s in (spec, spec.inner))
    np.testing.assert_allclose(ours[0], inner[0], atol=5e-6)


def test_slopes_of_alibi():
    halves = 0.5 ** np.arange(1, 9)
    np.testing.assert_allclose(rotary.alibi_slopes(8), halves, rtol=1e-15)
    between = 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5])
    np.testing.assert_allclose(rotary.alibi_slopes(12), [*halves, *between], rtol=1e-15)
    np.testing.assert_allclose(rotary.alibi_slopes(1), [2.0**-8], rtol=1e-15)
    assert len(rotary.alibi_slopes(71)) == 71
    with pytest.raises(ValueError, match="n_heads must be at least 1"):
        rotary.alibi_slopes(0)


# In the model


V, T = 61, 24
TINY = llama.LlamaConfig(
    vocab_size=V, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=H, d_ff=48
)
TOKENS = jnp.asarray(np.random.default_rng(5).permutation(V)[: 2 * T].reshape(2, T))
IN_ATTENTION = [*SPECS, rotary.ALiBi(), rotary.FoPE(64, 2, BASE)]
NAMES = [*IDS, "alibi", "fope"]


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(TINY)


@partial(jax.jit, static_argnums=0)
def run(config, params, tokens, rot, segment_start=None, cache=None):
    out, cache = llama.Llama(config).apply(
        {"params": params}, tokens, rotary=rot, segment_start=segment_start, cache=cache
    )
    return llama.unembed(config, params, out), cache


def close(a, b, atol=3e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


WHOLE = np.zeros((2, T), np.int32)
TWO = np.broadcast_to(np.where(np.arange(T) < 8, 0, 8), (2, T)).astype(np.int32)


@pytest.mark.parametrize("spec", IN_ATTENTION, ids=NAMES)
def test_packed_documents_are_as_if_alone(spec, params):
    rot = make(spec)
    packed, _ = run(TINY, params, TOKENS, rot, TWO)
    alone, _ = run(TINY, params, jnp.roll(TOKENS, -8, axis=1), rot, WHOLE)
    close(packed[:, 8:], alone[:, : T - 8])
    assert np.abs(packed - run(TINY, params, TOKENS, rot, WHOLE)[0])[:, 8:].max() > 1e-3


@pytest.mark.parametrize("spec", IN_ATTENTION, ids=NAMES)
@pytest.mark.parametrize("starts", [WHOLE, TWO], ids=["whole", "packed"])
def test_prefill_and_decoding_equal_the_full_forward(spec, starts, params):
    """Three tokens at a time past every switch, the second row two tokens behind."""
    rot = make(spec)
    full = np.asarray(run(TINY, params, TOKENS, rot, starts)[0])
    cache, rows = llama.init_cache(TINY, 2, T, rot), np.arange(2)[:, None]
    assert cache.k.shape[-1] == H * (rot.score_rule.key_copies if rot.score_rule else 1)
    for first in range(0, T - 2, 3):
        length = np.maximum(0, [first, first - 2])
        cache = dataclasses.replace(cache, length=jnp.asarray(length, jnp.int32))
        at = length[:, None] + np.arange(3)
        out, cache = run(TINY, params, TOKENS[rows, at], rot, starts[rows, at], cache)
        close(out, full[rows, at])


def test_generation_makes_room_for_copies(params):
    prompts = np.asarray(TOKENS[:, :9], np.int32)
    assert len(generate.generate(TINY, params, SPECS[0], prompts, 6).tokens[1]) == 6


def test_a_rule_is_one_program_for_all_its_inner_methods(params, compilations):
    bases = [rotary.ReRoPE(5, rotary.RoPE(base)) for base in (20.0, 30.0)]
    bases += [rotary.ReRoPE(5, rotary.YaRN(2, 16)), rotary.LogN(rotary.ReRoPE(5), 4)]
    run(TINY, params, TOKENS, make(bases[0]), WHOLE)
    compilations.clear()
    alone = [run(TINY, params, TOKENS, make(spec), WHOLE)[0] for spec in bases]
    assert not [name for name in compilations if "run" in name]
    assert all(np.abs(x - alone[0]).max() > 1e-3 for x in alone[1:])


def test_stacked_remappings_equal_one_by_one():
    rots = [make(rotary.ReRoPE(5, rotary.RoPE(base))) for base in (20.0, 30.0)]
    args = inputs(1, 27, K=1, G=2)
    together = jax.vmap(lambda rot: attention(rot, *args, None, "blockwise", False)[0])(
        rotary.stack_rotaries(rots)
    )
    for rot, out in zip(rots, together, strict=True):
        close(out, attention(rot, *args, None, "reference", False)[0])


def test_frequencies_have_tangents_in_every_branch():
    """d cos(p w/k) / dw = -sin(p w/k) p/k at the branch's position p and scale k."""
    spec, m = SPECS[1], np.array([0, 3, 50])
    rot, rule = make(spec), rule_of(spec)

    @jax.jit
    def tangent(delta):
        def cos(delta):
            ph = rotary.phases(dataclasses.replace(rot, delta=delta), m)
            return [p.cos for p in (*ph.query, *ph.key)]

        return jax.jvp(cos, (rot.delta,), (delta,))[1]

    w = BASE ** (-np.arange(H // 2) / (H // 2))
    places = [*rule.query_positions(m), *rule.key_positions(m)]
    for got, p, scale in zip(tangent(jnp.ones(4)), places, rule.scales * 2, strict=True):
        p = p[:, None] / scale
        np.testing.assert_allclose(got, -np.sin(p * w) * p, atol=1e-4)


def test_options_may_be_numpys_whole_numbers():
    assert rotary.ReRoPE(np.int64(5)) == rotary.ReRoPE(5)
    with pytest.raises(ValueError, match="window must be a whole number"):
        rotary.ReRoPE(np.float32(5))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_whole_positions_of_any_type_are_the_same(dtype):
    rot = rotary.make(rotary.STRING(90, shift=30, window=2), head_dim=8, seq_len=90)
    for spec in (rot, rotary.make(rotary.LeakyReRoPE(100, 3), head_dim=8, seq_len=90)):
        want = jax.tree.leaves(rotary.phases(spec, np.arange(90)))
        found = jax.tree.leaves(rotary.phases(spec, jnp.arange(90, dtype=dtype)))
        for mine, theirs in zip(found, want, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_log_n_uses_the_true_position_in_every_branch():
    rot = make(rotary.LogN(rotary.ReRoPE(4, rotary.NoPE()), 4.0))
    for branch in jax.jit(rotary.phases)(rot, np.arange(20)).query:
        want = np.maximum(1, np.log(np.arange(1, 21)) / np.log(4))
        np.testing.assert_allclose(branch.cos[:, 0], want, rtol=1e-6)


# Curves


@pytest.mark.parametrize("spec, truth", [*zip(SPECS, METHODS, strict=True)], ids=IDS)
def test_curves_show_the_remapped_scores(spec, truth):
    relative = partial(truth[1], **truth[2])
    theta = BASE ** (-np.arange(H // 2) / (H // 2))

    def score(m, n):
        return 2 * np.cos(theta * relative(m, n)).sum() / np.sqrt(H)

    found = decay.score(spec, np.arange(28), head_dim=H)
    np.testing.assert_allclose(found, [score(27, 27 - d) for d in range(28)], atol=1e-12)
    table = decay.heatmap(spec, np.arange(9, 15), np.arange(9), head_dim=H)
    want = [[score(m, n) for n in range(9)] for m in range(9, 15)]
    np.testing.assert_allclose(table, want, atol=1e-12)


@pytest.mark.parametrize(
    "spec, distances, message",
    [
        (rotary.ALiBi(), [1], "rotary.alibi_slopes"),
        (rotary.FoPE(64, 2), [1], "see decay.heatmap"),
        (SPECS[0], [0.5], "whole positions"),
        (SPECS[0], [70], "beyond the first of seq_len"),
    ],
)
def test_curves_that_do_not_exist_are_refused(spec, distances, message):
    with pytest.raises(ValueError, match=message):
        decay.score(spec, distances, head_dim=H, seq_len=64)


# What does not fit


@pytest.mark.parametrize(
    "text, message",
    [
        ("rerope", "rerope needs window: write rerope:window=..."),
        ("rerope:window=0", "window must be a whole number from 1 to"),
        ("rerope:window=2.5", "window must be a whole number"),
        ("rerope:window=8,inner=rope", "inner must be a method"),
        ("leaky_rerope:window=3,factor=1.5", "window * (factor - 1) must be a whole number"),
        ("leaky_rerope:window=3,factor=0.5", "factor must be at least 1"),
        ("self_extend:window=8,group=0", "group must be a whole number"),
        ("dual_chunk:original_length=64,chunk=64", "chunk must be below original_length"),
        ("dual_chunk:original_length=64.5", "original_length must be a whole number"),
        ("string:original_length=99", "window must be at most shift, got 128 and 33"),
    ],
)
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:
        rotary.parse(text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "inner, message",
    [
        (rotary.XPos(), "take inner=\\(abf\\)"),
        (rotary.ReRoPE(4), "only one method may remap"),
        (rotary.ALiBi(), "only one method may remap"),
        (rotary.FoPE(64, 2), "take inner=\\(hope\\)"),
        (rotary.LongRoPE(2.0, 64, 2.0, start_count=4), "take start_count=0"),
    ],
    ids=str,
)
def test_inner_methods_that_cannot_be_remapped_are_refused(inner, message):
    with pytest.raises(ValueError, match=message):
        make(rotary.ReRoPE(8, inner), 128)


@pytest.mark.usefixtures("unchecked_shapes")
def test_the_model_refuses_what_it_would_ignore(params):
    rot = make(SPECS[0])
    apply = partial(llama.Llama(TINY).apply, {"params": params}, TOKENS, rotary=rot)
    with pytest.raises(ValueError, match="leave positions=None"):
        apply(positions=jnp.arange(T))
    with pytest.raises(ValueError, match="pass the rotary to init_cache"):
        apply(cache=llama.init_cache(TINY, 2, T))
    with pytest.raises(ValueError, match="takes whole positions"):
        rotary.phases(rot, np.float32([0.5]))


def test_attention_refuses_copies_that_do_not_fit():
    q, k, v = inputs(1, 8, K=1, G=1)
    with pytest.raises(ValueError, match="do not fit together"):
        attend(q, k, v, score_rule=rule_of(SPECS[0]))
