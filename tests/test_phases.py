"""cos and sin are right to 1e-6 at every position; a method is data of one shape and type."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import rotary

PEERS = json.loads((Path(__file__).parent / "data" / "rotary_peers.json").read_text())
LAST = 2**24 - 1
EDGES = [0, 1, 2, 65_535, 65_536, 131_071, 1_048_575, 2**23, 2**23 + 1, LAST - 1, LAST]

phases = jax.jit(rotary.phases, static_argnames="precision")


def truth(inv_freq, positions):
    """cos and sin [T, R] by mpmath; the frequencies are taken as exact."""
    with mpmath.workdps(40):
        angles = [
            [mpmath.mpf(float(w)) * mpmath.mpf(float(n)) for w in inv_freq] for n in positions
        ]
        cos = [[float(mpmath.cos(a)) for a in row] for row in angles]
        sin = [[float(mpmath.sin(a)) for a in row] for row in angles]
    return np.array(cos), np.array(sin)


def plain(spec, head_dim=128, seq_len=1024):
    """The method's frequencies with neither amplitude, decay, start tokens nor log n."""
    return rotary.Frequencies(spec.frequencies(head_dim=head_dim, seq_len=seq_len).inv_freq)


def exact_error(f, positions):
    rot = rotary.from_frequencies(f, seq_len=1024)
    cos, sin = phases(rot, np.asarray(positions, np.int32)).query
    true_cos, true_sin = truth(f.inv_freq, positions)
    return max(np.abs(cos - true_cos).max(), np.abs(sin - true_sin).max())


# Exactness


@given(
    base=st.floats(1e2, 1e9),
    head_dim=st.sampled_from([2, 64, 128, 256]),
    pair=st.integers(0, 127),
    position=st.integers(0, LAST),
)
@settings(max_examples=200, deadline=None)
def test_phases_equal_mpmath(base, head_dim, pair, position):
    spec = rotary.RoPE(base)
    inv_freq = spec.frequencies(head_dim=head_dim, seq_len=8).inv_freq
    pair %= len(inv_freq)
    # The frequency itself, written again: base^(-2j/H).
    with mpmath.workdps(40):
        angle = position * mpmath.mpf(base) ** (-mpmath.mpf(2 * pair) / head_dim)
        true_cos, true_sin = float(mpmath.cos(angle)), float(mpmath.sin(angle))
    one = rotary.from_frequencies(rotary.Frequencies(inv_freq[pair : pair + 1]), seq_len=8)
    cos, sin = phases(one, np.array([position], np.int32)).query
    assert abs(float(cos[0, 0]) - true_cos) < 1e-6
    assert abs(float(sin[0, 0]) - true_sin) < 1e-6


@pytest.mark.parametrize("base", [1e2, 1e4, 5e5, 1e9])
def test_phases_at_the_edges(base):
    assert exact_error(plain(rotary.RoPE(base)), EDGES) < 1e-6


def test_every_method_is_exact(spec):
    for seq_len in (64, 4096):
        assert exact_error(plain(spec, seq_len=seq_len), EDGES) < 1e-6


@pytest.mark.parametrize("base", [1e2, 1e9])
def test_every_method_is_exact_at_far_bases(spec, base):
    if hasattr(spec, "inner"):
        spec = dataclasses.replace(spec, inner=dataclasses.replace(spec.inner, base=base))
    elif hasattr(spec, "base"):
        spec = dataclasses.replace(spec, base=base)
    assert exact_error(plain(spec, head_dim=16, seq_len=4096), EDGES) < 1e-6


@given(turns=st.floats(0, 1, exclude_max=True), position=st.integers(0, LAST))
@settings(max_examples=200, deadline=None)
def test_any_frequency_below_one_turn_is_exact(turns, position):
    inv_freq = np.array([min(turns * 2 * np.pi, np.nextafter(2 * np.pi, 0))])
    assert exact_error(rotary.Frequencies(inv_freq), [position]) < 1e-6


