"""One stage of continual pretraining: everything, or adapters, under one method at one length."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from experiments.continual.project import Project
from longrope_jax import llama, rotary, runs
from longrope_jax.data import packing
from longrope_jax.training import loop, step
from longrope_jax.training import lora as lora_lib
from longrope_jax.training.flops import train_flops_per_token
from longrope_jax.training.lora import LoRA
from longrope_jax.training.optimizer import OptimizerConfig


def run(
    project: Project,
    stage: ConfigDict,
    params,
    folder: Path,
    *,
    lora: LoRA | None,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
):
    """Parameters after the stage, from its newest checkpoint in `folder` if there is one.

    Without LoRA the buffers of `params` are donated; with it they stay, and the adapters come
    merged.
    """
    optimizer, model = optimizer_config(stage), training_model(project, stage)
    mesh = project.mesh
    train_step = step.make_train_step(model, optimizer, mesh, lora)
    frozen = lora_lib.split(lora, params)[1] if lora else None
    if lora:
        train_step = functools.partial(train_step, frozen=frozen)
    maker = project.training_windows(stage.length, stage.shortest_passage)
    method = project.method(stage.method)
    if project.writes:
        special = project.base.special_tokens
        known = project.base.model, method, project.base.tokenizer, stage.length, special
        runs.save(folder, runs.RunRecord(*known))
    state = loop.fit(
        step.init_state(model, optimizer, mesh, params=params, lora=lora, seed=seed),
        train_step,
        packing.iterator(maker, batch=stage.batch, seed=seed),
        rotary=rotary.make(method, head_dim=model.head_dim, seq_len=stage.length),
        loop=_loop_config(stage),
        mesh=mesh,
        directory=folder,
        on_step=on_step,
    )
    return lora_lib.merge(lora, state.params, frozen) if lora else state.params


def training_model(project: Project, stage: ConfigDict) -> llama.LlamaConfig:
    """The base's shape, with S2-Attn if the stage asks for it."""
    return dataclasses.replace(project.base.model, sparse_group=stage.sparse_group)


def optimizer_config(stage: ConfigDict) -> OptimizerConfig:
    """AdamW of a stage."""
    return OptimizerConfig(
        learning_rate=stage.learning_rate,
        total_steps=stage.steps,
        warmup_steps=stage.warmup_steps,
        initial_ratio=stage.initial_ratio,
        final_ratio=stage.final_ratio,
        weight_decay=stage.weight_decay,
        eps=stage.eps,
    )


def _loop_config(stage: ConfigDict) -> loop.LoopConfig:
    return loop.LoopConfig(
        steps=stage.steps,
        accumulation=stage.accumulation,
        log_every=stage.log_every,
        checkpoint_every=stage.checkpoint_every,
    )


def check(project: Project, stage: ConfigDict) -> None:
    """Everything a stage will ask for, before anything runs.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    optimizer_config(stage), _loop_config(stage)
    parts = project.mesh.shape["data"] * project.mesh.shape["fsdp"]
    if stage.batch % (stage.accumulation * parts):
        raise ValueError(
            f"a batch of {stage.batch} does not divide over {parts} devices and "
            f"{stage.accumulation} microbatches: change it or --config.mesh"
        )
    group = stage.sparse_group
    if group and (group % 2 or stage.length % group):
        raise ValueError(f"sparse_group must be even and divide {stage.length}, got {group}")
    longest = max(stage.length, project.length)
    method = project.method(stage.method)
    rotary.make(method, head_dim=project.base.model.head_dim, seq_len=longest)
    training_model(project, stage)


def flops(project: Project, stage: ConfigDict) -> float:
    """Of one token of the stage: full attention costs what its length says, S2-Attn its group."""
    return train_flops_per_token(project.base.model, stage.sparse_group or stage.length)


def scoring_flops(project: Project) -> float:
    """Of one scored token."""
    return train_flops_per_token(project.base.model, project.length) / 3
