"""The training step against one computed by hand, meshes, checkpoints, the log."""

import dataclasses
import functools
import gc
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, rotary, sharding
from longrope_jax.training import checkpoints, flops, loop, metrics, optimizer
from longrope_jax.training import step as steps

T, B = 16, 8
CONFIG = llama.LlamaConfig(
    vocab_size=64,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    attention="reference",
)
# A large eps keeps Adam from blowing up the rounding of small gradients.
ADAMW = optimizer.OptimizerConfig(0.05, 10, warmup_steps=0, eps=1e-2, clip=0.5)
ROPE = rotary.make(rotary.RoPE(), head_dim=8, seq_len=T)
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def batch(accumulation, mesh=None, seed=0):
    """Random tokens and weights, two packed segments in each row."""
    rng = np.random.default_rng(seed)
    arrays = {
        "tokens": rng.integers(0, CONFIG.vocab_size, (B, T + 1), dtype=np.int32),
        "weights": rng.integers(0, 3, (B, T)).astype(np.float32),
        "segment_start": np.where(np.arange(T) < 5, 0, 5)[None].repeat(B, 0).astype(np.int32),
    }
    arrays = {k: x.reshape(accumulation, -1, x.shape[1]) for k, x in arrays.items()}
    return sharding.shard_batch(mesh or one_device(), arrays, axis=1)


@functools.cache
def fresh():
    """Parameters on the host: drawn once, since each `init_state` without them compiles."""
    state = steps.init_state(CONFIG, ADAMW, sharding.make_mesh(fsdp=8), seed=3)
    return jax.tree.map(np.array, state.params)


def run(mesh, accumulation, n=1):
    state = steps.init_state(CONFIG, ADAMW, mesh, params=fresh())
    train_step = steps.make_train_step(CONFIG, ADAMW, mesh)
    for seed in range(n):
        state, logged = train_step(state, ROPE, batch(accumulation, mesh, seed))
    return state, {k: float(v) for k, v in logged.items()}


def host(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def close(found, expected, atol):
    found, expected = host(found), host(expected)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=atol, err_msg=name)


@jax.jit
@jax.value_and_grad
def reference_loss(params, batch):
    """Weighted mean over the whole batch, from logits held as a whole."""
    rows = {k: x.reshape(B, -1) for k, x in batch.items()}
    hidden, _ = llama.Llama(CONFIG).apply(
        {"params": params},
        rows["tokens"][:, :-1],
        rotary=ROPE,
        segment_start=rows["segment_start"],
    )
    log_p = jax.nn.log_softmax(llama.unembed(CONFIG, params, hidden))
    picked = (log_p * jax.nn.one_hot(rows["tokens"][:, 1:], CONFIG.vocab_size)).sum(-1)
    return -(picked * rows["weights"]).sum() / rows["weights"].sum()


