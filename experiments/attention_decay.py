r"""Attention score against distance: Llama 2 Long (2309.16039) Figure 4, and any other methods.

    python -m experiments.attention_decay --config=configs/attention_decay.py:paper --workdir=DIR

Presets: paper, bases, head_dims, tiny. Any methods and head dimensions overlaid:

    python -m experiments.attention_decay --workdir=DIR --config=configs/attention_decay.py \
        --config.methods='("rope:base=1e6", "abf")' --config.head_dims='(64, 128)'

The same from the heads of a trained model: experiments/trained_heads.py. Expected with preset paper
(head dimension 128, distances 0 to 32,383), in seconds on a CPU:

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

from experiments import lab
from longrope_jax import rotary
from longrope_jax.analysis import decay

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


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Computes every curve and writes the report into `folder`.

    Raises:
        ValueError: unknown method or option, odd head dimension, nothing to draw.
    """
    curves = compute(config)
    rows = [_row(curve) for curve in curves]
    scores = np.round(np.stack([curve.scores for curve in curves], axis=1), 6)
    lab.save_csv(
        folder / "decay.csv",
        ["distance", *(curve.label for curve in curves)],
        ([distance, *values] for distance, values in enumerate(scores)),
    )
    title = "Attention score against distance"
    formats = {"oscillation": "{:.3f}".format, "golden diff.": "{:.1e}".format}
    formats |= dict.fromkeys(("at 0", "minimum", "at end"), "{:.4f}".format)
    by_distance = [
        lab.Figure("decay", _draw_curves(curves), "Score of all-ones vectors by distance."),
        lab.table(rows, title, "curves", formats),
        lab.Paragraphs(_DEFINITIONS),
    ]
    caption = "Score of a query at m and a key at n, both sampled evenly; grey: n after m."
    by_position = [lab.Figure("heatmap", _draw_maps(curves, config.heatmap_points), caption)]
    sections = [
        lab.Section("Score by distance", by_distance),
        lab.Section("Score by query and key position", by_position),
    ]
    return lab.publish(
        folder,
        command,
        config,
        title=title,
        claims=[_claim(rows)],
        sections=sections,
        results={"curves": rows},
    )


def compute(config: ConfigDict) -> list[Curve]:
    """All methods of the config at all its head dimensions."""
    for name, least in (("max_distance", 1), ("heatmap_points", 2)):
        if config[name] < least:
            raise ValueError(f"--config.{name} must be at least {least}, got {config[name]}")
    for name in ("methods", "head_dims"):
        if not config[name]:
            raise ValueError(f"nothing to draw: --config.{name} must name at least one")
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
    found = decay.summarize(curve.scores)
    return {
        "curve": curve.label,
        "at 0": found.at_zero,
        "minimum": found.minimum,
        "found at": found.minimum_distance,
        "at end": found.at_end,
        "first negative": found.first_negative,
        "oscillation": found.oscillation,
        "golden diff.": golden_difference(curve),
    }


def _claim(rows: list[dict]) -> str:
    places = (
        f"{row['curve']} nowhere"
        if row["first negative"] is None
        else f"{row['curve']} at {row['first negative']:,}"
        for row in rows
    )
    return f"First distance in tokens with a score below zero: {', '.join(places)}."


# Figures


@lab.style()
def _draw_curves(curves: list[Curve]):
    """Every distance as in Figure 4, and below it the mean and range of blocks of distances."""
    fig, (top, bottom) = lab.subplots(2, 1, size=(8, 7.5), sharex=True, sharey=True)
    length = len(curves[0].scores)
    block = max(1, length // 128)
    for curve, look in zip(curves, _looks(curves), strict=True):
        top.plot(curve.scores, linewidth=0.6, **look)
        lab.draw_band(bottom, curve.scores, np.arange(0, length, block), linewidth=1.6, **look)
    for ax in (top, bottom):
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(ylabel="score before softmax", xlim=(0, length - 1))
    top.set_title("every distance", loc="left")
    bottom.set_title(f"mean (line) and range (shade) of every {block} distances", loc="left")
    bottom.set_xlabel("distance, tokens")
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    for line in top.legend(ncols=2).get_lines():
        line.set_linewidth(2.5)
    return fig


def _looks(curves: list[Curve]) -> list[dict]:
    methods = list(dict.fromkeys(curve.method for curve in curves))
    colour = dict(zip(methods, lab.colours(methods), strict=True))
    head_dims = sorted({curve.head_dim for curve in curves})
    dashes = {h: ("-", "--", ":", "-.")[i % 4] for i, h in enumerate(head_dims)}
    return [
        {"color": colour[c.method], "linestyle": dashes[c.head_dim], "label": c.label}
        for c in curves
    ]


@lab.style()
def _draw_maps(curves: list[Curve], points: int):
    """One map of score(m, n) per curve, all on one scale with zero in white."""
    positions = np.unique(np.linspace(0, len(curves[0].scores) - 1, points).round())
    maps = [
        decay.heatmap(rotary.parse(c.method), positions, positions, head_dim=c.head_dim)
        for c in curves
    ]
    cols = 2 if len(curves) <= 4 else 3
    fig, axes = lab.panels(len(curves), cols, each=(3, 2.9), margin=(2, 0.8))
    # The diagonal is far above the rest and would leave no colour for it.
    limit = np.nanquantile(np.abs(maps), 0.98)
    for ax, curve, values in zip(axes, curves, maps, strict=True):
        image = ax.pcolormesh(positions, positions, values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(aspect="equal", facecolor="#E8E8E8", title=curve.label)
        ax.grid(False)
        ax.locator_params(nbins=4)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.yaxis.set_major_formatter("{x:,.0f}")
    axes[0].invert_yaxis()  # the axes share it
    fig.supxlabel("key position n, tokens", fontsize=11)
    fig.supylabel("query position m, tokens", fontsize=11)
    fig.colorbar(image, ax=axes, label="score before softmax", extend="both", shrink=0.7)
    return fig


if __name__ == "__main__":
    lab.run(main, "experiments.attention_decay")
