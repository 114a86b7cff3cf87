"""The smallest base for a context length: Men et al. (2405.14591), searched with a certificate.

    python -m experiments.base_bound --config=configs/base_bound.py:cpu --workdir=DIR

Presets: tiny, cpu (1k to 32k, a minute at most), full (1k to 1M, about 7 minutes of one core;
the committed run took 23 on a busy one).
A base meets the requirement for L tokens if sum_j cos(m base^(-2j/H)) >= 0 at every integer m below
L. The published table and Su Jianlin's tighter one were searched by trial; here every smaller base
is excluded by a bound on the derivative (longrope_jax/analysis/base_bound.py). Expected, H = 128:

    length  smallest      until       2405.14591 fails at m  Su fails at m
    1k       4,293.438    4,330.323   -                      -
    2k       11,587.24    11,649.35   -                      1,554
    4k       26,952.34    26,973.08   4,079                  4,079
    8k       83,763.84    84,469.69   -                      -
    16k      231,643.6    231,721.8   12,223                 12,865
    32k      629,978.3    630,983.6   27,685                 -
    64k      2,090,180    2,091,382   -                      -
    128k     4,869,104    4,872,527   128,915                125,573
    256k     23,662,397   23,663,285  207,455                141,858
    512k     58,496,174   58,496,423  511,210                273,611
    1M       65,374,956   65,375,272  874,868                679,592

Beyond "until" larger bases fail again. All larger bases are good only from 6,018 (1k), 22,764 (2k),
58,790 (4k), 394,328 (8k), 1,321,078 (16k), 3,325,751 (32k) on.
"""

import math
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, report
from experiments.figures import Axes
from longrope_jax.analysis import base_bound
from longrope_jax.rotary import check_base

_K = 1024
_HEAD_DIM = 128  # of the published tables
# Table of 2405.14591, and Su Jianlin's (kexue.fm/archives/10122); both as printed.
PAPER = dict(zip(
    [_K << i for i in range(11)],
    [4.3e3, 1.6e4, 2.7e4, 8.4e4, 3.1e5, 6.4e5, 2.1e6, 7.8e6, 3.6e7, 6.4e7, 5.1e8],
    strict=True,
))  # fmt: skip
SU = dict(zip(
    [_K << i for i in range(11)],
    [4.3e3, 1.2e4, 2.7e4, 8.4e4, 2.3e5, 6.3e5, 2.1e6, 4.9e6, 2.4e7, 5.8e7, 6.5e7],
    strict=True,
))  # fmt: skip
_LOOKS = {
    "paper": {"marker": "s", "ls": "", "mfc": "none", "ms": 10, "color": "#D55E00",
              "label": "2405.14591"},
    "su": {"marker": "D", "ls": "", "ms": 5, "color": "#009E73", "label": "Su"},
}  # fmt: skip
# The paper's fit: base = 0.0424 length^1.628.
_PAPER_FIT = (0.0424, 1.628)