def adamw_by_hand(params, gradients, rates, c):
    """float64 AdamW (decoupled, bias-corrected) with clipping by global norm."""
    p = {k: x.astype(np.float64) for k, x in params.items()}
    m, v = {k: 0 * x for k, x in p.items()}, {k: 0 * x for k, x in p.items()}
    for t, (gradient, rate) in enumerate(zip(gradients(p), rates, strict=False), 1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        for k in p:
            g = gradient[k] * min(1, c.clip / norm)
            m[k] = c.b1 * m[k] + (1 - c.b1) * g
            v[k] = c.b2 * v[k] + (1 - c.b2) * g * g
            ratio = m[k] / (1 - c.b1**t) / (np.sqrt(v[k] / (1 - c.b2**t)) + c.eps)
            decay = 0 if "scale" in k else c.weight_decay
            p[k] = p[k] - rate * (ratio + decay * p[k])
    return p


@pytest.fixture(scope="module")
def by_hand():
    """Parameters after two steps, the second step's loss, gradient norm and learning rate."""
    structure, seen = jax.tree.structure(fresh()), {}

    def gradients(p):
        for seed in range(2):
            tree = jax.tree.unflatten(structure, [jnp.asarray(x, jnp.float32) for x in p.values()])
            loss, gradient = reference_loss(tree, batch(1, seed=seed))
            seen["loss"], gradient = float(loss), host(gradient)
            seen["grad_norm"] = math.sqrt(sum((g**2).sum() for g in gradient.values()))
            yield gradient

    rates = [0.05, 0.005 + 0.045 * (1 + math.cos(math.pi * 0.1)) / 2]
    arrays = adamw_by_hand(host(fresh()), gradients, rates, ADAMW)
    assert seen["grad_norm"] > 1.2 * ADAMW.clip  # so the clip acts
    assert max(np.abs(x - arrays[k]).max() for k, x in host(fresh()).items()) > 0.02
    params = jax.tree.unflatten(structure, list(arrays.values()))
    return params, seen | {"learning_rate": rates[1]}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_steps_equal_adamw_by_hand(accumulation, by_hand):
    """One large batch or four small ones of unequal weight: loss, gradient, clip, decay, rate."""
    state, logged = run(one_device(), accumulation, n=2)
    for name, value in by_hand[1].items():
        np.testing.assert_allclose(logged[name], value, rtol=1e-4, err_msg=name)
    close(state.params, by_hand[0], 2e-5)
    assert int(state.step) == 2


def test_without_gradient_only_matrices_decay():
    mesh = one_device()
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), fresh())
    state = steps.init_state(CONFIG, ADAMW, mesh, params=start)
    silent = batch(1)
    silent["weights"] *= 0
    state, logged = steps.make_train_step(CONFIG, ADAMW, mesh)(state, ROPE, silent)
    assert logged["loss"] == 0 and logged["grad_norm"] == 0
    before, after = host(start), host(state.params)
    assert sum("scale" in name for name in before) == 3
    for name, x in before.items():
        kept = 1 if "scale" in name else 1 - 0.05 * 0.1
        np.testing.assert_allclose(after[name], kept * x, rtol=1e-6, err_msg=name)


def test_schedule_is_linear_then_cosine_to_a_tenth():
    config = optimizer.OptimizerConfig(3e-4, 1000, warmup_steps=100)
    rate = optimizer.schedule(config)
    for step in (0, 1, 50, 99, 100, 101, 333, 550, 999, 1000, 1500):
        if step < 100:
            expected = 3e-4 * (step + 1) / 101
        else:
            along = min((step - 100) / 900, 1)
            expected = 3e-5 + (3e-4 - 3e-5) * (1 + math.cos(math.pi * along)) / 2
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, err_msg=str(step))


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("warmup", [0, 1, 2, 7])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_no_step_is_taken_at_rate_0(decay, warmup, initial):
    config = optimizer.OptimizerConfig(
        0.5, 10, warmup_steps=warmup, initial_ratio=initial, final_ratio=0.0, decay=decay
    )
    rates = [float(optimizer.schedule(config)(step)) for step in range(10)]
    assert min(rates) > 0 and max(rates) == rates[warmup] == 0.5
    if warmup and initial:
        assert rates[0] == pytest.approx(0.5 * initial)


