import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import rotary
from longrope_jax.analysis import base_bound, critical_dimension, decay

# Su Jianlin's search (kexue.fm/archives/10122) as he prints it, two digits; k = 1024.
SU = {1024: 4.3e3, 2048: 1.2e4, 4096: 2.7e4, 8192: 8.4e4}


def brute_force(base, length, head_dim):
    """Smallest B_b(m) over the integers m < length, the plain way."""
    theta = base ** (-2 * np.arange(head_dim // 2) / head_dim)
    return np.cos(np.arange(length)[:, None] * theta).sum(1).min()


@pytest.fixture(scope="module")
def found():
    return [base_bound.infimum(length, head_dim=128) for length in SU]


@pytest.mark.parametrize("m", [1, 1009, 131_071, 2**20 - 1])
@pytest.mark.parametrize("base", [4293.4375, 65_374_955.0])
def test_criterion_matches_50_digits(base, m):
    with mpmath.workdps(50):
        exact = sum(mpmath.cos(m * mpmath.mpf(base) ** (-mpmath.mpf(j) / 64)) for j in range(64))
    rounding = base_bound._MARGIN / 10
    assert base_bound.criterion(base, m, head_dim=128) == pytest.approx(float(exact), abs=rounding)
    scanned = base_bound._scan(np.log(base), m + 1, 128)[m]
    assert scanned == pytest.approx(float(exact), abs=rounding)


def test_criterion_is_the_decay_curve_of_rope():
    m = np.arange(0, 9000, 11)
    curve = decay.score(rotary.RoPE(base=5e5), m, head_dim=128) * np.sqrt(128) / 2
    np.testing.assert_allclose(base_bound.criterion(5e5, m, head_dim=128), curve, atol=1e-9)


@pytest.mark.parametrize(
    ("base", "length", "m"),
    [
        # First negative distances of Figure 4's curves, and of entries published as sufficient.
        (1e4, 4096, 1707),
        (5e5, 32_768, 18_438),
        (1e6, 32_768, 27_115),
        (1.7e6, 32_768, 28_220),
        (1.8e6, 32_768, 28_654),
        (2.7e4, 4096, 4079),
        (3.1e5, 16_384, 12_223),
        (6.4e5, 32_768, 27_685),
        (5e5, 18_438, None),
        (1.5e6, 32_768, None),
        (2.2e6, 32_768, None),
    ],
)
def test_first_failure_of_known_bases(base, length, m):
    assert base_bound.first_failure(base, length, head_dim=128) == m


def test_infimum_agrees_with_su_and_brute_force(found):
    for one in found:
        assert one.high == pytest.approx(SU[one.length], rel=0.04)
        assert 0 <= one.high / one.low - 1 < 1e-6
        assert (
            brute_force(one.high, one.length, 128)
            >= 0
            > brute_force(one.low * (1 - 1e-6), one.length, 128)
        )


def test_no_base_below_the_infimum_meets_the_requirement(found):
    below = np.exp(np.random.default_rng(0).uniform(0, np.log(found[0].low), 100))
    close = found[0].low * (1 - np.geomspace(1e-7, 1e-2, 50))
    assert all(brute_force(b, found[0].length, 128) < 0 for b in [*below, *close])


def test_a_search_may_start_where_a_shorter_length_fails():
    start = 1.0
    for length in (64, 128, 256):
        found = base_bound.infimum(length, head_dim=32, above=start)
        alone = base_bound.infimum(length, head_dim=32)
        assert found.length == length and found.high == pytest.approx(alone.high, rel=1e-7)
        start = found.low


@pytest.mark.parametrize(("length", "head_dim"), [(60, 16), (300, 64), (1024, 128)])
def test_intervals_agree_with_brute_force_on_a_fine_grid(length, head_dim):
    intervals = base_bound.intervals(length, head_dim=head_dim)
    ends = np.array([(i.low, i.high) for i in intervals])
    assert np.all(np.diff(ends.ravel()) > 0) and ends[-1, 1] == np.inf and len(ends) > 1
    top = base_bound.sufficient_base(length, head_dim=head_dim)
    for base in np.geomspace(1.001, 2 * top, 300):
        inside = np.any((ends[:, 0] <= base) & (base <= ends[:, 1]))
        assert inside == (brute_force(base, length, head_dim) >= 0)
    for low, high in ends:
        assert brute_force(low * (1 - 1e-6), length, head_dim) < 0
        assert brute_force(low * (1 + 1e-7), length, head_dim) >= 0
        if np.isfinite(high):
            assert brute_force(high * (1 - 1e-7), length, head_dim) >= 0
            assert brute_force(high * (1 + 1e-6), length, head_dim) < 0


def test_intervals_can_start_late_and_stop_early():
    every = base_bound.intervals(300, head_dim=64)
    assert len(every) > 1 and base_bound.intervals(300, head_dim=64, count=1) == every[:1]
    above = (every[0].high + every[1].low) / 2
    later = base_bound.intervals(300, head_dim=64, above=above)
    assert [i.high for i in later] == pytest.approx([i.high for i in every[1:]], rel=1e-7)
    last = [base_bound.Interval(1e12, np.inf)]
    assert base_bound.intervals(300, head_dim=64, above=1e12) == last


@settings(max_examples=60, deadline=None)
@given(
    head_dim=st.sampled_from([8, 64, 128]),
    u=st.floats(0.0, 18.0),
    m=st.integers(1, 20_000),
    share=st.floats(0.0, 1.0),
)
def test_steps_never_pass_a_change_of_sign(head_dim, u, m, share):
    """At any point of a step the parabola bounds the sum of cosines."""
    distance = np.array([m])
    here = base_bound.criterion(np.exp(max(u, 1e-12)), distance, head_dim=head_dim)
    slope = base_bound._slope(u, distance, head_dim)
    curvature = base_bound._curvature(u, distance, head_dim)
    h = share * base_bound._reach(np.abs(here), np.zeros(1), curvature)
    there = base_bound.criterion(np.exp(max(u, 1e-12) + h[0]), distance, head_dim=head_dim)
    assert np.abs(there - here - slope * h) <= curvature * h**2 / 2 * (1 + 1e-9) + 1e-7


@settings(max_examples=100, deadline=None)
@given(gap=st.floats(1e-9, 64), slope=st.floats(-1e6, 1e6), curvature=st.floats(1e-6, 1e10))
def test_reach_is_where_the_parabola_ends(gap, slope, curvature):
    h = base_bound._reach(*(np.array([x]) for x in (gap, slope, curvature)))[0]
    size = gap + abs(slope) * h + curvature * h * h
    assert h >= 0 and abs(gap + slope * h - curvature * h * h / 2) <= 1e-9 * size


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: base_bound.criterion(1.0, 5, head_dim=8), "base must be finite and above 1"),
        (lambda: base_bound.infimum(64, head_dim=4), "at least 6"),
        (lambda: base_bound.infimum(1, head_dim=8), "at least 2 tokens"),
        (lambda: base_bound.first_failure(10.0, 64, head_dim=7), "head_dim must be even"),
        (lambda: base_bound.intervals(64, head_dim=8, above=0.5), "above must be at least 1"),
        (lambda: critical_dimension.critical_dimension(6, head_dim=8), "above 2 pi"),
        (lambda: critical_dimension.critical_dimension(64, head_dim=7), "even"),
        (lambda: critical_dimension.critical_base(64, 32), "at least the trained 64"),
        (lambda: critical_dimension.critical_dimension(float("nan"), head_dim=8), "above 2 pi"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(("trained", "features"), [(2048, 82), (4096, 92), (16_384, 110)])
def test_critical_dimension_of_the_paper(trained, features):
    assert critical_dimension.critical_dimension(trained, head_dim=128) == features
    # Its last pair completes a turn within the trained length, the next one does not.
    wavelength = 2 * np.pi / rotary.rope_inv_freq(1e4, 128)
    assert wavelength[features // 2 - 1] <= trained < wavelength[features // 2]


def test_critical_base_gives_the_critical_pair_the_tuned_length():
    trained, tuned = 4096, 32_768
    beta = critical_dimension.critical_base(trained, tuned)
    assert beta == pytest.approx(1.921e5, rel=1e-3)
    assert critical_dimension.critical_base(trained, 16_384) == pytest.approx(7.174e4, rel=1e-3)
    # The continuous index at which base 10,000 has period T has period T' at the critical base.
    share = np.log(trained / (2 * np.pi)) / np.log(1e4)
    assert 2 * np.pi * beta**share == pytest.approx(tuned)


def test_extrapolation_limit_is_the_period_of_the_critical_pair_or_the_tuned_length():
    limit = critical_dimension.extrapolation_limit
    assert limit(1e6, 4096, 16_384, head_dim=128) == pytest.approx(2 * np.pi * 1e6 ** (92 / 128))
    assert limit(7e4, 4096, 16_384, head_dim=128) == 16_384
