"""The helix picture of position encodings: Llama 2 Long (2309.16039) Figure 8.

    python -m experiments.helix --config=configs/helix.py:paper --workdir=DIR

Position Interpolation (8b) brings neighbouring positions closer on the curve of RoPE (8a); ABF (8c)
leaves neighbours as far apart and brings the turns closer. Expected, in radii, in seconds on a CPU:

    panel  method  positions  between neighbours  between turns  pitch
    8a     rope    11         1.6867              0.4637         0.4048
    8b     pi      21         0.9604              0.4637         0.4048
    8c     abf     21         1.6838              0.3314         0.2024

Pair 1 of head dimension 128 loses 5.9% of its speed from base 10,000 to 500,000.
"""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax.analysis import helix
from longrope_jax.errors import unknown_name

_DEFINITIONS = (
    "A position t is drawn at (cos t, sin t, sin(a t)), with a the speed of a slow pair over that "
    "of the fast one. Distances are in radii: the smallest between neighbouring positions, the "
    "smallest between positions at least half a turn apart, and the mean rise per turn (pitch)."
)


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Draws the panels, measures the spacing of their dots, writes the report into `folder`.

    Raises:
        ValueError: unknown panel, a base or head dimension out of range.
    """
    panels = _panels(config.panels)
    slowdown = helix.pair_slowdown(config.base, config.new_base, head_dim=config.head_dim)
    spacing = {panel.name: helix.spacing(panel) for panel in panels}
    lab.save_csv(
        folder / "helix.csv",
        ["panel", "kind", "t", "x", "y", "z"],
        (row for panel in panels for row in _points(panel)),
    )
    header = ["panel", "method", "positions", "between neighbours", "between turns", "pitch"]
    rows = [
        [p.name, p.method, len(helix.dots(p)), *dataclasses.astuple(spacing[p.name])]
        for p in panels
    ]
    blocks = [
        lab.Figure("helix", _draw(panels), "Positions (red) on the curve of each method."),
        lab.Table(header, rows, "Spacing of positions, in radii", "spacing"),
        lab.Paragraphs(_DEFINITIONS),
    ]
    return lab.publish(
        folder,
        command,
        config,
        title="Helix picture of position encodings",
        claims=[_claim(config, slowdown)],
        sections=[lab.Section("Figure 8 of Llama 2 Long", blocks)],
        results={"panels": panels, "spacing": spacing, "pair_slowdown": slowdown},
    )


def _panels(names: tuple[str, ...]) -> list[helix.Panel]:
    known = {panel.name: panel for panel in helix.PANELS}
    for name in names:
        if name not in known:
            raise ValueError(unknown_name("panel of Figure 8 in --config.panels", name, known))
    if not names:
        raise ValueError(f"--config.panels is empty: name some of {', '.join(known)}")
    return [known[name] for name in names]


def _points(panel: helix.Panel) -> list[list]:
    kinds = {
        "curve": (helix.curve_times(panel), helix.curve(panel)),
        "dot": (helix.dot_times(panel), helix.dots(panel)),
    }
    return [
        [panel.name, kind, *np.round([t, *xyz], 9)]
        for kind, (times, points) in kinds.items()
        for t, xyz in zip(times, points, strict=True)
    ]


def _claim(config: ConfigDict, slowdown: np.ndarray) -> str:
    share = f"{slowdown[1]:.1%}" if len(slowdown) > 1 else "no share, there is none,"
    return (
        f"From base {config.base:g} to {config.new_base:g} at head dimension {config.head_dim}, "
        f"pair 1 loses {share} of its speed and the slowest pair {slowdown[-1]:.1%}."
    )


@lab.style()
def _draw(panels: list[helix.Panel]):
    """The panels side by side in 3D: curve in grey, positions as red dots, as in the paper."""
    size = (3.4 * len(panels), 4)
    options = {"squeeze": False, "subplot_kw": {"projection": "3d"}}
    fig, axes = lab.subplots(1, len(panels), size=size, **options)
    for ax, panel in zip(axes.flat, panels, strict=True):
        ax.computed_zorder = False
        ax.plot(*helix.curve(panel).T, color="#555555", linewidth=0.9, zorder=1)
        ax.scatter(*helix.dots(panel).T, color="#D00000", s=22, depthshade=False, zorder=2)
        ax.set_title(f"{panel.name}: {panel.method}")
        ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xticks=[], yticks=[], zticks=(-1, 0, 1))
        ax.set(xlabel="cos t", ylabel="sin t", zlabel=f"sin {panel.speed:g}t")
        ax.tick_params(labelsize=9, pad=0)
        ax.view_init(elev=25, azim=-60)
        ax.set_box_aspect((1, 1, 1.25), zoom=0.88)
    return fig


if __name__ == "__main__":
    lab.run(main, "experiments.helix")
