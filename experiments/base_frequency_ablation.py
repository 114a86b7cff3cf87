"""The base-frequency study of Llama 2 Long (2309.16039): Table 5, Figures 5a and 5b, in miniature.

    python -m experiments.base_frequency_ablation \
        --config=configs/base_frequency_ablation.py:cpu --workdir=DIR

One Llama is pretrained at a short length with a small base; from that checkpoint it is continued at
8 times the length under each method, with the same data order and budget. Presets: cpu (what
`make reproduce` runs), laptop (at most two hours on 2 cores), tpu_7b (the paper's settings), tiny.

Killed at any moment and started again, it goes on where it was; what is done is not done again, so
the same command on a folder that holds `scores/` redraws every figure without training.

In the paper, perplexity on Books at 32,768 tokens: RoPE 6.548, PI 6.341, ABF 6.323, xPos ABF 6.331.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli, report
from experiments.ablation import compare, evaluate, page, plan, train
from experiments.ablation.study import Study
from experiments.progress import StudyProgress
from longrope_jax import sharding
from longrope_jax.data.packing import answer_share
from longrope_jax.training.checkpoints import latest_step


def main(config: ConfigDict, workdir: Path, command: str = "") -> list[report.Section]:
    """Runs what is not done yet, writes tables and figures into `workdir`, returns the report.

    Raises:
        ValueError: a bad config, before anything is trained.
    """
    workdir = Path(workdir)
    if config.multihost:
        sharding.start_multihost()
    planned = plan.runs(config)
    for text in (text for h in config.hypotheses.values() for text in h.checks):
        compare.check(compare.Scores(config, {}, {}), text)
    study = Study(config, workdir)
    pending = [run for run in planned if not study.is_done(run.slug)]
    if pending:
        study.check()
        for run in pending:
            train.check(study, run)
        with StudyProgress(_work(study, pending)) as progress:
            for run in pending:
                execute(study, run, progress)
    scores = compare.load(config, workdir)
    if not study.writes:
        return []
    return page.write_all(scores, workdir, command, _taught(study, pending))


def execute(study: Study, run: plan.Run, progress: StudyProgress) -> None:
    """One row and seed: pretrain if need be, continue, measure before and after, save."""
    params = train.pretrained(study, run, progress)
    if not study.is_done(run.pretrained):
        pretrained = evaluate.measure_pretrained(study, params, progress)
        if study.writes:
            evaluate.save_arrays(study.scores_path(run.pretrained), pretrained)
    untrained = evaluate.measure_untrained(study, run, params, progress)
    hooks = evaluate.curve_hooks(study, run, progress)
    params = train.continued(study, run, params, progress, hooks)
    arrays = untrained | evaluate.measure(study, run, params, progress)
    if study.writes:
        evaluate.save_arrays(study.scores_path(run.slug), arrays)


def _work(study: Study, pending: list[plan.Run]) -> float:
    """FLOPs of what is left to do."""
    config = study.config
    cost = plan.costs(config, study.model)
    scored = plan.evaluation_tokens(config, len(study.held_out))
    total = len(pending) * scored * cost.evaluation
    phases = [(run.slug, "continuation", cost.continuation) for run in pending]
    if not config.init_checkpoint:
        slugs = sorted({run.pretrained for run in pending})
        phases += [(slug, "pretraining", cost.pretraining) for slug in slugs]
    for slug, phase, flops in phases:
        done = latest_step(study.workdir / "runs" / slug / "checkpoints") or 0
        left = 1 - done / max(config[phase].steps, 1)
        total += plan.phase_tokens(config, phase) * left * flops
    return total


def _taught(study: Study, pending: list[plan.Run]) -> dict | None:
    """Measured share of taught answers; kept in a file, so that redrawing needs no corpus."""
    first = plan.runs(study.config)[0]
    path = study.workdir / "scores" / f"taught-{first.slug.rpartition('-')[2]}.json"
    if pending:
        shares = {
            phase: answer_share(study.training_windows(phase, taught=True))
            for phase in ("pretraining", "continuation")
        }
        report.save_json(path, shares)
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    cli.run(main, "base_frequency_ablation")
