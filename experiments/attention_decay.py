"""Attention score against distance: Llama 2 Long (2309.16039) Figure 4, and any other methods.

    python -m experiments.attention_decay --config=configs/attention_decay.py:paper --workdir=DIR

Presets: paper, bases, head_dims, trained, tiny. Any methods and head dimensions overlaid:

    python -m experiments.attention_decay --workdir=DIR --config=configs/attention_decay.py \
        --config.methods='("rope:base=1e6", "abf")' --config.head_dims='(64, 128)'

With a trained model of base_frequency_ablation, also the expected score of its own heads (preset
trained; {base}, {abf}, {length} and {factor} in methods are those of the model's study):

    python -m experiments.attention_decay --workdir=DIR \
        --config=configs/attention_decay.py:trained --config.checkpoint=STUDY/runs/NAME

Expected with preset paper (head dimension 128, distances 0 to 32,383), in seconds on a CPU:

    curve         at 0      minimum (at)       at 32,383  first negative  oscillation
    rope          11.3137   -3.1706 (17,156)    0.3854     1,707          0.892
    pi:factor=8   11.3137   -1.4355 (28,123)   -0.9949    13,649          0.683
    abf           11.3137   -0.7144 (30,540)    2.3925    18,438          0.724
    xpos_abf      11.3137    1.2429 (30,540)    1.3009     none           0.047

Largest difference from the golden values: below 1e-5 (they have five decimals).
"""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, report, trained_heads
from experiments.figures import Axes, Figure
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.errors import unknown_name

# Figure 4's formula in float64 at a few distances, head dimension 128, 5 decimals. The curves drawn
# in the paper (vector paths) agree with it within 2e-4 RMS.
GOLDEN_DISTANCES = (0, 1, 2, 10, 100, 1000, 4096, 8192, 16384, 32383)
GOLDEN_HEAD_DIM = 128
GOLDEN = {
    "rope": (11.31371, 10.97672, 10.14378, 7.56958, 5.39937, 1.79919, -0.59797, 0.28182,
             -1.60967, 0.38543),
    "pi:factor=8": (11.31371, 11.30819, 11.29169, 10.80102, 7.49024, 4.72415, 2.48250, 2.31299,
                    1.34954, -0.99494),
    "pi:factor=4": (11.31371, 11.29169, 11.22640, 9.66790, 6.65491, 3.47398, 2.31299, 1.34954,
                    -0.59797, -1.81343),
    "abf": (11.31371, 11.06378, 10.45244, 8.64600, 6.91255, 5.56933, 4.33036, 3.00281, 1.50930,
            2.39247),
    "xpos_abf": (11.31371, 11.06284, 10.45078, 8.64071, 6.87830, 5.31297, 3.69718, 2.44650,
                 1.75604, 1.30087),
}  # fmt: skip

