"""LongLoRA (2309.12307) in miniature: which parameters train, under full attention and S2-Attn.

    python -m experiments.longlora --config=configs/longlora.py:smollm2 --workdir=DIR

Its Table 1 compares full attention with S2-Attn in training, its Table 2 full fine-tuning with
LoRA, LoRA and norms, LoRA and embeddings, and both (LoRA+). Every row here trains from the same
checkpoint under the same method on the same windows in the same order, and is measured with full
attention on documents that are never trained on. In the paper, PG19 perplexity of Llama 2 7B at
32,768 tokens: full fine-tuning 8.08, LoRA 11.44, with norms 10.49, with embeddings 8.29, both 8.12.

Expected with preset smollm2, nats per token above full fine-tuning with full attention on 8 plays:
full attention: LoRA 0.578, with norms 0.499, with embeddings 0.483, both 0.426; S2-Attn: full
0.196, LoRA 0.751, with norms 0.663, with embeddings 0.644, both 0.569. After 20 steps all rows are
in the paper's order, and none is as close as after its 1,000.

Presets: smollm2 (36 minutes and 5 GB of disk on 2 CPU cores), tiny. Killed at any moment and
started again, it goes on where it was; done again it only redraws.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import cli, report
from experiments.continual import page, train
from experiments.continual.project import Project
from experiments.progress import StudyProgress
from longrope_jax import sharding
from longrope_jax.evaluation.statistics import paired_difference, two_way_bootstrap, verdict
from longrope_jax.training import lora, metrics, step

FULL = "full, full attention"
_BEFORE = ("unchanged", "zero-shot")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train: a subset of `lora.TRAINABLE`, and the group of S2-Attn or 0."""

    trainable: str
    group: int

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.trainable}, {'S2-Attn' if self.group else 'full attention'}"

    def run(self, seed: int) -> str:
        """Name of one run's folder and scores."""
        return f"{re.sub('[^a-z0-9]+', '-', self.name.lower())}-seed{seed}"


