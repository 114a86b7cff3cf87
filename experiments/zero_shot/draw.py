"""Figures of zero-shot extension."""

from pathlib import Path

import numpy as np

from experiments import report
from experiments.zero_shot import plan as planning

_LINES = 6  # curves in one panel: more cannot be told apart
_POINTS = 64  # of each curve


@report.style()
def all_figures(study, found: dict, asked: list) -> dict[str, tuple[Path, str]]:
    """Draws what the finished cells allow; by name: file and caption."""
    figures, trained = {}, study.config.trained_length
    if found:
        path = study.workdir / "loss_by_position.png"
        report.save_figure(_curves(study, found), path)
        caption = (
            f"Loss by position, mean of the documents. Dotted: the trained length of {trained:,}. "
            f"Where methods are many: the first of the config and those lowest beyond it."
        )
        figures["loss by position"] = path, caption
        path = study.workdir / "beyond.png"
        report.save_figure(_bars(study, found), path)
        caption = f"Mean loss beyond {trained:,} tokens; crosses: single documents."
        figures["beyond"] = path, caption
    if asked:
        path = study.workdir / "retrieval.png"
        report.save_figure(_retrieval(study, asked), path)
        figures["retrieval"] = path, "Share of the answers' tokens that are right, by length."
    return figures


def _beyond(study, curve) -> np.ndarray:
    return curve.mean(study.config.trained_length, curve.length, study.config.block)


def _own(found: list) -> list:
    """Curves without those that only repeat another's."""
    return [c for c in found if c.same_as == c.method]


def _colours(study) -> dict[str, str]:
    names = list(study.plan.methods)
    return dict(zip(names, report.colours(names), strict=True))


def _chosen(study, found: list) -> list:
    first, own = study.plan.reference, _own(found)
    own = sorted(own, key=lambda c: (c.method != first, _beyond(study, c).mean()))[:_LINES]
    order = list(study.plan.methods)
    return sorted(own, key=lambda c: order.index(c.method))


def _curves(study, found: dict):
    fig, axes = report.subplots(len(found), 1, size=(8, 1 + 3.6 * len(found)), squeeze=False)
    colour = _colours(study)
    for ax, (length, of_length) in zip(axes[:, 0], found.items(), strict=True):
        for c in _chosen(study, of_length):
            mean = np.mean(list(c.documents.values()), axis=0)
            groups = np.array_split(mean, min(_POINTS, len(mean)))
            at = (np.arange(len(groups)) + 0.5) * length / len(groups)
            ax.plot(at, [g.mean() for g in groups], color=colour[c.method], label=c.method)
        ax.axvline(study.config.trained_length, color="black", linewidth=0.8, linestyle=":")
        ax.set(
            title=f"windows of {length:,} tokens", ylabel="loss, nats per token", xlim=(0, length)
        )
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.legend(ncols=2)
    axes[-1, 0].set_xlabel("position, tokens")
    return fig


def _bars(study, found: dict):
    shown = {n: sorted(_own(c), key=lambda c: -_beyond(study, c).mean()) for n, c in found.items()}
    sizes = [len(c) for c in shown.values()]
    fig, axes = report.subplots(
        len(shown),
        1,
        size=(8, 1.2 * len(shown) + 0.26 * sum(sizes)),
        squeeze=False,
        height_ratios=[n + 1 for n in sizes],
    )
    colour = _colours(study)
    for ax, (length, of_length) in zip(axes[:, 0], shown.items(), strict=True):
        for y, c in enumerate(of_length):
            values = _beyond(study, c)
            ax.plot(values, [y] * len(values), "x", color=colour[c.method], markersize=5)
            ax.plot(values.mean(), y, "o", color=colour[c.method])
            text = f" {values.mean():.3f}"
            ax.annotate(text, (1, y), xycoords=("axes fraction", "data"), va="center")
        ax.set_yticks(range(len(of_length)), [c.method for c in of_length])
        span = f"positions {study.config.trained_length:,} to {length:,}"
        ax.set(title=span, xlabel="loss, nats per token")
    return fig


def _retrieval(study, asked: list):
    tasks = [t for t in planning.TASKS if any(a.task == t for a in asked)]
    tasks = [t for t in tasks if t != planning.REMOVED]
    fig, axes = report.subplots(1, len(tasks), size=(4.6 * len(tasks) + 0.4, 4.2), squeeze=False)
    colour = _colours(study)
    for ax, task in zip(axes[0], tasks, strict=True):
        of_task = [a for a in asked if a.task == task]
        for method in dict.fromkeys(a.method for a in of_task):
            points = sorted((a.length, a.share.mean()) for a in of_task if a.method == method)
            ax.plot(*zip(*points, strict=True), "o-", color=colour[method], label=method)
        _draw_floor(ax, asked, task)
        ax.axvline(study.config.trained_length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=task, xlabel="length, tokens", ylim=(-0.03, 1.03))
        lengths = sorted({a.length for a in of_task})
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes[0, 0].set_ylabel("share of answer tokens right")
    axes[0, 0].legend()
    return fig


def _draw_floor(ax, asked: list, task: str) -> None:
    floor = [a.share.mean() for a in asked if a.task == planning.REMOVED]
    if floor and task == planning.SENTENCE:
        ax.axhline(floor[0], color="#7F7F7F", linewidth=1, linestyle="--", label="removed")
        ax.legend()
