"""The model against a float64 one, and what it must not depend on."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, rotary

V, T = 61, 24
TINY = llama.LlamaConfig(
    vocab_size=V, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
)
TOKENS = jnp.asarray(np.random.default_rng(5).permutation(V)[: 2 * T].reshape(2, T))


@partial(jax.jit, static_argnums=0)
def run(config, params, tokens, rot, positions=None, segment_start=None):
    hidden, _ = llama.Llama(config).apply(
        {"params": params}, tokens, rotary=rot, positions=positions, segment_start=segment_start
    )
    return llama.unembed(config, params, hidden)


def make(spec, seq_len=4096):
    return rotary.make(spec, head_dim=TINY.head_dim, seq_len=seq_len)


ROPE = make(rotary.RoPE(100.0))  # the base makes the slow pairs act within 24 tokens


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(TINY)


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


# Against float64


def numpy_llama(c, params, tokens, base):
    """Logits [T, V] of one row in float64, a loop per layer and head."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * scale

    def turn(x):
        half = c.head_dim // 2
        n = np.arange(len(tokens))[:, None]
        turns = np.exp(1j * n * base ** (-np.arange(half) / half))
        if c.rotary_layout == "half":
            z = (x[:, :half] + 1j * x[:, half:]) * turns
            return np.concatenate([z.real, z.imag], -1)
        z = (x[:, ::2] + 1j * x[:, 1::2]) * turns
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    def head(layer, x, n):
        kv = n // (c.n_heads // c.n_kv_heads)
        q, k = turn(x @ layer["wq"][:, n]), turn(x @ layer["wk"][:, kv])
        scores = q @ k.T / np.sqrt(c.head_dim)
        scores[np.triu_indices(len(tokens), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return weights @ (x @ layer["wv"][:, kv]) @ layer["wo"][n]

    x = p["embed"][np.asarray(tokens)]
    for i in range(c.n_layers):
        layer = jax.tree.map(lambda w, i=i: w[i], p["layers"])
        y = norm(x, layer["attention_norm"]["scale"])
        x = x + sum(head(layer["attention"], y, n) for n in range(c.n_heads))
        y, mlp = norm(x, layer["mlp_norm"]["scale"]), layer["mlp"]
        gate = y @ mlp["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ mlp["up"])) @ mlp["down"]
    table = p["embed"].T if c.tie_embeddings else p["unembed"]
    return norm(x, p["final_norm"]["scale"]) @ table


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "n_kv_heads": 1, "rotary_layout": "interleaved", "norm_eps": 0.1},
    ],
    ids=["untied", "tied"],
)
def test_logits_equal_float64(changes, random_params):
    config = dataclasses.replace(TINY, **changes)
    params = random_params(config)
    assert ("unembed" in params) is not config.tie_embeddings
    out = run(config, params, TOKENS, ROPE)
    assert out.dtype == jnp.float32
    for row in range(2):
        close(out[row], numpy_llama(config, params, TOKENS[row], base=100.0))


def test_logits_is_unembed_of_hidden(params):
    logits = jax.jit(partial(llama.logits, TINY))(params, TOKENS, ROPE)
    close(logits, run(TINY, params, TOKENS, ROPE), 1e-6)


def test_gqa_equals_mha_with_repeated_weights(params):
    attention = params["layers"]["attention"]
    repeated = {name: jnp.repeat(attention[name], 2, axis=2) for name in ("wk", "wv")}
    layers = params["layers"] | {"attention": attention | repeated}
    mha = dataclasses.replace(TINY, n_kv_heads=4)
    out = run(mha, params | {"layers": layers}, TOKENS, ROPE)
    close(out, run(TINY, params, TOKENS, ROPE), 5e-6)


# Positions


def test_only_relative_position_matters(spec, params):
    f = spec.frequencies(head_dim=TINY.head_dim, seq_len=4096)
    if f.start_count or np.isfinite(f.logn_length) or f.mixing is not None:
        pytest.skip("the method depends on absolute positions")
    if f.score_rule is not None:
        pytest.skip("the method counts positions itself: tests/test_remap.py")
    rot = make(spec)
    here = run(TINY, params, TOKENS, rot, jnp.arange(T))
    for shift in (67, 4000):
        close(run(TINY, params, TOKENS, rot, shift + jnp.arange(T)), here, 1e-4)
    stretched = run(TINY, params, TOKENS, rot, 9 * jnp.arange(T))
    moved = np.abs(stretched - here)[:, 1:].max()
    assert moved > 1e-2 if f.inv_freq.any() else moved == 0  # NoPE knows no positions


def test_default_positions_count_from_zero(params):
    close(run(TINY, params, TOKENS, ROPE), run(TINY, params, TOKENS, ROPE, jnp.arange(T)), 1e-6)


def test_another_base_changes_every_position_but_the_first(params):
    a, b = (run(TINY, params, TOKENS, make(rotary.RoPE(base))) for base in (100.0, 200.0))
    change = np.abs(a - b).max(-1)
    np.testing.assert_allclose(change[:, 0], 0, atol=1e-6)
    assert change[:, 1:].min() > 1e-3