@given(position=st.floats(0, 2**24, exclude_max=True, width=32))
@settings(max_examples=100, deadline=None)
def test_fractional_positions(position):
    rot = rotary.make(rotary.RoPE(), head_dim=16, seq_len=64)
    cos, sin = phases(rot, np.array([position], np.float32)).query
    true_cos, true_sin = truth(plain(rotary.RoPE(), 16).inv_freq, [np.float32(position)])
    assert np.abs(cos - true_cos).max() < 1e-6 and np.abs(sin - true_sin).max() < 1e-6


def test_whole_numbers_in_float32_equal_integers():
    rot = rotary.make(rotary.RoPE(), head_dim=16, seq_len=64)
    whole, as_float = (phases(rot, np.array(EDGES, t)) for t in (np.int32, np.float32))
    jax.tree.map(np.testing.assert_array_equal, whole, as_float)


@pytest.mark.parametrize("row", PEERS["rope_phase_precision"]["rows"], ids=str)
def test_float32_mode_has_the_recorded_error_of_peers(row):
    base, position, peer_error = row[:3]
    f = plain(rotary.RoPE(base))
    rot = rotary.from_frequencies(f, seq_len=1024)
    cos = phases(rot, np.array([position]), precision="float32").query.cos
    error = np.abs(cos - truth(f.inv_freq, [position])[0]).max()
    # The peer rounds inside its power too: the size agrees, not the digits.
    assert peer_error / 3 < error < 3 * peer_error


@pytest.mark.parametrize("base", [1e4, 5e5])
def test_float32_mode_is_the_product_of_rounded_numbers(base):
    f, positions = plain(rotary.RoPE(base)), np.array([1, 4095, 131_071, 1_048_575, LAST])
    rot = rotary.from_frequencies(f, seq_len=1024)
    cos, sin = phases(rot, positions, precision="float32").key
    angle = np.float32(positions)[:, None] * np.float32(f.inv_freq)
    # Two rounding rules may pick neighbours for a frequency that lies halfway between them.
    same = np.abs(cos - np.cos(np.float64(angle))) < 1e-6
    assert same[:, 0].all() and same.mean() > 0.97
    assert (np.abs(sin - np.sin(np.float64(angle))) < 1e-6).mean() > 0.97


def test_float32_mode_knows_start_tokens():
    f = rotary.Frequencies([0.3], start_inv_freq=[1.0], start_count=5)
    cos = phases(rotary.from_frequencies(f, seq_len=64), np.arange(12), precision="float32").key.cos
    truth = np.cos(np.arange(12) * np.where(np.arange(12) < 5, 1.0, 0.3))
    np.testing.assert_allclose(cos[:, 0], truth, atol=1e-6)


def test_unknown_precision_is_refused():
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=8)
    with pytest.raises(ValueError, match="unknown precision 'bfloat16'"):
        rotary.phases(rot, np.arange(3), precision="bfloat16")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_positions_in_16_bits_are_refused(dtype):
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=8)
    with pytest.raises(ValueError, match=f"positions in {jnp.dtype(dtype)} are rounded"):
        jax.jit(rotary.phases)(rot, jnp.arange(8, dtype=dtype))


@pytest.mark.parametrize(
    "positions", [[-1, 0], [0, 2**24], [[3], [-3]], [-0.5], [float(2**24)], [float("nan")]]
)
def test_positions_out_of_range_are_refused(positions):
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=8)
    with pytest.raises(ValueError, match=r"positions must lie in 0\.\.16777215"):
        rotary.phases(rot, np.array(positions))
    with pytest.raises(ValueError, match="positions must lie"):
        rotary.phases(rot, jnp.array(positions))


# Gradients