_DEFINITIONS = (
    "Score: that of an all-ones query and key, divided by the square root of the head dimension, "
    "before softmax. Distances are tokens.\n\n"
    "Oscillation: root mean square distance of the second half of the curve from its best "
    "non-increasing fit, so that a curve which only falls has none.\n\n"
    "Golden diff.: the largest absolute difference from the values of Figure 4's formula that this "
    "script keeps with five decimals; only for methods that have such values."
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One method at one head dimension; scores [max_distance + 1] at distances 0, 1, 2, ..."""

    label: str
    method: str
    head_dim: int
    scores: np.ndarray


def main(config: ConfigDict, workdir: Path, command: str = "") -> list[dict]:
    """Computes every curve, writes the report into `workdir` and returns the table's rows.

    Raises:
        ValueError: unknown method or option, odd head dimension, nothing to draw.
    """
    workdir = Path(workdir)
    heads = _heads(config)
    curves = compute(config)
    rows = [_row(curve) for curve in curves]
    versions = report.versions()
    result = {"command": command, "config": config, "versions": versions, "curves": rows}
    report.save_json(workdir / "results.json", result)
    scores = np.round(np.stack([c.scores for c in curves], axis=1), 6)
    report.save_csv(
        workdir / "decay.csv",
        ["distance", *(c.label for c in curves)],
        ([d, *values] for d, values in enumerate(scores)),
    )
    draw_curves(curves, workdir / "decay.png")
    draw_heatmaps(curves, config.heatmap_points, workdir / "heatmap.png")
    title = "Attention score against distance"
    parts = [*sections(rows, workdir), *_heads_sections(heads, config, workdir)]
    report.write_html(workdir / "report.html", title, command, parts, versions)
    report.print_table(title, *_table(rows))
    return rows


def _heads(config: ConfigDict) -> trained_heads.Heads | None:
    """Those of the checkpoint, if one is given; its numbers are put into the methods' texts."""
    if not config.checkpoint:
        if any("{" in text for text in config.methods):
            raise ValueError("methods name numbers of a study: give --config.checkpoint=DIR")
        return None
    heads = trained_heads.load(config.checkpoint, windows=config.checkpoint_windows)
    try:
        config.methods = tuple(text.format(**heads.values) for text in config.methods)
    except KeyError as error:
        name = str(error).strip("'")
        raise ValueError(unknown_name("number of a study", name, heads.values)) from error
    return heads


def _heads_sections(
    heads: trained_heads.Heads | None, config: ConfigDict, workdir: Path
) -> list[report.Section]:
    if heads is None:
        return []
    rows = trained_heads.curves(heads, config.methods, config.max_distance)
    report.save_json(workdir / "heads.json", {"run": heads.name, "curves": rows})
    trained_heads.draw(rows, heads, workdir / "heads.png")
    table = trained_heads.table(rows, heads)
    report.print_table(f"Expected score of {heads.name}", *table)
    text = f"Trained with {heads.method} at {heads.length:,} tokens."
    blocks = [report.Figure(workdir / "heads.png", text), report.Table(*table)]
    return [report.Section("A trained model", [*blocks, report.Text(trained_heads.DEFINITIONS)])]


def compute(config: ConfigDict) -> list[Curve]:
    """All methods of the config at all its head dimensions."""
    if config.max_distance < 1 or config.heatmap_points < 2:
        raise ValueError("max_distance must be at least 1 and heatmap_points at least 2")
    if not config.methods or not config.head_dims:
        raise ValueError("nothing to draw: methods and head_dims must name at least one each")
    distances = np.arange(config.max_distance + 1)
    curves = []
    for method in config.methods:
        for head_dim in config.head_dims:
            label = method if len(config.head_dims) == 1 else f"{method} H={head_dim}"
            scores = decay.score(rotary.parse(method), distances, head_dim=head_dim)
            curves.append(Curve(label, method, head_dim, scores))
    return curves


def golden_difference(curve: Curve) -> float | None:
    """Largest absolute difference from the golden values, or None for a curve that has none."""
    spec = rotary.parse(curve.method)
    known = [v for text, v in GOLDEN.items() if rotary.parse(text) == spec]
    if not known or curve.head_dim != GOLDEN_HEAD_DIM:
        return None
    pairs = zip(GOLDEN_DISTANCES, known[0], strict=True)
    return max(abs(curve.scores[d] - v) for d, v in pairs if d < len(curve.scores))


def _row(curve: Curve) -> dict:
    return {
        "curve": curve.label,
        **dataclasses.asdict(decay.summarize(curve.scores)),
        "golden_difference": golden_difference(curve),
    }


def _table(rows: list[dict]) -> tuple[list[str], list[list]]:
    header = ["curve", "at 0", "minimum", "found at", "at end", "first negative", "oscillation"]
    formats = {"golden_difference": "{:.1e}", "oscillation": "{:.3f}"}

    def shown(key: str, value: object) -> object:
        return formats.get(key, "{:.4f}").format(value) if isinstance(value, float) else value

    cells = [[shown(key, value) for key, value in row.items()] for row in rows]
    return [*header, "golden diff."], cells


@report.style()
def draw_curves(curves: list[Curve], path: Path) -> None:
    """Every distance as in Figure 4, and below it the mean and range of blocks of distances."""
    fig, (top, bottom) = report.subplots(2, 1, size=(8, 7.5), sharex=True, sharey=True)
    length = len(curves[0].scores)
    block = max(1, length // 128)
    for curve, look in zip(curves, _looks(curves), strict=True):
        top.plot(curve.scores, linewidth=0.6, **look)
        _draw_blocks(bottom, curve.scores, block, look)
    for ax in (top, bottom):
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(ylabel="score before softmax", xlim=(0, length - 1))
    top.set_title("every distance", loc="left")
    bottom.set_title(f"mean (line) and range (shade) of every {block} distances", loc="left")
    bottom.set_xlabel("distance, tokens")
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    for line in top.legend(ncols=2).get_lines():
        line.set_linewidth(2.5)
    report.save_figure(fig, path)


def _looks(curves: list[Curve]) -> list[dict]:
    methods = list(dict.fromkeys(c.method for c in curves))
    colour = dict(zip(methods, report.colours(methods), strict=True))
    head_dims = sorted({c.head_dim for c in curves})
    dashes = {h: ("-", "--", ":", "-.")[i % 4] for i, h in enumerate(head_dims)}
    return [
        {"color": colour[c.method], "linestyle": dashes[c.head_dim], "label": c.label}
        for c in curves
    ]


def _draw_blocks(ax: Axes, scores: np.ndarray, block: int, look: dict) -> None:
    starts = np.arange(0, len(scores), block)
    counts = np.diff(starts, append=len(scores))
    centres = starts + (counts - 1) / 2
    ax.plot(centres, np.add.reduceat(scores, starts) / counts, linewidth=1.6, **look)
    low, high = np.minimum.reduceat(scores, starts), np.maximum.reduceat(scores, starts)
    ax.fill_between(centres, low, high, color=look["color"], alpha=0.18, linewidth=0)


@report.style()
def draw_heatmaps(curves: list[Curve], points: int, path: Path) -> None:
    """One map of score(m, n) per curve, all on one scale with zero in white."""
    positions = np.unique(np.linspace(0, len(curves[0].scores) - 1, points).round())
    maps = [
        decay.heatmap(rotary.parse(c.method), positions, positions, head_dim=c.head_dim)
        for c in curves
    ]
    fig, axes = _map_axes(len(curves))
    # The diagonal is far above the rest and would leave no colour for it.
    limit = np.nanquantile(np.abs(maps), 0.98)
    for ax, curve, values in zip(axes, curves, maps, strict=True):
        image = ax.pcolormesh(positions, positions, values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title(curve.label)
    axes[0].invert_yaxis()  # the axes share it
    fig.supxlabel("key position n, tokens", fontsize=11)
    fig.supylabel("query position m, tokens", fontsize=11)
    fig.colorbar(image, ax=axes, label="score before softmax", extend="both", shrink=0.7)
    report.save_figure(fig, path)


def _map_axes(count: int) -> tuple[Figure, list[Axes]]:
    cols = min(count, 2 if count <= 4 else 3)
    rows = -(-count // cols)
    options = {"squeeze": False, "sharex": True, "sharey": True}
    fig, grid = report.subplots(rows, cols, size=(2 + 6 * cols / 2, 0.8 + 2.9 * rows), **options)
    for ax in grid.flat:
        ax.set(aspect="equal", facecolor="#E8E8E8")
        ax.grid(False)
        ax.locator_params(nbins=4)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.yaxis.set_major_formatter("{x:,.0f}")
    for i, ax in enumerate(grid.flat):
        ax.set_visible(i < count)
        ax.tick_params(labelbottom=i + cols >= count)
    return fig, list(grid.flat[:count])


def sections(rows: list[dict], workdir: Path) -> list[report.Section]:
    """Parts of the report, from the rows that `main` returned and its figures."""
    by_distance = [
        report.Figure(workdir / "decay.png", "Score of all-ones vectors by distance."),
        report.Table(*_table(rows)),
        report.Text(_DEFINITIONS),
    ]
    caption = "Score of a query at m and a key at n, both sampled evenly; grey: n after m."
    by_position = [report.Figure(workdir / "heatmap.png", caption)]
    return [
        report.Section("Score by distance", by_distance),
        report.Section("Score by query and key position", by_position),
    ]


if __name__ == "__main__":
    cli.run(main, "attention_decay")
