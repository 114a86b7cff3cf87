"""Continual pretraining to a longer context (Llama 2 Long 2309.16039 section 2.1).

    python -m experiments.continual_pretraining \
        --config=configs/continual_pretraining.py:smollm2_cpu --workdir=DIR

From another checkpoint, on another text:

    python -m experiments.continual_pretraining --config=configs/continual_pretraining.py:pi_1000 \
        --config.model=CHECKPOINT --config.corpus=DIR_OF_TEXT --workdir=DIR

The loss at the target length is measured on documents that are never trained on: before, with the
checkpoint's own method and with the new one (zero-shot), and after each stage; the report gives the
gain over zero-shot with a paired interval. The result is exported to DIR/export.

Presets: smollm2_cpu (at most two hours on 2 cores), the published recipes llama2_long_7b, _13b,
_34b, _70b, pi_1000, yarn_400_200, longlora_1000, giraffe_4k_16k, together_7b_32k, and tiny.

Killed at any moment and started again, it goes on where it was; done again it only redraws.
"""

import shutil
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli
from experiments.continual import page, train
from experiments.continual.project import Project
from experiments.progress import StudyProgress
from longrope_jax import sharding, weights
from longrope_jax.data.tokenizers import ByteTokenizer
from longrope_jax.training import lora
from longrope_jax.training.checkpoints import latest_step


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Runs what is not done yet, writes the report into `workdir` and returns its numbers.

    Raises:
        ValueError: a bad config, before anything is trained.
    """
    workdir = Path(workdir)
    if config.multihost:
        sharding.start_multihost()
    lora.trainable(config.trainable, rank=config.rank, alpha=config.alpha)
    project = Project(config, workdir)
    page.check_blocks(project)
    project.check_settings()
    if not all(map(project.is_scored, measurements(config))) or _unexported(project):
        check(project)
        project.keep_settings()
        with StudyProgress(_work(project)) as progress:
            execute(project, progress)
    if not project.writes:
        return {}
    return page.write(project, list(measurements(config)), command)


def check(project: Project) -> None:
    """Everything that would stop the run later.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    config = project.config
    for stage in config.stages.values():
        train.check(project, stage)
        project.training_windows(stage.length, stage.shortest_passage)
    for text in measurements(config).values():
        project.method(text).frequencies(
            head_dim=project.base.model.head_dim, seq_len=project.length
        )
    if config.export:
        weights.check_save(*_exported(project), format=config.export)
    project.held_out  # noqa: B018  (a text too short is refused)


def last_stage(config: ConfigDict) -> ConfigDict:
    """The stage whose result is the run's; stages run in the order of their names."""
    return list(config.stages.values())[-1]


def measurements(config: ConfigDict) -> dict[str, str]:
    """Text of the method of each measurement: unchanged, zero-shot, after each stage."""
    before = {"unchanged": ""} if config.evaluation.unchanged else {}
    after = {f"after-{name}": _measured_with(stage) for name, stage in config.stages.items()}
    return before | {"zero-shot": _measured_with(last_stage(config))} | after


def _measured_with(stage: ConfigDict) -> str:
    return stage.measured_with or stage.method


def execute(project: Project, progress: StudyProgress) -> None:
    """Measures the base, then trains and measures each stage, then exports."""
    config = project.config
    page.save_base(project)

    def score(name, params):
        progress.describe(f"loss at {project.length:,} tokens, {name}")
        project.score(name, params, project.method(measurements(config)[name]), count)

    def count(tokens):
        progress.advance(tokens * train.scoring_flops(project), tokens)

    params = project.base.params
    for name in measurements(config):
        if not name.startswith("after-"):
            score(name, params)
    settings = lora.trainable(config.trainable, rank=config.rank, alpha=config.alpha)
    for number, (name, stage) in enumerate(config.stages.items()):
        progress.describe(f"{config.trainable}, stage {name}")
        flops = train.flops(project, stage)
        params = train.run(
            project,
            stage,
            params,
            project.workdir / "runs" / name,
            lora=settings,
            seed=config.seed + number,
            on_step=lambda _, tokens, flops=flops: progress.advance(tokens * flops, tokens),
        )
        score(f"after-{name}", params)
    _export(project, params)


def _export_path(project: Project) -> Path:
    """A folder for "hf", a file for "gguf"."""
    return project.workdir / ("export.gguf" if project.config.export == "gguf" else "export")


def _unexported(project: Project) -> bool:
    """Whether a finished run still has to be exported; one that is only redrawn has not."""
    trained = project.workdir / "runs" / list(project.config.stages)[-1] / "checkpoints"
    wanted = project.config.export and trained.is_dir()
    return bool(wanted) and not _export_path(project).exists()


def _exported(project: Project) -> tuple:
    """Shape, method and tokenizer to write; bytes need none."""
    base = project.base
    tokenizer = None if isinstance(base.tokenizer, ByteTokenizer) else base.tokenizer
    return base.model, project.method(_measured_with(last_stage(project.config))), tokenizer


def _export(project: Project, params) -> None:
    """Writes the model in the config's format, whole or not at all."""
    if not _unexported(project):
        return
    (model, *rest), path = _exported(project), _export_path(project)
    partial = path.with_name(f"partial-{path.name}")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    weights.save(
        partial,
        model,
        params,
        *rest,
        format=project.config.export,
        context_length=max(project.length, project.config.trained_length),
        special_tokens=project.base.special_tokens,
    )
    partial.rename(path)


def _work(project: Project) -> float:
    """FLOPs of what is left to do."""
    config = project.config
    tokens = project.held_out[0].size
    names = [n for n in measurements(config) if not project.is_scored(n)]
    total = len(names) * tokens * train.scoring_flops(project)
    for name, stage in config.stages.items():
        done = latest_step(project.workdir / "runs" / name / "checkpoints") or 0
        left = (stage.steps - done) * stage.batch * stage.length
        total += left * train.flops(project, stage)
    return max(total, 1.0)


if __name__ == "__main__":
    cli.run(main, "continual_pretraining")