def moved(rot, delta):
    return dataclasses.replace(rot, delta=jnp.asarray(delta, jnp.float32))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_gradient_by_frequency_is_position_times_sine(dtype):
    f = plain(rotary.RoPE(), 16)
    rot = rotary.from_frequencies(f, seq_len=64)
    positions = np.array([0, 1, 7, 100, 70_001, LAST], dtype)
    if dtype == np.float32:
        positions = positions + np.array([0, 0.25, 0.5, 0.75, 0, 0], dtype)

    def cos_and_sin(delta):
        return phases(moved(rot, delta), positions).query

    zero, ones = jnp.zeros(8), jnp.ones(8)
    tangent = jax.jvp(cos_and_sin, (zero,), (ones,))[1]
    true_cos, true_sin = truth(f.inv_freq, positions)
    n = positions[:, None].astype(np.float64)
    assert np.abs(tangent.cos + n * true_sin).max() <= 1e-6 * n.max()
    np.testing.assert_allclose(tangent.cos, -n * true_sin, rtol=1e-5, atol=1e-6 * n.max())
    np.testing.assert_allclose(tangent.sin, n * true_cos, rtol=1e-5, atol=1e-6 * n.max())
    back = jax.grad(lambda d: cos_and_sin(d).cos.sum())(zero)
    np.testing.assert_allclose(back, -(n * true_sin).sum(0), rtol=1e-5, atol=1e-6 * n.max())


