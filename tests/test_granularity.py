import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import rotary
from longrope_jax.analysis import granularity, interpolation

# C at H = 128, (2/H) C, exact limit, printed approximation: float64, 4 to 5 digits.
TABLE = {
    "rope": (1e4, 1, 7.0005, 0.10938, 0.10271, 0.10857),
    "pi:factor=4": (1e4, 1 / 4, 1.8576, 0.02902, 0.02705, 0.02714),
    "pi:factor=8": (1e4, 1 / 8, 0.9316, 0.01456, 0.01356, 0.01357),
    "abf": (5e5, 1, 5.0442, 0.07882, 0.07210, 0.07621),
}


def encode(spec, x, positions):
    """[T, H/2] complex encodings, the plain way."""
    z = x[0::2] + 1j * x[1::2]
    speeds = spec.frequencies(head_dim=len(x), seq_len=1).inv_freq
    return z * np.exp(1j * np.outer(positions, speeds))


@pytest.mark.parametrize("text", TABLE)
def test_constants_of_the_appendix(text):
    base, alpha, total, mean, exact, printed = TABLE[text]
    spec = rotary.parse(text)
    assert granularity.sine_sum(spec, head_dim=128) == pytest.approx(total, abs=5e-5)
    assert granularity.mean_sine(spec, head_dim=128) == pytest.approx(mean, abs=5e-6)
    assert granularity.limit(base, alpha=alpha) == pytest.approx(exact, abs=5e-6)
    assert granularity.printed_limit(base, alpha=alpha) == pytest.approx(printed, abs=5e-6)


@pytest.mark.parametrize(("base", "alpha"), [(1e4, 1), (5e5, 1), (1e4, 0.25), (100, 0.9)])
def test_limit_is_the_integral_and_the_mean_sine_tends_to_it(base, alpha):
    integral = mpmath.quad(lambda s: mpmath.sin(alpha * mpmath.mpf(base) ** -s), [0, 0.5, 1])
    assert granularity.limit(base, alpha=alpha) == pytest.approx(float(integral), rel=1e-12)
    spec = rotary.PositionInterpolation(factor=1 / alpha, base=base)
    errors = [granularity.mean_sine(spec, head_dim=h) - float(integral) for h in (2000, 4000)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=1e-2) and abs(errors[0]) < 1e-3


def test_the_sum_has_no_limit():
    sums = [granularity.sine_sum(rotary.RoPE(), head_dim=h) for h in (1024, 2048)]
    assert sums[1] / sums[0] == pytest.approx(2, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    x=st.lists(st.floats(-10, 10), min_size=8, max_size=8).filter(lambda x: max(map(abs, x)) > 0.1),
    base=st.floats(1.5, 1e6),
    n=st.integers(0, 1000),
)
def test_corrected_theorem_holds_for_any_vector(x, base, n):
    spec, x = rotary.RoPE(base=base), np.array(x)
    found = granularity.sine_bounds(spec, x)
    after, before = encode(spec, x, [n + 1, n])
    sine = np.vdot(before, after).imag / np.vdot(x, x)
    assert found.sine == pytest.approx(sine, abs=1e-9)
    assert found.lower - 1e-12 <= found.sine <= found.upper + 1e-12


@pytest.mark.parametrize("text", TABLE)
def test_all_ones_is_a_counterexample_to_the_printed_theorem(text):
    found = granularity.sine_bounds(rotary.parse(text), np.ones(128))
    assert found.lower == pytest.approx(found.upper) == pytest.approx(found.sine)
    assert found.sine == pytest.approx(2 * found.printed_upper) and not found.printed_holds


def test_printed_theorem_holds_where_it_is_loose():
    x = np.zeros(128)
    x[0] = x[126] = 1  # half of the energy barely turns, and no feature is as large as its pair
    assert granularity.sine_bounds(rotary.RoPE(), x).printed_holds


@pytest.mark.parametrize(
    "text", ["rope:base=30", "pi:factor=4", "partial:inner=(rope),fraction=0.5"]
)
def test_granularity_and_distance_match_all_pairs(text):
    spec, x = rotary.parse(text), np.random.default_rng(0).normal(size=(3, 8))
    if text.startswith("partial"):
        inv_freq = spec.frequencies(head_dim=8, seq_len=1).inv_freq
        plain = rotary.Frequencies(np.append(inv_freq, [0.0, 0.0]))
    else:
        plain = spec.frequencies(head_dim=8, seq_len=1)

    def points(f, v, count):
        z = (v[0::2] + 1j * v[1::2]) / np.linalg.norm(v)
        return z * np.exp(1j * np.outer(np.arange(count), f.inv_freq))

    closest, far = np.inf, 0.0
    rope = rotary.RoPE().frequencies(head_dim=8, seq_len=1)
    for v in x:
        own = points(plain, v, 30)
        gaps = np.linalg.norm(own[:, None] - own, axis=-1) + 9 * np.eye(30)
        closest = min(closest, gaps.min())
        apart = np.linalg.norm(points(rope, v, 40)[:, None] - own, axis=-1)
        far = max(far, apart.min(1).max())
    assert granularity.granularity(spec, x, positions=30) == pytest.approx(closest)
    found = granularity.distance(rotary.RoPE(), spec, x, positions=(40, 30))
    assert found.farthest == pytest.approx(far) and found.printed == pytest.approx(0, abs=1e-7)


