"""Figures: factors by pair, and progress of the searches by compute."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.search import compare, measure, plan
from longrope_jax.search.individuals import published

_LOOKS = {
    "PI": ("#7F7F7F", ":"),
    "NTK": ("#7F7F7F", "--"),
    "YaRN": ("#000000", "-"),
    "LongRoPE": ("#D55E00", "-"),
    "LongRoPE2": ("#CC79A7", "-"),
    "gradient": ("#0072B2", "-"),
    "gradient, monotone": ("#56B4E9", "-"),
    "gradient, needle": ("#009E73", "-"),
}


def _look(label: str) -> dict:
    colour, dash = _LOOKS[label]
    return {"color": colour, "linestyle": dash}


@report.style()
def draw_factors(config: ConfigDict, workdir: Path, path: Path) -> None:
    """lambda_j of the published methods and of every winner, one panel for each target."""
    fig, axes = report.subplots(1, len(config.factors), size=(11, 4.6), squeeze=False)
    for ax, factor in zip(axes[0], config.factors, strict=True):
        found = measure.winners(config, workdir, factor)
        pairs = len(found["gradient"][0].factors)
        target = plan.target(config, factor, 2 * pairs)
        lines = {k: [v] for k, v in published(target).items()} | found
        for label in _LOOKS:
            for i, individual in enumerate(lines[label]):
                name = label if i == 0 else None
                ax.plot(np.arange(pairs), individual.factors, label=name, **_look(label))
        ax.set(xlabel="pair j, fast to slow", title=f"to {factor:g}x the trained length")
    axes[0, 0].set_ylabel("factor λ of the wavelength")
    axes[0, 0].legend()
    report.save_figure(fig, path)


@report.style()
def draw_progress(config: ConfigDict, workdir: Path, path: Path) -> None:
    """Lowest loss so far against forward passes; rows are targets, columns the two losses."""
    count = len(config.factors)
    fig, axes = report.subplots(count, 2, size=(11, 3.6 * count), squeeze=False, sharex=True)
    for row, factor in zip(axes, config.factors, strict=True):
        for ax, kind in zip(row, ("text", "needle"), strict=True):
            shown = []
            for search in plan.searches(config):
                if (search.factor, search.objective) == (factor, kind):
                    name = search.method if search.seed == 0 else None
                    cost, loss = compare.progress(config, workdir, search)
                    ax.plot(cost, loss, drawstyle="steps-post", label=name, **_look(search.method))
                    # What comes before is PI, which would flatten all that follows.
                    shown += loss[np.searchsorted(cost, plan.STARTS) :].tolist()
            margin = 0.05 * (max(shown) - min(shown)) + 1e-6
            ax.set_ylim(min(shown) - margin, max(shown) + margin)
            ax.set_title(f"loss of {kind} at {factor:g}x, search documents", loc="left")
            ax.legend()
        row[0].set_ylabel("lowest loss so far, nats")
    for ax in axes[-1]:
        ax.set_xlabel("forward passes (a gradient counts as three)")
    report.save_figure(fig, path)
