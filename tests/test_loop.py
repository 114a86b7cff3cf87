"""The training loop: what it refuses, what a loss that is not finite does, what it resumes from."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, rotary, sharding
from longrope_jax.folders import only_writer
from longrope_jax.training import checkpoints, loop, metrics, optimizer
from longrope_jax.training import lora as lora_lib
from longrope_jax.training import step as steps

T, B, V = 8, 4, 31
CONFIG = llama.LlamaConfig(V, 8, 1, 2, 1, 4, 16, attention="reference")
ADAMW = optimizer.OptimizerConfig(0.02, 6, warmup_steps=0)
ROPE = rotary.make(rotary.RoPE(100.0), head_dim=4, seq_len=T)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


class Batches:
    """A data iterator whose state is its step; weights by step where they are not all one."""

    def __init__(self, weights=None, *, seed=0, rows=B):
        self.step, self.weights, self.seed, self.rows = 0, weights or {}, seed, rows

    def __next__(self):
        self.step += 1
        rng = np.random.default_rng((self.seed, self.step))
        weight = self.weights.get(self.step, 1.0)
        return {
            "tokens": rng.integers(0, V, (self.rows, T + 1), dtype=np.int32),
            "weights": np.full((self.rows, T), weight, np.float32),
            "segment_start": np.zeros((self.rows, T), np.int32),
        }

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


@functools.cache
def start():
    state = steps.init_state(CONFIG, ADAMW, one_device(), seed=1)
    return jax.tree.map(np.array, state.params)


def fit(directory, data=None, n=6, adamw=ADAMW, params=None, **options):
    mesh = one_device()
    given = options.pop("given", {})
    return loop.fit(
        steps.init_state(CONFIG, adamw, mesh, params=start() if params is None else params),
        steps.make_train_step(CONFIG, adamw, mesh),
        data or Batches(),
        rotary=ROPE,
        loop=loop.LoopConfig(
            n, tensorboard=False, **{"checkpoint_every": 2, "log_every": 2} | options
        ),
        mesh=mesh,
        directory=directory,
        **given,
    )


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


# Numbers that are not finite


@pytest.mark.parametrize("given", [{}, {"on_step": lambda *_: None}], ids=["async", "watched"])
def test_a_nan_ends_the_run_before_it_is_saved(given, tmp_path):
    with pytest.raises(loop.Diverged) as error:
        fit(tmp_path, Batches({3: math.nan}), given=given)
    one_line(error, str(tmp_path), "step 3", "loss nan", "gradient norm nan", "step 2")
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 2
    assert [line["step"] for line in metrics.read(tmp_path)] == [2]
    saved = checkpoints.restore_params(
        tmp_path / "checkpoints", steps.abstract_params(CONFIG, one_device())
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved))


def test_a_step_that_ruins_the_parameters_is_not_saved(tmp_path):
    """Its own loss and gradient are finite still."""
    adamw = optimizer.OptimizerConfig(3e38, 6, warmup_steps=0, weight_decay=10.0)
    with pytest.raises(loop.Diverged) as error:
        fit(tmp_path, adamw=adamw, checkpoint_every=1)
    one_line(error, "step 1", "the state after it is not finite", "no step was saved")
    assert checkpoints.latest_step(tmp_path / "checkpoints") is None


def test_single_bad_steps_are_skipped_and_counted(tmp_path):
    """As if that batch had not been: parameters, moments and the schedule's place."""
    adamw = optimizer.OptimizerConfig(0.02, 6, warmup_steps=0, skip=1)
    skipped = fit(tmp_path / "a", Batches({3: math.nan, 5: math.inf}), 6, adamw)

    class Good(Batches):
        def __next__(self):
            batch = super().__next__()
            return batch if self.step not in (3, 5) else super().__next__()

    good = fit(tmp_path / "b", Good(), 4)
    for a, b in zip(jax.tree.leaves(skipped.params), jax.tree.leaves(good.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    lines = metrics.read(tmp_path / "a")
    assert [line["skipped"] for line in lines] == [0, 1, 2]
    assert [line["learning_rate"] for line in lines[:2]] == [
        metrics.read(tmp_path / "b")[0]["learning_rate"],
        pytest.approx(float(optimizer.schedule(adamw)(2)), rel=1e-6),
    ]
    with pytest.raises(loop.Diverged) as error:
        fit(tmp_path / "c", Batches({3: math.nan, 4: math.nan}), 6, adamw)
    one_line(error, "step 4", "step 2")


def test_metrics_are_json_without_nan(tmp_path):
    log = metrics.MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.5})
    log.close()

    def refuse(constant):
        raise AssertionError(constant)

    for _ in range(2):
        text = (tmp_path / "metrics.jsonl").read_text()
        line = json.loads(text, parse_constant=refuse)
        assert line == {"step": 1, "loss": None, "grad_norm": None, "learning_rate": 0.5}
        metrics.MetricsLog(tmp_path, step=1, tensorboard=False).close()  # cuts back
    (line,) = metrics.read(tmp_path)
    assert math.isnan(line["loss"]) and line["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("learning_rate", [0.0, -1.0, math.nan, math.inf]),
        ("b1", [-0.1, 1.0, math.nan]),
        ("b2", [-0.1, 1.0, math.nan]),
        ("eps", [0.0, -1e-8, math.nan, math.inf]),
        ("weight_decay", [-0.1, math.nan, math.inf]),
        ("clip", [0.0, -1.0, math.nan, math.inf]),
        ("skip", [-1]),
    ],
)
def test_numbers_out_of_range_are_refused(field, wrong):
    good = {"learning_rate": 0.1, "total_steps": 10, "warmup_steps": 1}
    for value in wrong:
        with pytest.raises(ValueError) as error:
            optimizer.OptimizerConfig(**good | {field: value})
        one_line(error, field, str(value))


