"""One look for all figures: style, colours, PNG files of bounded size."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.lab.fail import fail
from experiments.lab.files import write

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:  # before any work, since every script ends in a figure
    fail("figures need matplotlib: pip install 'longrope_jax[experiments]'")

__all__ = [
    "Axes", "Figure", "colours", "draw_band", "panels", "save_figure", "style", "subplots",
]  # fmt: skip

_MAX_FIGURE_BYTES = 300_000

# Okabe and Ito's palette: told apart with any colour vision, and in print.
_METHOD_COLOURS = {"rope": "#D55E00", "pi": "#CC79A7", "abf": "#0072B2", "xpos_abf": "#009E73"}
_OTHER_COLOURS = ("#E69F00", "#56B4E9", "#000000", "#8B6914", "#7F7F7F", "#6A3D9A")

_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=[*_METHOD_COLOURS.values(), *_OTHER_COLOURS]),
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def style() -> contextlib.AbstractContextManager:
    """The look of all figures, for as long as a `with` or a decorated function lasts."""
    return matplotlib.rc_context(_STYLE)


def colours(methods: Sequence[str]) -> list[str]:
    """One colour per method text (`name` or `name:option=value`), distinct while they last.

    rope, pi, abf and xpos_abf always have theirs; a second text of the same name gets a free one.
    """
    chosen = []
    free = list(_OTHER_COLOURS)
    for method in methods:
        colour = _METHOD_COLOURS.get(method.partition(":")[0])
        if colour is None or colour in chosen:
            colour = free.pop(0)
            free.append(colour)
        chosen.append(colour)
    return chosen


def subplots(rows: int = 1, cols: int = 1, *, size: tuple[float, float] = (8, 4.5), **options):
    """Figure and axes as `pyplot.subplots` gives them, of `size` inches, on the Agg back end.

    No display is needed and pyplot's state, a notebook's back end included, stays as it is.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, cols, **options)


def panels(
    count: int, cols: int, *, each: tuple[float, float], margin: tuple[float, float] = (0, 0)
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes with the same scales, in rows of at most `cols`.

    Args:
        count: of the panels.
        cols: at most so many stand beside each other.
        each: width and height of a panel in inches.
        margin: inches that the figure is wider and higher than its panels.
    """
    cols = min(cols, count)
    rows = -(-count // cols)
    size = (margin[0] + each[0] * cols, margin[1] + each[1] * rows)
    fig, grid = subplots(rows, cols, size=size, sharex=True, sharey=True, squeeze=False)
    for i, ax in enumerate(grid.flat):
        ax.set_visible(i < count)
        ax.tick_params(labelbottom=i + cols >= count)
    return fig, list(grid.flat[:count])


def draw_band(
    ax: Axes, values: np.ndarray, starts: np.ndarray, *, color: str, shade: float = 0.2, **look
) -> None:
    """Draws the mean (line) and the range (shade) of the blocks of `values` [N] from `starts` on.

    Args:
        ax: where the curve goes; its x axis counts values.
        values: the curve.
        starts: where each block begins, growing, the first 0.
        color: of line and shade.
        shade: opacity of the range; 0 leaves it out.
        **look: how the line is drawn.
    """
    counts = np.diff(starts, append=len(values))
    middles = starts + (counts - 1) / 2
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    ax.fill_between(middles, low, high, color=color, alpha=shade, linewidth=0)
    ax.plot(middles, np.add.reduceat(values, starts) / counts, color=color, **look)


def save_figure(fig: Figure, path: Path) -> None:
    """Writes `fig` as a PNG below 300 kB, whole or not at all, and closes it.

    Resolution starts at 150 dots per inch and goes down as far as the size needs.
    """
    dpi, data = 150.0, b""
    while not data or len(data) >= _MAX_FIGURE_BYTES:
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=dpi)
        dpi, data = dpi * 0.85, buffer.getvalue()
    write(path, data)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)
