"""Numbers, tables and figures of continual pretraining, from scores alone."""

import json
from pathlib import Path

import numpy as np

from experiments import report
from experiments.continual.project import Project
from experiments.continual.train import optimizer_config
from longrope_jax.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    paired_difference,
    verdict,
)
from longrope_jax.training import lora, metrics, step

_GAIN = "difference > margin"


def check_blocks(project: Project) -> None:
    """Raises ValueError unless blocks of positions end at the trained and at the target length."""
    blocks, trained = project.config.evaluation.blocks, project.config.trained_length
    if blocks < 1 or project.length % blocks or trained % (project.length // blocks):
        raise ValueError(
            f"evaluation.blocks must divide {project.length} tokens so that one ends at the trained"
            f" length of {trained}, got {blocks}"
        )


def parts(project: Project) -> dict[str, slice]:
    """Blocks of positions by name: all, and within and beyond the trained length."""
    edge = project.config.trained_length * project.config.evaluation.blocks // project.length
    named = {"all positions": slice(None)}
    if 0 < edge < project.config.evaluation.blocks:
        named |= {"trained length": slice(edge), "beyond it": slice(edge, None)}
    return named


def gain(project: Project, before: str, after: str, part: slice) -> Interval:
    """Loss before minus loss after, in nats per token, paired over documents."""
    (a, documents), (b, _) = project.scores(before), project.scores(after)
    return paired_difference(a[:, part].mean(1)[None], b[:, part].mean(1)[None], documents)


def extra_gain(project: Project, before: str, after: str) -> Interval | None:
    """Gain beyond the trained length minus gain within: what the new text alone cannot explain."""
    named = parts(project)
    if len(named) == 1:
        return None
    (a, documents), (b, _) = project.scores(before), project.scores(after)
    within, beyond = ((a - b)[:, named[p]].mean(1) for p in ("trained length", "beyond it"))
    return paired_difference(beyond[None], within[None], documents)


def save_base(project: Project) -> None:
    """Keeps what was recognised in the base and how much of it trains."""
    config, base = project.config, project.base
    settings = lora.trainable(config.trainable, rank=config.rank, alpha=config.alpha)
    stage = next(iter(config.stages.values()))
    state = step.abstract_state(base.model, optimizer_config(stage), project.mesh, settings)
    facts = {
        "model": base.model,
        "method": repr(base.method),
        "notes": base.notes,
        "parameters": lora.count(step.abstract_params(base.model, project.mesh)),
        "trainable": lora.count(state.params),
        "versions": report.versions(),
    }
    if project.writes:
        report.save_json(project.workdir / "base.json", facts)


def write(project: Project, names: list[str], command: str) -> dict:
    """Writes results.json, loss.csv, figures and report.html; returns the results."""
    workdir = project.workdir
    base = json.loads((workdir / "base.json").read_text())
    losses, gains = _losses(project, names), _gains(project, names)
    result = {
        "command": command,
        "config": project.config,
        "base": base,
        "losses": [dict(zip(losses[0], row, strict=True)) for row in losses[1]],
        "gains": [dict(zip(gains[0], row, strict=True)) for row in gains[1]],
        "claim": claim(project, names),
    }
    report.save_json(workdir / "results.json", result)
    at = _positions(project)
    curves = [project.scores(name)[0].mean(0) for name in names]
    report.save_csv(workdir / "loss.csv", ["position", *names], zip(at, *curves, strict=True))
    draw_losses(project, names, workdir / "loss_by_position.png")
    draw_training(project, workdir / "training.png")
    title = f"Continual pretraining to {project.length:,} tokens"
    report.write_html(
        workdir / "report.html",
        title,
        command,
        _sections(project, result, losses, gains),
        base["versions"],
    )
    report.print_table("Loss in nats per token", *losses)
    report.print_table("Gain in nats per token", *gains)
    print(result["claim"])
    return result


def claim(project: Project, names: list[str]) -> str:
    """In words what the interval of the gain over zero-shot says."""
    found = gain(project, "zero-shot", names[-1], slice(None))
    wording = {"holds": "lower", "reversed": "higher", "indistinguishable": "neither"}
    word = wording[verdict(found, _GAIN)]
    if word == "neither":
        text = "indistinguishable from that of zero-shot"
    else:
        text = f"{word} than zero-shot by {abs(found.estimate):.4f} nats per token"
    documents = len(set(project.scores("zero-shot")[1]))
    return (
        f"At {project.length:,} tokens the loss after training is {text}: gain "
        f"{shown(found)} (95% interval over {documents} held-out documents)."
    )


def _losses(project: Project, names: list[str]) -> tuple[list[str], list[list]]:
    rows = []
    for name in names:
        blocks, documents = project.scores(name)
        cells = [
            cluster_bootstrap(blocks[:, p].mean(1), documents) for p in parts(project).values()
        ]
        perplexity = float(np.exp(cells[0].estimate))
        rows.append([name, *map(shown, cells), f"{perplexity:.4f}"])
    return ["model", *parts(project), "perplexity"], rows


def _gains(project: Project, names: list[str]) -> tuple[list[str], list[list]]:
    rows = []
    after = names[-1]
    for before in (n for n in names if n != after):
        cells = [shown(gain(project, before, after, p)) for p in parts(project).values()]
        extra = extra_gain(project, before, after)
        rows.append([f"{before} to {after}", *cells, *([shown(extra)] if extra else [])])
    header = ["gain", *parts(project)]
    return header + (["beyond minus within"] if len(header) > 2 else []), rows


def shown(interval: Interval) -> str:
    """Estimate and limits with four decimals."""
    return f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _positions(project: Project) -> np.ndarray:
    """Middle of each block, in tokens."""
    blocks = project.config.evaluation.blocks
    return (np.arange(blocks) + 0.5) * project.length / blocks


@report.style()
def draw_losses(project: Project, names: list[str], path: Path) -> None:
    """Loss of each measurement by position, and the gain over zero-shot with its band."""
    fig, (top, bottom) = report.subplots(2, 1, size=(8, 7), sharex=True)
    at, after = _positions(project), names[-1]
    for name in names:
        top.plot(at, project.scores(name)[0].mean(0), label=name)
    (a, documents), (b, _) = project.scores("zero-shot"), project.scores(after)
    band = paired_difference(a[None], b[None], documents)
    bottom.plot(at, band.estimate, color="black")
    bottom.fill_between(at, band.low, band.high, color="black", alpha=0.2, linewidth=0)
    for ax in (top, bottom):
        ax.axvline(project.config.trained_length, color="black", linewidth=0.8, linestyle=":")
    bottom.axhline(0, color="black", linewidth=0.8)
    top.set(ylabel="loss, nats per token")
    top.legend()
    bottom.set(ylabel="gain over zero-shot, nats", xlabel="position, tokens")
    report.save_figure(fig, path)


@report.style()
def draw_training(project: Project, path: Path) -> None:
    """Training loss of each stage."""
    fig, ax = report.subplots()
    for name in project.config.stages:
        logged = metrics.read(project.workdir / "runs" / name)
        ax.plot([m["step"] for m in logged], [m["loss"] for m in logged], ".-", label=name)
    ax.set(xlabel="step", ylabel="training loss, nats per token")
    ax.legend()
    report.save_figure(fig, path)


def _sections(project: Project, result: dict, losses, gains) -> list[report.Section]:
    config, base = project.config, result["base"]
    intro = (
        f"{result['claim']}\n\nBase: {config.model}, {base['parameters']:,} parameters, method "
        f"{base['method']}. {' '.join(base['notes'])}\n\nTrainable: {config.trainable}, "
        f"{base['trainable']:,} numbers. Training tokens: {_training_tokens(project):,}."
    )
    explained = (
        "Intervals: 95%, documents resampled whole. Beyond minus within: the gain beyond the "
        f"trained length of {config.trained_length:,} tokens less the gain within, which getting "
        "used to the training text does not explain."
    )
    fields = list(next(iter(config.stages.values())))
    recipe = [[f, *(str(stage[f]) for stage in config.stages.values())] for f in fields]
    by_position = report.Figure(
        project.workdir / "loss_by_position.png",
        "Held-out loss by position; below, the gain over zero-shot with its 95% band; dotted: the "
        "trained length.",
    )
    return [
        report.Section("Result", [report.Text(intro), report.Table(*gains), report.Table(*losses)]),
        report.Section("By position", [by_position, report.Text(explained)]),
        report.Section(
            "Training",
            [
                report.Figure(project.workdir / "training.png", "Loss of the training batches."),
                report.Table(["setting", *config.stages], recipe),
            ],
        ),
    ]


def _training_tokens(project: Project) -> int:
    return sum(s.steps * s.batch * s.length for s in project.config.stages.values())