def test_gradient_equals_finite_differences_in_float64():
    f, positions = plain(rotary.RoPE(), 16), np.arange(50)
    rot, weights = rotary.from_frequencies(f, seq_len=64), np.linspace(-1, 1, 8)

    def value(inv_freq):
        angle = positions[:, None] * inv_freq
        return (weights * (np.cos(angle) + 2 * np.sin(angle))).sum()

    def value_jax(delta):
        ph = phases(moved(rot, delta), positions)
        return (weights.astype(np.float32) * (ph.query.cos + 2 * ph.key.sin)).sum()

    step = 1e-6 * np.eye(8)
    numeric = [(value(f.inv_freq + e) - value(f.inv_freq - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(jax.grad(value_jax)(jnp.zeros(8)), numeric, rtol=1e-4, atol=1e-2)


# Amplitude, decay, start tokens, log n


def test_amplitude_scales_both_sides():
    f = plain(rotary.RoPE(), 16)
    loud = dataclasses.replace(f, amplitude=1.25)
    one, two = (phases(rotary.from_frequencies(g, seq_len=64), np.arange(64)) for g in (f, loud))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(1.25 * a, b, rtol=1e-6), one, two)


def test_decay_gains_are_opposite_around_the_centre():
    decay = np.array([-0.02, -0.001])
    f = rotary.Frequencies([0.0, 0.0], log_decay=decay)
    ph = phases(rotary.from_frequencies(f, seq_len=100), np.arange(100))
    exponent = decay * (np.arange(100)[:, None] - 50)
    np.testing.assert_allclose(ph.query.cos, np.exp(exponent), rtol=1e-6)
    np.testing.assert_allclose(ph.key.cos, np.exp(-exponent), rtol=1e-6)


def test_start_tokens_have_their_own_frequencies():
    f = rotary.Frequencies([0.3, 0.03], start_inv_freq=[1.0, 0.1], start_count=5)
    positions = np.arange(12)
    cos, sin = phases(rotary.from_frequencies(f, seq_len=64), positions).key
    for now, inv_freq in ((positions < 5, f.start_inv_freq), (positions >= 5, f.inv_freq)):
        true_cos, true_sin = truth(inv_freq, positions[now])
        np.testing.assert_allclose(cos[now], true_cos, atol=1e-6)
        np.testing.assert_allclose(sin[now], true_sin, atol=1e-6)


def test_logn_scales_queries_beyond_its_length_only():
    f = rotary.Frequencies([0.0], logn_length=16.0)
    ph = phases(rotary.from_frequencies(f, seq_len=64), np.arange(64))
    gain = [max(1.0, math.log(n + 1) / math.log(16)) for n in range(64)]
    assert gain[15] == 1 and gain[16] > 1
    np.testing.assert_allclose(ph.query.cos[:, 0], gain, rtol=1e-6)
    np.testing.assert_array_equal(ph.key.cos, np.ones((64, 1)))


# One shape and type for every method


def leaves(rot):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(rot)]


STRUCTURAL = {
    rotary.ALiBi, rotary.DualChunk, rotary.FoPE, rotary.LeakyReRoPE, rotary.PartialRotary,
    rotary.ReRoPE, rotary.SelfExtend, rotary.STRING,
}  # fmt: skip


def test_which_methods_are_structural(spec):
    assert rotary.is_structural(spec, head_dim=64) == (type(spec) in STRUCTURAL)
    assert not rotary.is_structural(rotary.PartialRotary(rotary.RoPE(), 1.0), head_dim=64)


def test_all_methods_have_the_same_leaves(spec):
    rot = rotary.make(spec, head_dim=64, seq_len=128)
    if rot.score_rule is not None or rot.mixing is not None:
        pytest.skip("a program of its own: tests/test_remap.py, test_fope.py")
    # Partial rotary has fewer pairs, and then just the leaves of a smaller head.
    rotated = 2 * len(spec.frequencies(head_dim=64, seq_len=128).inv_freq)
    assert rotated == (32 if isinstance(spec, rotary.PartialRotary) else 64)
    rope = rotary.make(rotary.RoPE(), head_dim=rotated, seq_len=4096)
    assert jax.tree.structure(rot) == jax.tree.structure(rope)
    assert leaves(rot) == leaves(rope)
    assert not any(weak for _, _, weak in leaves(rot))
    assert rot.hi.dtype == rot.lo.dtype == jnp.uint32
    np.testing.assert_array_equal(rot.delta, np.zeros(rotated // 2))


def test_unused_leaves_are_neutral():
    rot = rotary.make(rotary.RoPE(), head_dim=64, seq_len=128)
    assert rot.amplitude == 1 and rot.start_count == 0 and np.isinf(rot.logn_length)
    np.testing.assert_array_equal(rot.log_decay, np.zeros(32))


def test_stacked_lengths_equal_one_by_one(spec):
    lengths = [64, 128, 4096]
    stacked = rotary.make(spec, head_dim=16, seq_len=lengths)
    assert all(x.shape[0] == 3 and not x.weak_type for x in jax.tree.leaves(stacked))
    positions = np.arange(64)
    together = jax.jit(jax.vmap(rotary.phases, in_axes=(0, None)))(stacked, positions)
    for i, length in enumerate(lengths):
        alone = phases(rotary.make(spec, head_dim=16, seq_len=length), positions)
        part = jax.tree.map(lambda x, i=i: x[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), part, alone)


def test_only_one_structure_can_be_stacked():
    specs = rotary.RoPE(), rotary.ReRoPE(8), rotary.ReRoPE(9), rotary.FoPE(64, 2)
    rots = [rotary.make(spec, head_dim=16, seq_len=64) for spec in specs]
    for i in range(4):
        rotary.stack_rotaries([rots[i], rots[i]])
        for j in range(i):
            with pytest.raises(ValueError, match="only rotaries of one structure"):
                rotary.stack_rotaries([rots[i], rots[j]])
    with pytest.raises(ValueError, match="only rotaries of one structure"):
        rotary.stack_rotaries([])


def test_phases_are_float32_and_follow_the_positions_shape():
    rot = rotary.make(rotary.RoPE(), head_dim=16, seq_len=64)
    for x in jax.tree.leaves(phases(rot, np.zeros((2, 3, 5), np.int32))):
        assert x.shape == (2, 3, 5, 8) and x.dtype == jnp.float32


@pytest.mark.parametrize(
    ("spec", "seq_len", "message"),
    [
        ("roqe", 8, "unknown rotary method .roqe."),
        (rotary.RoPE, 8, "must be a method"),
        (rotary.RoPE(), 64.5, "seq_len must be a whole number"),
        (rotary.RoPE(), "64", "seq_len must be a whole number"),
        (rotary.RoPE(), [8, 2**30], "seq_len must be a whole number"),
    ],
)
def test_make_tells_what_is_no_method_and_no_length(spec, seq_len, message):
    with pytest.raises(ValueError, match=message):
        rotary.make(spec, head_dim=8, seq_len=seq_len)
