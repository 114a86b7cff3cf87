r"""The smallest base for a context length: Men et al. (2405.14591), searched with a certificate.

    python -m experiments.base_bound --config=configs/base_bound.py:cpu --workdir=DIR

Presets: tiny, cpu (1k to 32k, a minute at most), full (1k to 1M, about 7 minutes of one core). The
committed results of `full` are drawn again from their cells in seconds:

    python -m experiments.base_bound --config=configs/base_bound.py:full \
        --workdir=docs/results/base_bound

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

import functools
import json
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax.analysis import base_bound, critical_dimension
from longrope_jax.rotary import check_base

_K = 1024
_HEAD_DIM = 128  # of the published tables
_LENGTHS = [_K << i for i in range(11)]
# The published smallest bases by length, as printed; Su Jianlin's: kexue.fm/archives/10122.
_PAPER = (4.3e3, 1.6e4, 2.7e4, 8.4e4, 3.1e5, 6.4e5, 2.1e6, 7.8e6, 3.6e7, 6.4e7, 5.1e8)
_SU = (4.3e3, 1.2e4, 2.7e4, 8.4e4, 2.3e5, 6.3e5, 2.1e6, 4.9e6, 2.4e7, 5.8e7, 6.5e7)
PUBLISHED = {
    "2405.14591": dict(zip(_LENGTHS, _PAPER, strict=True)),
    "Su": dict(zip(_LENGTHS, _SU, strict=True)),
}
_PAPER_FIT = (0.0424, 1.628)  # base = 0.0424 length^1.628
_LOOKS = {
    "2405.14591": {"marker": "s", "ls": "", "mfc": "none", "ms": 10, "color": "#D55E00"},
    "Su": {"marker": "D", "ls": "", "ms": 5, "color": "#009E73"},
}

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
_REACH = (
    "Two theories of how far a base reaches. 2405.14591: the first distance with B < 0. 2310.05209 "
    "(Liu et al.): the tokens up to which a model works that was trained on {trained:,} tokens "
    "with base 10,000 and tuned on {tuned:,} with this base; it is the period, under the new base, "
    "of the last pair that completes a turn within the trained length."
)


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """One cell for every smallest base that is searched and for every length decided whole."""
    del folder  # other studies keep facts of a checkpoint there
    kinds = {"smallest": config.lengths, "intervals": config.interval_lengths}
    return [
        lab.Cell(kind, _short(length), what=(config.head_dim, length))
        for kind, lengths in kinds.items()
        for length in sorted(set(lengths))
    ]


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Searches, compares with the published tables and writes the report into `folder`.

    Raises:
        ValueError: a length below 2 tokens, fewer than two lengths, an odd head dimension or one
            below 6, a base not above 1.
    """
    if len(set(config.lengths)) < 2:
        raise ValueError(
            f"--config.lengths must name at least two lengths, so that a power law has a slope, "
            f"got {config.lengths}"
        )
    reach = [_reach(base, config) for base in config.bases]
    cells = plan(config, folder)
    functions = {"smallest": functools.partial(_smallest, folder, cells), "intervals": _intervals}
    lab.complete(folder, cells, functions, lab.Machine(**config.machine))
    found = {cell: _read(folder, cell) for cell in cells}
    rows = [_row(cell, found[cell]) for cell in cells if cell.kind == "smallest"]
    intervals = {cell.what[1]: found[cell] for cell in cells if cell.kind == "intervals"}
    results = {"bounds": rows, "intervals": intervals, "fits": _fits(rows), "bases": reach}
    ends = ([length, *pair] for length, pairs in intervals.items() for pair in pairs)
    lab.save_csv(folder / "intervals.csv", ["length", "low", "high"], ends)
    title = "The smallest base for a context length"
    claims, sections = _claims(results), _sections(results, config)
    return lab.publish(
        folder, command, config, title=title, claims=claims, sections=sections, results=results,
        cells=cells,
    )  # fmt: skip


# Cells


def _smallest(folder: Path, cells: list[lab.Cell], cell: lab.Cell) -> dict[str, str]:
    """The smallest base of one length, and the end of the interval that starts there.

    The search starts at what a shorter length has: a base that fails it fails this one too.
    """
    head_dim, length = cell.what
    shorter = [c for c in cells if c.kind == cell.kind and c.what[1] < length]
    start = max((_read(folder, c)["low"] for c in shorter), default=1.0)
    found = base_bound.infimum(length, head_dim=head_dim, above=start)
    below = found.low * (1 - 1e-7)
    first, *_ = base_bound.intervals(length, head_dim=head_dim, above=below, count=1)
    ends = {"low": found.low, "high": found.high, "until": first.high}
    return {"found": json.dumps(ends | {"at": found.distance})}


