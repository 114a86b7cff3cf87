"""The extension methods against recorded peers, float64 closed forms, each other and HF configs."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import rotary
from longrope_jax.rotary.methods.ntk_by_parts import keep_by_dimension

PEERS = json.loads((Path(__file__).parent / "data" / "extension_peers.json").read_text())
PI2 = 2 * np.pi


def at(spec, head_dim=128, seq_len=1024):
    return spec.frequencies(head_dim=head_dim, seq_len=seq_len)


def inv_freq(spec, head_dim=128, seq_len=1024):
    return at(spec, head_dim, seq_len).inv_freq


def theta(base=1e4, head_dim=128):
    return base ** (-2 * np.arange(head_dim // 2) / head_dim)


def same(a, b, rtol=1e-13):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=0)


# Numbers that other software gave


def recorded_longrope():
    config = PEERS["hf/longrope32_d96_orig4096_seq4096"]["config"]
    return rotary.LongRoPE(config["long_factor"], 4096, 32.0, config["short_factor"])


SU = tuple(PEERS["longroperepo/su_32_d96"]["config"]["rescale_factors"])
RECORDED = {
    "hf/dynamic2_d128_mpe2048_seq2049": rotary.DynamicNTK(2048, 2.0),
    "hf/dynamic2_d128_mpe2048_seq4096": rotary.DynamicNTK(2048, 2.0),
    "hf/dynamic2_d128_mpe2048_seq8192": rotary.DynamicNTK(2048, 2.0),
    "hf/dynamic2_d128_mpe2048_seq16384": rotary.DynamicNTK(2048, 2.0),
    "yarnrepo/dynamic_ntk2_d128_seq8192": rotary.DynamicNTK(2048, 2.0),
    "hf/yarn8_d128_orig4096": rotary.YaRN(8, 4096),
    "hf/yarn16_d128_orig4096": rotary.YaRN(16, 4096),
    "yarnrepo/yarn16_d128_orig4096": rotary.YaRN(16, 4096),
    "hf/yarn16_d128_orig4096_notrunc": rotary.YaRN(16, 4096, truncate=False),
    "hf/yarn32_d64_gptoss_notrunc": rotary.YaRN(32, 4096, 150_000.0, truncate=False),
    "hf/yarn40_d64_deepseekv3_mscale1_1": rotary.YaRN(40, 4096, mscale=1.0, mscale_all_dim=1.0),
    "hf/llama3_8_d128_base5e5_orig8192": rotary.Llama3(),
    "meta/llama3.1_scaled_d128_base5e5": rotary.Llama3(),
    "hf/longrope32_d96_orig4096_seqNone": recorded_longrope(),
    "hf/longrope32_d96_orig4096_seq4096": recorded_longrope(),
    "longroperepo/su_32_d96": rotary.LongRoPE(SU, 4096, 32.0),
    "yarnrepo/partntk4_d128_orig2048": rotary.NTKByPartsThreeWay(4, 2048),
    "yarnrepo/ntk_alpha8_d128": rotary.NTKAware(8),
    "giraffe/power0.1_d128": rotary.GiraffePower(0.1),
    "giraffe/power0.5_d128": rotary.GiraffePower(),
    "giraffe/trunc2048_d128": rotary.GiraffeTruncated(),
    "formula/vllm_ntk_fixed8": rotary.NTKAware(8, rule="fixed"),
    "formula/yarn_paper_ramp16_d128_orig4096": rotary.NTKByParts(16, 4096),
}


@pytest.mark.parametrize("entry", RECORDED)
def test_frequencies_and_amplitudes_equal_the_recorded_ones(entry):
    peer, spec = PEERS[entry], RECORDED[entry]
    # A length of None means the short factors in Hugging Face; the su record is of long ones.
    seq_len = 4097 if entry == "longroperepo/su_32_d96" else peer["config"].get("seq_len") or 1024
    f = at(spec, 2 * len(peer["inv_freq"]), seq_len)
    # float32's half an ulp, and a cancellation in the peers' ramps (1e-6 in one pair of one).
    rtol = 1e-14 if entry.startswith("formula") else 1.2e-6 if "notrunc" in entry else 4e-7
    same(f.inv_freq, peer["inv_freq"], rtol)
    same(f.amplitude, peer.get("attention_factor", f.amplitude), 1e-15)


@pytest.mark.parametrize("entry", [e for e in RECORDED if e.startswith("hf/")])
def test_from_hf_reads_the_recorded_configs(entry):
    config = dict(PEERS[entry]["config"])
    outer = {k: config.pop(k) for k in ("head_dim", "max_position_embeddings", "seq_len")}
    assert rotary.from_hf({"rope_parameters": config} | outer) == RECORDED[entry]
    v4 = {k: v for k, v in config.items() if k not in ("rope_type", "rope_theta")}
    v4 = {"rope_theta": config["rope_theta"], "rope_scaling": v4 | {"type": config["rope_type"]}}
    assert rotary.from_hf(v4 | outer) == RECORDED[entry]


SMOLLM2 = [name for name in PEERS["smollm2"] if name != "source"]


@pytest.mark.parametrize("run", SMOLLM2)
def test_runs_of_a_real_model_had_these_frequencies(run):
    run = PEERS["smollm2"][run]
    config = {"max_position_embeddings": run["hf_max_position_embeddings"]}
    f = at(rotary.from_hf(config | {"rope_parameters": run["hf_rope_parameters"]}), 64)
    same(f.inv_freq, run["inv_freq"], 4e-7)
    same(f.amplitude, run["attention_scaling"], 1e-15)


def test_literals_of_hugging_faces_tests():
    close = {"rtol": 1e-4, "atol": 1e-5}
    yarn, longrope = PEERS["hf_test/yarn"], PEERS["hf_test/longrope"]
    np.testing.assert_allclose(inv_freq(rotary.YaRN(10, 2048)), yarn["inv_freq"], **close)
    for factor, amplitude in yarn["attention_factor"].items():
        same(rotary.YaRN(float(factor), 2048).amplitude, amplitude, 1e-15)
    assert rotary.YaRN(10, 2048, attention_factor=0.5).amplitude == 0.5
    got = inv_freq(rotary.YaRN(10, 2048, beta_fast=1000))
    assert got[0] == 1 and np.all(got[1:] < theta()[1:])
    same(got[-20:], theta()[-20:] / 10)

    for factor, amplitude in longrope["attention_factor_default(factor f, max 2048)"].items():
        spec = rotary.LongRoPE(tuple(range(1, 65)), 2048, float(factor), (2.0,) * 64)
        same(spec.amplitude, amplitude, 1e-15)
        same(inv_freq(spec, seq_len=2048), theta() / 2)
        same(inv_freq(spec, seq_len=2049), theta() / np.arange(1, 65))


def test_the_range_of_gpt_oss_ramp():
    want = PEERS["vllm_gptoss_yarn_range"]
    for truncate, (low, high) in (
        (False, (want["low"], want["high"])),
        (True, want["with truncate"]),
    ):
        keep = keep_by_dimension(150_000.0, 64, 4096, 1, 32, truncate=truncate)
        same(keep, 1 - np.clip((np.arange(32) - low) / (high - low), 0, 1), 1e-12)


@pytest.mark.parametrize(
    "key, a, b",
    [
        (
            "yarn truncate True vs False (d128,s16,orig4096) max rel inv_freq",
            rotary.YaRN(16, 4096),
            rotary.YaRN(16, 4096, truncate=False),
        ),
        (
            "yarn code ramp (dim index) vs paper ramp (rotations) max rel inv_freq",
            rotary.YaRN(16, 4096, ramp="rotations"),
            rotary.YaRN(16, 4096),
        ),
        (
            "NTK alpha=8: yarn repo base*s^(d/(d-2)) vs vLLM/kexue fixed (base*s)/s^(2/d) max rel",
            rotary.NTKAware(8, rule="fixed"),
            rotary.NTKAware(8),
        ),
    ],
    ids=["truncate", "ramp", "ntk"],
)
def test_sizes_of_known_disagreements(key, a, b):
    a, b = inv_freq(a), inv_freq(b)
    sizes = [np.abs(a / b - 1).max(), np.abs(b / a - 1).max()]
    assert min(abs(size - PEERS["disagreement_sizes"][key]) for size in sizes) < 1e-3


# Closed forms in float64, written again


def test_printed_values_of_yarn():
    """paper_facts 4.1, d=128, base 1e4, L=4096, s=16."""
    got = inv_freq(rotary.YaRN(16, 4096))[[0, 20, 21, 32, 45, 46, 63]]
    want = [1, 5.623413e-2, 4.694086e-2, 5.673077e-3, 1.517716e-4, 8.334509e-5, 7.217387e-6]
    same(got, want, 1e-6)
    same(inv_freq(rotary.YaRN(16, 4096, ramp="rotations"))[30], 3.936e-3, 2e-4)


def test_printed_values_of_llama3():
    plain, got = theta(5e5), inv_freq(rotary.Llama3())
    same(got[:29], plain[:29])
    same(got[35:], plain[35:] / 8)
    want = [1.207484, 1.553415, 2.026313, 2.694530, 3.684253, 5.257327]
    same(plain[29:35] / got[29:35], want, 1e-6)


@pytest.mark.parametrize(
    "factor, base",
    [(2, 20_221.26), (4, 40_889.94), (8, 82_684.62), (16, 167_198.74), (32, 338_096.95)],
)
def test_ntk_slows_the_last_pair_by_the_factor_exactly(factor, base):
    spec = rotary.NTKAware(factor)
    same(spec.new_base(128), base, 1e-7)
    got = inv_freq(spec)
    assert got[0] == 1
    same(got[-1], theta()[-1] / factor)
    same(got, inv_freq(rotary.RoPE(spec.new_base(128))))


def test_the_other_rules_of_ntk():
    j = np.arange(64)
    same(inv_freq(rotary.NTKAware(8, rule="fixed")), (8e4) ** (-2 * j / 128) / 8 ** (2 / 128))
    a = math.log(8) / 64**0.625
    mixed = inv_freq(rotary.NTKAware(8, rule="mixed"))
    same(mixed, theta() / np.exp(a * (j + 1) ** 0.625))
    same(mixed[-1], theta()[-1] / 8)
    # Critical bases of paper_facts 9.1.
    for longer, base in ((16_384, 7.174e4), (32_768, 1.921e5)):
        spec = rotary.NTKAware(longer / 4096, rule="liu", original_length=4096)
        same(spec.new_base(128), base, 3e-4)


def test_three_way_by_parts_has_three_parts():
    spec = rotary.NTKByPartsThreeWay(4, 2048)
    got, ntk = inv_freq(spec), inv_freq(rotary.NTKAware(4))
    turns = 2048 * theta() / PI2
    same(got[turns > 20], theta()[turns > 20])
    same(got[turns < 0.6], theta()[turns < 0.6] / 4)
    # Where the outer ramp ends and the inner one has not begun, the middle part stands alone.
    alone = rotary.NTKByPartsThreeWay(4, 2048, gamma_many=16, gamma_few=8)
    middle = (turns < 7) & (turns > 1.6)
    same(inv_freq(alone)[middle], ntk[middle])


def test_three_way_by_parts_ramps_beyond_the_last_pair():
    """Of 131,072 tokens 2 turns fall on pair 64.3 of 0..63, 16 on pair 49.8: rounded, 65 and 49."""
    found = inv_freq(rotary.NTKByPartsThreeWay(factor=8, original_length=131_072))[-1]
    ramp, ntk = (63 - 49) / (65 - 49), (1e4 * 8 ** (128 / 126)) ** (-126 / 128)
    assert found == pytest.approx(ramp * ntk + (1 - ramp) * 1e4 ** (-126 / 128), rel=1e-12)


def test_longrope_switches_after_the_original_length_exactly():
    long, short = tuple(np.linspace(1, 40, 48)), (1.5,) * 48
    spec = rotary.LongRoPE(long, 4096, 32.0, short, start_count=4)
    plain = theta(1e4, 96)
    for seq_len, factors in ((1, short), (4096, short), (4097, long), (131_072, long)):
        f = at(spec, 96, seq_len)
        same(f.inv_freq, plain / np.array(factors))
        same(f.start_inv_freq, plain)
        assert f.start_count == 4
    want = {4096: 1.1902381, 8192: 1.1435437}
    for original, factor in ((4096, 32), (8192, 16)):
        same(rotary.LongRoPE(2.0, original, factor).amplitude, want[original], 1e-7)
    assert rotary.LongRoPE(2.0, 4096, 8.0, attention_factor=1.25).amplitude == 1.25
    assert rotary.LongRoPE(2.0, 4096, 1.0).amplitude == 1


def test_longrope_start_tokens_turn_as_in_rope():
    n = np.arange(12)
    spec = rotary.LongRoPE(8.0, 4, 8.0, start_count=5, attention_factor=1.0)
    got = rotary.phases(rotary.make(spec, head_dim=16, seq_len=12), n).key
    angle = n[:, None] * theta(1e4, 16) / np.where(n < 5, 1, 8)[:, None]
    np.testing.assert_allclose(got.cos, np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(got.sin, np.sin(angle), atol=1e-6)


def test_yarns_amplitude_rules():
    log = math.log(40)
    both = rotary.YaRN(40, 4096, mscale=0.707, mscale_all_dim=1.0).amplitude
    same(both, (0.0707 * log + 1) / (0.1 * log + 1))
    same(rotary.YaRN(40, 4096, mscale=0.707).amplitude, 0.0707 * log + 1)
    same(rotary.YaRN(40, 4096, attn_factor=0.5).amplitude, 0.5 * (0.1 * log + 1))
    assert rotary.YaRN(40, 4096, mscale=0.7, mscale_all_dim=0.7).amplitude == 1
    assert rotary.YaRN(1, 4096).amplitude == 1


def test_yarns_clamp_acts_where_the_slow_end_lies_beyond_the_last_pair():
    inside = [inv_freq(rotary.YaRN(4, 4096, clamp=c)) for c in ("dimension", "pairs")]
    np.testing.assert_array_equal(*inside)
    many = {"factor": 4, "original_length": 2**20, "base": 1e4, "truncate": False}
    a, b = (inv_freq(rotary.YaRN(**many, clamp=c)) for c in ("dimension", "pairs"))
    assert b[-1] < a[-1] and np.all(b <= a)
    same(b[-1], theta()[-1] / 4)
    # low 32.6, high 128.6 before the cut to 127: 64 pairs of this ramp are far from its end.
    cut = rotary.YaRN(4, 2**16, 100.0, beta_fast=1000, truncate=False)
    low = 64 * math.log(2**16 / (PI2 * 1000)) / math.log(100)
    keep = 1 - np.clip((np.arange(64) - low) / (127 - low), 0, 1)
    same(inv_freq(cut), theta(100.0) * (keep + (1 - keep) / 4))


@pytest.mark.parametrize("ramp", ["dimension", "rotations"])
def test_yarn_outside_the_range_of_its_ramp(ramp):
    """No pair turns once: all but the first are interpolated. All turn often: none is."""
    short = inv_freq(rotary.YaRN(8, 4, ramp=ramp))
    same(short[1:], theta()[1:] / 8)
    same(inv_freq(rotary.YaRN(8, 2**22, 2.0, ramp=ramp)), theta(2.0))


def test_giraffes_order_and_three_rules():
    spec = rotary.GiraffeTruncated(power=0.5, factor=4)
    phi = theta() / 4 * (1 - np.arange(64) / 64) ** 0.5
    same(inv_freq(rotary.GiraffePower(0.5, 4)), phi)
    turn = PI2 / 2048
    want = np.where(phi >= turn, phi, np.where(phi >= turn / 8, turn / 16, 0))
    same(inv_freq(spec), want)
    assert set(inv_freq(spec)[phi < turn]) == {turn / 16, 0.0}
    period = inv_freq(dataclasses.replace(spec, rule="period"))
    same(period, np.where(phi >= turn, phi, 0))
    low, high, rho = turn / 8, turn, turn / 16
    named = dataclasses.replace(spec, rule="cutoffs", low=low, high=high, rho=rho)
    same(inv_freq(named), want)
    same(inv_freq(rotary.GiraffeTruncated("cutoffs", low=0.1, high=0.1, rho=0.0))[16], 0.1)


def test_partial_rotary_in_both_readings():
    over_the_part = inv_freq(rotary.PartialRotary(rotary.RoPE(), 0.25), 80)
    assert over_the_part.shape == (10,)
    same(over_the_part, theta(1e4, 20))
    over_the_head = inv_freq(rotary.Proportional(0.25), 80)
    same(over_the_head[:10], theta(1e4, 80)[:10])
    np.testing.assert_array_equal(over_the_head[10:], np.zeros(30))
    p = inv_freq(rotary.build("p_rope"), 64)
    assert np.count_nonzero(p) == 24
    same(inv_freq(rotary.Proportional(0.5, 1e4, 4.0), 64)[:16], theta(1e4, 64)[:16] / 4)
    part = at(rotary.PartialRotary(rotary.YaRN(8, 4096), 0.5), 128)
    same(part.inv_freq, inv_freq(rotary.YaRN(8, 4096), 64))
    assert part.amplitude == rotary.YaRN(8, 4096).amplitude


def test_resonance_gives_whole_wavelengths():
    inner = rotary.YaRN(8, 4096)
    f = at(rotary.Resonance(inner))
    wavelength = PI2 / f.inv_freq
    np.testing.assert_allclose(wavelength, np.round(wavelength), rtol=1e-14)
    assert np.abs(wavelength - PI2 / inv_freq(inner)).max() <= 0.5
    assert f.amplitude == inner.amplitude
    np.testing.assert_array_equal(inv_freq(rotary.Resonance(rotary.NoPE())), np.zeros(64))
    start = at(rotary.Resonance(rotary.LongRoPE(4.0, 64, 4.0, start_count=3)))
    same(start.start_inv_freq, inv_freq(rotary.Resonance(rotary.RoPE())))
    # A pair repeats its angles to the bit after its wavelength, as far as the words are exact.
    rot = rotary.make(rotary.Resonance(rotary.RoPE()), head_dim=128, seq_len=64)
    one, two = (rotary.phases(rot, np.array([n])).key.cos[0, 0] for n in (1, 1 + 6 * 1000))
    np.testing.assert_allclose(one, two, atol=1e-7)


def test_log_n_scales_queries_of_another_method():
    f = at(rotary.LogN(rotary.YaRN(8, 4096), 512))
    assert f.logn_length == 512 and f.amplitude == rotary.YaRN(8, 4096).amplitude
    rot = rotary.make(rotary.LogN(rotary.NoPE(), 512), head_dim=8, seq_len=4096)
    got = rotary.phases(rot, np.array([0, 511, 512, 4095]))
    want = [1, 1, math.log(513) / math.log(512), math.log(4096) / math.log(512)]
    np.testing.assert_allclose(got.query.cos[:, 0], want, rtol=1e-6)
    np.testing.assert_array_equal(got.key.cos, np.ones((4, 4)))


def test_hope_rests_what_makes_no_full_turn():
    got = inv_freq(rotary.HoPE(4096))
    turning = PI2 / theta() <= 4096
    assert 0 < np.count_nonzero(got) == np.count_nonzero(turning) == 46  # critical dimension 92
    same(got[:46], theta()[:46])
    assert not got[46:].any()


@pytest.mark.parametrize("layout", rotary.LAYOUTS)
@pytest.mark.parametrize("spec", [rotary.NoPE(), rotary.PartialRotary(rotary.RoPE(), 0.0)])
def test_nothing_turns(spec, layout):
    rot = rotary.make(spec, head_dim=8, seq_len=64)
    ph = jax.jit(rotary.phases)(rot, np.arange(5))
    assert ph.query.cos.shape == (5, len(inv_freq(spec, 8)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 8)), jnp.float32)
    np.testing.assert_array_equal(rotary.rotate(x, ph.query, layout=layout), x)
    assert "rotates 0 of 8" in rotary.explain(spec, head_dim=8) or len(inv_freq(spec, 8)) == 4


# Identities between methods


FACTOR_ONE = [
    rotary.PositionInterpolation(1),
    *(rotary.NTKAware(1, rule=rule) for rule in ("bloc97", "fixed", "mixed")),
    rotary.NTKAware(1, rule="liu", original_length=512),
    rotary.NTKByParts(1, 512),
    rotary.NTKByPartsThreeWay(1, 512),
    rotary.YaRN(1, 512),
    rotary.YaRN(1, 512, ramp="rotations"),
    rotary.YaRN(1, 512, truncate=False, clamp="pairs"),
    rotary.Llama3(1, 512, 1e4),
    rotary.LongRoPE(1.0, 512, 1),
    rotary.GiraffePower(0, 1),
    rotary.Proportional(1.0),
    rotary.PartialRotary(rotary.RoPE(), 1.0),
]


@pytest.mark.parametrize("spec", FACTOR_ONE, ids=str)
def test_factor_one_is_rope(spec):
    f = at(spec)
    same(f.inv_freq, theta(), 1e-14)
    assert f.amplitude == 1


DYNAMIC = [
    rotary.DynamicPI(512),
    rotary.DynamicNTK(512),
    rotary.DynamicNTK(512, 4.0),
    rotary.DynamicYaRN(512),
]


@pytest.mark.parametrize("spec", DYNAMIC, ids=str)
@pytest.mark.parametrize("seq_len", [1, 511, 512])
def test_dynamic_methods_are_rope_up_to_the_trained_length(spec, seq_len):
    f = at(spec, seq_len=seq_len)
    same(f.inv_freq, theta(), 1e-14)
    assert f.amplitude == 1
    assert inv_freq(spec, seq_len=513)[-1] < theta()[-1]


@pytest.mark.parametrize("seq_len", [513, 2048, 5000])
def test_dynamic_methods_are_their_static_ones_at_the_ratio(seq_len):
    ratio = seq_len / 512
    pairs = {
        rotary.DynamicPI(512): rotary.PositionInterpolation(ratio),
        rotary.DynamicNTK(512): rotary.NTKAware(ratio),
        rotary.DynamicNTK(512, 3.0): rotary.NTKAware(3 * ratio - 2),
        rotary.DynamicYaRN(512): rotary.YaRN(ratio, 512),
        rotary.DynamicYaRN(512, truncate=False): rotary.YaRN(ratio, 512, truncate=False),
    }
    for dynamic, static in pairs.items():
        a, b = at(dynamic, seq_len=seq_len), at(static)
        same(a.inv_freq, b.inv_freq)
        assert a.amplitude == b.amplitude


FACTORS = st.floats(1, 64)
LENGTHS = st.integers(2, 2**17)
BASES = st.floats(1e2, 1e9)


@given(factor=FACTORS, length=LENGTHS, base=BASES, head_dim=st.sampled_from([2, 64, 96, 128]))
@settings(max_examples=60, deadline=None)
def test_llama3_and_yarn_by_rotations_are_by_parts(factor, length, base, head_dim):
    parts = rotary.NTKByParts(factor, length, base, 1, 4)
    same(inv_freq(rotary.Llama3(factor, length, base), head_dim), inv_freq(parts, head_dim))
    # Meta's own form, in wavelengths.
    w = PI2 / theta(base, head_dim)
    g = (length / w - 1) / 3
    smooth = ((1 - g) / factor + g) * theta(base, head_dim)
    slow = np.where(w > length, theta(base, head_dim) / factor, smooth)
    want = np.where(w < length / 4, theta(base, head_dim), slow)
    same(inv_freq(parts, head_dim), want, 1e-11)
    parts = rotary.NTKByParts(factor, length, base)
    yarn = rotary.YaRN(factor, length, base, ramp="rotations")
    same(inv_freq(yarn, head_dim), inv_freq(parts, head_dim))


@given(
    factor=FACTORS,
    length=LENGTHS,
    base=BASES,
    head_dim=st.sampled_from([4, 64, 96, 128]),
    name=st.sampled_from(["ntk", "ntk_by_parts", "ntk_by_parts_3way", "yarn", "llama3"]),
)
@settings(max_examples=100, deadline=None)
def test_every_extension_lies_between_rope_and_pi(factor, length, base, head_dim, name):
    options = {} if name == "ntk" else {"original_length": length}
    got = inv_freq(rotary.build(name, factor=factor, base=base, **options), head_dim)
    plain = theta(base, head_dim)
    assert np.all(got <= plain * (1 + 1e-12)) and np.all(got >= plain / factor * (1 - 1e-12))


# Hugging Face configs


POSITIVE = st.floats(0.01, 10)


@st.composite
def hf_specs(draw, partial=True):
    """A method that Hugging Face has a type for, with options it has."""
    kind = draw(st.sampled_from(["rope", "pi", "dynamic", "yarn", "longrope", "llama3", "prop"]))
    factor, length, base = draw(FACTORS), draw(LENGTHS), draw(BASES)
    if kind == "prop":
        return rotary.Proportional(draw(st.floats(0, 1)), base, factor)
    if kind == "yarn":
        scale = draw(
            st.sampled_from(["paper", "attention_factor", "pair"]),
        )
        options = {"truncate": draw(st.booleans())}
        options["beta_slow"] = draw(POSITIVE)
        options["beta_fast"] = options["beta_slow"] + draw(POSITIVE)
        if scale == "attention_factor":
            options["attention_factor"] = draw(POSITIVE)
        elif scale == "pair":
            options |= {"mscale": draw(POSITIVE), "mscale_all_dim": draw(POSITIVE)}
        spec = rotary.YaRN(factor, length, base, **options)
    elif kind == "longrope":
        lists = (tuple(draw(st.lists(POSITIVE, min_size=4, max_size=4))) for _ in range(2))
        attention = draw(st.none() | POSITIVE)
        spec = rotary.LongRoPE(
            next(lists), length, factor, next(lists), base, attention_factor=attention
        )
    else:
        low = draw(POSITIVE)
        spec = {
            "rope": rotary.RoPE(base),
            "pi": rotary.PositionInterpolation(factor, base),
            "dynamic": rotary.DynamicNTK(length, factor, base),
            "llama3": rotary.Llama3(factor, length, base, low, low + draw(POSITIVE)),
        }[kind]
    if partial and draw(st.booleans()):
        return rotary.PartialRotary(spec, draw(st.floats(0, 0.99)))
    return spec


@given(spec=hf_specs())
@settings(max_examples=200, deadline=None)
def test_hf_round_trip_is_exact(spec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameters = rotary.to_hf(spec)
        assert rotary.from_hf({"rope_parameters": parameters}) == spec
        assert rotary.from_hf({"rope_parameters": json.loads(json.dumps(parameters))}) == spec
        # The v4 spelling: three keys outside, `type` inside, with None for what is not set.
        inside = {"attention_factor": None} | parameters
        v4 = {"type": inside.pop("rope_type")} | inside
        names = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
        outside = {name: v4.pop(name) for name in names if name in v4}
        assert rotary.from_hf(outside | {"rope_scaling": v4}) == spec


# Methods that attention takes part in; Hugging Face has none of them.
IN_ATTENTION = {
    "alibi": {},
    "dual_chunk": {"original_length": 64},
    "fope": {"original_length": 64, "n_kv_heads": 2},
    "leaky_rerope": {"window": 8, "factor": 2},
    "rerope": {"window": 8},
    "self_extend": {"window": 8, "group": 2},
    "string": {"original_length": 512},
}


@pytest.mark.parametrize("name", IN_ATTENTION)
def test_methods_within_attention_have_no_hugging_face_type(name):
    with pytest.raises(ValueError, match=f"no rope_type for {name}"):
        rotary.to_hf(rotary.build(name, **IN_ATTENTION[name]))


@given(
    name=st.sampled_from(sorted({*rotary.names()} - {*IN_ATTENTION, "by_layer"})),
    factor=st.floats(1.01, 64),
    length=LENGTHS,
)
@settings(max_examples=60, deadline=None)
def test_what_is_exported_means_the_same(name, factor, length):
    options = {"factor": factor, "original_length": length, "inner": rotary.RoPE(2e4)}
    options |= {"fraction": 0.5, "long_factor": factor}
    spec = _build(name, options)
    try:
        parameters = rotary.to_hf(spec, head_dim=16)
    except ValueError as error:
        assert "Hugging Face" in str(error) and not hasattr(spec, "to_hf")
        return
    back = rotary.from_hf({"rope_parameters": parameters})
    for seq_len in (length, length + 1):
        a, b = (at(s, 16, min(seq_len, 2**24)) for s in (spec, back))
        same(a.inv_freq, b.inv_freq)
        assert a.amplitude == b.amplitude


def _build(name, options):
    try:
        return rotary.build(name)
    except ValueError as error:
        needed = str(error).partition(":")[0].replace(",", "").split()
        return rotary.build(name, **{k: v for k, v in options.items() if k in needed})


def test_ntk_exports_as_its_base():
    spec = rotary.NTKAware(8)
    with pytest.raises(ValueError, match="pass head_dim"):
        rotary.to_hf(spec)
    back = rotary.from_hf({"rope_parameters": rotary.to_hf(spec, head_dim=128)})
    assert back == rotary.RoPE(spec.new_base(128))
    np.testing.assert_array_equal(inv_freq(back), inv_freq(spec))
    with pytest.raises(ValueError, match="rule 'mixed' equals no RoPE"):
        rotary.to_hf(rotary.NTKAware(8, rule="mixed"), head_dim=128)
    half = rotary.PartialRotary(spec, 0.5)
    assert rotary.to_hf(half, head_dim=128) == {
        "rope_type": "default",
        "rope_theta": spec.new_base(64),
        "partial_rotary_factor": 0.5,
    }


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "config, message, spec",
    [
        (
            {"rope_scaling": YARN | {"attn_factor": 0.8782488562869419}},
            "attn_factor=0.878.* multiplies the attention factor, which is now 1;",
            rotary.YaRN(4.0, 4096, attn_factor=0.8782488562869419),
        ),
        (
            {"rope_scaling": YARN | {"attn_factor": 0.5, "attention_factor": 1.5}},
            "attention_factor=1.5 won over .*attn_factor",
            rotary.YaRN(4.0, 4096, attention_factor=1.5),
        ),
        (
            {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1, "attention_factor": 1.5}},
            "attention_factor=1.5 won over .*mscale",
            rotary.YaRN(4.0, 4096, attention_factor=1.5),
        ),
        (
            {"rope_scaling": YARN | {"mscale": 0.7}},
            r"the default 0.1 ln\(factor\) \+ 1 won",
            rotary.YaRN(4.0, 4096),
        ),
        (
            {"rope_scaling": YARN, "max_position_embeddings": 65_536},
            "factor=4.0 won over max_position_embeddings .* = 16",
            rotary.YaRN(4.0, 4096),
        ),
        (
            {
                "rope_scaling": {
                    "type": "dynamic",
                    "factor": 2.0,
                    "original_max_position_embeddings": 2048,
                },
                "max_position_embeddings": 4096,
            },
            "max_position_embeddings=4096 won over original_max_position_embeddings=2048",
            rotary.DynamicNTK(4096, 2.0),
        ),
    ],
)
def test_from_hf_warns_which_value_won(config, message, spec):
    with pytest.warns(UserWarning, match=message) as caught:
        assert rotary.from_hf(config) == spec
    assert len(caught) == 1 and caught[0].filename == __file__


def test_configs_as_checkpoints_ship_them():
    llama = {
        "rope_theta": 500_000.0,
        "max_position_embeddings": 131_072,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }
    assert rotary.from_hf(llama) == rotary.Llama3()
    phi = {
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [1.0, 20.0]},
    }
    want = rotary.LongRoPE((1.0, 20.0), 4096, 32.0, (1.0, 1.1))
    assert rotary.from_hf(phi) == want
    phi["rope_scaling"]["type"] = "longrope"
    assert rotary.from_hf(phi) == want
    yarn = {"max_position_embeddings": 65_536, "rope_scaling": {"type": "yarn", "finetuned": True}}
    yarn["rope_scaling"] |= {"factor": 16.0, "original_max_position_embeddings": 4096}
    assert rotary.from_hf(yarn) == rotary.YaRN(16.0, 4096)
    not_raised = {"max_position_embeddings": 4096, "rope_scaling": yarn["rope_scaling"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rotary.from_hf(not_raised) == rotary.YaRN(16.0, 4096)
    qwen = {"max_position_embeddings": 32_768, "rope_theta": 1e6}
    qwen["rope_scaling"] = {"rope_type": "yarn", "original_max_position_embeddings": 32_768}
    assert rotary.from_hf(qwen) == rotary.YaRN(1.0, 32_768, 1e6)
    gemma = {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    full = rotary.from_hf(gemma, layer_type="full_attention")
    assert full == rotary.Proportional(0.25, 1e6)
    assert rotary.from_hf(gemma, layer_type="sliding_attention") == rotary.RoPE()
    with pytest.raises(ValueError, match="did you mean 'full_attention'"):
        rotary.from_hf(gemma, layer_type="full")
    with pytest.raises(ValueError, match="differs by layer: pass layer_type"):
        rotary.from_hf(gemma)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"rope_scaling": {"type": "yrn"}}, "unknown rope_type 'yrn'; did you mean 'yarn'"),
        ({"rope_scaling": YARN | {"beta_fst": 32}}, "'beta_fst'; did you mean 'beta_fast'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "needs 'original_max_position"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "needs 'max_position_embeddings'"),
        ({"rope_scaling": {"type": "dynamic"}, "max_position_embeddings": 64}, "needs 'factor'"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 2048},
            "two values of original_max_position_embeddings: 4096 and 2048",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25},
            r"two values of partial_rotary_factor: \[0.25, 0.5\]",
        ),
        ({"partial_rotary_factor": 1.5}, "fraction must lie between 0 and 1, got 1.5"),
        ({"rope_theta": 10**400}, "rope_theta must be a finite number, got 1000"),
        ({"rope_scaling": YARN | {"factor": 10**400}}, "factor must be at least 1, got 1000"),
        ({"rope_scaling": False}, "rope_scaling must be an object of keys and values, got False"),
        ({"rope_scaling": YARN | {"truncate": "no"}}, "truncate must be True or False, got 'no'"),
        ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_slow must be below beta_fast"),
        ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "unknown key of rope_type def"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' needs 'high_freq_"),
    ],
)
def test_from_hf_refuses(config, message):
    with pytest.raises(ValueError, match=message) as error:
        rotary.from_hf(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec, message",
    [
        (rotary.DynamicYaRN(64), "no rope_type for dynamic_yarn"),
        (rotary.LogN(rotary.RoPE(), 64), "no rope_type for log_n"),
        (rotary.PartialRotary(rotary.HoPE(64), 0.5), "no rope_type for hope"),
        (rotary.PartialRotary(rotary.Proportional(0.5), 0.5), "this spec has two"),
        (rotary.YaRN(2, 64, ramp="rotations"), "ramp and clamp by dimension only"),
        (rotary.YaRN(2, 64, clamp="pairs"), "ramp and clamp by dimension only"),
        (rotary.YaRN(2, 64, mscale=0.7), "write attention_factor=1.048.* instead"),
        (rotary.LongRoPE((1.0,), 64, 2.0, start_count=4), "has no start tokens"),
        (rotary.LongRoPE(2.0, 64, 2.0), "short_factor is one number, .* pass head_dim"),
    ],
    ids=str,
)
def test_to_hf_refuses(spec, message):
    with pytest.raises(ValueError, match=message):
        rotary.to_hf(spec)


def test_attn_factor_is_exported_as_what_hugging_face_reads():
    spec = rotary.YaRN(4.0, 4096, attn_factor=0.5)
    assert rotary.to_hf(spec)["attention_factor"] == spec.amplitude
    assert "attn_factor" not in rotary.to_hf(spec)


# Options as text


def test_parse_reads_tuples_and_nested_methods():
    text = "longrope:long_factor=(1.0, 2.0),original_length=64,factor=2,short_factor=(1.0,1.5)"
    assert rotary.parse(text) == rotary.LongRoPE((1.0, 2.0), 64, 2, (1.0, 1.5))
    text = text.replace("(1.0, 2.0)", "[1.0, 2.0]")
    assert rotary.parse(text) == rotary.LongRoPE((1.0, 2.0), 64, 2, (1.0, 1.5))
    nested = rotary.parse(
        "resonance:inner=(log_n:inner=(yarn:factor=8,original_length=64),original_length=64)"
    )
    assert nested == rotary.Resonance(rotary.LogN(rotary.YaRN(8, 64), 64))
    assert rotary.parse("partial:inner=(abf),fraction=0.5").inner == rotary.build("abf")
    assert rotary.parse("p_rope") == rotary.Proportional(0.75)


@pytest.mark.parametrize(
    "text, message",
    [
        ("longrope:long_factor=(1.0,2.0", "brackets do not match"),
        ("longrope:long_factor=1.0,2.0)", "brackets do not match"),
        ("resonance:inner=rope", "inner must be a method, got 'rope'; write inner=(rope)"),
        ("resonance:inner=(rpoe)", "unknown rotary method 'rpoe'; did you mean 'rope'?"),
        ("log_n:inner=(rope)", "log_n needs original_length"),
        ("log_n:inner=(rope),original_length=1", "original_length must be at least 2 tokens"),
        ("partial:inner=(rope),fraction=1.5", "fraction must lie between 0 and 1, got 1.5"),
        ("proportional:fraction=half", "fraction must lie between 0 and 1, got 'half'"),
        ("ntk:factor=8,rule=bloc", "unknown rule of ntk 'bloc'; did you mean 'bloc97'?"),
        ("ntk:factor=8,rule=liu", "original_length must be at least 2 tokens, got None"),
        ("ntk:factor=8,rule=liu,original_length=6", "rule liu needs original_length > 2 pi"),
        ("ntk:factor=8,original_length=64", "original_length belongs to rule 'liu'"),
        ("ntk:factor=8,rule=mixed,exponent=0", "exponent must be finite and positive"),
        ("dynamic_ntk:original_length=64,factor=0.5", "factor must be at least 1"),
        ("dynamic_pi:original_length=long", "original_length must be at least 2 tokens"),
        ("ntk_by_parts:factor=2,original_length=64,alpha=32", "alpha must be below beta"),
        ("ntk_by_parts_3way:factor=2,original_length=64,beta_few=2", "beta_few must be below"),
        ("yarn:factor=8", "yarn needs original_length: write yarn:factor=8,original_length=..."),
        ("yarn:factor=8,original_length=64,ramp=dim", "unknown ramp of yarn 'dim'"),
        ("yarn:factor=8,original_length=64,clamp=pair", "unknown clamp of yarn 'pair'; did you"),
        ("yarn:factor=8,original_length=64,mscale=-1", "mscale must be finite and not negative"),
        ("yarn:factor=8,original_length=64,truncate=no", "truncate must be True or False"),
        (
            "yarn:factor=8,original_length=64,attention_factor=1.5,attn_factor=2",
            "attention_factor replaces mscale, mscale_all_dim and attn_factor",
        ),
        ("dynamic_yarn:original_length=64,beta_slow=33", "beta_slow must be below beta_fast"),
        ("llama3:low_freq_factor=4", "low_freq_factor must be below high_freq_factor"),
        (
            "longrope:long_factor=(1.0,0.0),original_length=64,factor=2",
            "long_factor must be finite and positive, got 0.0",
        ),
        (
            "longrope:long_factor=2,original_length=64,factor=2,start_count=1.5",
            "start_count must be a whole number of tokens up to 16777216, got 1.5",
        ),
        ("giraffe_power:power=-1", "power must be finite and not negative, got -1"),
        ("giraffe_truncated:rule=paper", "unknown rule of giraffe_truncated 'paper'"),
        ("giraffe_truncated:low=0.1", "low, high and rho belong to rule 'cutoffs'"),
        ("giraffe_truncated:rule=cutoffs,low=0.1", "rule cutoffs needs 0 <= low <= high"),
        ("hope:original_length=0", "original_length must be at least 2 tokens, got 0"),
    ],
)
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:
        rotary.parse(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec, head_dim, message",
    [
        (rotary.NTKAware(8), 2, "head_dim of at least 4"),
        (rotary.LongRoPE((1.0, 2.0), 64, 2.0), 8, "long_factor has 2 factors, head_dim 8 has 4"),
        (rotary.PartialRotary(rotary.RoPE(), 0.4), 8, "is 3, an odd number"),
        (rotary.LogN(rotary.LogN(rotary.RoPE(), 8), 8), 8, "has log-n scaling already"),
    ],
    ids=str,
)
def test_heads_that_do_not_fit_are_refused(spec, head_dim, message):
    with pytest.raises(ValueError, match=message):
        at(spec, head_dim)