def test_without_clip_gradients_keep_their_norm():
    plain = optimizer.make(optimizer.OptimizerConfig(0.1, 10, warmup_steps=0, clip=None, eps=1.0))
    large = optimizer.make(optimizer.OptimizerConfig(0.1, 10, warmup_steps=0, clip=1e30, eps=1.0))
    params = {"w": np.ones(3, np.float32)}
    gradient = {"w": np.full(3, 50.0, np.float32)}
    found, expected = (t.update(gradient, t.init(params), params)[0]["w"] for t in (plain, large))
    np.testing.assert_array_equal(found, expected)


# The mean over weights


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("factor", [1e-3, 1e-30, 1e3])
def test_the_loss_is_a_mean_whatever_the_weights_sum_to(factor, accumulation):
    losses = {}
    for f in (1.0, factor):
        batch = {k: x.reshape(accumulation, -1, x.shape[1]) for k, x in next(Batches()).items()}
        batch["weights"] *= np.float32(f)
        batch = sharding.shard_batch(one_device(), batch, axis=1)
        state = steps.init_state(CONFIG, ADAMW, one_device(), params=start())
        _, logged = steps.make_train_step(CONFIG, ADAMW, one_device())(state, ROPE, batch)
        losses[f] = [float(logged[name]) for name in ("loss", "grad_norm")]
    np.testing.assert_allclose(losses[factor], losses[1.0], rtol=1e-5)


# Low precision


def low(params, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def after_two_steps(config, params, adamw, lora=None):
    state = steps.init_state(config, adamw, one_device(), params=params, lora=lora)
    step = steps.make_train_step(config, adamw, one_device(), lora)
    frozen = lora and lora_lib.split(lora, params)[1]
    for seed in range(2):
        rows = {k: x.reshape(2, -1, x.shape[1]) for k, x in next(Batches(seed=seed)).items()}
        state, _ = step(state, ROPE, sharding.shard_batch(one_device(), rows, axis=1), frozen)
    return state


def test_bfloat16_parameters_train_as_float32_ones_do():
    """To the bit: parameters, moments, accumulated gradients; at a rate that bfloat16 loses."""
    adamw = optimizer.OptimizerConfig(2e-5, 100, warmup_steps=0)
    found, expected = (
        after_two_steps(
            dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype=held),
            low(low(start(), "bfloat16"), held),
            adamw,
        )
        for held in ("bfloat16", "float32")
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.dtype in (jnp.float32, jnp.int32)
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(start()), strict=True):
        assert (np.asarray(a) != low(b, "bfloat16").astype("float32")).mean() > 0.3


