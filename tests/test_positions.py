"""Position transforms: what they draw, how often, and training that uses them."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest

from longrope_jax import llama, rotary, sharding
from longrope_jax.rotary import positions
from longrope_jax.training import loop, optimizer
from longrope_jax.training import step as steps

KEY = jax.random.key(0)
TEXTS = ["giraffe", "ruoss:max_length=40", "ruoss:max_length=9000", "pose:target_length=90"]


@functools.cache
def compiled(text):
    return jax.jit(positions.parse(text), static_argnums=(1, 2))


def draw(text, batch, length, seed=0):
    return np.asarray(compiled(text)(jax.random.key(seed), batch, length))


# What every transform keeps


@pytest.mark.parametrize("text", TEXTS)
def test_a_draw_is_increasing_and_decided_by_its_key(text):
    drawn = draw(text, 50, 32)
    assert drawn.shape == (50, 32) and drawn.min() >= 0
    assert drawn.dtype == (np.float32 if text == "giraffe" else np.int32)
    steps = np.diff(drawn, axis=1)
    assert np.all(steps >= 0) if text == "giraffe" else np.all(steps > 0)
    np.testing.assert_array_equal(drawn, draw(text, 50, 32))
    np.testing.assert_array_equal(drawn, positions.parse(text)(KEY, 50, 32))
    assert np.any(drawn != draw(text, 50, 32, seed=1))
    assert len(np.unique(drawn, axis=0)) > 40  # rows of their own


# Giraffe


def test_giraffes_positions_are_fractions_up_to_the_length():
    drawn = draw("giraffe", 2000, 24)
    steps = np.diff(drawn, axis=1, prepend=0)
    assert drawn.max() <= 24 and np.any(drawn % 1 > 0)
    assert steps.min() >= 0 and 1.9 < steps.max() <= 2
    squeezed = drawn[:, -1] == 24  # about half of the rows would have gone further
    assert 0.45 < squeezed.mean() < 0.55
    free = steps[~squeezed]
    assert np.all(drawn[~squeezed, -1] < 24) and abs(free.mean() - 0.92) < 0.03


def test_giraffes_draw_is_its_formula():
    raw = np.cumsum(2 * np.asarray(jax.random.uniform(KEY, (50, 24)), np.float64), axis=1)
    want = raw * 24 / np.maximum(raw[:, -1:], 24)
    np.testing.assert_allclose(draw("giraffe", 50, 24), want, rtol=1e-6)


# Ruoss


@pytest.mark.parametrize("length, max_length", [(3, 6), (3, 13)])
def test_every_subset_is_equally_likely(length, max_length):
    """Both ways of drawing; chi-square within 5 standard deviations."""
    rows = 30_000
    drawn = draw(f"ruoss:max_length={max_length}", rows, length)
    counts = collections.Counter(map(tuple, drawn.tolist()))
    subsets = list(itertools.combinations(range(max_length), length))
    assert set(counts) == set(subsets)
    expected = rows / len(subsets)
    chi2 = sum((n - expected) ** 2 for n in counts.values()) / expected
    freedom = len(subsets) - 1
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_too_few_distinct_draws_are_drawn_again():
    """26 draws miss one of 5 values in 1.5 % of the rows: 200 rows hardly ever succeed at once."""
    few = np.asarray(jax.random.randint(KEY, (400, 26), 0, 5))
    assert any(len(np.unique(row)) < 5 for row in few)
    again = jax.jit(functools.partial(positions._sparse_subset, batch=20, length=5, max_length=5))
    for seed in range(20):
        np.testing.assert_array_equal(again(jax.random.key(seed)), np.tile(np.arange(5), (20, 1)))


@pytest.mark.parametrize(
    "length, max_length", [(1, 1), (1, 5), (7, 7), (7, 28), (7, 29), (64, 1000), (64, 2**24)]
)
def test_ruoss_gives_distinct_positions_in_range(length, max_length):
    drawn = draw(f"ruoss:max_length={max_length}", 100, length)
    assert np.all(np.diff(drawn, axis=1) > 0) and drawn.min() >= 0 and drawn.max() < max_length
    assert drawn.max() >= 0.95 * (max_length - 1)  # of 100 rows one comes close to the end


# PoSE


@pytest.mark.parametrize("chunks", [2, 4])
def test_pose_shifts_chunks_and_reaches_the_target(chunks):
    drawn = draw(f"pose:target_length=100,chunks={chunks}", 5000, 30)
    shift = drawn - np.arange(30)
    assert np.all(shift[:, 0] == 0) and drawn.max() == 99
    assert np.all(np.diff(shift, axis=1) >= 0)  # so inside a chunk positions are 1 apart
    jumps = np.count_nonzero(np.diff(shift, axis=1), axis=1)
    assert jumps.max() == chunks - 1
    if chunks == 2:
        jumped = jumps == 1
        first = np.argmax(shift > 0, axis=1)[jumped]
        assert set(first) == set(range(1, 16))  # randint(1, (30 + 1) // 2) of the released code
        last = shift[:, -1]
        assert set(last) == set(range(71))
        np.testing.assert_allclose(last.mean(), 35, atol=1.5)  # uniform in 0..70
        every = {m - n for row in drawn[:400] for m, n in itertools.combinations(row[::-1], 2)}
        assert every == set(range(1, 100))


def test_poses_text_has_the_chunks_of_its_positions():
    where = np.asarray(positions.pose(KEY, 500, 30, target_length=10_000))
    text = np.asarray(positions.pose_text(KEY, 500, 30, text_length=5000))
    assert text.max() < 5000 and np.all(np.diff(text, axis=1) > 0) and np.all(text[:, 0] == 0)
    cut = np.argmax(np.diff(where, axis=1) > 1, axis=1)
    np.testing.assert_array_equal(cut, np.argmax(np.diff(text, axis=1) > 1, axis=1))
    skips = [x[np.arange(500), cut + 1] - cut - 1 for x in (where, text)]
    assert abs(np.corrcoef(*skips)[0, 1]) < 0.2  # u and v are drawn apart
    contiguous = positions.pose_text(KEY, 3, 30, text_length=30)
    np.testing.assert_array_equal(contiguous, np.tile(np.arange(30), (3, 1)))


# Packing


@pytest.mark.parametrize("text", TEXTS)
def test_packed_documents_begin_where_the_window_begins(text):
    drawn = compiled(text)(KEY, 4, 32)
    start = np.zeros((4, 32), np.int32)
    np.testing.assert_array_equal(positions.restart(drawn, start), drawn)
    start[:, 10:] = 10
    packed, drawn = np.asarray(positions.restart(drawn, start)), np.asarray(drawn)
    np.testing.assert_array_equal(packed[:, :10], drawn[:, :10])
    np.testing.assert_allclose(packed[:, 10], drawn[:, 0], atol=4e-6)
    np.testing.assert_allclose(np.diff(packed[:, 10:]), np.diff(drawn[:, 10:]), atol=4e-6)
    assert packed.min() >= 0


# Names and bad input


@pytest.mark.parametrize(
    "text, message",
    [
        ("rous:max_length=8", "unknown position transform 'rous'; did you mean 'ruoss'?"),
        ("ruoss", "ruoss needs max_length: write ruoss:max_length=..."),
        ("ruoss:max_len=8", "unknown option of ruoss 'max_len'; did you mean 'max_length'?"),
        ("ruoss:max_length=8.5", "max_length must be a whole number of at least 1, got 8.5"),
        ("ruoss:max_length=long", "max_length must be a whole number of at least 1, got 'long'"),
        ("pose:target_length=90,chunks=0", "chunks must be a whole number of at least 1, got 0"),
        ("giraffe:length=8", "unknown option of giraffe 'length'"),
    ],
)
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:
        positions.parse(text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("ruoss:max_length=7", "max_length must lie between the window's 8 tokens and 16777216"),
        ("ruoss:max_length=16777217", "max_length must lie between"),
        ("pose:target_length=7", "target_length must lie between the window's 8 tokens"),
        ("pose:target_length=90,chunks=1", "chunks must be a whole number of at least 2"),
        ("pose:target_length=90,chunks=7", "8 tokens are too few for 7 chunks"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        positions.parse(text)(KEY, 2, 8)


# Training

T, B = 12, 4
CONFIG = llama.LlamaConfig(
    vocab_size=31, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16,
    attention="reference",
)  # fmt: skip
ADAMW = optimizer.OptimizerConfig(0.02, 6, warmup_steps=0)
ROPE = rotary.make(rotary.RoPE(100.0), head_dim=4, seq_len=512)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    start = np.where(np.arange(T) < 5, 0, 5)[None].repeat(B, 0).astype(np.int32)
    start[: B // 2] = 0
    tokens = rng.integers(0, 31, (B, T + 1), dtype=np.int32)
    return {"tokens": tokens, "weights": np.ones((B, T), np.float32), "segment_start": start}


def test_gradients_flow_through_drawn_positions(random_params):
    params, plain = random_params(CONFIG), batch()
    loss = functools.partial(steps.weighted_nll, CONFIG)
    score = jax.jit(jax.value_and_grad(loss))
    given = {text: positions.restart(draw(text, B, T), plain["segment_start"]) for text in TEXTS}
    given["counted"] = np.arange(T, dtype=np.int32) - plain["segment_start"]
    losses = {}
    for text, where in given.items():
        losses[text], gradient = score(params, ROPE, plain | {"positions": where})
        assert all(np.isfinite(x).all() and np.any(x != 0) for x in jax.tree.leaves(gradient))
    assert len({float(x) for x in losses.values()}) == len(given)
    np.testing.assert_allclose(jax.jit(loss)(params, ROPE, plain), losses["counted"], rtol=1e-6)


class Batches:
    """A data iterator whose state is its step."""

    def __init__(self):
        self.step = 0

    def __next__(self):
        self.step += 1
        return batch(self.step)

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def trained(directory, mesh, params, *, until=(6,), seen=None, text=TEXTS[1], **options):
    """Parameters after training to each step of `until` in turn, as a run that was cut off."""
    train_step = steps.make_train_step(CONFIG, ADAMW, mesh)

    def spy(state, rot, given, count):
        seen is None or seen.extend(np.asarray(given["positions"])[:count])
        return train_step(state, rot, given, count=count)

    for end in until:
        state = loop.fit(
            steps.init_state(CONFIG, ADAMW, mesh, params=params),
            spy,
            Batches(),
            rotary=ROPE,
            loop=loop.LoopConfig(end, 2, 2, 2, tensorboard=False, positions=text, **options),
            mesh=mesh,
            directory=directory,
        )
    return jax.tree.map(np.asarray, state.params)


def test_a_resumed_run_draws_the_same_positions(tmp_path, random_params):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = jax.tree.map(np.asarray, random_params(CONFIG))  # the state is donated
    whole, parts = [], []
    a = trained(tmp_path / "a", mesh, params, seen=whole)
    b = trained(tmp_path / "b", mesh, params, seen=parts, until=(2, 6))
    assert jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))
    np.testing.assert_array_equal(whole, parts)
    assert np.shape(whole) == (6, 2, B // 2, T)
    assert len(np.unique(np.reshape(whole, (-1, T)), axis=0)) == 6 * B  # each step, each row anew
    packed = np.array(whole)[:, 1]
    np.testing.assert_array_equal(packed[..., 0], packed[..., 5])
    other = trained(tmp_path / "c", mesh, params, position_seed=1)
    assert not jax.tree.all(jax.tree.map(np.array_equal, a, other))


def test_a_transform_of_a_run_is_checked_before_it():
    with pytest.raises(ValueError, match="did you mean 'giraffe'"):
        loop.LoopConfig(5, positions="girafe")