def _intervals(cell: lab.Cell) -> dict[str, str]:
    """The ends of all intervals of bases that meet the requirement of one length."""
    head_dim, length = cell.what
    found = base_bound.intervals(length, head_dim=head_dim)
    return {"found": json.dumps([(i.low, i.high) for i in found])}


def _read(folder: Path, cell: lab.Cell):
    """What a cell found: text, since a cell's arrays have fewer digits than these bases need."""
    return json.loads(str(lab.needed(folder, cell)["found"]))


# Numbers


def _row(cell: lab.Cell, found: dict) -> dict[str, float | int | None]:
    """A line of the table: what was searched, the published bases, where each of those fails."""
    head_dim, length = cell.what
    low, high, until = found["low"], found["high"], found["until"]
    row = {"length": length, "low": low, "smallest": high}
    row |= {"4 digits": _four_digits(high, until), "until": until, "touches 0 at": found["at"]}
    for who, entries in PUBLISHED.items():
        base = entries.get(length) if head_dim == _HEAD_DIM else None
        fails = base and base_bound.first_failure(base, length, head_dim=head_dim)
        row |= {who: base, f"{who} fails at": fails}
    return row


def _four_digits(base: float, until: float) -> float | None:
    """`base` rounded up to four digits, or None if the interval ends before that."""
    unit = 10.0 ** (math.floor(math.log10(base)) - 3)
    rounded = math.ceil(base / unit) * unit
    return rounded if rounded <= until else None


def _reach(base: float, config: ConfigDict) -> dict:
    """How far `base` reaches by either theory, searched up to the longest of the lengths."""
    check_base(base)
    longest, head_dim = max(config.lengths), config.head_dim
    limit = critical_dimension.extrapolation_limit(
        base, config.trained, config.tuned, head_dim=head_dim
    )
    fails = base_bound.first_failure(base, longest, head_dim=head_dim)
    return {"base": base, "fails_at": fails, "searched_to": longest, "works_to": limit}


def _fits(rows: list[dict]) -> dict[str, dict]:
    """base = factor length^power, least squares in the logarithms; and the paper's fit."""
    x, y = np.log([[row["length"], row["smallest"]] for row in rows]).T
    power, offset = np.polyfit(x, y, 1)
    fits = {"these bases": (math.exp(offset), power), "the paper's": _PAPER_FIT}
    return {
        name: {"factor": a, "power": p, "rms_log": _rms(np.log(a) + p * x - y)}
        for name, (a, p) in fits.items()
    }


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


# Report


def _claims(results: dict) -> list[str]:
    """Sentences on which published entries lie above the smallest base, and on the power laws."""
    claims = []
    for who in PUBLISHED:
        known = [row for row in results["bounds"] if row[who] is not None]
        above = [
            f"{row[who]:,.0f} at {_short(row['length'])} ({row[who] / row['smallest']:.3g} times)"
            for row in known
            if float(f"{row['smallest']:.1e}") < row[who]
        ]
        failing = sum(row[f"{who} fails at"] is not None for row in known)
        if known:
            what = f": {', '.join(above)}" if above else ""
            claims.append(
                f"{who}: {len(above)} of {len(known)} entries lie above the smallest base by more "
                f"than their rounding to two digits{what}. As printed, {failing} fail at some "
                "distance, some of them by that rounding alone."
            )
    laws = ", ".join(
        f"{name} {f['factor']:.4g} L^{f['power']:.4g} (off by a factor of e^{f['rms_log']:.2f} RMS)"
        for name, f in results["fits"].items()
    )
    return [*claims, f"Power laws: {laws}."]


def _sections(results: dict, config: ConfigDict) -> list[lab.Section]:
    rows = results["bounds"]
    formats = dict.fromkeys(rows[0], _digits) | {"length": _short}
    smallest = [
        lab.Figure("bounds", _draw_bounds(results), "Smallest bases and the published ones."),
        lab.table(rows, "The smallest base by length", "bounds", formats),
        lab.Paragraphs(_DEFINITIONS),
        _bases_table(results["bases"]),
        lab.Paragraphs(_REACH.format(trained=config.trained, tuned=config.tuned)),
    ]
    sections = [lab.Section("Smallest base", smallest)]
    if found := results["intervals"]:
        figure = lab.Figure("intervals", _draw_intervals(results), "Blue: meets the requirement.")
        blocks = [figure, _intervals_table(found), lab.Paragraphs(_INTERVALS)]
        sections.append(lab.Section("All bases", blocks))
    return sections