def test_norms_and_embedding_move_beside_adapters_on_a_bfloat16_base():
    config = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    base, plus = low(start(), "bfloat16"), lora_lib.trainable("lora_plus", rank=2)
    adamw = optimizer.OptimizerConfig(2e-5, 100, warmup_steps=0)
    state = after_two_steps(config, base, adamw, plus)
    before = jax.tree.leaves(lora_lib.split(plus, base)[0])
    for a, b in zip(jax.tree.leaves(state.params["unfrozen"]), before, strict=True):
        assert a.dtype == jnp.float32 and (np.asarray(a) != np.asarray(b, np.float32)).any()


def test_training_in_float16_is_refused():
    config = dataclasses.replace(CONFIG, dtype="float16")
    for make in (steps.abstract_state, steps.init_state, steps.make_train_step):
        with pytest.raises(ValueError) as error:
            make(config, ADAMW, one_device())
        one_line(error, "dtype=float16", "bfloat16")


# Going on


def test_a_checkpoint_beyond_the_steps_is_refused(tmp_path):
    fit(tmp_path, n=4)
    fit(tmp_path, n=4)  # done is done
    with pytest.raises(ValueError) as error:
        fit(tmp_path, n=2)
    one_line(error, str(tmp_path), "step 4", "steps=2")


def test_another_run_is_not_continued(tmp_path):
    """Schedule, optimizer, seed, batch, method; an interrupted run of an older version goes on."""
    fit(tmp_path, n=2)
    change = functools.partial(dataclasses.replace, ADAMW)
    others = {
        "total_steps=6, not 12": {"adamw": change(total_steps=12)},
        "b2=0.95, not 0.99": {"adamw": change(b2=0.99)},
        "first_batch=": {"data": Batches(seed=1)},
        "batch=4, not 8": {"data": Batches(rows=8)},
        "positions=, not giraffe": {"positions": "giraffe"},
        "position_seed=0, not 1": {"position_seed": 1},
    }
    for words, other in others.items():
        with pytest.raises(ValueError) as error:
            fit(tmp_path, n=4, **other)
        one_line(error, str(tmp_path), words)

    state = steps.init_state(CONFIG, ADAMW, one_device(), params=start())
    with checkpoints.RunCheckpoints(tmp_path / "old") as manager:
        manager.save(2, state, {"step": 2})
    (tmp_path / "older").mkdir()
    (tmp_path / "old").rename(tmp_path / "older" / "checkpoints")
    assert int(fit(tmp_path / "older", n=3).step) == 1  # the state that was saved, one step on


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_ends_the_same(number, status, tmp_path, capsys):
    def terminate(step, tokens):
        if step == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "a", given={"on_step": terminate}, checkpoint_every=5)
    assert stopped.value.code == status
    assert signal.getsignal(number) == before
    assert checkpoints.latest_step(tmp_path / "a" / "checkpoints") == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert "step 4" in line and str(tmp_path / "a") in line
    found, whole = fit(tmp_path / "a"), fit(tmp_path / "b")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_interrupt_stops_at_once(tmp_path):
    def interrupt(step, tokens):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, given={"on_step": interrupt}, checkpoint_every=2)
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 2


