"""FoPE's mixtures against float64, and the heads that share them."""

import jax
import numpy as np
import pytest

from longrope_jax import rotary
from longrope_jax.analysis import decay

phases = jax.jit(rotary.phases)


def f_of(spec, head_dim=16):
    return spec.frequencies(head_dim=head_dim, seq_len=64)


def theta(base, head_dim):
    return base ** (-np.arange(0, head_dim, 2) / head_dim)


def test_only_full_turns_within_the_trained_length_stay():
    f = f_of(rotary.FoPE(512, 2), 128)
    kept = [w for w in theta(1e4, 128) if 2 * np.pi / w <= 512]
    np.testing.assert_allclose(f.inv_freq, kept, rtol=1e-14)
    assert f.mixing.shape == (2, 2, len(kept) + 1, 64) and f.pairs == 64
    assert len(kept) == 31  # of 64


def test_without_noise_frequencies_are_picked_in_strides():
    """21 inputs into 16 outputs: a step of 2, so 11 outputs have a wave and 5 have none."""
    f = f_of(rotary.FoPE(150, 1, gain=0.0), 64)
    assert len(f.inv_freq) == 12  # below 16 outputs: one to one
    np.testing.assert_array_equal(f.mixing[0, 0, :12, :12], np.eye(12))
    f = f_of(rotary.FoPE(2000, 1, gain=0.0), 64)
    inputs = len(f.inv_freq)
    assert 16 < inputs == 21
    rows, columns = np.nonzero(f.mixing[0, 0, :-1])
    np.testing.assert_array_equal(rows, np.arange(0, 21, 2))
    np.testing.assert_array_equal(columns, np.arange(11))


def test_noise_has_xaviers_size_and_differs_by_head_wave_and_seed():
    plain, noisy, other = (
        f_of(rotary.FoPE(10**6, 8, base=10.0, gain=gain, seed=seed), 256).mixing[:, :, :-1, :64]
        for gain, seed in ((0.0, 0), (0.3, 0), (0.3, 1))
    )
    noise = noisy - plain
    assert noise.shape == (2, 8, 128, 64)
    want = 0.3 * np.sqrt(2 / (128 * 64 + 8 * 64))  # fans of shape [8, 128, 64], as PyTorch counts
    assert noise.std() == pytest.approx(want, rel=0.02)
    assert abs(noise.mean()) < want / 100
    for a, b in ((noise[0], noise[1]), (noise[0, 0], noise[0, 1]), (noisy, other)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 1 - 1e-3


@pytest.mark.parametrize("normalize", [False, True])
def test_tables_equal_float64_at_far_positions(normalize):
    f = f_of(rotary.FoPE(512, 2, gain=0.6, normalize=normalize), 32)
    positions = np.array([0, 1, 77, 4095, 1_000_003, 2**24 - 1])
    got = phases(rotary.from_frequencies(f, seq_len=64), positions).query
    angle = np.multiply.outer(positions.astype(np.longdouble), f.inv_freq.astype(np.longdouble))
    outputs = min(len(f.inv_freq), 8)
    for table, wave, weights in zip(got, (np.cos, np.sin), f.mixing, strict=True):
        assert table.shape == (6, 2, 16)
        for head in range(2):
            want = sum(
                np.multiply.outer(wave(angle[:, i]), weights[head, i, :outputs])
                for i in range(len(f.inv_freq))
            )
            np.testing.assert_allclose(table[:, head, :outputs], want.astype(float), atol=2e-5)
        np.testing.assert_array_equal(table[..., outputs:], np.ones((6, 2, 16 - outputs)))
    if normalize:
        np.testing.assert_allclose(got.cos[0], 1, atol=1e-5)  # sums of one


def test_the_rest_may_be_left_alone():
    """By default 45 degrees and sqrt(2): a constant factor 2 on its scores."""
    x = np.random.default_rng(0).normal(size=(5, 2, 32)).astype(np.float32)
    rest = np.r_[8:16, 24:32]
    for kind, factor in (("identity", 1), ("ones", 2)):
        rot = rotary.make(rotary.FoPE(512, 2, rest=kind), head_dim=32, seq_len=64)
        turned = np.asarray(rotary.rotate(x, phases(rot, np.arange(5)).query))[..., rest]
        np.testing.assert_allclose((turned**2).sum(-1), factor * (x[..., rest] ** 2).sum(-1), 1e-5)
    # No noise and no rest: RoPE's rotation of the pairs that turn.
    rot = rotary.make(rotary.FoPE(200, 1, gain=0.0, rest="identity"), head_dim=32, seq_len=64)
    rope = rotary.make(rotary.RoPE(), head_dim=32, seq_len=64)
    ours, plain = (np.asarray(rotary.rotate(x, phases(r, np.arange(5)).key)) for r in (rot, rope))
    np.testing.assert_allclose(ours[..., :6], plain[..., :6], atol=1e-5)


def test_queries_of_a_group_turn_with_their_key_head():
    rot = rotary.make(rotary.FoPE(512, 2), head_dim=16, seq_len=64)
    ph = phases(rot, np.arange(5))
    x = np.random.default_rng(0).normal(size=(5, 1, 16)).astype(np.float32)
    queries = rotary.rotate(np.repeat(x, 6, axis=1), ph.query)
    keys = rotary.rotate(np.repeat(x, 2, axis=1), ph.key)
    np.testing.assert_array_equal(queries, np.repeat(keys, 3, axis=1))
    assert np.abs(keys[:, 0] - keys[:, 1]).max() > 0.01
    with pytest.raises(ValueError, match="3 heads are not a multiple of the method's 2"):
        rotary.rotate(np.repeat(x, 3, axis=1), ph.query)


def test_log_n_scales_the_mixtures_too():
    spec = rotary.FoPE(512, 2)
    plain, grown = (
        phases(rotary.make(s, head_dim=16, seq_len=64), np.arange(20)).query.cos
        for s in (spec, rotary.LogN(spec, 4.0))
    )
    gain = np.maximum(1, np.log(np.arange(1, 21)) / np.log(4))
    np.testing.assert_allclose(grown, plain * gain[:, None, None], rtol=1e-5)


def test_heatmap_shows_head_0():
    spec, positions = rotary.FoPE(512, 2), np.arange(12)
    ph = phases(rotary.make(spec, head_dim=16, seq_len=64), positions)
    ones = np.ones((12, 2, 16), np.float32)
    q, k = (np.asarray(rotary.rotate(ones, p))[:, 0] for p in (ph.query, ph.key))
    found = decay.heatmap(spec, positions, positions, head_dim=16)
    np.testing.assert_allclose(found, np.where(np.tri(12), q @ k.T / 4, np.nan), atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rest": "zeros"}, "unknown rest 'zeros'"),
        ({"n_kv_heads": 0}, "n_kv_heads must be at least 1"),
        ({"gain": -1.0}, "gain must be finite"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"original_length": 6}, "take at least 7 tokens"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        f_of(rotary.FoPE(**({"original_length": 512, "n_kv_heads": 2} | options)))
