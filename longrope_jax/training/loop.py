"""The loop of one run: resume, step, log, checkpoint."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from longrope_jax import sharding
from longrope_jax.rotary import Rotary, check_length
from longrope_jax.rotary import positions as position_transforms
from longrope_jax.training.checkpoints import RunCheckpoints
from longrope_jax.training.metrics import MetricsLog
from longrope_jax.training.step import TrainState


@dataclass(frozen=True)
class LoopConfig:
    """How far and how often.

    Attributes:
        steps: optimizer updates in all.
        accumulation: microbatches per update.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints; the last step always has one.
        tensorboard: also write TensorBoard events.
        positions: a transform as `rotary.positions.parse` reads it, e.g. "ruoss:max_length=32768";
            "" is none. Each step draws anew, from position_seed and its own number alone, so that
            a resumed run draws the same. Make the rotary for the longest position.
        position_seed: of those draws.
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

    Killed at any moment and called again with the same arguments, it ends with the same
    parameters to the bit and the same metrics, wall-clock fields excepted (same machine, versions
    and core count).

    Args:
        state: where to begin without a checkpoint; also the shapes and shardings to restore to.
            Its buffers are donated.
        train_step: from `step.make_train_step`.
        data: iterator over batches {name: [accumulation * B, ...]}.
        rotary: the method, as arrays made for the longest position.
        loop: how far and how often.
        mesh: where the batches go.
        directory: of the run: `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
        on_step: called as (step, tokens of the step) for progress.
        hooks: by step, called with the state after that step and before its checkpoint is
            written, so a hook that was cut off runs again.

    Raises:
        ValueError: A batch has positions beyond what the Rotary was made for.
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
            if log and (step % loop.log_every == 0 or step == loop.steps):
                values = {k: float(v) for k, v in metrics.items()}
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                speed = {"seconds": seconds, "tokens_per_second": unlogged / seconds}
                log.write(step, values | speed)
                unlogged = 0
            if on_step:
                jax.block_until_ready(metrics)
                on_step(step, tokens)
            if step in hooks:
                hooks[step](state)
            if step % loop.checkpoint_every == 0 or step == loop.steps or step in hooks:
                checkpoints.save(step, state, data.get_state())
        if log:
            log.close()
    return state


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _longest(batch: dict) -> int:
    """One more than the highest position of a batch."""
    positions, starts = batch.get("positions"), batch["segment_start"]
    if positions is None:
        positions = np.arange(starts.shape[-1]) - starts
    return int(np.max(positions)) + 1


def _position_draw(loop: LoopConfig) -> Callable[[int, np.ndarray], np.ndarray]:
    """Positions [B, T] of a step, other ones on each host."""
    transform = position_transforms.parse(loop.positions)
    host = jax.random.fold_in(jax.random.key(loop.position_seed), jax.process_index())

    @jax.jit
    def draw(step, segment_start):
        positions = transform(jax.random.fold_in(host, step), *segment_start.shape)
        return position_transforms.restart(positions, segment_start)

    return lambda step, segment_start: np.asarray(draw(step, segment_start))


def _microbatches(batch: dict, accumulation: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays [A * B, ...] to [A, B, ...] on the mesh, B over data and fsdp."""

    def split(x: np.ndarray) -> np.ndarray:
        if x.shape[0] % accumulation:
            raise ValueError(f"a batch of {x.shape[0]} is no multiple of {accumulation} parts")
        return x.reshape(accumulation, -1, *x.shape[1:])

    return sharding.shard_batch(mesh, {k: split(v) for k, v in batch.items()}, axis=1)
