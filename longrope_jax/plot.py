"""Figures for a notebook: each function returns a matplotlib Figure and writes nothing.

figure = plot.decay(["rope", "abf"], length=32_768)
figure.savefig("decay.png")
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from longrope_jax import rotary
from longrope_jax.analysis import decay as decay_lib
from longrope_jax.analysis import helix as helix_lib
from longrope_jax.evaluation.by_position import position_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Methods = Sequence[rotary.Method | str]


def decay(methods: Methods, *, length: int, head_dim: int = 128) -> "Figure":
    """Score of an all-ones query and key against their distance (Figure 4 of Llama 2 Long).

    Args:
        methods: rotary methods or their texts, such as "rope:base=1e6".
        length: tokens; the curves end there.
        head_dim: H, even.

    Raises:
        ValueError: A method is unknown or has no such curve (see `analysis.decay.score`), or
            matplotlib is missing.
    """
    figure = _figure(8, 4)
    _decay(figure.subplots(), methods, length, head_dim)
    return figure


def wavelengths(
    methods: Methods, *, length: int, trained_length: int, head_dim: int = 128
) -> "Figure":
    """Turns of every pair within the trained length; below 1 a pair never completes one.

    Args:
        methods: rotary methods or their texts.
        length: tokens at which methods that depend on the length are taken.
        trained_length: tokens that the model was trained on.
        head_dim: H, even.

    Raises:
        ValueError: A method is unknown, or matplotlib is missing.
    """
    figure = _figure(8, 4)
    _turns(figure.subplots(), methods, length, trained_length, head_dim)
    return figure


def panel(
    method: rotary.Method | str, *, length: int, trained_length: int, head_dim: int = 128
) -> "Figure":
    """A method beside RoPE of base 10,000, as in the atlas: its turns and its decay.

    Args:
        method: a rotary method or its text.
        length: tokens; the decay curve ends there.
        trained_length: tokens that the model was trained on.
        head_dim: H, even.

    Raises:
        ValueError: as `wavelengths` and `decay`.
    """
    figure = _figure(11, 4)
    left, right = figure.subplots(1, 2)
    _turns(left, ["rope", method], length, trained_length, head_dim)
    _decay(right, ["rope", method], length, head_dim)
    return figure


def helix() -> "Figure":
    """The spirals of RoPE, Position Interpolation and ABF (Figure 8 of Llama 2 Long).

    Raises:
        ValueError: matplotlib is missing.
    """
    figure = _figure(10, 4)
    for place, panel in enumerate(helix_lib.PANELS, start=1):
        axes = figure.add_subplot(1, len(helix_lib.PANELS), place, projection="3d")
        axes.plot(*helix_lib.curve(panel).T, linewidth=0.8)
        axes.plot(*helix_lib.dots(panel).T, "o", color="tab:red", markersize=3)
        axes.set_title(panel.method)
    return figure


def loss_by_position(
    losses: Mapping[str, ArrayLike], *, block: int, trained_length: int | None = None
) -> "Figure":
    """Mean loss of blocks of positions, one curve per row.

    Args:
        losses: nats [windows, length] by the name of the curve, as `Model.loss_by_position` gives.
        block: positions that are averaged.
        trained_length: tokens where a line is drawn.

    Raises:
        ValueError: The block does not divide the length, or matplotlib is missing.
    """
    figure = _figure(8, 4)
    axes = figure.subplots()
    for label, nll in losses.items():
        means = position_blocks(nll, block).mean(0)
        axes.plot((np.arange(len(means)) + 0.5) * block, means, label=label)
    if trained_length is not None:
        axes.axvline(trained_length, color="black", linewidth=0.8)
    axes.set(xlabel="position", ylabel="loss, nats per token")
    axes.legend()
    return figure


def scores_by_depth(grids: Mapping[str, ArrayLike], lengths: Sequence[int]) -> "Figure":
    """Scores by length and by the depth of the answer, a heat map for each name.

    Args:
        grids: scores [bins of depth, lengths] from 0 to 1 by name, as `evaluation.lengths.by_depth`
            gives; NaN is left white.
        lengths: tokens of each column.

    Raises:
        ValueError: A grid has another number of lengths, or matplotlib is missing.
    """
    columns = min(len(grids), 4)
    rows = -(-len(grids) // columns)
    figure = _figure(1.5 + columns * max(2.4, 0.6 * len(lengths)), 0.8 + 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (label, grid) in zip(panels.flat, grids.items(), strict=False):
        grid = np.asarray(grid, float)
        if grid.ndim != 2 or grid.shape[1] != len(lengths):
            raise ValueError(f"{label}: expected {len(lengths)} lengths, got shape {grid.shape}")
        image = axes.imshow(
            grid, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize="small")
        names = [f"{100 * i // len(grid)} %" for i in range(len(grid))]
        axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        axes.set_yticks(range(len(grid)), names)
        axes.set_title(label, fontsize="medium")
    for axes in panels.flat[len(grids) :]:
        axes.remove()
    figure.supxlabel("length, tokens")
    figure.supylabel("depth of the answer from")
    if image is not None:
        figure.colorbar(image, ax=list(panels.flat[: len(grids)]), label="score")
    return figure


def scores_by_length(
    scores: Mapping[str, Mapping[str, Mapping[int, tuple[float, float, float]]]],
    *,
    trained_length: int | None = None,
) -> "Figure":
    """Scores by length with their intervals: a panel for each task, a line for each method.

    Args:
        scores: (score, low, high) from 0 to 1 by task, method and length in tokens.
        trained_length: tokens where a line is drawn.

    Raises:
        ValueError: There is no task, or matplotlib is missing.
    """
    if not scores:
        raise ValueError("scores must hold at least 1 task, got none")
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    figure = _figure(4 * columns, 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (task, methods) in zip(panels.flat, scores.items(), strict=False):
        for label, found in methods.items():
            lengths = sorted(found)
            means, low, high = np.array([found[n] for n in lengths]).T
            axes.plot(lengths, means, marker="o", markersize=4, label=label)
            axes.fill_between(lengths, low, high, alpha=0.15)
        if trained_length is not None:
            axes.axvline(trained_length, color="black", linewidth=0.8)
        axes.set(xlabel="length, tokens", title=task, ylim=(-0.03, 1.03))
    panels[0, 0].set_ylabel("score")
    panels[0, 0].legend()
    for axes in panels.flat[len(scores) :]:
        axes.remove()
    return figure


def _decay(axes, methods: Methods, length: int, head_dim: int) -> None:
    distances = np.unique(np.linspace(0, length - 1, min(length, 2000)).astype(int))
    for method, label in map(_read, methods):
        scores = decay_lib.score(method, distances, head_dim=head_dim, seq_len=length)
        axes.plot(distances, scores, label=label, linewidth=1.2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="distance, tokens", ylabel="score of all-ones vectors")
    axes.legend()


def _turns(axes, methods: Methods, length: int, trained_length: int, head_dim: int) -> None:
    for method, label in map(_read, methods):
        speed = method.frequencies(head_dim=head_dim, seq_len=length).inv_freq
        turning = speed > 0
        turns = speed[turning] * trained_length / (2 * np.pi)
        axes.plot(np.flatnonzero(turning), turns, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="pair", ylabel=f"turns within {trained_length:,} tokens", yscale="log")
    axes.legend()


def _read(method: rotary.Method | str) -> tuple[rotary.Method, str]:
    read = rotary.parse(method) if isinstance(method, str) else method
    return read, str(method)


def _figure(width: float, height: float) -> "Figure":
    """A figure without the state of pyplot, which a notebook shows once."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a figure needs matplotlib: pip install 'longrope_jax[plot]'") from error
    return Figure(figsize=(width, height), dpi=60, layout="constrained")