def _bases_table(reach: list[dict]) -> lab.Table:
    header = ["base", "2405.14591: first m with B < 0", "2310.05209: works to"]
    formats = dict.fromkeys(header, "{:,.0f}".format)
    lines = [
        [r["base"], r["fails_at"] or f"none below {r['searched_to']:,}", r["works_to"]]
        for r in reach
    ]
    return lab.Table(header, lines, "Bases in use, distances in tokens", "bases", formats)


def _intervals_table(found: dict[int, list]) -> lab.Table:
    header = ["length", "intervals", "smallest", "safe from", "share between that meets it"]
    formats = dict(zip(header, [_short, str, _digits, _digits, "{:.0%}".format], strict=True))
    lines = []
    for length, ends in found.items():
        low, safe = ends[0][0], ends[-1][0]
        inside = sum(math.log(b / a) for a, b in ends[:-1])
        lines.append(
            [length, len(ends), low, safe, inside / math.log(safe / low) if safe > low else None]
        )
    return lab.Table(header, lines, formats=formats)


def _short(length: float) -> str:
    if length % _K:
        return f"{length:.0f}"
    return f"{length / _K:.0f}k" if length < _K**2 else f"{length / _K**2:.0f}M"


def _digits(value: float) -> str:
    """Seven digits or more, with thousands separated."""
    if math.isinf(value):
        return "no end"
    decimals = 0 if value == round(value) else max(0, 6 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


# Figures


@lab.style()
def _draw_bounds(results: dict):
    """Infimum against length with the published entries; below, each relative to the infimum."""
    fig, (top, bottom) = lab.subplots(
        2, 1, size=(8, 7.5), sharex=True, gridspec_kw={"height_ratios": (3, 2)}
    )
    rows = results["bounds"]
    lengths, smallest = np.array([[row["length"], row["smallest"]] for row in rows]).T
    top.loglog(lengths, smallest, "o-", color="#0072B2", label="smallest base", zorder=3)
    for (name, fit), dash in zip(results["fits"].items(), (":", "--"), strict=True):
        curve = fit["factor"] * lengths ** fit["power"]
        label = f"fit of {name}: {fit['factor']:.3g} L^{fit['power']:.3f}"
        top.loglog(lengths, curve, dash, color="#7F7F7F", label=label)
    top.set(ylabel="base", title="Smallest base that meets the requirement at length L")
    top.legend()
    bottom.axhline(1, color="#0072B2")
    for who in PUBLISHED:
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
    return fig


def _draw_published(ax, rows: list[dict], who: str) -> None:
    known = [row for row in rows if row[who] is not None]
    for row in known:
        ratio = row[who] / row["smallest"]
        ax.plot(row["length"], ratio, **_LOOKS[who])
        if row[f"{who} fails at"] is not None:
            ax.plot(row["length"], ratio, "x", color="black", markersize=13)
    if known:
        ax.plot([], [], **_LOOKS[who], label=who)


@lab.style()
def _draw_intervals(results: dict):
    """One bar per length: which bases meet the requirement, with the published entries."""
    found = results["intervals"]
    fig, ax = lab.subplots(size=(9, 1.4 + 0.7 * len(found)))
    right = 3 * max(ends[-1][0] for ends in found.values())
    left = min(ends[0][0] for ends in found.values()) / 1.6
    rows = {row["length"]: row for row in results["bounds"]}
    for y, (length, ends) in enumerate(found.items()):
        ax.broken_barh([(left, right - left)], (y - 0.32, 0.64), color="#F3D9C8")
        bars = [(low, min(high, right) - low) for low, high in ends]
        ax.broken_barh(bars, (y - 0.32, 0.64), color="#0072B2", linewidth=0.3)
        for who, look in _LOOKS.items():
            base = rows.get(length, {}).get(who)
            if base is not None:
                ax.plot(base, y + 0.42, **look, clip_on=False)
    ax.set(xscale="log", xlim=(left, right), xlabel="base", ylabel="length L, tokens")
    ax.set_yticks(range(len(found)), [_short(n) for n in found])
    ax.set_title("Bases that meet the requirement (blue) come in many intervals", loc="left")
    for who, look in _LOOKS.items():
        ax.plot([], [], **look, label=who)
    ax.legend(loc="upper left", title="published smallest base")
    ax.grid(axis="y", visible=False)
    return fig


if __name__ == "__main__":
    lab.run(main, "experiments.base_bound")
