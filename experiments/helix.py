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

from experiments import cli, report
from longrope_jax.analysis import helix
from longrope_jax.errors import unknown_name

_DEFINITIONS = (
    "A position t is drawn at (cos t, sin t, sin(a t)), with a the speed of a slow pair over that "
    "of the fast one. Distances are in radii: the smallest between neighbouring positions, the "
    "smallest between positions at least half a turn apart, and the mean rise per turn (pitch)."
)


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Draws the panels, measures the spacing of their dots, writes the report into `workdir`.

    Raises:
        ValueError: unknown panel, a base or head dimension out of range.
    """
    workdir = Path(workdir)
    panels = _panels(config.panels)
    slowdown = helix.pair_slowdown(config.base, config.new_base, head_dim=config.head_dim)
    result = {
        "command": command,
        "config": config,
        "versions": report.versions(),
        "panels": panels,
        "spacing": {p.name: helix.spacing(p) for p in panels},
        "pair_slowdown": slowdown,
    }
    report.save_json(workdir / "results.json", result)
    report.save_csv(
        workdir / "helix.csv",
        ["panel", "kind", "t", "x", "y", "z"],
        (row for panel in panels for row in _points(panel)),
    )
    draw(panels, workdir / "helix.png")
    report.write_html(
        workdir / "report.html",
        "Helix picture of position encodings",
        command,
        sections(result, workdir),
        result["versions"],
    )
    report.print_table("Spacing of positions, in radii", *_table(result))
    return result


def _panels(names: tuple[str, ...]) -> list[helix.Panel]:
    known = {p.name: p for p in helix.PANELS}
    for name in names:
        if name not in known:
            raise ValueError(unknown_name("panel of Figure 8", name, known))
    if not names:
        raise ValueError(f"panels is empty: name some of {', '.join(known)}")
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


@report.style()
def draw(panels: list[helix.Panel], path: Path) -> None:
    """The panels side by side in 3D: curve in grey, positions as red dots, as in the paper."""
    size = (3.4 * len(panels), 4)
    fig, axes = report.subplots(
        1, len(panels), size=size, squeeze=False, subplot_kw={"projection": "3d"}
    )
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
    report.save_figure(fig, path)


def _table(result: dict) -> tuple[list[str], list[list]]:
    header = ["panel", "method", "positions", "between neighbours", "between turns", "pitch"]
    rows = [
        [p.name, p.method, len(helix.dots(p)), *dataclasses.astuple(result["spacing"][p.name])]
        for p in result["panels"]
    ]
    return header, rows


def sections(result: dict, workdir: Path) -> list[report.Section]:
    """Parts of the report, from what `main` returned and its figure."""
    config, slowdown = result["config"], result["pair_slowdown"]
    share = f"{slowdown[1]:.1%}" if len(slowdown) > 1 else "no share, there is none,"
    fast_pairs = (
        f"From base {config.base:g} to {config.new_base:g} at head dimension {config.head_dim}, "
        f"pair 1 loses {share} of its speed and the slowest pair {slowdown[-1]:.1%}."
    )
    picture = [
        report.Figure(workdir / "helix.png", "Positions (red) on the curve of each method."),
        report.Table(*_table(result)),
        report.Text(_DEFINITIONS + "\n\n" + fast_pairs),
    ]
    return [report.Section("Figure 8 of Llama 2 Long", picture)]


if __name__ == "__main__":
    cli.run(main, "helix")