def test_schedules_with_decay_share_their_beginning_and_end_in_a_line():
    options = {"warmup_steps": 10, "final_ratio": 0.0, "decay": 0.2}
    short, long = (
        optimizer.schedule(optimizer.OptimizerConfig(2.0, n, **options)) for n in (50, 100)
    )
    rates = [[float(one(t)) for t in range(101)] for one in (short, long)]
    np.testing.assert_allclose(rates[0][:41], rates[1][:41])
    np.testing.assert_allclose(rates[0][:11], np.arange(1, 12) * 2 / 11, rtol=1e-6)
    np.testing.assert_allclose(rates[1][10:81], 2.0)
    np.testing.assert_allclose(rates[1][80:], 2 - np.arange(21) / 10, atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (optimizer.OptimizerConfig, {"warmup_steps": 10}, "warmup_steps.*total_steps=10, got 10"),
        (optimizer.OptimizerConfig, {"warmup_steps": -1}, "warmup_steps"),
        (optimizer.OptimizerConfig, {"learning_rate": 0.0}, "learning_rate.*0.0"),
        (optimizer.OptimizerConfig, {"learning_rate": math.nan}, "learning_rate.*nan"),
        (optimizer.OptimizerConfig, {"decay": 0.95}, "decay.*0.95"),
        (loop.LoopConfig, {"steps": 0}, "steps.*0"),
        (loop.LoopConfig, {"accumulation": 0}, "accumulation"),
        (loop.LoopConfig, {"log_every": -1}, "log_every"),
        (loop.LoopConfig, {"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_bad_settings_are_one_line(cls, changes, message):
    good = {"steps": 10}
    if cls is optimizer.OptimizerConfig:
        good = {"learning_rate": 0.1, "total_steps": 10, "warmup_steps": 1}
    cls(**good)
    with pytest.raises(ValueError, match=message) as error:
        cls(**good | changes)
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="batch of 8 is not a multiple of accumulation=3"):
        loop._microbatches({"tokens": np.zeros((8, 4))}, 3)
    with pytest.raises(ValueError, match="batch of 4 does not divide over 8"):
        batch = loop._microbatches({"tokens": np.zeros((8, 4))}, 2)
        loop._stacked([batch], 1, sharding.make_mesh(data=8))


# One program for all rotaries; meshes


def test_sweeping_rotaries_compiles_once(compilations):
    config = dataclasses.replace(ADAMW, learning_rate=0.01)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    train_step = steps.make_train_step(CONFIG, config, mesh)
    assert train_step is steps.make_train_step(CONFIG, dataclasses.replace(config), mesh)
    losses = []
    specs = [rotary.RoPE(100.0), rotary.RoPE(5e5), rotary.PositionInterpolation(4)]
    state = steps.init_state(CONFIG, config, mesh, params=fresh())
    kept = jax.tree.map(lambda x: x.copy(), state)
    for spec in [*specs, rotary.build("xpos_abf")]:
        rot = rotary.make(spec, head_dim=8, seq_len=T)
        state = jax.tree.map(lambda x: x.copy(), kept)
        for _ in range(2):
            state, logged = train_step(state, rot, batch(1, mesh))
        losses.append(float(logged["loss"]))
    assert len(set(losses)) == len(losses)
    assert compilations.count("jit(step)") == 1


@pytest.mark.parametrize("sizes", MESHES, ids=["data", "fsdp", "2x2x2"])
def test_meshes_agree_really_shard_and_donate(sizes, by_hand):
    mesh = sharding.make_mesh(**sizes)
    state, logged = run(mesh, 1, n=2)
    close(state.params, by_hand[0], 2e-5)
    np.testing.assert_allclose(logged["loss"], by_hand[1]["loss"], rtol=1e-5)

    parts = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    matrices = [x for x in jax.tree.leaves(state) if x.size >= 2 * 16 * 16]
    assert len(matrices) == 3 * 9  # parameters and both moments
    for x in matrices:
        assert x.addressable_shards[0].data.size * parts == x.size, x.sharding
        assert len({str(s.index) for s in x.addressable_shards}) == parts

    steps.make_train_step(CONFIG, ADAMW, mesh)(state, ROPE, batch(1, mesh))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a checkpoint of step 2, trained on fsdp=8, and what it must hold."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    mesh = sharding.make_mesh(fsdp=8)
    state, _ = run(mesh, 1, n=2)
    train_step = steps.make_train_step(CONFIG, ADAMW, mesh)
    expected = jax.tree.map(np.array, state)
    with checkpoints.RunCheckpoints(directory) as manager:
        manager.save(2, state, {"at": [1, "x"]})
        for seed in range(3):  # while it writes, the buffers are donated
            state, _ = train_step(state, ROPE, batch(1, mesh, seed))
    return directory, expected


def abstract(mesh, **changes):
    return steps.abstract_state(dataclasses.replace(CONFIG, **changes), ADAMW, mesh)


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, None], ids=["2x2x2", "1"])
def test_a_state_is_restored_onto_another_mesh(sizes, saved):
    directory, expected = saved
    mesh = sharding.make_mesh(**sizes) if sizes else one_device()
    with checkpoints.RunCheckpoints(directory) as manager:
        state, data = manager.restore(abstract(mesh))
    close(state, expected, 0)
    assert data == {"at": [1, "x"]}
    wanted = jax.tree.map(lambda x: x.sharding, abstract(mesh))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, wanted))


def test_restore_params_reads_parameters_alone(saved):
    directory, expected = saved
    mesh = sharding.make_mesh(data=4, tensor=2)
    params = checkpoints.restore_params(directory, abstract(mesh).params)
    close(params, expected.params, 0)
    assert params["embed"].sharding == abstract(mesh).params["embed"].sharding


@pytest.fixture
def collected():
    """A restore that fails leaves orbax's other reads behind, which complain when collected."""
    yield
    gc.collect()