def test_pi_divides_the_angle_between_neighbours_and_abf_barely_changes_it():
    sine = {t: granularity.mean_sine(rotary.parse(t), head_dim=128) for t in TABLE}
    assert sine["pi:factor=8"] < 0.14 * sine["rope"] and sine["abf"] > 0.7 * sine["rope"]


def test_methods_that_depend_on_the_length_are_taken_at_it():
    spec = rotary.LongRoPE(long_factor=8.0, original_length=64, factor=8, attention_factor=1)
    rope, pi, x = rotary.RoPE(), rotary.PositionInterpolation(factor=8), np.ones(8)
    for positions, same in ((64, rope), (65, pi)):
        found = granularity.granularity(spec, x, positions=positions)
        assert found == granularity.granularity(same, x, positions=positions)
    apart = granularity.distance(rope, spec, x, positions=(64, 512))
    assert apart == granularity.distance(rope, pi, x, positions=(64, 512))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: granularity.sine_sum(rotary.XPos(), head_dim=8), "do not lie on a sphere"),
        (lambda: granularity.sine_sum(rotary.ReRoPE(4), head_dim=8), "do not lie on a sphere"),
        (lambda: granularity.sine_sum(rotary.FoPE(64, 1), head_dim=8), "do not lie on a sphere"),
        (lambda: granularity.sine_sum(rotary.ALiBi(), head_dim=8), "do not lie on a sphere"),
        (lambda: granularity.sine_bounds(rotary.RoPE(), np.zeros(8)), "not zero"),
        (lambda: granularity.limit(1e4, alpha=2), "alpha"),
        (lambda: granularity.granularity(rotary.RoPE(), np.ones(8), positions=1), "positions"),
        (lambda: granularity.granularity(rotary.RoPE(), np.zeros(8), positions=2), "zero vector"),
        (lambda: granularity.sine_sum(rotary.RoPE(), head_dim=7), "even"),
        (lambda: interpolation.printed_bound(7), "even"),
        (lambda: interpolation.corrected_bound(8, 0.5), "base must be"),
        (lambda: interpolation.worst_deviation(8, h=np.ones(3)), "h has shape"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_printed_interpolation_bound_is_violated_and_the_corrected_one_holds():
    worst = interpolation.worst_deviation(128, h=np.ones(64))
    assert worst.value == pytest.approx(0.45956, abs=5e-6)
    assert worst.at == pytest.approx(0.488, abs=1e-3)
    assert interpolation.printed_bound(128) == pytest.approx(0.43429, abs=5e-6)
    assert interpolation.corrected_bound(128) == pytest.approx(0.49979, abs=5e-6)
    assert interpolation.printed_bound(128) < worst.value < interpolation.corrected_bound(128)


@settings(max_examples=40, deadline=None)
@given(
    head_dim=st.sampled_from([2, 8, 64, 256]),
    base=st.floats(2, 1e7),
    start=st.integers(0, 10_000),
    seed=st.integers(0, 100),
)
def test_corrected_interpolation_bound_holds_for_any_h(head_dim, base, start, seed):
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, head_dim // 2)
    bound = interpolation.corrected_bound(head_dim, base)
    any_h = interpolation.worst_deviation(head_dim, base, start=start)
    one = interpolation.worst_deviation(head_dim, base, h=np.exp(1j * phases), start=start)
    assert one.value <= any_h.value + 1e-12 <= bound
    # h against the gap at its worst place is the worst h.
    assert any_h.value > 0.95 * bound or head_dim < 64 or base < 100


def test_extrapolation_bound_sums_the_partial_sums():
    theta = rotary.rope_inv_freq(1e4, 8)
    for s in (0, 1, 777.5):
        partial = [abs(sum(np.exp(1j * s * theta[:k]))) for k in range(1, 5)]
        found = interpolation.extrapolation_bound(s, head_dim=8)
        assert found == pytest.approx(sum(partial))
    assert interpolation.extrapolation_bound([0.0], head_dim=8)[0] == 10


@pytest.mark.parametrize(
    ("method", "base", "alpha"), [("rope", 1e4, 1), ("abf", 5e5, 1), ("pi:factor=4", 1e4, 0.25)]
)
def test_the_distance_of_neighbours_tends_to_its_limit(method, base, alpha):
    q = [
        granularity.granularity(rotary.parse(method), np.ones(H), positions=2)
        for H in (128, 1024, 8192)
    ]
    gaps = np.abs(np.array(q) - granularity.chord_limit(base, alpha=alpha))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 5e-4
