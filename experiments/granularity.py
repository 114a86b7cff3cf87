"""How close neighbouring positions come: Llama 2 Long (2309.16039) appendix B, corrected.

    python -m experiments.granularity --config=configs/granularity.py:paper --workdir=DIR

Theorem 1 there is false as printed: its upper bound lacks a factor 2, and C has no limit. Expected,
head dimension 128, in about 7 s on a CPU:

    method      C        (2/H) C  printed bound  holds  limit    printed limit
    RoPE        7.00054  0.10938  0.05469        no     0.10271  0.10857
    PI 0.25     1.85758  0.02902  0.01451        no     0.02705  0.02714
    PI 0.125    0.93157  0.01456  0.00728        no     0.01356  0.01357
    ABF 50      5.04419  0.07882  0.03941        no     0.07210  0.07621

Position Interpolation's bound on the deviation from the straight line: printed 0.43429, found
0.45956 at distance 0.487, corrected 0.49979.
"""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import rotary
from longrope_jax.analysis import granularity, interpolation

_SPEEDS = 33  # points along each curve of the figure

_DEFINITIONS = (
    "C = sum_j sin theta_j. The sine of the angle between the encodings of neighbouring positions "
    "is (2/H) C for an all-ones vector; its limit for H to infinity is a difference of sine "
    "integrals, which the paper approximates by alpha/ln(base).\n\n"
    "q: the smallest distance between the encodings of two positions of the extended length. d: "
    "how far an encoding within the extended length can be from all those that RoPE makes within "
    "the trained length. The paper's own d is a minimum over the positions of both, which is 0 for "
    "all methods, since at position 0 they all return the vector itself. Distances are Euclidean, "
    "in units of the vector's length, over the all-ones vector and random ones: small q is hard to "
    "tell apart, large d was never seen in training."
)
_INTERPOLATION = (
    "PI's Theorem 2.1 bounds how far a score between two neighbouring integer distances can be "
    "from the straight line through its values there. Its proof replaces sum_j base^(-4j/H) by "
    "H/(4 ln base), which is smaller. All h equal: the products of query and key pairs are all 1. "
    "Worst h: any with |h_j| at most 1."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One method of the table; its base and alpha are what the printed limits are computed of."""

    label: str
    method: rotary.Method
    base: float
    alpha: float = 1.0


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Computes the tables and the figure and writes the report into `folder`.

    Raises:
        ValueError: base, alpha, beta or head dimension out of range; fewer than 2 positions.
    """
    rows = _rows(config)
    vectors = np.random.default_rng(config.seed).normal(size=(config.vectors, config.head_dim))
    vectors = np.concatenate([np.ones((1, config.head_dim)), vectors])
    constants = [_constants(row, config) for row in rows]
    spheres = [_sphere(row, vectors, config) for row in rows]
    bound = _interpolation(config)
    figure = _draw(rows, constants, config)
    theory = [
        lab.Figure("granularity", figure, "Sine of the angle between neighbours."),
        lab.table(constants, "Sine of neighbours", "granularity", "{:.5f}".format),
        lab.table(spheres, "Positions on the sphere", "spheres", "{:.4f}".format),
        lab.Paragraphs(_DEFINITIONS),
    ]
    line = [_interpolation_table(bound), lab.Paragraphs(_INTERPOLATION)]
    return lab.publish(
        folder,
        command,
        config,
        title="Granularity of position encodings",
        claims=_claims(constants, bound, config),
        sections=[
            lab.Section("Llama 2 Long, appendix B", theory),
            lab.Section("Position Interpolation's bound", line),
        ],
        results={"constants": constants, "spheres": spheres, "interpolation": bound},
    )


# Numbers


def _rows(config: ConfigDict) -> list[Row]:
    base = config.base
    rows = [Row("RoPE", rotary.RoPE(base=base), base)]
    for alpha in config.alphas:
        if not 0 < alpha <= 1:
            raise ValueError(f"--config.alphas must be above 0 and at most 1, got {alpha}")
        pi = rotary.PositionInterpolation(factor=1 / alpha, base=base)
        rows.append(Row(f"PI {alpha:g}", pi, base, alpha))
    for beta in config.betas:
        rows.append(Row(f"ABF {beta:g}", rotary.RoPE(base=beta * base), beta * base))
    return rows


def _constants(row: Row, config: ConfigDict) -> dict:
    ones = granularity.sine_bounds(row.method, np.ones(config.head_dim))
    return {
        "method": row.label,
        "C": granularity.sine_sum(row.method, head_dim=config.head_dim),
        "(2/H) C": ones.sine,
        "printed bound": ones.printed_upper,
        "holds": "yes" if ones.printed_holds else "no",
        "limit": granularity.limit(row.base, alpha=row.alpha),
        "printed limit": granularity.printed_limit(row.base, alpha=row.alpha),
    }


def _sphere(row: Row, vectors: np.ndarray, config: ConfigDict) -> dict:
    rope, positions = rotary.RoPE(base=config.base), (config.extended, config.trained)
    apart = granularity.distance(row.method, rope, vectors, positions=positions)
    return {
        "method": row.label,
        "q, extended": granularity.granularity(row.method, vectors, positions=config.extended),
        "d from trained RoPE": apart.farthest,
        "d as printed": apart.printed,
    }


def _interpolation(config: ConfigDict) -> dict:
    H, base = config.head_dim, config.base
    distances = np.arange(1, config.trained)
    per_pair = interpolation.extrapolation_bound(distances, head_dim=H, base=base) / H
    below = np.flatnonzero(per_pair < 1)
    return {
        "printed_bound": interpolation.printed_bound(H, base),
        "corrected_bound": interpolation.corrected_bound(H, base),
        "all_equal": interpolation.worst_deviation(H, base, h=np.ones(H // 2)),
        "worst": interpolation.worst_deviation(H, base),
        # The paper: B(s) >= H, so that extrapolation can be about 600 times worse.
        "smallest_extrapolation_bound_per_dimension": per_pair.min(),
        "first_below_dimension": int(distances[below[0]]) if below.size else None,
    }


# Report


def _interpolation_table(bound: dict) -> lab.Table:
    header = ["deviation from the line", "value", "at"]
    lines = [
        ["printed bound", bound["printed_bound"], None],
        ["all h equal", *dataclasses.astuple(bound["all_equal"])],
        ["worst h", *dataclasses.astuple(bound["worst"])],
        ["corrected bound", bound["corrected_bound"], None],
    ]
    formats = {"value": "{:.5f}".format, "at": "{:.3f}".format}
    return lab.Table(header, lines, "Interpolation", "interpolation", formats)


def _claims(constants: list[dict], bound: dict, config: ConfigDict) -> list[str]:
    """Sentences on what the printed theorems say and what was found."""
    failing = sum(row["holds"] == "no" for row in constants)
    smallest = bound["smallest_extrapolation_bound_per_dimension"]
    first = bound["first_below_dimension"]
    where = "at no distance" if first is None else f"first at distance {first:,}"
    holds = "violates" if bound["all_equal"].value > bound["printed_bound"] else "meets"
    printed, corrected = (
        f"{2 * smallest * config.head_dim / bound[name]:.0f}"
        for name in ("printed_bound", "corrected_bound")
    )
    return [
        f"The printed upper bound on the sine fails for {failing} of {len(constants)} methods.",
        f"With all h equal the deviation {holds} Position Interpolation's printed bound.",
        f"The extrapolation bound B(s) divided by H is at least {smallest:.3f} for distances below "
        f"{config.trained:,}, and below 1 {where} (the paper: at least 1). At its smallest, 2 B(s) "
        f"is {printed} times the printed interpolation bound and {corrected} times the corrected "
        "one (the paper: about 600).",
    ]


@lab.style()
def _draw(rows: list[Row], constants: list[dict], config: ConfigDict):
    """Left: the sine against alpha and beta, PI linear and ABF logarithmic. Right: the limit."""
    fig, (left, right) = lab.subplots(1, 2, size=(11, 4.6))
    factors = np.geomspace(1, 64, _SPEEDS)
    H, base = config.head_dim, config.base
    curves = {
        "PI, alpha = 1/x": [rotary.PositionInterpolation(factor=f, base=base) for f in factors],
        "ABF, beta = x": [rotary.RoPE(base=base * f) for f in factors],
    }
    for (name, methods), colour in zip(curves.items(), lab.colours(["pi", "abf"]), strict=True):
        sines = np.array([granularity.mean_sine(m, head_dim=H) for m in methods])
        left.loglog(factors, sines, color=colour, linewidth=2, label=name)
        left.loglog(factors, sines / 2, ":", color=colour)
    left.plot([], [], "k:", label="printed upper bound, too small")
    left.set(xlabel="x: how much slower, 1/alpha or beta", ylabel="sine between neighbours")
    left.set_title("PI brings positions together as 1/x, ABF hardly")
    left.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    left.minorticks_off()
    left.legend()
    _draw_limits(right, rows, constants, config.widest)
    return fig


def _draw_limits(ax, rows: list[Row], constants: list[dict], widest: int) -> None:
    dims = np.unique(np.geomspace(8, widest, _SPEEDS).astype(int) // 2 * 2)
    shown = lab.colours([row.label.partition(" ")[0].lower() for row in rows])
    for row, numbers, colour in zip(rows, constants, shown, strict=True):
        sines = [granularity.mean_sine(row.method, head_dim=int(h)) for h in dims]
        ax.plot(dims, sines, linewidth=2, label=row.label, color=colour)
        ax.axhline(numbers["limit"], linestyle="-", linewidth=0.8, color=colour)
        ax.axhline(numbers["printed limit"], linestyle=":", color=colour)
    ax.plot([], [], "-", linewidth=0.8, color="black", label="limit")
    ax.plot([], [], ":", color="black", label="as printed, 1/ln")
    ax.set(
        xscale="log", xlabel="head dimension H", ylabel="sine between neighbours", ylim=(0, None)
    )
    ax.set_title("(2/H) C has a limit; C itself has none")
    ax.legend(ncols=2, fontsize=9)


if __name__ == "__main__":
    lab.run(main, "experiments.granularity")