orbax_complains = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)
CHANGES = [{"d_ff": 64}, {"d_ff": 16}, {"n_layers": 3}, {"vocab_size": 128}]


@orbax_complains
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("what", ["state", "params"])
def test_a_checkpoint_of_another_shape_is_one_line(what, changes, saved, collected):
    directory, _ = saved
    other = abstract(one_device(), **changes)
    with pytest.raises(ValueError, match=str(directory)) as error:
        restore(what, directory, other)
    assert "\n" not in str(error.value) and "shape" in str(error.value)


def restore(what, directory, wanted):
    if what == "params":
        return checkpoints.restore_params(directory, wanted.params)
    with checkpoints.RunCheckpoints(directory) as manager:
        return manager.restore(wanted)


def test_no_checkpoint_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(ValueError, match=f"no checkpoint in .*{name}"):
            checkpoints.restore_params(tmp_path / name, abstract(one_device()).params)
    with (
        checkpoints.RunCheckpoints(tmp_path) as manager,
        pytest.raises(ValueError, match="no checkpoint in"),
    ):
        manager.restore(abstract(one_device()))


@orbax_complains
@pytest.mark.parametrize("what", ["state", "params"])
def test_a_damaged_checkpoint_is_one_line(what, collected, tmp_path):
    """Every file in turn cut in half; only the newest checkpoint is kept: no falling back."""
    state = steps.init_state(CONFIG, ADAMW, one_device(), params=fresh())
    with checkpoints.RunCheckpoints(tmp_path) as manager:
        manager.save(2, state)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    refused = 0
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        try:
            found = restore(what, tmp_path, abstract(one_device()))
        except ValueError as error:
            assert str(tmp_path) in str(error) and "damaged" in str(error)
            assert "\n" not in str(error) and len(str(error)) < 500
            refused += 1
        else:  # a file that the reader has no need of
            close(found if what == "params" else found[0].params, fresh(), 0)
        finally:
            file.write_bytes(whole)
    assert refused >= 3
    restore(what, tmp_path, abstract(one_device()))


# The log


def test_the_log_is_cut_back_on_resume(tmp_path):
    log = metrics.MetricsLog(tmp_path, tensorboard=False)
    for step in (2, 4, 6):
        log.write(step, {"loss": step / 3, "seconds": 1.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [line["step"] for line in metrics.read(tmp_path)] == [2, 4, 6]

    log = metrics.MetricsLog(tmp_path, step=5, tensorboard=False)
    log.write(6, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{"step": s, "loss": s / 3, "seconds": 1.0} for s in (2, 4)]
    assert lines == [*kept, {"step": 6, "loss": 9.0}]
    assert metrics.read(tmp_path) == lines and metrics.read(tmp_path / "none") == []


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboardX")
    log = metrics.MetricsLog(tmp_path)
    log.write(1, {"loss": 1.0})
    log.close()
    assert [p for p in (tmp_path / "tensorboard").iterdir() if p.stat().st_size]


# FLOPs


def test_flops_by_hand():
    """Each product counted by itself: 2 FLOPs per multiply-add, three passes."""
    config = llama.LlamaConfig(
        vocab_size=11, d_model=6, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=5
    )
    length = 7
    forward = 0
    for _layer in range(3):
        forward += 2 * 6 * 32 + 2 * 6 * 16 + 2 * 6 * 16 + 2 * 32 * 6  # q, k, v, output
        forward += 3 * 2 * 6 * 5  # gate, up, down
        forward += 4 * (2 * 8 * length + 2 * 8 * length) / 2  # scores and their values, causal
    forward += 2 * 6 * 11
    assert flops.train_flops_per_token(config, length) == 3 * forward


def test_flops_of_llama_2_7b():
    """6 per parameter but embedding and norms, and 6 L D T for causal attention."""
    config = llama.preset("llama2_7b")
    matrices = 6_738_415_616 - 4096 * 32_000 - (2 * 32 + 1) * 4096
    expected = 6 * matrices + 6 * 32 * 4096 * 4096
    assert flops.train_flops_per_token(config, 4096) == expected == 42_863_689_728


def test_mfu(monkeypatch):
    assert flops.mfu(1e9) is None  # a CPU has no data sheet here
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(flops.PEAK_FLOPS, kind, 1e6)
    np.testing.assert_allclose(flops.mfu(0.3 * 8e6), 0.3)  # 8 devices
