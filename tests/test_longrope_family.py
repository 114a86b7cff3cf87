"""LongRoPE2, dynamic LongRoPE, YaRN with an extrapolation factor: printed numbers, identities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import rotary
from longrope_jax.rotary.methods.longrope2 import critical_pair


def at(spec, head_dim=128, seq_len=1024):
    return spec.frequencies(head_dim=head_dim, seq_len=seq_len)


def theta(base=1e4, head_dim=128):
    return base ** (-2 * np.arange(head_dim // 2) / head_dim)


def same(a, b, rtol=1e-13):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=0)


# LongRoPE2


@pytest.mark.parametrize(
    "base, head_dim, length, pair",
    [
        (1e4, 96, 2048, 31),  # Phi3-mini, printed in the paper
        (5e5, 128, 8192, 35),  # LLaMA3-8B, printed in the paper
        (1e4, 128, 2048, 41),  # Liu et al.: dimensions 82, 92 and 110
        (1e4, 128, 4096, 46),
        (1e4, 128, 16_384, 55),
    ],
)
def test_critical_pairs_are_the_published_ones(base, head_dim, length, pair):
    assert critical_pair(base, head_dim, length) == pair
    wavelengths = 2 * np.pi / theta(base, head_dim)
    assert wavelengths[pair - 1] <= length < wavelengths[pair]
    assert rotary.LongRoPE2(8, length, base=base).critical_pair(head_dim) == pair


@given(
    factor=st.floats(1, 64),
    length=st.integers(64, 2**17),
    base=st.floats(5e4, 1e9),
    head_dim=st.sampled_from([64, 96, 128]),
    critical=st.none() | st.integers(0, 31),
)
@settings(max_examples=60, deadline=None)
def test_longrope2_is_continuous_at_the_critical_pair(factor, length, base, head_dim, critical):
    spec = rotary.LongRoPE2(factor, length, critical=critical, base=base)
    r = spec.critical_pair(head_dim) if critical is None else critical
    got = at(spec, head_dim, length + 1).inv_freq
    plain = theta(base, head_dim)
    same(got[r:], plain[r:] / factor, 1e-12)
    if r:
        # Below: RoPE of one larger base, which gives pair r the same frequency from its side.
        below = got[: r + 1]
        same(below, (below[1] ** (-head_dim / 2)) ** (-2 * np.arange(r + 1) / head_dim), 1e-9)
        assert got[0] == 1
    np.testing.assert_array_equal(
        at(spec, head_dim, length).inv_freq, at(rotary.RoPE(base), head_dim).inv_freq
    )


def test_longrope2s_base_is_lius_where_the_critical_pair_is_no_rounded_number():
    length = 2 * math.pi * 1e4 ** (46 / 64)  # pair 46 makes exactly one turn
    spec = rotary.LongRoPE2(8, length, critical=46)
    liu = rotary.NTKAware(8, rule="liu", original_length=length)
    same(at(spec, seq_len=2**16).inv_freq[:47], at(liu).inv_freq[:47], 1e-12)


def test_longrope2_with_its_critical_pair_beyond_the_last_is_ntk_alone():
    """L of 2^20 at base 10,000: pair 84 of 64; still the base that a longer head would have."""
    spec = rotary.LongRoPE2(8, 2**20)
    assert spec.critical_pair(128) == 84
    longer = theta() * 8.0 ** (-np.arange(64) / 84)
    same(at(spec, seq_len=2**20 + 1).inv_freq, longer)


def test_longrope2_takes_one_factor_per_pair_and_exports_as_longrope():
    factors = tuple(np.linspace(16, 20, 34))
    spec = rotary.LongRoPE2(16, 8192, factors, critical=30, base=5e5)
    same(at(spec, seq_len=8193).inv_freq[30:], theta(5e5)[30:] / factors)
    assert at(spec).amplitude == math.sqrt(1 + math.log(16) / math.log(8192))
    back = rotary.from_hf({"rope_parameters": rotary.to_hf(spec.as_longrope(128), head_dim=128)})
    for seq_len in (8192, 8193):
        same(at(back, seq_len=seq_len).inv_freq, at(spec, seq_len=seq_len).inv_freq)
    assert at(back).amplitude == at(spec).amplitude
    assert at(rotary.LongRoPE2(16, 8192, attention_factor=1.0)).amplitude == 1
    with pytest.raises(ValueError, match="no rope_type for longrope2"):
        rotary.to_hf(spec)


def test_longrope2_with_factor_one_is_rope():
    f = at(rotary.LongRoPE2(1, 512), seq_len=4096)
    same(f.inv_freq, theta())
    assert f.amplitude == 1


# Dynamic LongRoPE

FACTORS = tuple(1 + 31 * (np.arange(48) / 47) ** 2)


def test_dynamic_longrope_goes_from_rope_to_longrope():
    spec = rotary.DynamicLongRoPE(FACTORS, 4096, 32)
    whole = rotary.LongRoPE(FACTORS, 4096, 32)
    for seq_len in (1, 4096):
        same(at(spec, 96, seq_len).inv_freq, theta(head_dim=96))
    same(at(spec, 96, 4096 * 32).inv_freq, at(whole, 96, 4096 * 32).inv_freq)
    half = at(spec, 96, 4096 * 33 // 2).inv_freq  # half of the way from 1 to 32 times L
    same(theta(head_dim=96) / half, (1 + np.array(FACTORS)) / 2)
    assert at(spec, 96, 1).amplitude == at(whole, 96).amplitude
    assert hash(rotary.DynamicLongRoPE(list(FACTORS), 4096, 32)) == hash(spec)


def test_dynamic_longrope_with_equal_factors_is_dynamic_pi():
    spec = rotary.DynamicLongRoPE(8.0, 512, 8, attention_factor=1.0)
    for seq_len in (100, 513, 3000, 9000):
        got, want = (at(s, 64, seq_len).inv_freq for s in (spec, rotary.DynamicPI(512)))
        same(got, want)


# YaRN's extrapolation factor


def test_extrapolation_factor_mixes_towards_pi():
    pi, yarn = at(rotary.PositionInterpolation(8)).inv_freq, at(rotary.YaRN(8, 4096)).inv_freq
    none = at(rotary.YaRN(8, 4096, extrapolation_factor=0.0))
    same(none.inv_freq, pi)
    assert none.amplitude == rotary.YaRN(8, 4096).amplitude
    some = at(rotary.YaRN(8, 4096, extrapolation_factor=0.25)).inv_freq
    same(some, pi + 0.25 * (yarn - pi), 1e-12)
    dynamic = rotary.DynamicYaRN(512, extrapolation_factor=0.25)
    same(
        at(dynamic, seq_len=4096).inv_freq,
        at(rotary.YaRN(8, 512, extrapolation_factor=0.25)).inv_freq,
    )
    with pytest.raises(ValueError, match="has no extrapolation_factor"):
        rotary.to_hf(rotary.YaRN(8, 4096, extrapolation_factor=0.5))


@pytest.mark.parametrize(
    "text, message",
    [
        ("longrope2:factor=8", "longrope2 needs original_length"),
        ("longrope2:factor=8,original_length=64,critical=1.5", "critical must be a pair index"),
        ("longrope2:factor=8,original_length=64,critical=-1", "critical must be a pair index"),
        ("longrope2:factor=8,original_length=64,long_factor=0", "long_factor must be finite and p"),
        ("longrope2:factor=8,original_length=64,long_factor=all", "long_factor must be finite and"),
        ("dynamic_longrope:long_factor=2,original_length=64,factor=1", "factor must be above 1"),
        ("dynamic_longrope:long_factor=0,original_length=64,factor=2", "long_factor must be fin"),
        (
            "yarn:factor=8,original_length=64,extrapolation_factor=2",
            "extrapolation_factor must lie",
        ),
    ],
)
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:
        rotary.parse(text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec, seq_len, message",
    [
        (rotary.LongRoPE2(8, 2**20, (8.0,)), 8, "1 factors, head_dim 128 has 0 pairs"),
        (rotary.LongRoPE2(8, 512, (), critical=64), 8, "0 factors, head_dim 128 has 0 pairs"),
        (rotary.LongRoPE2(8, 512, (8.0, 9.0)), 8, "2 factors, head_dim 128 has 33 pairs"),
        (rotary.DynamicLongRoPE((1.0, 2.0), 64, 2), 8, "2 factors, head_dim 128 has 64"),
        (rotary.DynamicLongRoPE(0.5, 64, 2), 512, "a long_factor below 1 falls to -2.5 at 512"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(spec, seq_len, message):
    with pytest.raises(ValueError, match=message):
        at(spec, seq_len=seq_len)