def test_causality_by_gradient(params):
    """A later token's embedding has no gradient, every earlier one has."""

    @jax.jit
    def gradient(embed, t):
        def at(embed):
            return run(TINY, params | {"embed": embed}, TOKENS[:1], ROPE)[0, t].sum()

        return jax.grad(at)(embed)[TOKENS[0]]

    for t in (0, 11, T - 1):
        grad = np.asarray(gradient(params["embed"], t))
        assert not grad[t + 1 :].any()
        assert np.abs(grad[: t + 1]).max(-1).min() > 0


def test_far_positions_in_bfloat16(params):
    """The phases stay float32: 100,000 tokens on, nothing but rounding of q and k changes."""
    config = dataclasses.replace(TINY, dtype="bfloat16")
    here, far = (run(config, params, TOKENS, ROPE, n + jnp.arange(T)) for n in (0, 100_000))
    exact = run(TINY, params, TOKENS, ROPE)
    assert here.dtype == jnp.float32 and np.abs(exact).max() > 2
    close(here, exact, 0.1)
    close(far, exact, 0.1)


# One program for all methods


def test_methods_and_bases_compile_once_and_stack(params):
    traces = []

    @jax.jit
    def traced(params, tokens, rot):
        traces.append(1)
        return llama.logits(TINY, params, tokens, rot)

    specs = [rotary.RoPE(base) for base in (1e4, 2e4, 5e5)]
    specs += [rotary.PositionInterpolation(4), rotary.XPos(), rotary.build("xpos_abf")]
    specs.append(rotary.PositionInterpolation(2))
    alone = [traced(params, TOKENS, make(spec, n)) for n, spec in enumerate(specs, 30)]
    assert len(traces) == 1
    assert all(np.abs(a - alone[0]).max() > 1e-3 for a in alone[1:])

    stacked = rotary.stack_rotaries([make(spec, n) for n, spec in enumerate(specs, 30)])
    together = jax.vmap(partial(run, TINY, params, TOKENS))(stacked)
    close(together, np.stack(alone))


def test_every_method_that_is_data_uses_the_same_program(spec, params, compilations):
    if rotary.is_structural(spec, head_dim=8) and not isinstance(spec, rotary.PartialRotary):
        pytest.skip("structural: a program of its own, see tests/test_remap.py")
    partial_rotary = isinstance(spec, rotary.PartialRotary)  # its program is a smaller head's
    for head_dim in (8, 4) if partial_rotary else (8,):
        run(TINY, params, TOKENS, rotary.make(rotary.RoPE(), head_dim=head_dim, seq_len=64))
    compilations.clear()
    assert np.isfinite(run(TINY, params, TOKENS, make(spec, 64))).all()
    assert not [name for name in compilations if "run" in name]


# Packing and the cache


def test_packed_documents_do_not_see_each_other(params):
    lengths = [7, 1, 12, 4]
    starts = np.cumsum([0, *lengths[:-1]])
    packing = jnp.asarray(np.broadcast_to(np.repeat(starts, lengths), (2, T)))
    packed = run(TINY, params, TOKENS, ROPE, None, packing)
    for start, length in zip(starts, lengths, strict=True):
        for row in range(2):
            tokens = TOKENS[row, start : start + length]
            alone = numpy_llama(TINY, params, tokens, base=100.0)
            close(packed[row, start : start + length], alone)
    assert np.abs(packed - run(TINY, params, TOKENS, ROPE))[:, 7:].max() > 0.1


def test_positions_restart_in_each_document(params):
    """Seen by a method that depends on absolute positions, here log n."""
    f = rotary.RoPE(100.0).frequencies(head_dim=8, seq_len=T)
    rot = rotary.from_frequencies(dataclasses.replace(f, logn_length=2.0), seq_len=T)
    packing = jnp.where(np.arange(T) < 8, 0, 8) * jnp.ones((2, 1), jnp.int32)
    packed = run(TINY, params, TOKENS, rot, None, packing)
    alone = run(TINY, params, jnp.roll(TOKENS, -8, axis=1), rot)  # the second document first
    close(packed[:, 8:], alone[:, : T - 8])
    wrong = run(TINY, params, TOKENS, rot, jnp.arange(T)[None], packing)
    assert np.abs(packed - wrong)[:, 8:].max() > 1e-2


@partial(jax.jit, static_argnums=0)
def extend(config, params, tokens, rot, cache):
    hidden, cache = llama.Llama(config).apply({"params": params}, tokens, rotary=rot, cache=cache)
    return llama.unembed(config, params, hidden), cache


