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

from experiments import cli, report
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
    """One method of the table; sines and distances are dimensionless."""

    label: str
    method: rotary.Method
    base: float
    alpha: float


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Computes the table and the figure and writes the report into `workdir`.

    Raises:
        ValueError: base, alpha, beta or head dimension out of range; fewer than 2 positions.
    """
    workdir = Path(workdir)
    rows = _rows(config)
    vectors = np.random.default_rng(config.seed).normal(size=(config.vectors, config.head_dim))
    vectors = np.concatenate([np.ones((1, config.head_dim)), vectors])
    result = {
        "command": command,
        "config": config,
        "versions": report.versions(),
        "constants": [_constants(row, config) for row in rows],
        "spheres": [_sphere(row, vectors, config) for row in rows],
        "interpolation": _interpolation(config),
    }
    _write(result, rows, workdir)
    return result


def _write(result: dict, rows: list[Row], workdir: Path) -> None:
    report.save_json(workdir / "results.json", result)
    constants = result["constants"]
    report.save_csv(
        workdir / "granularity.csv", list(constants[0]), (list(r.values()) for r in constants)
    )
    draw(result, rows, workdir / "granularity.png")
    title = "Granularity of position encodings"
    parts = sections(result, workdir)
    report.write_html(workdir / "report.html", title, result["command"], parts, result["versions"])
    report.print_table(title, *_constants_table(result))
    report.print_table("Positions on the sphere", *_spheres_table(result))
    report.print_table("Interpolation", *_interpolation_table(result))


def _rows(config: ConfigDict) -> list[Row]:
    base = config.base
    rows = [Row("RoPE", rotary.RoPE(base=base), base, 1.0)]
    for alpha in config.alphas:
        if not 0 < alpha <= 1:
            raise ValueError(f"alphas must be above 0 and at most 1, got {alpha}")
        pi = rotary.PositionInterpolation(factor=1 / alpha, base=base)
        rows.append(Row(f"PI {alpha:g}", pi, base, alpha))
    for beta in config.betas:
        rows.append(Row(f"ABF {beta:g}", rotary.RoPE(base=beta * base), beta * base, 1.0))
    return rows


def _constants(row: Row, config: ConfigDict) -> dict:
    ones = granularity.sine_bounds(row.method, np.ones(config.head_dim))
    return {
        "method": row.label,
        "sum": granularity.sine_sum(row.method, head_dim=config.head_dim),
        "sine": ones.sine,
        "printed_upper": ones.printed_upper,
        "printed_holds": ones.printed_holds,
        "limit": granularity.limit(row.base, alpha=row.alpha),
        "printed_limit": granularity.printed_limit(row.base, alpha=row.alpha),
    }


def _sphere(row: Row, vectors: np.ndarray, config: ConfigDict) -> dict:
    rope = rotary.RoPE(base=config.base)
    apart = granularity.distance(
        row.method, rope, vectors, positions=(config.extended, config.trained)
    )
    return {
        "method": row.label,
        "granularity": granularity.granularity(row.method, vectors, positions=config.extended),
        "distance": apart.farthest,
        "printed_distance": apart.printed,
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


@report.style()
def draw(result: dict, rows: list[Row], path: Path) -> None:
    """Left: the sine against alpha and beta, PI linear and ABF logarithmic. Right: the limit."""
    config = result["config"]
    fig, (left, right) = report.subplots(1, 2, size=(11, 4.6))
    factors = np.geomspace(1, 64, _SPEEDS)
    H, base = config["head_dim"], config["base"]
    curves = {
        "PI, alpha = 1/x": [rotary.PositionInterpolation(factor=f, base=base) for f in factors],
        "ABF, beta = x": [rotary.RoPE(base=base * f) for f in factors],
    }
    for (name, methods), colour in zip(curves.items(), report.colours(["pi", "abf"]), strict=True):
        sines = np.array([granularity.mean_sine(m, head_dim=H) for m in methods])
        left.loglog(factors, sines, color=colour, linewidth=2, label=name)
        left.loglog(factors, sines / 2, ":", color=colour)
    left.plot([], [], "k:", label="printed upper bound, too small")
    left.set(xlabel="x: how much slower, 1/alpha or beta", ylabel="sine between neighbours")
    left.set_title("PI brings positions together as 1/x, ABF hardly")
    left.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    left.minorticks_off()
    left.legend()
    _draw_limits(right, result, rows)
    report.save_figure(fig, path)


def _draw_limits(ax, result: dict, rows: list[Row]) -> None:
    widest = result["config"]["widest"]
    dims = np.unique(np.geomspace(8, widest, _SPEEDS).astype(int) // 2 * 2)
    colours = dict(
        zip([r.label for r in rows], report.colours([_key(r) for r in rows]), strict=True)
    )
    for row, constants in zip(rows, result["constants"], strict=True):
        sines = [granularity.mean_sine(row.method, head_dim=int(h)) for h in dims]
        look = {"color": colours[row.label]}
        ax.plot(dims, sines, linewidth=2, label=row.label, **look)
        ax.axhline(constants["limit"], linestyle="-", linewidth=0.8, **look)
        ax.axhline(constants["printed_limit"], linestyle=":", **look)
    ax.plot([], [], "-", linewidth=0.8, color="black", label="limit")
    ax.plot([], [], ":", color="black", label="as printed, 1/ln")
    ax.set(
        xscale="log", xlabel="head dimension H", ylabel="sine between neighbours", ylim=(0, None)
    )
    ax.set_title("(2/H) C has a limit; C itself has none")
    ax.legend(ncols=2, fontsize=9)


def _key(row: Row) -> str:
    return {"RoPE": "rope", "PI": "pi", "ABF": "abf"}[row.label.partition(" ")[0]]


def _constants_table(result: dict) -> tuple[list[str], list[list]]:
    header = ["method", "C", "(2/H) C", "printed bound", "holds", "limit", "printed limit"]
    rows = []
    for r in result["constants"]:
        numbers = [f"{r[key]:.5f}" for key in ("sum", "sine", "printed_upper")]
        limits = [f"{r[key]:.5f}" for key in ("limit", "printed_limit")]
        rows.append([r["method"], *numbers, "yes" if r["printed_holds"] else "no", *limits])
    return header, rows


def _spheres_table(result: dict) -> tuple[list[str], list[list]]:
    header = ["method", "q, extended", "d from trained RoPE", "d as printed"]
    return header, [
        [r["method"], f"{r['granularity']:.4f}", f"{r['distance']:.4f}",
         f"{r['printed_distance']:.4f}"]
        for r in result["spheres"]
    ]  # fmt: skip


def _interpolation_table(result: dict) -> tuple[list[str], list[list]]:
    r = result["interpolation"]
    worst = {"all h equal": r["all_equal"], "worst h": r["worst"]}
    header = ["deviation from the line", "value", "at"]
    return header, [
        ["printed bound", f"{r['printed_bound']:.5f}", None],
        *([name, f"{d.value:.5f}", f"{d.at:.3f}"] for name, d in worst.items()),
        ["corrected bound", f"{r['corrected_bound']:.5f}", None],
    ]


def _verdict(result: dict) -> str:
    config, r = result["config"], result["interpolation"]
    smallest = r["smallest_extrapolation_bound_per_dimension"]
    below = r["first_below_dimension"]
    where = "at no distance" if below is None else f"first at distance {below:,}"
    holds = "violates" if r["all_equal"].value > r["printed_bound"] else "meets"
    return (
        f"With all h equal the deviation {holds} the printed bound. The extrapolation bound B(s) "
        f"divided by H is at least {smallest:.3f} for distances below {config['trained']:,}, and "
        f"below 1 {where} (the paper: at least 1). At its smallest, 2 B(s) is "
        f"{2 * smallest * config['head_dim'] / r['printed_bound']:.0f} times the printed "
        f"interpolation bound and "
        f"{2 * smallest * config['head_dim'] / r['corrected_bound']:.0f} times the corrected one "
        "(the paper: about 600)."
    )


def sections(result: dict, workdir: Path) -> list[report.Section]:
    """Parts of the report, from what `main` returned and its figure."""
    theory = [
        report.Figure(workdir / "granularity.png", "Sine of the angle between neighbours."),
        report.Table(*_constants_table(result)),
        report.Table(*_spheres_table(result)),
        report.Text(_DEFINITIONS),
    ]
    bound = [report.Table(*_interpolation_table(result)), report.Text(_verdict(result))]
    return [
        report.Section("Llama 2 Long, appendix B", theory),
        report.Section("Position Interpolation's bound", [*bound, report.Text(_INTERPOLATION)]),
    ]


if __name__ == "__main__":
    cli.run(main, "granularity")
