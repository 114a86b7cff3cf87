"""Pretraining at the short length, and continuation at the long one."""

import functools
from collections.abc import Callable
from pathlib import Path

from experiments.ablation import plan
from experiments.ablation.study import Study
from experiments.progress import StudyProgress
from longrope_jax import model, rotary, runs
from longrope_jax.data import packing
from longrope_jax.training import checkpoints, loop, step
from longrope_jax.training.optimizer import OptimizerConfig

# Continuations draw other windows than pretraining did.
_CONTINUATION_SEED = 10_000


def check(study: Study, run: plan.Run) -> None:
    """Raises ValueError for what training would refuse: optimizer, method at the long length."""
    config = study.config
    optimizer_config(config.continuation, run.rate)
    if not config.init_checkpoint:
        optimizer_config(config.pretraining, 1.0)
    twice = 2 * plan.continued_length(config)
    rotary.make(run.method, head_dim=study.model.head_dim, seq_len=twice)


def pretrained(study: Study, run: plan.Run, progress: StudyProgress):
    """Parameters that `run` starts from: of a given checkpoint, or pretrained here first."""
    config = study.config
    if study.given:
        param_dtype = study.model.param_dtype
        return model.load(config.init_checkpoint, mesh=study.mesh, param_dtype=param_dtype).params
    if config.init_checkpoint:
        folder = Path(config.init_checkpoint)
    else:
        _pretrain(study, run, progress)
        folder = study.workdir / "runs" / run.pretrained / "checkpoints"
    optimizer = optimizer_config(config.continuation, 1.0)
    abstract = step.abstract_state(study.model, optimizer, study.mesh).params
    return checkpoints.restore_params(folder, abstract)


def _pretrain(study: Study, run: plan.Run, progress: StudyProgress) -> None:
    config = study.config
    folder = study.workdir / "runs" / run.pretrained
    if checkpoints.latest_step(folder / "checkpoints") == config.pretraining.steps:
        return
    note = "" if run.taught else ", not taught"
    progress.describe(f"pretraining, seed {run.seed}{note}")
    optimizer = optimizer_config(config.pretraining, 1.0)
    _fit(
        study,
        step.init_state(study.model, optimizer, study.mesh, seed=run.seed),
        optimizer,
        folder,
        phase="pretraining",
        taught=run.taught,
        seed=run.seed,
        method=plan.pretraining_method(config),
        progress=progress,
    )


def data_seed(run: plan.Run) -> int:
    """Seed of the continuation's data order: the same for every method."""
    return _CONTINUATION_SEED + run.seed


def continued(
    study: Study, run: plan.Run, params, progress: StudyProgress, hooks: dict[int, Callable]
):
    """Parameters after continuing from `params` under the run's method at the long length."""
    optimizer = optimizer_config(study.config.continuation, run.rate)
    progress.describe(f"{run.row}, seed {run.seed}")
    state = _fit(
        study,
        step.init_state(study.model, optimizer, study.mesh, params=params),
        optimizer,
        study.workdir / "runs" / run.slug,
        phase="continuation",
        taught=run.taught,
        seed=data_seed(run),
        method=run.method,
        progress=progress,
        hooks=hooks,
    )
    return state.params


def _fit(
    study, state, optimizer, folder, *, phase, taught, seed, method, progress, hooks=None
) -> step.TrainState:
    settings = study.config[phase]
    maker = study.training_windows(phase, taught=taught)
    if study.writes:
        known = study.model, method, study.tokenizer, maker.length
        runs.save(folder, runs.RunRecord(*known))
    costs = plan.costs(study.config, study.model)
    flops = costs.pretraining if phase == "pretraining" else costs.continuation
    train_step = step.make_train_step(study.model, optimizer, study.mesh)
    return loop.fit(
        state,
        train_step,
        packing.iterator(maker, batch=settings.batch, seed=seed, mesh=study.mesh),
        rotary=rotary.make(method, head_dim=study.model.head_dim, seq_len=maker.length),
        loop=loop.LoopConfig(
            steps=settings.steps,
            accumulation=settings.accumulation,
            log_every=settings.log_every,
            checkpoint_every=settings.checkpoint_every,
        ),
        mesh=study.mesh,
        directory=folder,
        on_step=functools.partial(_advance, progress, flops),
        hooks=hooks,
    )


def _advance(progress: StudyProgress, flops: float, _: int, tokens: int) -> None:
    progress.advance(flops * tokens, tokens)


def optimizer_config(settings, rate: float) -> OptimizerConfig:
    """AdamW of a phase, its learning rate times `rate`."""
    return OptimizerConfig(
        learning_rate=settings.learning_rate * rate,
        total_steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        eps=settings.get("eps", OptimizerConfig.eps),
    )
