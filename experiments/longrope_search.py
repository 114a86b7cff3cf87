"""Searched and learned factors against PI, NTK-aware and YaRN, with no training of the weights.

    python -m experiments.longrope_search --config=configs/longrope_search.py:cpu --workdir=DIR

A Llama is pretrained at a short length L (or read: --config.study.init_checkpoint=DIR). Then, at
2 L and 4 L, five ways to find one factor per rotary pair get the same budget of forward passes
over sequences of held-out documents:

    LongRoPE (2402.13753)   evolution, loss of text; factors and start tokens
    LongRoPE2 (2502.20082)  evolution, loss of the answers to needles; critical pair and factors
    gradient                Adam on log lambda through the phases, loss of text
    gradient, monotone      the same, projected onto LongRoPE's monotone factors
    gradient, needle        as gradient, loss of the answers to needles

and every winner, chosen by its fitness, is compared on other documents with the published methods.
Presets: cpu (10 minutes on 2 idle cores), tiny. The monotone gradient was added after results
of a first run had been seen; the learning rate was not tuned. That first run, on another pretrained
model, agrees on what beats PI, NTK and YaRN, but not on all of gradient against evolution: there
LongRoPE was below YaRN at 2x too, and the gradient not behind LongRoPE2 on needles.

Expected with preset cpu, loss on 10 test plays in nats (its difference to YaRN is in the report):

    row                   text 2x   text 4x   needle 2x   needle 4x
    RoPE                  2.278     3.109     4.17        5.57
    PI                    2.835     3.501     2.77        4.54
    NTK                   1.872     2.095     1.57        3.90
    YaRN                  1.856     1.917     0.53        0.87
    LongRoPE              1.852     1.890     0.53        0.88
    LongRoPE2             1.863     1.925     0.08        0.13
    gradient              1.844     1.876     1.08        1.16
    gradient, monotone    1.841     1.885     0.14        0.41
    gradient, needle      1.912     1.921     0.15        0.10

Killed at any moment and started again, it goes on where it was and ends with the same numbers; the
same command on a folder that holds `searches/` and `scores/` redraws the report without a model.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, report
from experiments.ablation import plan as ablation
from experiments.progress import StudyProgress
from experiments.search import execute, measure, page, plan
from experiments.search.execute import Workbench
from longrope_jax.search.evolution import save_arrays
from longrope_jax.training.checkpoints import latest_step


def main(config: ConfigDict, workdir: Path, command: str = "") -> list[report.Section]:
    """Runs what is not done yet, writes tables and figures into `workdir`, returns the report.

    Raises:
        ValueError: a bad config, before anything is trained.
    """
    workdir = Path(workdir)
    bench = Workbench(config, workdir)
    scores = workdir / "scores" / f"test-{plan.fingerprint(config, *page.TEST_FIELDS)}.npz"
    if not scores.is_file() or _pending(bench):
        bench.check()
        with StudyProgress(_work(bench)) as progress:
            params = bench.params(progress)
            for search in plan.searches(config):
                execute.execute(bench, search, params, progress)
            save_arrays(scores, measure.measure(bench, params, progress))
    with np.load(scores) as file:
        arrays = dict(file)
    return page.write_all(config, workdir, arrays, command)


def _pending(bench: Workbench) -> bool:
    return not all(bench.path(search).is_file() for search in plan.searches(bench.config))


def _work(bench: Workbench) -> float:
    """FLOPs of what is left to do."""
    config, total = bench.config, 0.0
    study = config.study
    if not study.init_checkpoint:
        folder = bench.workdir / "runs" / plan.model_slug(config) / "checkpoints"
        left = 1 - (latest_step(folder) or 0) / study.pretraining.steps
        cost = ablation.costs(study, bench.study.model).pretraining
        total += left * cost * ablation.phase_tokens(study, "pretraining")
    for search in plan.searches(config):
        path, settings = bench.path(search), plan.forwards(config)
        if path.is_file():
            each = 1 if search.method in plan.EVOLUTIONS else plan.FORWARDS_PER_GRADIENT
            settings -= each * len(measure.history(path).fitness)
        T = bench.target(search.factor).seq_len
        total += max(settings, 0) * config.windows * T * bench.flops(T)
    return total + sum(_test_work(bench, factor) for factor in config.factors)


def _test_work(bench: Workbench, factor: float) -> float:
    return measure.tokens_scored(bench, factor) * bench.flops(bench.target(factor).seq_len)


if __name__ == "__main__":
    cli.run(main, "longrope_search")