_DEFINITIONS = (
    "A base meets the requirement for L tokens if B(m) = sum_j cos(m base^(-2j/H)) is not negative "
    "at any integer m below L.\n\n"
    "Smallest: the infimum of such bases, between two ends that agree to better than 1e-6: every "
    "smaller base is proved to fail, the upper end is checked at every m. It is followed by the "
    "smallest base of four digits that meets the requirement, and by the end of the interval that "
    "starts at the infimum: beyond it larger bases fail again.\n\n"
    "Fails at: the first m with B(m) < 0 for the entry as it is printed; a dash where it holds."
)
_INTERVALS = (
    "Every base is decided, from 1 to infinity. From 'safe from' on all larger bases meet the "
    "requirement; between the smallest base and that one, only the stated share does (measured in "
    "the logarithm of the base). An interval or hole narrower than 1e-8 of its base may be missed."
)


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Searches, compares with the published tables, writes the report into `workdir`.

    Raises:
        ValueError: a length below 2 tokens, fewer than two lengths, an odd head dimension or one
            below 6, a base not above 1.
    """
    workdir = Path(workdir)
    if len(set(config.lengths)) < 2:
        raise ValueError("lengths must name at least two lengths, so that a power law has a slope")
    for base in config.bases:
        check_base(base)
    started = time.perf_counter()
    bounds = _bounds(config)
    feasible = {
        length: base_bound.intervals(length, head_dim=config.head_dim)
        for length in config.interval_lengths
    }
    result = {
        "command": command,
        "config": config,
        "versions": report.versions(),
        "bounds": bounds,
        "intervals": feasible,
        "fits": _fits(bounds),
        "bases": [_reach(base, config) for base in config.bases],
        "seconds": round(time.perf_counter() - started, 1),
    }
    _write(result, workdir)
    return result


def _write(result: dict, workdir: Path) -> None:
    report.save_json(workdir / "results.json", result)
    rows = result["bounds"]
    report.save_csv(workdir / "bounds.csv", list(rows[0]), (list(r.values()) for r in rows))
    report.save_csv(
        workdir / "intervals.csv",
        ["length", "low", "high"],
        ([n, i.low, i.high] for n, found in result["intervals"].items() for i in found),
    )
    draw_bounds(result, workdir / "bounds.png")
    if result["intervals"]:
        draw_intervals(result, workdir / "intervals.png")
    title = "The smallest base for a context length"
    parts = sections(result, workdir)
    report.write_html(workdir / "report.html", title, result["command"], parts, result["versions"])
    report.print_table(title, *_bounds_table(result))
    report.print_table("Bases in use", *_bases_table(result))
    print(f"searched in {result['seconds']} s")


def _bounds(config: ConfigDict) -> list[dict]:
    rows = []
    for found in base_bound.infima(config.lengths, head_dim=config.head_dim):
        below = found.low * (1 - 1e-7)
        interval = base_bound.intervals(
            found.length, head_dim=config.head_dim, above=below, count=1
        )[0]
        rows.append(
            {
                "length": found.length,
                "low": found.low,
                "high": found.high,
                "four_digits": _four_digits(found.high, interval.high),
                "until": interval.high,
                "touches_at": found.distance,
                **_published(found.length, config.head_dim),
            }
        )
    return rows


def _four_digits(base: float, until: float) -> float | None:
    """`base` rounded up to four digits, or None if the interval ends before that."""
    unit = 10.0 ** (math.floor(math.log10(base)) - 3)
    rounded = math.ceil(base / unit) * unit
    return rounded if rounded <= until else None


def _published(length: int, head_dim: int) -> dict:
    if head_dim != _HEAD_DIM or length not in PAPER:
        return dict.fromkeys(("paper", "paper_fails_at", "su", "su_fails_at"))
    entries = {"paper": PAPER[length], "su": SU[length]}
    fails = {
        f"{name}_fails_at": base_bound.first_failure(base, length, head_dim=head_dim)
        for name, base in entries.items()
    }
    return {key: (entries | fails)[key] for key in ("paper", "paper_fails_at", "su", "su_fails_at")}


def _reach(base: float, config: ConfigDict) -> dict:
    """Up to which of the lengths `base` meets the requirement, and where it first fails."""
    longest = max(config.lengths)
    fails = base_bound.first_failure(base, longest, head_dim=config.head_dim)
    return {"base": base, "fails_at": fails, "searched_to": longest}


def _fits(bounds: list[dict]) -> dict:
    """base = factor length^power, least squares in the logarithms; and the paper's fit."""
    x, y = np.log([[row["length"], row["high"]] for row in bounds]).T
    power, offset = np.polyfit(x, y, 1)
    fits = {"these bases": (math.exp(offset), power), "the paper's": _PAPER_FIT}
    return {
        name: {"factor": a, "power": p, "rms_log": _rms(np.log(a) + p * x - y)}
        for name, (a, p) in fits.items()
    }


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


@report.style()
def draw_bounds(result: dict, path: Path) -> None:
    """Infimum against length with the published entries; below, each relative to the infimum."""
    fig, (top, bottom) = report.subplots(
        2, 1, size=(8, 7.5), sharex=True, gridspec_kw={"height_ratios": (3, 2)}
    )
    rows = result["bounds"]
    lengths, smallest = np.array([[r["length"], r["high"]] for r in rows]).T
    top.loglog(lengths, smallest, "o-", color="#0072B2", label="smallest base", zorder=3)
    for (name, fit), dash in zip(result["fits"].items(), (":", "--"), strict=True):
        curve = fit["factor"] * lengths ** fit["power"]
        label = f"fit of {name}: {fit['factor']:.3g} L^{fit['power']:.3f}"
        top.loglog(lengths, curve, dash, color="#7F7F7F", label=label)
    top.set(ylabel="base", title="Smallest base that meets the requirement at length L")
    top.legend()
    bottom.axhline(1, color="#0072B2")
    for who in _LOOKS:
        _draw_published(bottom, rows, who)
    bottom.set(ylabel="published / smallest", xlabel="length L, tokens", yscale="log")
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.yaxis.set_minor_formatter("{x:g}")
    bottom.set_xticks(lengths, [_short(n) for n in lengths])
    bottom.minorticks_off()
    bottom.set(yticks=[1, 2, 4, 8], ylim=(0.8, 12))
    if bottom.get_legend_handles_labels()[0]:
        bottom.plot([], [], "x", color="black", markersize=13, label="fails its own requirement")
        bottom.legend(ncols=3, loc="upper left")
    report.save_figure(fig, path)


def _draw_published(ax: Axes, rows: list[dict], who: str) -> None:
    known = [row for row in rows if row[who] is not None]
    for row in known:
        failing = row[f"{who}_fails_at"] is not None
        ratio = row[who] / row["high"]
        ax.plot(row["length"], ratio, **_LOOKS[who] | {"label": None})
        if failing:
            ax.plot(row["length"], ratio, "x", color="black", markersize=13)
    if known:
        ax.plot([], [], **_LOOKS[who])


