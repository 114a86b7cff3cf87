"""LongLoRA (2309.12307) in miniature: which parameters train, under full attention and S2-Attn.

    python -m experiments.longlora --config=configs/longlora.py:smollm2 --workdir=DIR

Its Table 1 compares full attention with S2-Attn in training, its Table 2 full fine-tuning with
LoRA, LoRA and norms, LoRA and embeddings, and both (LoRA+). Every row here trains from the same
checkpoint under the same method on the same windows in the same order, and is measured with full
attention on documents that are never trained on. In the paper, PG19 perplexity of Llama 2 7B at
32,768 tokens: full fine-tuning 8.08, LoRA 11.44, with norms 10.49, with embeddings 8.29, both 8.12.

Expected with preset smollm2 (one seed, one learning rate for all rows), nats per token above full
fine-tuning with full attention on 8 plays: full attention: LoRA 0.578, with norms 0.499, with
embeddings 0.483, both 0.426; S2-Attn: full 0.196, LoRA 0.751, with norms 0.663, with embeddings
0.644, both 0.569. After 20 steps all rows are in the paper's order, and none is as close as after
its 1,000. All windows lie within the trained length: what is measured is how far training repairs
what the method breaks, not reach.

Presets: smollm2 (36 minutes and 5 GB of disk on 2 CPU cores), tiny.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax.training import lora

FULL = "full, full attention"
BEFORE = ("unchanged", "zero-shot")
ATTENTIONS = {"full": "full attention", "sparse": "S2-Attn"}


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure: the checkpoint before training, and every row and seed."""
    return list(_cells(*lab.filled(config, folder)))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = lab.filled(config, folder)
    cells, sizes = list(_cells(config, facts)), config.evaluation
    types = {name: config[name] for name in ("dtype", "param_dtype")}
    models = lab.Models(config.model, folder, machine, types)
    text = None
    if machine.measure and (left := lab.missing(folder, cells)):
        _check(config, facts, left, machine)
        windows = {"length": config.stage.length, "windows": sizes.windows_per_document}
        text = lab.text(config, lab.opened(config.model).tokenizer, **windows)
        lab.check_held_out(folder, left, text)

    def loss(cell: lab.Cell):
        _, _, (length, count, blocks), method = cell.what
        tokens, documents = text.windows(length, count)
        found = lab.losses(models.start(cell), method, tokens, machine, block=length // blocks)
        return {"blocks": found, "documents": documents}

    functions = {"train": lambda cell: models.train(cell, text), "loss": loss}
    lab.complete(folder, cells, functions, machine)
    return publish(config, facts, folder, cells, command)


def _cells(config: ConfigDict, facts: lab.Facts) -> Iterator[lab.Cell]:
    sizes, stage = config.evaluation, config.stage
    start = (config.model, config.dtype, config.param_dtype)
    text = (config.corpus, config.held_out, config.bos, config.sentence_tokens)
    windows = (stage.length, sizes.windows_per_document, sizes.blocks)
    method = lab.method(stage.method, facts, config.trained_length, "stage.method")
    for row, used in zip(BEFORE, (facts.method, method), strict=True):
        yield lab.Cell("loss", row, what=(start, text, windows, used))
    for seed, kind, subset in itertools.product(
        range(config.seeds), config.attentions, config.subsets
    ):
        group = stage.sparse_group if kind == "sparse" else 0
        row = f"{subset}, {ATTENTIONS.get(kind, kind)}"
        changed = {"method": method, "sparse_group": group, "trainable": subset, "seed": seed}
        recipe = lab.Recipe(**dict(stage) | changed, rank=config.rank, alpha=config.alpha)
        trained = lab.Cell("train", row, seed, (start, recipe, text))
        yield lab.Cell("loss", row, seed, (start, text, windows, method), after=(trained,))


def _check(config: ConfigDict, facts: lab.Facts, left: list[lab.Cell], machine) -> None:
    """Refuses what would be refused later, before a checkpoint is loaded or anything is trained."""
    subsets, attentions, length = config.subsets, config.attentions, config.stage.length
    if "full" not in subsets or "full" not in attentions:
        raise ValueError(
            f"rows are compared with full fine-tuning under full attention: --config.subsets="
            f"{subsets} and --config.attentions={attentions} must hold 'full'"
        )
    for subset in subsets:
        with lab.naming("subsets"):
            lora.trainable(subset, rank=config.rank, alpha=config.alpha)
    if set(attentions) - set(ATTENTIONS):
        raise ValueError(f"--config.attentions={attentions}: known are {tuple(ATTENTIONS)}")
    if config.evaluation.blocks < 1 or length % config.evaluation.blocks:
        raise ValueError(
            f"--config.evaluation.blocks={config.evaluation.blocks} must divide {length} tokens"
        )
    rows = [f"{subset}, {name}" for subset in lora.TRAINABLE for name in ATTENTIONS.values()]
    lab.check_hypotheses(config.hypotheses, ("loss",), (*BEFORE, *rows))
    for cell in left:
        if cell.kind == "train":
            with lab.naming("stage"):
                lab.check_recipe(cell.what[1], facts.config, machine)


def publish(config, facts: lab.Facts, folder: Path, cells, command: str) -> lab.Report:
    """Writes the table, the figure and the claims that the finished cells allow."""
    found = lab.scores(folder, cells, "blocks").repeated(BEFORE).map(lambda b: b.mean(-1))
    hypotheses = lab.judged(config.hypotheses, {"loss": found})
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(hypotheses), "Hypotheses")
    title = f"LongLoRA in miniature, {config.stage.length:,} tokens"
    table = _table(found, folder, cells, title)
    figure = lab.Figure("longlora", draw(found), "Loss above full fine-tuning.")
    return lab.publish(
        folder,
        command,
        config,
        title=title,
        claims=[_claim(hypothesis) for hypothesis in hypotheses],
        sections=[
            lab.Section("Result", [figure, table]),
            lab.Section("What was claimed", [verdicts]),
            lab.Section("Setting", [_setting(config, facts)]),
        ],
        results={"loss": {row: found.interval(row) for row in found.rows}},
        cells=cells,
    )