def rows(config: ConfigDict) -> list[Row]:
    """Every subset under every kind of attention."""
    groups = [config.group if kind == "sparse" else 0 for kind in config.attentions]
    return [Row(trainable, group) for group in groups for trainable in config.subsets]


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Runs what is not done yet, writes the report into `workdir` and returns its numbers.

    Raises:
        ValueError: a bad config, before anything is trained.
    """
    workdir = Path(workdir)
    if config.multihost:
        sharding.start_multihost()
    project = Project(config, workdir)
    check(project)
    project.check_settings()
    runs = [(row, seed) for seed in range(config.seeds) for row in rows(config)]
    pending = [(row, seed) for row, seed in runs if not project.is_scored(row.run(seed))]
    if pending or not all(map(project.is_scored, _BEFORE)):
        _check_runs(project, pending)
        project.keep_settings()
        with StudyProgress(_work(project, pending)) as progress:
            execute(project, pending, progress)
    if not project.writes:
        return {}
    return write(project, command)


def check(project: Project) -> None:
    """Raises ValueError for rows that do not exist or cannot be compared."""
    config = project.config
    page.check_blocks(project)
    for name in config.subsets:
        lora.trainable(name, rank=config.rank, alpha=config.alpha)
    if "full" not in config.subsets or config.attentions[0] != "full" or config.seeds < 1:
        raise ValueError(
            "rows are compared with full fine-tuning under full attention: subsets must hold "
            "'full', attentions begin with 'full', and seeds be at least 1"
        )


def _check_runs(project: Project, pending: list) -> None:
    for row, _ in pending:
        train.check(project, _stage(project, row))
    project.held_out  # noqa: B018  (a text too short is refused)


def _stage(project: Project, row: Row) -> ConfigDict:
    stage = next(iter(project.config.stages.values())).copy_and_resolve_references()
    stage.sparse_group = row.group
    return stage


def execute(project: Project, pending: list, progress: StudyProgress) -> None:
    """Measures the base before, then trains and measures each row."""
    config = project.config
    save_facts(project)
    method = project.method(next(iter(config.stages.values())).method)

    def count(tokens):
        progress.advance(tokens * train.scoring_flops(project), tokens)

    for name, used in zip(_BEFORE, (project.base.method, method), strict=True):
        progress.describe(f"loss, {name}")
        project.score(name, project.base.params, used, count)
    for row, seed in pending:
        progress.describe(f"{row.name}, seed {seed}")
        stage = _stage(project, row)
        settings = lora.trainable(row.trainable, rank=config.rank, alpha=config.alpha)
        flops = train.flops(project, stage)
        params = project.base.params
        params = train.run(
            project,
            stage,
            # Every row starts from the same parameters; full fine-tuning donates what it is given.
            params if settings else jax.tree.map(jnp.copy, params),
            project.workdir / "runs" / row.run(seed),
            lora=settings,
            seed=config.seed + seed,
            on_step=lambda _, tokens, flops=flops: progress.advance(tokens * flops, tokens),
        )
        project.score(row.run(seed), params, method, count)


def _work(project: Project, pending: list) -> float:
    """FLOPs of what is left to do, as if nothing of a run were done yet."""
    scored = (len(pending) + len(_BEFORE)) * project.held_out[0].size
    total = scored * train.scoring_flops(project)
    for row, _ in pending:
        stage = _stage(project, row)
        total += stage.steps * stage.batch * stage.length * train.flops(project, stage)
    return total


def save_facts(project: Project) -> None:
    """Keeps what was recognised in the base and how many numbers each subset trains."""
    config, base = project.config, project.base
    optimizer = train.optimizer_config(next(iter(config.stages.values())))
    trained = {}
    for name in config.subsets:
        settings = lora.trainable(name, rank=config.rank, alpha=config.alpha)
        state = step.abstract_state(base.model, optimizer, project.mesh, settings)
        trained[name] = lora.count(state.params)
    facts = {
        "model": base.model,
        "method": repr(base.method),
        "notes": base.notes,
        "trainable": trained,
        "versions": report.versions(),
    }
    if project.writes:
        report.save_json(project.workdir / "base.json", facts)


def losses(project: Project, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(loss [seeds, n] over all positions, document names [n])."""
    found = [project.scores(row.run(seed)) for seed in range(project.config.seeds)]
    return np.stack([blocks.mean(1) for blocks, _ in found]), found[0][1]


def results(project: Project, facts: dict) -> list[dict]:
    """One record per row: loss with its interval, and the difference to full fine-tuning."""
    plain = next(r for r in rows(project.config) if r.name == FULL)
    reference, documents = losses(project, plain)
    records = []
    for name in _BEFORE:
        loss = project.scores(name)[0].mean(1)[None]
        records.append({"row": name, "loss": two_way_bootstrap(loss, documents)})
        if project.config.seeds == 1:
            records[-1]["difference"] = paired_difference(loss, reference, documents)
    for row in rows(project.config):
        loss = losses(project, row)[0]
        record = {"row": row.name, "loss": two_way_bootstrap(loss, documents)}
        if row.name != FULL:
            record["difference"] = paired_difference(loss, reference, documents)
        record["trainable"] = facts["trainable"][row.trainable]
        records.append(record | {"tokens_per_second": _speed(project, row)})
    return records


def _speed(project: Project, row: Row) -> float:
    """Median over the logged steps of the first seed, the first (compilation) left out."""
    logged = metrics.read(project.workdir / "runs" / row.run(0))
    speeds = [m["tokens_per_second"] for m in logged]
    return float(np.median(speeds[1:] or speeds))