@report.style()
def draw_intervals(result: dict, path: Path) -> None:
    """One bar per length: which bases meet the requirement, with the published entries."""
    found = result["intervals"]
    fig, ax = report.subplots(size=(9, 1.4 + 0.7 * len(found)))
    right = 3 * max(i[-1].low for i in found.values())
    left = min(i[0].low for i in found.values()) / 1.6
    rows = {row["length"]: row for row in result["bounds"]}
    for y, (length, intervals) in enumerate(found.items()):
        ax.broken_barh([(left, right - left)], (y - 0.32, 0.64), color="#F3D9C8")
        bars = [(i.low, min(i.high, right) - i.low) for i in intervals]
        ax.broken_barh(bars, (y - 0.32, 0.64), color="#0072B2", linewidth=0.3)
        for who, look in _LOOKS.items():
            base = rows.get(length, {}).get(who)
            if base is not None:
                ax.plot(base, y + 0.42, **look | {"label": None}, clip_on=False)
    ax.set(xscale="log", xlim=(left, right), xlabel="base", ylabel="length L, tokens")
    ax.set_yticks(range(len(found)), [_short(n) for n in found])
    ax.set_title("Bases that meet the requirement (blue) come in many intervals", loc="left")
    for look in _LOOKS.values():
        ax.plot([], [], **look)
    ax.legend(loc="upper left", title="published smallest base")
    ax.grid(axis="y", visible=False)
    report.save_figure(fig, path)


def _short(length: float) -> str:
    if length % _K:
        return f"{length:.0f}"
    return f"{length / _K:.0f}k" if length < _K**2 else f"{length / _K**2:.0f}M"


def _bounds_table(result: dict) -> tuple[list[str], list[list]]:
    header = [
        "length", "smallest", "4 digits", "until", "paper", "fails at", "Su", "fails at",
    ]  # fmt: skip
    keys = ["high", "four_digits", "until", "paper", "paper_fails_at", "su", "su_fails_at"]
    return header, [
        [_short(r["length"]), *(_digits(r[key]) for key in keys)] for r in result["bounds"]
    ]


def _digits(value: float | None) -> str | None:
    if value is None or math.isinf(value):
        return None if value is None else "no end"
    if isinstance(value, int) or value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 6 - math.floor(math.log10(value)))}f}"


def _bases_table(result: dict) -> tuple[list[str], list[list]]:
    rows = [
        [f"{r['base']:g}", f"none below {r['searched_to']:,}" if r["fails_at"] is None
         else f"{r['fails_at']:,}"]
        for r in result["bases"]
    ]  # fmt: skip
    return ["base", "first distance with B < 0"], rows


def _intervals_table(result: dict) -> tuple[list[str], list[list]]:
    rows = []
    for length, found in result["intervals"].items():
        low, safe = found[0].low, found[-1].low
        inside = sum(math.log(i.high / i.low) for i in found[:-1])
        share = f"{inside / math.log(safe / low):.0%}" if safe > low else None
        rows.append([_short(length), len(found), _digits(low), _digits(safe), share])
    return ["length", "intervals", "smallest", "safe from", "share between that meets it"], rows


def _verdict(result: dict) -> str:
    """Which published entries fail, as sentences."""
    lines = []
    for who, name in (("paper", "2405.14591"), ("su", "Su")):
        known = [r for r in result["bounds"] if r[who] is not None]
        failing = [
            f"{r[who]:,.0f} at {_short(r['length'])} (m = {r[f'{who}_fails_at']:,})"
            for r in known
            if r[f"{who}_fails_at"] is not None
        ]
        if known:
            what = ", ".join(failing) or "none"
            lines.append(f"{name}: {len(failing)} of {len(known)} entries fail: {what}.")
    fits = ", ".join(
        f"{name} {f['factor']:.4g} L^{f['power']:.4g} (off by a factor of e^{f['rms_log']:.2f} RMS)"
        for name, f in result["fits"].items()
    )
    return "\n\n".join([*lines, f"Power laws: {fits}."])


def sections(result: dict, workdir: Path) -> list[report.Section]:
    """Parts of the report, from what `main` returned and its figures."""
    smallest = [
        report.Figure(workdir / "bounds.png", "Smallest bases and the published ones."),
        report.Table(*_bounds_table(result)),
        report.Text(_verdict(result)),
        report.Text(_DEFINITIONS),
        report.Table(*_bases_table(result), "Bases in use: where each first fails."),
    ]
    parts = [report.Section("Smallest base", smallest)]
    if result["intervals"]:
        figure = report.Figure(workdir / "intervals.png", "Blue: meets the requirement.")
        table = report.Table(*_intervals_table(result))
        parts.append(report.Section("All bases", [figure, table, report.Text(_INTERVALS)]))
    return parts


if __name__ == "__main__":
    cli.run(main, "base_bound")