def test_what_killed_processes_left_is_removed(tmp_path):
    fit(tmp_path, n=2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "1")
    (folder / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert checkpoints.latest_step(folder) == 2  # a reader removes nothing
    assert {p.name for p in folder.iterdir()} == {"1", "2", "3.orbax-checkpoint-tmp"}
    fit(tmp_path, n=2)
    assert {p.name for p in folder.iterdir()} == {"2"}


def test_a_folder_has_one_writer_and_the_dead_hold_nothing(tmp_path):
    hold = "import sys, time; from longrope_jax.folders import only_writer\n"
    hold += "with only_writer(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError) as error:
        fit(tmp_path, n=2)
    one_line(error, "another process", str(tmp_path))
    other.kill()
    other.communicate()
    with only_writer(tmp_path):
        pass


def test_a_changed_byte_of_a_checkpoint_is_noticed(tmp_path):
    """In any of its files: one line that names the checkpoint, or the numbers that were saved."""
    fit(tmp_path, n=2)
    folder, abstract = tmp_path / "checkpoints", steps.abstract_params(CONFIG, one_device())
    like = steps.abstract_state(CONFIG, ADAMW, one_device())

    def read_all():
        with checkpoints.RunCheckpoints(folder) as manager:
            return manager.restore(like), checkpoints.restore_params(folder, abstract)

    expected, noticed = jax.tree.map(np.asarray, read_all()), 0
    files = [path for path in (folder / "2").rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1} if whole else ():
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            try:
                jax.tree.map(np.testing.assert_array_equal, read_all(), expected)
            except ValueError as error:
                assert "\n" not in str(error) and str(folder) in str(error), error
                noticed += 1
        path.write_bytes(whole)
    assert noticed > len(files) // 2  # how many bytes matter depends on orbax's layout
    jax.tree.map(np.testing.assert_array_equal, read_all(), expected)


# Several steps in one dispatch


def logged(directory):
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in x.items() if k not in clock} for x in metrics.read(directory)]


@pytest.mark.parametrize("most", [2, 4, 100])
def test_the_steps_of_one_dispatch_are_those_of_many(most, tmp_path):
    """To rounding: on some processors XLA joins operations otherwise in the other program."""
    each = fit(tmp_path / "each", log_every=3, checkpoint_every=5)
    options = {"log_every": 3, "checkpoint_every": 5, "steps_per_dispatch": most}
    several = fit(tmp_path / "several", **options)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), each, several)
    lines = zip(logged(tmp_path / "each"), logged(tmp_path / "several"), strict=True)
    for one, other in lines:
        assert one == pytest.approx(other, rel=1e-5)


def test_dispatches_end_at_logs_checkpoints_and_hooks(tmp_path):
    seen, told = [], []
    hooks = {5: lambda state: seen.append(int(state.step))}
    given = {"hooks": hooks, "on_step": lambda *found: told.append(found)}
    options = {"log_every": 4, "checkpoint_every": 100, "steps_per_dispatch": 3}
    fit(tmp_path, n=11, given=given, **options)
    assert seen == [5]
    ends = [3, 4, 5, 6, 8, 9, 11]
    tokens = [B * T * n for n in np.diff([0, *ends])]
    assert told == list(zip(ends, tokens, strict=True))
    assert [line["step"] for line in logged(tmp_path)] == [4, 8, 11]


def test_a_nan_within_a_dispatch_is_told_by_its_step(tmp_path):
    with pytest.raises(loop.Diverged, match="diverged at step 3"):
        options = {"log_every": 100, "checkpoint_every": 100, "steps_per_dispatch": 5}
        fit(tmp_path, Batches({3: math.nan}), **options)


def test_checkpoints_are_kept_for_evaluation_and_gone_on_with(tmp_path):
    fit(tmp_path / "all", checkpoints_kept=0)
    assert checkpoints.steps(tmp_path / "all" / "checkpoints") == [2, 4, 6]
    fit(tmp_path / "all", checkpoints_kept=2, n=6)
    assert checkpoints.steps(tmp_path / "all" / "checkpoints") == [4, 6]
    fit(tmp_path / "one")
    assert checkpoints.steps(tmp_path / "one" / "checkpoints") == [6]
    assert checkpoints.steps(tmp_path / "none") == []
    with pytest.raises(ValueError, match="checkpoints_kept must be 0 or more, got -1"):
        loop.LoopConfig(1, checkpoints_kept=-1)