def _claim(hypothesis: lab.Hypothesis) -> str:
    """The verdict on a hypothesis, with the differences that it stands on."""
    shown = [lab.show(check.difference, 4) for check in hypothesis.checks if check.difference]
    numbers = f", {', '.join(shown)} nats per token" if shown else ""
    return f"{hypothesis.claim}: {hypothesis.verdict}{numbers}."


def _table(found: lab.Scores, folder: Path, cells, title: str) -> lab.Table:
    """Loss of every row, its distance from full fine-tuning, and what its training took."""
    runs = {cell.row: lab.read(folder, *cell.after) for cell in reversed(cells) if cell.after}
    above, lines = lab.against(found, FULL), []
    for row in found.rows:
        run, loss = runs.get(row), found.mean(row)
        taken = (int(run["trainable"]), lab.speed(run)) if run else (None, None)
        shown = (
            lab.show(found.interval(row) or loss, 4),
            np.exp(loss),
            lab.show(above.get(row), 4),
        )
        lines.append([row, *shown, *taken])
    header = ["row", "loss", "perplexity", "worse than full by", "trainable", "tokens/s"]
    formats = {"perplexity": "{:.4f}", "trainable": "{:,}", "tokens/s": "{:,.0f}"}
    return lab.Table(header, lines, title, "longlora", {k: f.format for k, f in formats.items()})


@lab.style()
def draw(found: lab.Scores):
    """Difference of every trained row to full fine-tuning with full attention."""
    above = {row: d for row, d in lab.against(found, FULL).items() if row not in BEFORE and d}
    fig, ax = lab.subplots(size=(8, 1.2 + 0.4 * len(above)))
    for at, d in enumerate(above.values()):
        error = [[d.estimate - d.low], [d.high - d.estimate]]
        ax.errorbar(d.estimate, at, xerr=error, fmt="o", color="black", capsize=3)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(above)), list(above))
    ax.invert_yaxis()
    ax.set_xlabel(f"loss above {FULL}, nats per token")
    return fig


def _setting(config: ConfigDict, facts: lab.Facts) -> lab.Paragraphs:
    stage = config.stage
    text = (
        f"Base: {config.model}, {facts.method}. {' '.join(facts.notes)}\n\nEach row: {stage.steps} "
        f"steps of {stage.batch} windows of {stage.length:,} tokens under {stage.method} at a "
        f"learning rate of {stage.learning_rate:g}, the same for all rows; {config.seeds} seed(s). "
        "Loss in nats per token with full attention; intervals: 95%, documents and seeds resampled "
        "whole; with one seed they say nothing of other seeds."
    )
    if facts.config.tie_embeddings:
        text += (
            "\n\nThis model's output head is tied to its embedding, so rows that train the "
            "embedding train the head as well; the paper's models have a head of their own, which "
            "does not train."
        )
    return lab.Paragraphs(text)


if __name__ == "__main__":
    lab.run(main, "experiments.longlora")
