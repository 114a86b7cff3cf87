"""A trained model at lengths beyond its training, under every method, with no training.

    python -m experiments.zero_shot_extension \
        --config=configs/zero_shot_extension.py:quick --workdir=DIR

Loss by position beyond the trained length, pass keys and FIRST-SENTENCE-RETRIEVAL by length, of
SmolLM2-135M (8,192 tokens, base 1e5) or of another checkpoint:

    python -m experiments.zero_shot_extension --workdir=DIR --config.model=CHECKPOINT \
        --config.trained_length=8192 --config.bos= --config.documents='("DIR:a.txt",)'

Presets: quick (one play to 12,288 tokens, three methods; at most ten minutes on 2 CPU cores), full
(four documents; six methods to 32,768 tokens, all others to 16,384, retrieval to 16,384; at most
eight hours, 1.2 GB of memory for the model and a window), tiny (a random model, seconds).

Expected with preset quick, nats per token on Hamlet, one document and so no interval:

    method             0 to 8,192   8,192 to 12,288   minus rope
    yarn:factor=1.5       3.430          3.355          -0.247
    rope                  3.411          3.602
    pi:factor=1.5         4.135          4.081           0.479

Retrieval is scored with the right answer given, in one forward: its loss, the share of its tokens
that are the most likely ones, and exact answers (all of them are), with their number of samples and
Clopper and Pearson's interval. Nothing is generated, so there is no ROUGE-L: a free answer costs a
second forward of the whole length, twice the time of every sample.

The pass key is found at 4,096 tokens, and by none of the three in one sample of 12,288.

Killed at any moment and started again, it goes on with the cell that it was at; the report is
written again every ten minutes, from the cells there are. --config.measure=False writes it and
measures nothing. Done again it only redraws.
"""

import time
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli
from experiments.progress import StudyProgress
from experiments.zero_shot import page
from experiments.zero_shot.measure import Study
from experiments.zero_shot.plan import Cell

REPORT_EVERY = 600.0  # seconds of measuring


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Measures the cells that are missing, writes the report into `workdir`, returns its numbers.

    Raises:
        ValueError: a bad config, before anything is measured; nothing to show.
    """
    study = Study(config, workdir)
    left = [cell for cell in study.plan.work() if not study.path(cell).is_file()]
    if not config.measure and len(left) == len(study.plan.work()):
        raise ValueError(f"{workdir} has no cell to show: leave out --config.measure=False")
    if left and config.measure:
        check(study, left)
        print(forecast(study, left), flush=True)
        with StudyProgress(sum(map(study.plan.flops, left))) as progress:
            written = time.monotonic()
            for cell in left:
                execute(study, cell, progress)
                if time.monotonic() - written > REPORT_EVERY:
                    page.write(study, command)
                    written = time.monotonic()
    result = page.write(study, command)
    page.show(study)
    return result


def check(study: Study, left: list[Cell]) -> None:
    """Makes the inputs of every cell, so that a text too short stops the study at once."""
    for cell in left:
        _ = study.window(cell) if cell.task == "loss" else study.samples(cell)


def execute(study: Study, cell: Cell, progress: StudyProgress) -> None:
    """Measures one cell and counts its work."""
    progress.describe(f"{cell.task}, {cell.method}, {cell.length:,} tokens")
    study.measure(cell)
    progress.advance(study.plan.flops(cell), cell.tokens)


def forecast(study: Study, left: list[Cell]) -> str:
    """How much is to do, and how long at the speed of the cells that are done, if any."""
    flops = sum(map(study.plan.flops, left))
    text = f"{len(left)} cells to measure, {flops / 1e12:,.3g} TFLOP"
    done = [(cell, arrays) for cell in study.plan.work() if (arrays := study.read(cell))]
    if not done:
        return f"{text}; the time left is known after the first"
    seconds = sum(float(arrays["seconds"]) for _, arrays in done)
    speed = sum(study.plan.flops(cell) for cell, _ in done) / seconds
    return f"{text}: {flops / speed / 60:,.0f} minutes at {speed / 1e9:,.0f} GFLOP/s, as before"


if __name__ == "__main__":
    cli.run(main, "zero_shot_extension")
