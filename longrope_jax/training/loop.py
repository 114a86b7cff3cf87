"""`fit` is the loop of one training run: it resumes, steps, logs and saves checkpoints."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from longrope_jax import sharding
from longrope_jax.rotary import Rotary, check_length
from longrope_jax.rotary import positions as position_transforms
from longrope_jax.training.checkpoints import RunCheckpoints
from longrope_jax.training.metrics import MetricsLog
from longrope_jax.training.step import TrainState


class Diverged(ValueError):
    """A Diverged says that a loss or a gradient is not finite; nothing bad was saved."""


@dataclass(frozen=True)
class LoopConfig:
    """A LoopConfig says how long to train and how often to log and to save.

    Attributes:
        steps: the total number of optimizer updates.
        accumulation: microbatches per update.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints; the last step always has one.
        tensorboard: whether to write TensorBoard events too.
        positions: a transform as `rotary.positions.parse` reads it, e.g. "ruoss:max_length=32768";
            "" is none. Each step draws new positions from position_seed and the step's number
            alone, so a resumed run draws the same. Make the rotary for the longest position.
        position_seed: the seed of those draws.

    Raises:
        ValueError: A number is below 1, or the transform is unknown.
    """

    steps: int
    accumulation: int = 1
    log_every: int = 10
    checkpoint_every: int = 100
    tensorboard: bool = True
    positions: str = ""
    position_seed: int = 0

    def __post_init__(self):
        if self.positions:
            position_transforms.parse(self.positions)
        for name in ("steps", "accumulation", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def fit(
    state: TrainState,
    train_step: Callable,
    data: grain.DatasetIterator,
    *,
    rotary: Rotary,
    loop: LoopConfig,
    mesh: Mesh,
    directory: str | Path,
    on_step: Callable[[int, int], None] | None = None,
    hooks: dict[int, Callable[[TrainState], None]] | None = None,
) -> TrainState:
    """Trains to `loop.steps`, from the newest checkpoint in `directory` if there is one.

    If it is killed at any moment and called again with the same arguments, it ends with bitwise
    the same parameters and the same metrics, except for wall-clock fields. This assumes the same
    machine, versions and core count.

    Args:
        state: the state to begin from without a checkpoint; its shapes and shardings are those to
            restore to. Its buffers are donated.
        train_step: the compiled step, from `step.make_train_step`.
        data: an iterator over batches {name: [accumulation * B, ...]}.
        rotary: the method, as arrays made for the longest position.
        loop: how long to train and how often to log and to save.
        mesh: the mesh that batches are divided over.
        directory: the run's folder, which gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
        on_step: called with (step, tokens of the step) after each step, for progress.
        hooks: functions by step, called with the state after that step and before its checkpoint is
            written, so an interrupted hook runs again.

    Raises:
        ValueError: A batch has positions beyond what the Rotary was made for.
        Diverged: A loss or a gradient is not finite; the last good checkpoint stays.
    """
    directory, hooks = Path(directory), hooks or {}
    with RunCheckpoints(directory / "checkpoints") as checkpoints:
        step = checkpoints.latest() or 0
        if step:
            state, data_state = checkpoints.restore(jax.tree.map(_abstract, state))
            data.set_state(data_state)
        log = None
        if jax.process_index() == 0:
            log = MetricsLog(directory, step=step, tensorboard=loop.tensorboard)
        draw = _position_draw(loop) if loop.positions else None
        clock, unlogged = time.perf_counter(), 0
        unchecked: list[tuple[int, dict]] = []
        while step < loop.steps:
            batch = next(data)
            if draw:
                batch = batch | {"positions": draw(step, batch["segment_start"])}
            check_length(rotary, _longest(batch))
            batch = _microbatches(batch, loop.accumulation, mesh)
            state, metrics = train_step(state, rotary, batch)
            step += 1
            tokens = batch["weights"].size
            unlogged += tokens
            unchecked.append((step, metrics))
            logs = step % loop.log_every == 0 or step == loop.steps
            saves = step % loop.checkpoint_every == 0 or step == loop.steps or step in hooks
            if on_step or logs or saves:  # reading metrics waits for the devices
                _check_finite(unchecked, state if saves else None, checkpoints.latest(), directory)
                unchecked.clear()
            if log and logs:
                values = {k: float(v) for k, v in metrics.items() if k != "bad"}
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                speed = {"seconds": seconds, "tokens_per_second": unlogged / seconds}
                log.write(step, values | speed)
                unlogged = 0
            if on_step:
                on_step(step, tokens)
            if step in hooks:
                hooks[step](state)
            if saves:
                checkpoints.save(step, state, data.get_state())
        if log:
            log.close()
    return state


def _check_finite(
    steps: list[tuple[int, dict]], state: TrainState | None, saved: int | None, directory: Path
) -> None:
    """Raises Diverged for the first of these steps that is bad, and for a state that is not finite.

    Without it the parameters would stay NaN, and the next save would drop the last good ones.
    """
    bad = [(step, metrics) for step, metrics in steps if metrics["bad"]]
    if not bad and (state is None or _finite(state)):
        return
    step, metrics = bad[0] if bad else steps[-1]
    what = "" if bad else ", but the state after it is not finite"
    kept = f"the last good checkpoint is that of step {saved}" if saved else "no step was saved"
    raise Diverged(
        f"the run in {directory} diverged at step {step}: loss {float(metrics['loss'])}, gradient "
        f"norm {float(metrics['grad_norm'])}{what}; {kept}: lower learning_rate, or leave single "
        "bad steps out by OptimizerConfig(skip=N)"
    )


@jax.jit
def _finite(state: TrainState) -> jax.Array:
    """Whether every parameter and moment is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]))


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _longest(batch: dict) -> int:
    """One more than the highest position of a batch."""
    positions, starts = batch.get("positions"), batch["segment_start"]
    if positions is None:
        positions = np.arange(starts.shape[-1]) - starts
    return int(np.max(positions)) + 1


def _position_draw(loop: LoopConfig) -> Callable[[int, np.ndarray], np.ndarray]:
    """Returns a function that draws the positions [B, T] of a step, different on each host."""
    transform = position_transforms.parse(loop.positions)
    host = jax.random.fold_in(jax.random.key(loop.position_seed), jax.process_index())

    @jax.jit
    def draw(step, segment_start):
        positions = transform(jax.random.fold_in(host, step), *segment_start.shape)
        return position_transforms.restart(positions, segment_start)

    return lambda step, segment_start: np.asarray(draw(step, segment_start))


def _microbatches(batch: dict, accumulation: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Reshapes host arrays [A * B, ...] to [A, B, ...] on the mesh, with B over data and fsdp."""

    def split(x: np.ndarray) -> np.ndarray:
        if x.shape[0] % accumulation:
            raise ValueError(
                f"a batch of {x.shape[0]} is not a multiple of accumulation={accumulation}: change "
                "the batch or the accumulation"
            )
        return x.reshape(accumulation, -1, *x.shape[1:])

    return sharding.shard_batch(mesh, {k: split(v) for k, v in batch.items()}, axis=1)
