"""One look for all figures: style, colours, PNG files of bounded size."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.lab.fail import fail
from experiments.lab.files import write

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:  # before any work, since every script ends in a figure
    fail("figures need matplotlib: pip install 'longrope_jax[experiments]'")

__all__ = ["Axes", "Figure", "colours", "save_figure", "style", "subplots"]

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
