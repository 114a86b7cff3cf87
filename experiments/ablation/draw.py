"""The figures of the ablation, from scores alone."""

from pathlib import Path

import numpy as np

from experiments import report
from experiments.ablation import compare, plan
from experiments.ablation.compare import Scores
from longrope_jax import rotary

_TABLE_5 = ("RoPE", "RoPE PI", "RoPE ABF", "xPos ABF")
_COLOUR = dict(zip(_TABLE_5, ("rope", "pi", "abf", "xpos_abf"), strict=True))


def all_figures(scores: Scores, folder: Path) -> dict[str, Path]:
    """Draws every figure that the finished runs allow; by name, with its file."""
    drawings = {
        "loss by position": loss_by_position,
        "retrieval by length": retrieval_by_length,
        "loss against steps": loss_against_steps,
        "power law": power_laws,
        "scale matrix": scale_matrix,
        "bases": bases,
    }
    paths = {}
    for name, draw in drawings.items():
        path = folder / f"{name.replace(' ', '_')}.png"
        with report.style():
            report.save_figure(draw(scores), path)
        paths[name] = path
    return paths


def _rows(scores: Scores) -> list[tuple[str, str]]:
    """The main rows with their colours."""
    rows = [row for row in _TABLE_5 if scores.runs.get(row)] or scores.rows()
    return list(zip(rows, report.colours([_COLOUR.get(row, row) for row in rows]), strict=True))


def loss_by_position(scores: Scores):
    """Loss against position before and after training, with a band over documents."""
    fig, axes = report.subplots(1, 2, size=(10, 4.5), sharey=True)
    full = plan.continued_length(scores.config)
    tops = []
    for ax, stage in zip(axes, ("untrained", "trained"), strict=True):
        for row, colour in _rows(scores):
            at, band = compare.position_curve(scores, row, stage)
            ax.plot(at, band.estimate, color=colour, label=row)
            ax.fill_between(at, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
            tops.append(np.median(band.estimate))
        for length in (scores.config.length, full):
            ax.axvline(length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=f"{stage} at {full:,} tokens", xlabel="position, tokens")
    axes[0].set_ylabel("loss, nats per token")
    axes[0].set_ylim(top=max(tops) * 1.3)
    axes[1].legend()
    return fig


def retrieval_by_length(scores: Scores):
    """FIRST-SENTENCE-RETRIEVAL (Figure 5b), share of right answer tokens, and passkey."""
    fig, axes = report.subplots(1, 3, size=(12, 4.2))
    panels = (
        ("retrieval/rouge", "first sentence, ROUGE-L", 1),
        ("first_sentence/answer_tokens", "first sentence, answer tokens right", 100),
        ("passkey/exact", "passkey, exact match", 100),
    )
    for ax, (name, title, unit) in zip(axes, panels, strict=True):
        for row, colour in _rows(scores):
            lengths = scores.get(row, "retrieval/lengths", 1)[0]
            values = scores.get(row, name).astype(float) * unit
            ax.plot(lengths, values.mean((0, 2)), "o-", color=colour, label=row, markersize=4)
        ax.set(title=title, xlabel="length, tokens", ylim=(-3, 103))
    row = scores.rows()[0]
    chance = scores.get(row, "chance/rouge").mean()
    axes[0].axhline(chance, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes[0].set_ylabel("percent")
    axes[0].legend()
    return fig


def loss_against_steps(scores: Scores):
    """Loss and retrieval during the continuation (Figure 5a)."""
    fig, axes = report.subplots(1, 2, size=(10, 4.2))
    for row, colour in _rows(scores):
        for ax, name in zip(axes, ("loss", "answer_tokens"), strict=True):
            steps, values = steps_curve(scores, row, name)
            ax.plot(steps, values, "o-", color=colour, label=row, markersize=4)
    axes[0].set(xlabel="steps of continuation", ylabel="loss at the long length, nats")
    axes[1].set(xlabel="steps of continuation", ylabel="answer tokens right")
    axes[1].legend()
    return fig


def steps_curve(scores: Scores, row: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, mean over seeds and samples) of "loss" or "answer_tokens" at the long length."""
    first = scores.runs[row][0]
    between = sorted({int(k.split("/")[1]) for k in first if k.startswith("curve/")})
    ends = {
        "loss": ("untrained/blocks", "trained/blocks"),
        "answer_tokens": ("untrained/answer_tokens", "first_sentence/answer_tokens"),
    }[name]

    def end(key: str) -> float:
        values = scores.get(row, key)
        if name == "loss":
            return float(values[..., : values.shape[-1] // 2].mean())
        # The same samples as at the steps between.
        values = values[:, -1] if values.ndim == 3 else values
        return float(values[:, : scores.config.evaluation.generated].mean())

    middle = [float(scores.get(row, f"curve/{s}/{name}").mean()) for s in between]
    steps = [0, *between, scores.config.continuation.steps]
    return steps, [end(ends[0]), *middle, end(ends[1])]


def power_laws(scores: Scores):
    """Loss against context (Figure 1) with the fit of each row."""
    fig, ax = report.subplots(size=(7, 4.5))
    for row, colour in _rows(scores):
        lengths, losses = compare.contexts(scores, row)
        ax.plot(lengths, losses.mean(0), "o", color=colour)
        fitted = compare.fit(scores, row)
        if fitted:
            law = (fitted.alpha.estimate, fitted.beta.estimate, fitted.gamma.estimate)
            curve = (law[0] / lengths.astype(float)) ** law[1] + law[2]
            ax.plot(lengths, curve, color=colour, label=row)
    ax.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="loss, nats per token")
    ax.legend()
    return fig


def scale_matrix(scores: Scores):
    """Each trained model evaluated at other scales than its own (Giraffe)."""
    fig, axes = report.subplots(1, 2, size=(10, 4.2))
    scales = list(scores.config.evaluation.scales)
    for row, colour in _rows(scores):
        for ax, name in zip(axes, ("matrix/loss", "matrix/answer_tokens"), strict=True):
            ax.plot(scales, scores.get(row, name).mean((0, 2)), "o-", color=colour, label=row)
    for ax in axes:
        ax.set(xscale="log", xlabel="scale, times the method's own")
        ax.set_xticks(scales, [f"{s:g}" for s in scales])
        ax.minorticks_off()
    axes[0].set_ylabel("loss at the long length, nats")
    axes[1].set_ylabel("answer tokens right")
    axes[0].legend()
    return fig


def bases(scores: Scores):
    """Loss and retrieval at the long length against the base of the continuation."""
    fig, axes = report.subplots(1, 2, size=(10, 4.2))
    rows = base_rows(scores)
    for ax, name in zip(axes, ("loss", "answer tokens"), strict=True):
        values = [compare.QUANTITIES[name](scores, row).values.mean() for _, row in rows]
        ax.plot([base for base, _ in rows], values, "o-", color=report.colours(["abf"])[0])
        ax.set(xscale="log", xlabel="base", ylabel=f"{name} at the long length")
    return fig


def base_rows(scores: Scores) -> list[tuple[float, str]]:
    """(base, row) of the taught RoPE rows at the common learning rate, by base."""
    rows = []
    for row in scores.rows():
        settings = scores.config.rows[row]
        spec = plan.method(scores.config, settings)
        if isinstance(spec, rotary.RoPE) and settings.taught and settings.rate == 1:
            rows.append((spec.base, row))
    return sorted(rows)
