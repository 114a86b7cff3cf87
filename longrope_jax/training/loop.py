"""`fit` is the loop of one training run: it resumes, steps, logs and saves checkpoints."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from longrope_jax import sharding
from longrope_jax.data.mixtures import Plan
from longrope_jax.folders import located, only_writer
from longrope_jax.rotary import Rotary, check_length
from longrope_jax.rotary import positions as position_transforms
from longrope_jax.training import identity
from longrope_jax.training.checkpoints import RunCheckpoints
from longrope_jax.training.metrics import MetricsLog
from longrope_jax.training.step import TrainState
from longrope_jax.training.termination import asked_to_stop


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
        checkpoints_kept: how many of the newest checkpoints stay; 0 keeps all, so that a model can
            be evaluated at every stage of its training.
        steps_per_dispatch: the most steps that the devices do at a time, between two logs,
            checkpoints and hooks. More save time where a step is short; a dispatch holds the
            batches of all its steps. The numbers do not depend on it.
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
    checkpoints_kept: int = 1
    steps_per_dispatch: int = 1
    tensorboard: bool = True
    positions: str = ""
    position_seed: int = 0

    def __post_init__(self):
        if self.positions:
            position_transforms.parse(self.positions)
        counts = ("steps", "accumulation", "log_every", "checkpoint_every", "steps_per_dispatch")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoints_kept < 0:
            raise ValueError(f"checkpoints_kept must be 0 or more, got {self.checkpoints_kept}")


def fit(
    state: TrainState,
    train_step: Callable,
    data: grain.DatasetIterator,
    *,
    rotary: Rotary | Mapping[int, Rotary],
    loop: LoopConfig,
    mesh: Mesh,
    directory: str | Path,
    on_step: Callable[[int, int], None] | None = None,
    hooks: dict[int, Callable[[TrainState], None]] | None = None,
    plan: Plan | None = None,
) -> TrainState:
    """Trains to `loop.steps`, from the newest checkpoint in `directory` if there is one.

    If it is killed at any moment and called again with the same arguments, it ends with bitwise
    the same parameters and the same metrics, except for wall-clock fields. This assumes the same
    machine, versions and core count. On SIGTERM or Ctrl-C it saves after the step that it is at
    (several hosts after the same step), says so on stderr and exits with status 75 or 130.

    Args:
        state: the state to begin from without a checkpoint; its shapes and shardings are those to
            restore to. Its buffers are donated, those of `init_state(params=...)` among them.
        train_step: the compiled step, from `step.make_train_step`.
        data: an iterator over batches {name: [accumulation * B, ...]}.
        rotary: the method, as arrays made for the longest position; or methods by the number of
            steps after which they take over, the first by 0.
        loop: how long to train and how often to log and to save.
        mesh: the mesh that batches are divided over.
        directory: the run's folder, which gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
        on_step: called with (step, tokens since the last call) after each dispatch, for progress.
        hooks: functions by step, called with the state after that step and before its checkpoint is
            written, so an interrupted hook runs again.
        plan: of the mixture that `data` draws from: its shares and epochs are logged and saved, and
            windows change their length at its stages.

    Raises:
        ValueError: A batch has positions beyond what the Rotary was made for, another process
            trains in `directory`, or its checkpoint is beyond `loop.steps` or of a run with another
            schedule, optimizer, rotary or data.
        Diverged: A loss or a gradient is not finite; the last good checkpoint stays.
    """
    directory, hooks = located(directory), hooks or {}
    with (
        only_writer(directory) if jax.process_index() == 0 else nullcontext(),
        RunCheckpoints(
            directory / "checkpoints", keep=loop.checkpoints_kept, clean=True
        ) as checkpoints,
        asked_to_stop() as stop,
    ):
        step = checkpoints.latest() or 0
        drawn = {"positions": loop.positions, "position_seed": loop.position_seed}
        methods = dict(rotary) if isinstance(rotary, Mapping) else {0: rotary}
        known_by = identity.of_run(train_step, data, tuple(methods.values()), mesh) | drawn
        edges = [*hooks, *methods, *(plan.edges if plan else ())]
        if plan:
            known_by |= plan.settings
            if plan.steps < loop.steps:
                raise ValueError(f"the plan has {plan.steps} steps, fewer than steps={loop.steps}")
        if len(methods) > 1:
            known_by["rotary_from"] = sorted(methods)
        if step > loop.steps:
            raise ValueError(
                f"the run in {directory} is at step {step}, beyond steps={loop.steps}: give "
                f"steps={step} or more, or another directory"
            )
        if step:
            state, saved = checkpoints.restore(jax.tree.map(_abstract, state))
            identity.check(saved.get("run", {}), known_by, directory)
            data.set_state(saved["iterator"] if "run" in saved else saved)
        log = None
        if jax.process_index() == 0:
            log = MetricsLog(directory, step=step, tensorboard=loop.tensorboard)
        draw = _position_draw(loop, mesh) if loop.positions else None
        clock, unlogged = time.perf_counter(), 0
        unchecked: list[tuple[int, int, dict]] = []
        stopping = False
        while step < loop.steps:
            count = _until_edge(step, loop, edges)
            method = methods[max(first for first in methods if first <= step)]
            batches = []
            for at in range(step, step + count):
                batch = next(data)
                if draw:
                    batch = batch | {"positions": draw(at, batch["segment_start"])}
                check_length(method, _longest(batch))
                batches.append(_microbatches(batch, loop.accumulation))
            stacked = _stacked(batches, min(loop.steps_per_dispatch, loop.steps), mesh)
            state, metrics = train_step(state, method, stacked, count=count)
            step += count
            tokens = count * stacked["weights"][0].size
            unlogged += tokens
            unchecked.append((step, count, metrics))
            logs = step % loop.log_every == 0 or step == loop.steps
            stopping = stop.asked()
            saves = step % loop.checkpoint_every == 0 or step == loop.steps or step in hooks
            saves = saves or stopping
            if on_step or logs or saves:  # reading metrics waits for the devices
                _check_finite(unchecked, state if saves else None, checkpoints.latest(), directory)
                unchecked.clear()
            if log and logs:
                values = {k: float(v[count - 1]) for k, v in metrics.items() if k != "bad"}
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                speed = {"seconds": seconds, "tokens_per_second": unlogged / seconds}
                log.write(step, values | (plan.seen(step) if plan else {}) | speed)
                unlogged = 0
            if on_step:
                on_step(step, tokens)
            if step in hooks:
                hooks[step](state)
            if saves:
                if log:
                    log.flush()
                kept = {"iterator": data.get_state(), "run": known_by}
                checkpoints.save(step, state, kept | ({"seen": plan.seen(step)} if plan else {}))
            if stopping:
                break
        if log:
            log.close()
    if stopping:
        if log:
            print(
                f"stopped: step {step} of {directory} is saved; the same command goes on there",
                file=sys.stderr,
            )
        raise SystemExit(stop.status)
    return state


def _until_edge(step: int, loop: LoopConfig, at: Iterable[int]) -> int:
    """How many steps go in one dispatch: up to the next log, checkpoint, edge or end.

    It depends on the step alone, so a resumed run dispatches as one that was never cut off.
    """
    every = (loop.log_every, loop.checkpoint_every, loop.steps_per_dispatch)
    edges = [loop.steps, *(n - step % n + step for n in every), *(h for h in at if h > step)]
    return min(edges) - step


def _check_finite(
    dispatches: list[tuple[int, int, dict]],
    state: TrainState | None,
    saved: int | None,
    directory: Path,
) -> None:
    """Raises Diverged for the first step that is bad, and for a state that is not finite.

    Without it the parameters would stay NaN, and the next save would drop the last good ones.
    """
    steps = [
        (last - count + 1 + i, {name: values[i] for name, values in metrics.items()})
        for last, count, metrics in jax.device_get(dispatches)
        for i in range(count)
    ]
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


def _position_draw(loop: LoopConfig, mesh: Mesh) -> Callable[[int, np.ndarray], np.ndarray]:
    """Returns a function that draws the positions [B, T] of a host's rows in a step.

    They are drawn for the rows of all hosts, of which this host takes its own as `packing.iterator`
    deals them out, so that the same rows have the same positions on every mesh.
    """
    transform = position_transforms.parse(loop.positions)
    key = jax.random.key(loop.position_seed)
    index, parts = sharding.batch_share(mesh)

    @jax.jit
    def draw(step, segment_start):
        B, T = segment_start.shape
        positions = transform(jax.random.fold_in(key, step), B * parts, T)[index::parts]
        return position_transforms.restart(positions, segment_start)

    return lambda step, segment_start: np.asarray(draw(step, segment_start))


def _microbatches(batch: dict, accumulation: int) -> dict[str, np.ndarray]:
    """Reshapes host arrays [A * B, ...] to [A, B, ...]."""

    def split(x: np.ndarray) -> np.ndarray:
        if x.shape[0] % accumulation:
            raise ValueError(
                f"a batch of {x.shape[0]} is not a multiple of accumulation={accumulation}: change "
                "the batch or the accumulation"
            )
        return x.reshape(accumulation, -1, *x.shape[1:])

    return {k: split(v) for k, v in batch.items()}


def _stacked(batches: list[dict], K: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts [K, A, B, ...] on the mesh, with B over data and fsdp; the last batch fills it up."""
    filled = batches + batches[-1:] * (K - len(batches))
    return sharding.shard_batch(mesh, jax.tree.map(lambda *x: np.stack(x), *filled), axis=2)
