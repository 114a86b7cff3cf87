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
            f"Where methods are many: {study.plan.reference} and those lowest beyond that length."
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


def _chosen(study, found: list) -> list:
    """The reference and the curves lowest beyond the trained length, in the config's order."""
    first, own = study.plan.reference, _own(found)
    own = sorted(own, key=lambda c: (c.method != first, _beyond(study, c).mean()))[:_LINES]
    order = list(study.plan.methods)
    return sorted(own, key=lambda c: order.index(c.method))


def _curves(study, found: dict):
    """Losses, and beside them differences from the reference, where the text's own ups cancel."""
    size = (10, 1 + 3.2 * len(found))
    fig, axes = report.subplots(len(found), 2, size=size, squeeze=False, sharex="row")
    chosen = {length: _chosen(study, of_length) for length, of_length in found.items()}
    names = list(dict.fromkeys(c.method for cs in chosen.values() for c in cs))
    colour = dict(zip(names, report.colours(names), strict=True))
    for row, (length, drawn) in zip(axes, chosen.items(), strict=True):
        compared = next((c for c in drawn if c.method == study.plan.reference), None)
        for c in drawn:
            look = {"color": colour[c.method], "label": c.method}
            row[0].plot(*_points(length, c.documents.values()), **look)
            both = compared and [d for d in c.documents if d in compared.documents]
            if both:
                differences = [c.documents[d] - compared.documents[d] for d in both]
                row[1].plot(*_points(length, differences), **look)
        row[0].set(title=f"windows of {length:,} tokens", ylabel="loss, nats per token")
        row[1].set(title="on the same text", ylabel=f"minus {study.plan.reference}, nats")
        for ax in row:
            ax.axvline(study.config.trained_length, color="black", linewidth=0.8, linestyle=":")
            ax.set(xlim=(0, length), xlabel="position, tokens")
            ax.locator_params(axis="x", nbins=5)
            ax.xaxis.set_major_formatter("{x:,.0f}")
        row[1].legend()
    return fig


def _points(length: int, curves) -> tuple[np.ndarray, list[float]]:
    """Positions and means over documents of at most _POINTS groups of blocks."""
    mean = np.mean(list(curves), axis=0)
    groups = np.array_split(mean, min(_POINTS, len(mean)))
    return (np.arange(len(groups)) + 0.5) * length / len(groups), [g.mean() for g in groups]


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
    for ax, (length, of_length) in zip(axes[:, 0], shown.items(), strict=True):
        for y, c in enumerate(of_length):
            colour = "#D55E00" if c.method == study.plan.reference else "#0072B2"
            values = _beyond(study, c)
            if len(values) > 1:
                ax.plot(values, [y] * len(values), "x", color=colour, markersize=5)
            ax.plot(values.mean(), y, "o", color=colour)
            text = f" {values.mean():.3f}"
            ax.annotate(text, (1, y), xycoords=("axes fraction", "data"), va="center")
        ax.set_yticks(range(len(of_length)), [c.method for c in of_length])
        span = f"positions {study.config.trained_length:,} to {length:,}"
        ax.set(title=span, xlabel="loss, nats per token", ylim=(-0.6, len(of_length) - 0.4))
    return fig


def _retrieval(study, asked: list):
    tasks = [t for t in planning.TASKS if any(a.task == t for a in asked)]
    tasks = [t for t in tasks if t != planning.REMOVED]
    fig, axes = report.subplots(1, len(tasks), size=(4.6 * len(tasks) + 0.4, 4.2), squeeze=False)
    names = list(dict.fromkeys(a.method for a in asked))
    colours = report.colours(names)
    for ax, task in zip(axes[0], tasks, strict=True):
        of_task = [a for a in asked if a.task == task]
        for i, (method, colour) in enumerate(zip(names, colours, strict=True)):
            points = sorted((a.length, a.share.mean()) for a in of_task if a.method == method)
            if points:  # rings of many sizes, since points often coincide
                look = {"markersize": 5 + 2.5 * i, "fillstyle": "none"}
                ax.plot(*zip(*points, strict=True), "o-", color=colour, label=method, **look)
        _draw_floor(ax, asked, task)
        ax.axvline(study.config.trained_length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=task, xlabel="length, tokens", ylim=(-0.08, 1.08))
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
