"""Methods, their names and options, recorded numbers of other software, rotation identities."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, rotary

PEERS = json.loads((Path(__file__).parent / "data" / "rotary_peers.json").read_text())


def inv_freq(spec, head_dim=128, seq_len=4096):
    return spec.frequencies(head_dim=head_dim, seq_len=seq_len).inv_freq


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


phases = jax.jit(rotary.phases)
rotate = jax.jit(rotary.rotate, static_argnames="layout")


def rotated(spec, x, positions, seq_len=4096, layout="half", which="query"):
    """`x` [T, H] at `positions`, one head."""
    rot = rotary.make(spec, head_dim=x.shape[-1], seq_len=seq_len)
    phase = getattr(phases(rot, positions), which)
    return np.asarray(rotate(x[:, None], phase, layout=layout))[:, 0]


# Names and options


@pytest.mark.parametrize(
    "text, message",
    [
        ("rpoe", "unknown rotary method 'rpoe'; did you mean 'rope'?"),
        ("xpos:gama=0.5", "unknown option of xpos 'gama'; did you mean 'gamma'?"),
        ("pi:factr=8", "unknown option of pi 'factr'; did you mean 'factor'?"),
        ("pi:factor=0.25", "factor must be at least 1, got 0.25"),
        ("pi:factor=nan", "factor must be"),
        ("pi:factor=eight", "factor must be at least 1, got 'eight'"),
        ("pi", "pi needs factor: write pi:factor=..."),
        ("pi:8", "cannot read '8'"),
        ("pi:factor=2,factor=4", "factor is given twice"),
        ("rope:base=1", "base must be finite and above 1"),
        ("rope:base=large", "base must be finite and above 1, got 'large'"),
        ("xpos:gamma=0", "gamma must be finite and positive"),
        ("xpos:gamma=1e999", "gamma must be finite and positive"),
        ("xpos:scale_base=wide", "scale_base must be finite and positive, got 'wide'"),
    ],
)
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:
        rotary.parse(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_parse_reads_options_and_spaces():
    assert rotary.parse("rope") == rotary.RoPE()
    assert rotary.parse("abf") == rotary.RoPE(500_000.0)
    assert rotary.parse("pi: factor=8, base=20_000") == rotary.PositionInterpolation(8, 20_000)
    assert rotary.parse("xpos_abf:gamma=0.5") == rotary.XPos(500_000, 0.5, 4096)


@pytest.mark.parametrize("head_dim", [0, -2, 7])
def test_head_dim_must_be_even_and_positive(spec, head_dim):
    with pytest.raises(ValueError, match="head_dim must be even"):
        spec.frequencies(head_dim=head_dim, seq_len=16)


def test_every_method_comes_back_from_its_notation(spec):
    assert rotary.parse(rotary.notation(spec)) == spec


def test_a_checkpoint_fills_the_options_that_a_method_takes():
    own = rotary.RoPE(base=1e5)
    for text, method in (
        ("yarn:factor=4", rotary.YaRN(4, 8192, base=1e5)),
        ("ntk:factor=4", rotary.NTKAware(4, base=1e5)),
        ("ntk:factor=4,rule='liu'", rotary.NTKAware(4, base=1e5, rule="liu", original_length=8192)),
        ("abf", rotary.RoPE(base=5e5)),
    ):
        assert rotary.parse_for_checkpoint(text, own, 8192)[0] == method
    with pytest.raises(ValueError, match="factor"):
        rotary.parse_for_checkpoint("ntk", own, 8192)


def test_a_method_without_a_name_has_no_notation():
    class Mine(rotary.RoPE):
        pass

    with pytest.raises(ValueError, match=r"Mine has no name: rotary\.register it"):
        rotary.notation(Mine())


def test_every_method_is_a_frozen_hashable_value(spec):
    assert spec == dataclasses.replace(spec) and hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.base = 2.0


@pytest.fixture
def scratch_registry(monkeypatch):
    monkeypatch.setattr(rotary.registry, "_ENTRIES", dict(rotary.registry._ENTRIES))


def test_a_users_method_works_end_to_end(scratch_registry, random_params):
    @rotary.register("mine")
    @dataclasses.dataclass(frozen=True)
    class Mine:
        """theta_j = speed / (j + 1)."""

        speed: float = 1.0
        tags: tuple = dataclasses.field(default_factory=tuple)

        def frequencies(self, *, head_dim, seq_len):
            return rotary.Frequencies(self.speed / np.arange(1, head_dim // 2 + 1))

    config = llama.LlamaConfig(61, 32, 2, 4, 2, 8, 48)
    params = random_params(config)
    tokens = jnp.arange(12)[None] % 61

    logits = jax.jit(functools.partial(llama.logits, config))

    def run(spec):
        return logits(params, tokens, rotary.make(spec, head_dim=8, seq_len=12))

    spec = rotary.parse("mine:speed=0.5")
    assert "mine" in rotary.names() and "theta_j = speed" in rotary.explain(spec, head_dim=8)
    out = run(spec)
    assert np.isfinite(out).all()
    assert np.abs(out - run(rotary.parse("mine")))[:, 1:].max() > 1e-3


def test_what_cannot_be_registered(scratch_registry):
    @dataclasses.dataclass
    class Mutable:
        def frequencies(self, *, head_dim, seq_len): ...

    @dataclasses.dataclass(frozen=True)
    class Empty: ...

    with pytest.raises(ValueError, match=r"Mutable must be a frozen dataclass"):
        rotary.register("mutable")(Mutable)
    with pytest.raises(ValueError, match=r"Empty needs a method frequencies"):
        rotary.register("empty")(Empty)
    with pytest.raises(ValueError, match="'rope' is taken by RoPE"):
        rotary.register("rope")(rotary.XPos)


# Numbers that other software gave


@pytest.mark.parametrize(
    "entry, text",
    [
        ("hf/default_d128_base1e4", "rope"),
        ("hf/abf_d128_base5e5", "abf"),
        ("hf/linear8_d128_base1e4", "pi:factor=8"),
    ],
)
def test_frequencies_equal_the_recorded_ones(entry, text):
    np.testing.assert_allclose(inv_freq(rotary.parse(text)), PEERS[entry]["inv_freq"], rtol=5e-7)


def test_frequencies_equal_the_literals_of_hugging_faces_test():
    default = PEERS["hf_test/default_d128"]["inv_freq"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(inv_freq(rotary.RoPE()), default, **close)
    for factor in PEERS["hf_test/linear"]["factors"]:
        got = inv_freq(rotary.PositionInterpolation(factor))
        np.testing.assert_allclose(got, np.array(default) / factor, **close)


def test_xpos_decay_equals_torchscale():
    f = rotary.XPos().frequencies(head_dim=64, seq_len=4096)
    zeta = PEERS["xpos/zeta_d64"]["zeta"]
    np.testing.assert_allclose(np.exp(512 * f.log_decay), zeta, rtol=3e-7)


def test_xpos_vectors_equal_recorded_ones():
    x = ((np.arange(56).reshape(7, 8) % 5 - 2) / 3).astype(np.float32)
    ours = {
        side: rotated(rotary.XPos(), x, np.arange(7), 7, "interleaved", which)
        for side, which in (("q", "query"), ("k", "key"))
    }
    lucidrains, torchscale = PEERS["xpos/lucidrains_L7_d8"], PEERS["xpos/torchscale_L7_d8"]
    for side in "qk":
        np.testing.assert_allclose(ours[side], lucidrains[side], atol=1e-6)
    # torchscale's centre is one token later, which no score can show.
    scores = np.array(torchscale["q"]) @ np.array(torchscale["k"]).T
    np.testing.assert_allclose(ours["q"] @ ours["k"].T, scores, atol=2e-6)
    assert np.abs(ours["q"] - torchscale["q"]).max() > 1e-3


# xPos up to the limit of float32


@pytest.mark.parametrize("spec", [rotary.XPos(), rotary.parse("xpos_abf")])
@pytest.mark.parametrize("length", [512, 32_768, "limit"])
def test_xpos_scores_equal_float64_up_to_the_limit(spec, length):
    gain = 120 * math.log(2)
    limit = 2 * int(gain * spec.scale_base / math.log((1 + spec.gamma) / spec.gamma))
    length = limit if length == "limit" else length
    rng = np.random.default_rng(1)
    m = np.concatenate([[0, length - 1, length - 1, length // 2], rng.integers(0, length, 60)])
    distance = np.concatenate([[0, 0, length - 1, 1], rng.integers(0, 2000, 60)])
    n = np.maximum(m - distance, 0)
    q = normal(len(m), 128)
    ours = rotated(spec, q, m, length, which="query").astype(np.float64)
    ours = (ours * rotated(spec, q, n, length, which="key")).sum(-1)

    j = np.arange(64) / 64
    theta, zeta = spec.base**-j, (j + spec.gamma) / (1 + spec.gamma)
    size = (q.astype(np.float64) ** 2).reshape(-1, 2, 64).sum(1)
    far = (m - n)[:, None]
    truth = (size * zeta ** (far / spec.scale_base) * np.cos(far * theta)).sum(-1)
    assert np.all(np.abs(ours - truth) < 1e-4 * size.sum(-1))

    with pytest.raises(ValueError, match=f"float32 up to {limit} tokens"):
        rotary.make(spec, head_dim=128, seq_len=limit + 1)


def test_xpos_limits_are_these():
    for text, limit in (("xpos", 67_988), ("xpos_abf", 840_258)):
        with pytest.raises(ValueError, match=str(limit)):
            rotary.make(rotary.parse(text), head_dim=64, seq_len=2**20)
    rotary.make(rotary.parse("xpos_abf"), head_dim=128, seq_len=131_072)


# Hugging Face configs


@pytest.mark.parametrize(
    "spec, config",
    [
        (rotary.RoPE(), {}),
        (rotary.RoPE(), {"rope_scaling": None}),
        (rotary.RoPE(500_000), {"rope_theta": 500_000, "rope_scaling": None}),
        (rotary.RoPE(1e6), {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        (rotary.PositionInterpolation(8), {"rope_scaling": {"type": "linear", "factor": 8}}),
        (
            rotary.PositionInterpolation(4.0, 2e4),
            {"rope_theta": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            rotary.PositionInterpolation(4.0, 2e4),
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}},
        ),
    ],
)
def test_from_hf_reads_both_spellings(spec, config):
    before = json.dumps(config)
    assert rotary.from_hf(config | {"hidden_size": 64}) == spec
    assert json.dumps(config) == before
    assert rotary.from_hf({"rope_parameters": rotary.to_hf(spec)}) == spec


@pytest.mark.parametrize(
    "config, message",
    [
        ({"rope_scaling": {"type": "liner", "factor": 2}}, "did you mean 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": "8"}}, "at least 1, got '8'"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "facto": 2}}, "did you mean 'factor'"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2}}, "contradict"),
    ],
)
def test_from_hf_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        rotary.from_hf(config)


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2},
                "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e4},
            },
            rotary.PositionInterpolation(base=1e4, factor=2),
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            rotary.RoPE(1e6),
        ),
    ],
)
def test_of_two_values_the_one_that_transformers_5_takes_wins_aloud(config, spec):
    with pytest.warns(UserWarning, match="won|wins"):
        assert rotary.from_hf(config) == spec


def test_to_hf_says_what_hugging_face_lacks():
    with pytest.raises(ValueError, match="no rope_type for xpos"):
        rotary.to_hf(rotary.XPos())


# Explanations


def test_explain_states_method_options_and_wavelengths():
    text = rotary.explain(rotary.PositionInterpolation(8), head_dim=128, seq_len=32_768)
    lines = text.splitlines()
    assert lines[0].startswith("pi (PositionInterpolation): ")
    assert "  factor = 8 (chosen)" in lines
    assert "  base = 10000.0 (default)" in lines
    rows = [line.split() for line in lines[-64:]]
    assert [int(row[0]) for row in rows] == list(range(64))
    wavelengths = 2 * np.pi * 8 * 10_000.0 ** (np.arange(64) / 64)
    np.testing.assert_allclose([float(row[2]) for row in rows], wavelengths, atol=0.006)
    turns = 32_768 / wavelengths
    np.testing.assert_allclose([float(row[3]) for row in rows], turns, atol=6e-5)


def test_explain_works_for_every_method(spec):
    text = rotary.explain(spec, head_dim=16)
    assert type(spec).__name__ in text
    assert all(f"  {field.name} = " in text for field in dataclasses.fields(spec))


# Identities


def test_factor_one_is_rope():
    np.testing.assert_array_equal(
        inv_freq(rotary.PositionInterpolation(1)), inv_freq(rotary.RoPE())
    )


def test_abf_is_rope_with_base_500_000():
    assert rotary.build("abf") == rotary.RoPE(base=500_000.0)
    np.testing.assert_allclose(
        inv_freq(rotary.build("abf")), 500_000.0 ** -(np.arange(64) / 64), rtol=1e-14
    )


def test_pi_divides_positions():
    x, positions = normal(50, 128), np.arange(0, 4000, 80)
    pi = rotated(rotary.PositionInterpolation(8), x, positions)
    rope = rotated(rotary.RoPE(), x, np.float32(positions / 8))
    np.testing.assert_allclose(pi, rope, atol=4e-6)


def test_rescale_divides_frequencies_and_keeps_the_rest():
    f = rotary.XPos().frequencies(head_dim=16, seq_len=64)
    half = rotary.rescale(f, 2.0)
    np.testing.assert_allclose(half.inv_freq, f.inv_freq / 2, rtol=1e-15)
    np.testing.assert_allclose(half.start_inv_freq, f.inv_freq / 2, rtol=1e-15)
    np.testing.assert_array_equal(half.log_decay, f.log_decay)
    with pytest.raises(ValueError, match="scale must be positive"):
        rotary.rescale(f, 0.0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"inv_freq": [1.0, -0.1]}, "not negative"),
        ({"inv_freq": [1.0, np.nan]}, "finite"),
        ({"inv_freq": [7.0, 0.1]}, "a whole turn or more"),
        ({"inv_freq": [1.0, 0.1], "start_inv_freq": [1.0, np.inf]}, "start_inv_freq must be fin"),
        ({"inv_freq": [1.0, 0.1], "log_decay": [0.0]}, "log_decay has shape"),
    ],
)
def test_frequencies_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        rotary.Frequencies(**fields)


@pytest.mark.parametrize("seq_len", [0, -1, 2**24 + 1])
def test_seq_len_out_of_range_is_refused(seq_len):
    with pytest.raises(ValueError, match="seq_len must be a whole number from 1 to 16777216"):
        rotary.make(rotary.RoPE(), head_dim=8, seq_len=seq_len)


# Rotation


@pytest.mark.parametrize("layout", rotary.LAYOUTS)
def test_partial_rotary_passes_the_rest(layout):
    rot = rotary.make(rotary.RoPE(), head_dim=4, seq_len=64)
    ph = phases(rot, np.arange(20)).query
    x = normal(20, 2, 10)
    out = np.asarray(rotate(x, ph, layout=layout))
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(out[..., :4], rotate(x[..., :4], ph, layout=layout))
    assert np.abs(out - x)[1:, :, :4].min() > 0


def test_rotation_equals_complex_multiplication():
    x, positions = normal(9, 32), np.arange(0, 9000, 1000)
    turn = np.exp(1j * positions[:, None] * 10_000.0 ** -(np.arange(16) / 16))
    half = (x[:, :16] + 1j * x[:, 16:]) * turn
    pairs = (x[:, ::2] + 1j * x[:, 1::2]) * turn
    got = rotated(rotary.RoPE(), x, positions)
    np.testing.assert_allclose(got, np.concatenate([half.real, half.imag], -1), atol=5e-6)
    got = rotated(rotary.RoPE(), x, positions, layout="interleaved")
    truth = np.stack([pairs.real, pairs.imag], -1).reshape(9, 32)
    np.testing.assert_allclose(got, truth, atol=5e-6)


@pytest.mark.parametrize("text", ["rope", "xpos"])
def test_heads_turned_by_a_product_are_the_same_bits_and_have_the_same_gradients(text):
    """What TPUs do with bfloat16: values, and cotangents of x, cos and sin."""
    rng, spec = np.random.default_rng(0), rotary.parse(text)
    phase = rotary.phases(rotary.make(spec, head_dim=32, seq_len=64), jnp.arange(64)[None]).key
    x, d_out = (jnp.asarray(rng.normal(size=(2, 64, 3, 32)), jnp.bfloat16) for _ in range(2))

    @functools.partial(jax.jit, static_argnums=0)
    def run(by_product, *tables):
        def f(x, *tables):
            return rotary.rotate(x, type(phase)(*tables), by_product=by_product)

        alone = jax.vjp(lambda x: f(x, *tables), x)[1](d_out)
        out, back = jax.vjp(f, x, *tables)
        return out, *alone, *back(d_out)

    for mine, right in zip(run(True, *phase), run(False, *phase), strict=True):
        assert mine.dtype == right.dtype
        np.testing.assert_array_equal(np.float32(mine), np.float32(right))
    assert "dot_general" in str(jax.make_jaxpr(lambda *t: run(True, *t))(*phase))
    assert "dot_general" not in str(jax.make_jaxpr(lambda *t: run(False, *t))(*phase))


def test_layouts_agree_under_the_permutation():
    x, p = normal(20, 16), rotary.half_from_interleaved(16)
    assert p.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]
    interleaved = rotated(rotary.RoPE(), x, np.arange(20), layout="interleaved")
    np.testing.assert_array_equal(interleaved[:, p], rotated(rotary.RoPE(), x[:, p], np.arange(20)))


def test_rotation_is_refused_or_kept_in_dtype():
    ph = phases(rotary.make(rotary.RoPE(), head_dim=8, seq_len=8), np.arange(3)).query
    with pytest.raises(ValueError, match="4 pairs do not fit into a head of 6"):
        rotary.rotate(jnp.zeros((3, 1, 6)), ph)
    with pytest.raises(ValueError, match="did you mean 'interleaved'"):
        rotary.rotate(jnp.zeros((3, 1, 8)), ph, layout="interleave")
    assert rotate(jnp.zeros((3, 1, 8), jnp.bfloat16), ph).dtype == jnp.bfloat16


@pytest.mark.parametrize("layout", rotary.LAYOUTS)
def test_llama_cpp_property(layout):
    """R(-67) R(100+i) x = R(33+i) x: 128 of 256 features, 32 heads, 73 positions."""
    rot = rotary.make(rotary.RoPE(), head_dim=128, seq_len=256)
    x, i = normal(73, 32, 256), np.arange(73)

    def turn(x, positions, sign=1.0):
        cos, sin = phases(rot, positions).query
        return rotate(x, rotary.Phase(cos, np.float32(sign) * np.asarray(sin)), layout=layout)

    returned = np.asarray(turn(turn(x, 100 + i), np.full(73, 67), -1.0))
    short = np.asarray(turn(x, 33 + i))
    assert np.abs(returned - short).sum() < 1e-5 * np.abs(short).sum()


def test_scores_depend_on_the_distance_alone(spec):
    f = spec.frequencies(head_dim=32, seq_len=4096)
    if f.start_count or np.isfinite(f.logn_length) or f.mixing is not None:
        pytest.skip("the method depends on absolute positions")
    if f.score_rule is not None:
        pytest.skip("one of several rotations: tests/test_remap.py")
    q, k = normal(60, 32), normal(60, 32, seed=1)
    m = np.arange(67, 127)

    def scores(shift):
        a = rotated(spec, q, m + shift, which="query").astype(np.float64)
        return (a * rotated(spec, k, m - np.arange(60) + shift, which="key")).sum(-1)

    np.testing.assert_allclose(scores(0), scores(67), atol=5e-5)
    np.testing.assert_allclose(scores(0), scores(3900), atol=5e-5)


def test_the_same_parameters_in_both_spellings_are_one():
    config = {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        "rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 1e4},
    }
    assert rotary.from_hf(config) == rotary.PositionInterpolation(factor=4.0)


def test_a_partial_rotary_factor_in_a_config_is_not_ignored():
    half = rotary.PartialRotary(rotary.RoPE(), 0.5)
    assert rotary.from_hf({"rope_theta": 1e4, "partial_rotary_factor": 0.5}) == half
    assert rotary.from_hf({"rope_theta": 1e4, "rotary_pct": 0.5}) == half