def findings(project: Project) -> list[str]:
    """What the intervals say of the paper's claims, in words."""
    named = {row.name: row for row in rows(project.config)}
    pairs = [
        ("lora, full attention", FULL, "LoRA alone is worse than full fine-tuning"),
        ("lora_plus, full attention", "lora, full attention", "LoRA+ is better than LoRA alone"),
        ("full, S2-Attn", FULL, "S2-Attn is worse than full attention in training"),
        ("lora_plus, S2-Attn", FULL, "LongLoRA is worse than full fine-tuning"),
    ]
    lines = []
    for a, b, text in pairs:
        if not {a, b} <= set(named):
            continue
        (x, documents), (y, _) = losses(project, named[a]), losses(project, named[b])
        x, y = (y, x) if "better" in text else (x, y)
        interval = paired_difference(x, y, documents)
        word = verdict(interval, "difference > margin")
        lines.append(f"{text}: {word}, {page.shown(interval)} nats per token.")
    return lines


def write(project: Project, command: str) -> dict:
    """Writes results.json, longlora.csv, a figure and report.html; returns the results."""
    workdir = project.workdir
    facts = json.loads((workdir / "base.json").read_text())
    records, claims = results(project, facts), findings(project)
    result = {
        "command": command,
        "config": project.config,
        "base": facts,
        "rows": records,
        "findings": claims,
    }
    report.save_json(workdir / "results.json", result)
    header, lines = _table(records)
    report.save_csv(workdir / "longlora.csv", header, lines)
    draw(project, records, workdir / "longlora.png")
    title = f"LongLoRA in miniature, {project.length:,} tokens"
    sections = _sections(project, facts, claims, header, lines)
    report.write_html(workdir / "report.html", title, command, sections, facts["versions"])
    report.print_table(title, header, lines)
    print(*claims, sep="\n")
    return result


def _table(records: list[dict]) -> tuple[list[str], list[list]]:
    lines = []
    for r in records:
        speed = f"{r['tokens_per_second']:,.0f}" if "tokens_per_second" in r else None
        trained = f"{r['trainable']:,}" if "trainable" in r else None
        difference = page.shown(r["difference"]) if "difference" in r else None
        perplexity = f"{np.exp(r['loss'].estimate):.4f}"
        lines.append([r["row"], page.shown(r["loss"]), perplexity, difference, trained, speed])
    header = ["row", "loss", "perplexity", "worse than full by", "trainable", "tokens/s"]
    return header, lines


@report.style()
def draw(project: Project, records: list[dict], path: Path) -> None:
    """Difference of every row to full fine-tuning with full attention, with its interval."""
    shown = [r for r in records if "difference" in r and r["row"] not in _BEFORE]
    fig, ax = report.subplots(size=(8, 1.2 + 0.4 * len(shown)))
    for at, record in enumerate(shown):
        found = record["difference"]
        error = [[found.estimate - found.low], [found.high - found.estimate]]
        ax.errorbar(found.estimate, at, xerr=error, fmt="o", color="black", capsize=3)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(shown)), [r["row"] for r in shown])
    ax.invert_yaxis()
    ax.set_xlabel(f"loss above {FULL}, nats per token")
    report.save_figure(fig, path)


def _sections(project: Project, facts: dict, claims, header, lines) -> list[report.Section]:
    config = project.config
    stage = next(iter(config.stages.values()))
    text = (
        f"Base: {config.model}, {facts['method']}. {' '.join(facts['notes'])}\n\nEach row: "
        f"{stage.steps} steps of {stage.batch} windows of {stage.length:,} tokens under "
        f"{stage.method}, {config.seeds} seed(s). Loss in nats per token with full attention; "
        "intervals: 95%, documents and seeds resampled whole; with one seed they say nothing of "
        "other seeds."
    )
    if facts["model"]["tie_embeddings"]:
        text += (
            "\n\nThis model's output head is tied to its embedding, so rows that train the "
            "embedding train the head as well; the paper's models have a head of their own, which "
            "does not train."
        )
    figure = report.Figure(project.workdir / "longlora.png", "Loss above full fine-tuning.")
    blocks = [report.Text("\n\n".join(claims)), report.Table(header, lines), figure]
    return [report.Section("Result", blocks), report.Section("Setting", [report.Text(text)])]


if __name__ == "__main__":
    cli.run(main, "longlora")