@pytest.mark.parametrize("method", [rotary.RoPE(100.0), rotary.XPos(100.0, scale_base=32.0)])
def test_prefill_and_decoding_equal_the_full_forward(method, params):
    """Prompts of 9 and 5 tokens, the second padded on the right; GQA."""
    rot, length = make(method, T), np.array([9, 5])
    full = run(TINY, params, TOKENS, rot)
    prompt = jnp.where(np.arange(9) < length[:, None], TOKENS[:, :9], 0)
    out, cache = extend(TINY, params, prompt, rot, llama.init_cache(TINY, 2, T))
    for row in range(2):
        close(out[row, : length[row]], full[row, : length[row]])
    cache = dataclasses.replace(cache, length=jnp.asarray(length, jnp.int32))
    for step in range(6):
        at = length + step
        tokens = jnp.take_along_axis(TOKENS, jnp.asarray(at)[:, None], axis=1)
        out, cache = extend(TINY, params, tokens, rot, cache)
        close(out[:, 0], np.asarray(full)[np.arange(2), at])
    np.testing.assert_array_equal(cache.length, length + 6)


def test_prefill_in_chunks_equals_the_full_forward(params):
    full, cache = run(TINY, params, TOKENS, ROPE), llama.init_cache(TINY, 2, 32)
    outs = []
    for part in (slice(0, 12), slice(12, 24)):
        out, cache = extend(TINY, params, TOKENS[:, part], ROPE, cache)
        outs.append(out)
    close(jnp.concatenate(outs, axis=1), full)


# Gradients under remat, initial values


def test_remat_saves_memory_and_leaves_gradients_alone(random_params):
    weights = np.random.default_rng(0).normal(size=(2, T, V)).astype(np.float32)
    deep = dataclasses.replace(TINY, n_layers=8, attention="blockwise")
    params = random_params(deep)

    def gradients(remat):
        config = dataclasses.replace(deep, remat=remat)
        loss = jax.grad(lambda p: (weights * run(config, p, TOKENS, ROPE)).sum())
        products = str(jax.make_jaxpr(loss)(params)).count("dot_general")
        compiled = jax.jit(loss).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes, products

    plain, much, once = gradients("none")
    for remat, products in (("full", 8), ("attention", 6)):
        again, little, twice = gradients(remat)
        assert little < 0.5 * much
        # Computed again: all products with weights but the last, in "full" attention's two as well.
        assert twice - once == products, remat
        jax.tree.map(lambda a, b: close(a, b, 1e-4 * np.abs(a).max()), plain, again)


def test_initial_values():
    config = dataclasses.replace(TINY, d_model=256, d_ff=512, vocab_size=128)
    p = jax.jit(partial(llama.init_params, config))(jax.random.key(0, impl="rbg"))
    layers = p["layers"]
    for x, fan_in in (
        (p["embed"], 256),
        (p["unembed"], 256),
        (layers["attention"]["wq"], 256),
        (layers["attention"]["wo"], 32),
        (layers["mlp"]["down"], 512),
    ):
        assert float(x.std()) == pytest.approx(fan_in**-0.5, rel=0.05)
        assert abs(float(x.mean())) < 0.05 * fan_in**-0.5
    assert np.abs(layers["mlp"]["up"][0] - layers["mlp"]["up"][1]).max() > 0.01
    assert (layers["mlp_norm"]["scale"] == 1).all()


# Shapes of the presets, refusals


@pytest.mark.parametrize(
    "name, count",
    [
        ("llama_7b", 6_738_415_616),
        ("llama_13b", 13_015_864_320),
        ("llama_33b", 32_528_943_616),
        ("llama_65b", 65_285_660_672),
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_34b", 33_743_970_304),
        ("llama2_70b", 68_976_648_192),
        ("llama2_long_34b", 33_743_970_304),
        ("smollm2_135m", 134_515_008),
    ],
)
def test_preset_parameter_counts(name, count):
    shapes = jax.eval_shape(partial(llama.init_params, llama.preset(name)), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    "d_model, options, width",
    [
        (4096, {}, 11_008),
        (5120, {}, 13_824),
        (6656, {}, 17_920),
        (8192, {}, 22_016),
        (8192, {"multiple_of": 4096, "multiplier": 1.3}, 28_672),
    ],
)
def test_swiglu_width(d_model, options, width):
    assert llama.swiglu_width(d_model, **options) == width


def test_preset_with_changes():
    assert llama.preset("llama2_7b", remat="full").remat == "full"
    assert llama.preset("llama_7b").norm_eps == 1e-6 and llama.preset("llama2_7b").norm_eps == 1e-5
    with pytest.raises(
        ValueError, match="unknown model preset 'lama2_7b'; did you mean 'llama2_7b'"
    ):
        llama.preset("lama2_7b")
    with pytest.raises(ValueError, match="did you mean 'n_layers'"):
        llama.preset("llama2_7b", n_layer=2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_kv_heads": 3}, "n_heads must be a multiple of n_kv_heads, got 4 and 3"),
        ({"head_dim": 7}, "head_dim must be even, got 7"),
        ({"rotary_layout": "halves"}, "did you mean 'half'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"attention": "blockwize"}, "did you mean 'blockwise'"),
        ({"n_layers": 0}, "n_layers must be positive, got 0"),
        ({"n_kv_heads": 0}, "n_kv_heads must be positive, got 0"),
        ({"dtype": "bloat16"}, "unknown dtype 'bloat16'; did you mean 'bfloat16'"),
        ({"param_dtype": "int8"}, "unknown param_dtype"),
    ],
)
def test_config_is_validated(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
    hash(TINY)
