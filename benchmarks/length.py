"""Time and memory against length on SmolLM2-135M's shape, with fitted exponents.

    python -m benchmarks.length --threads=2

Seconds of one row's loss, and of its gradient, up to 32,768 tokens as long as a point is expected
to take at most --seconds and three quarters of the memory; each in a process of its own,
compilation not timed. Memory is what the compiler sets aside for intermediate values, to 131,072
tokens with nothing run: float32, without weights and gradients. An exponent p is the least-squares
fit of c T^p to all points of a curve; beside it that of the last two points alone.
"""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks import process, ratios

# Curve: what is computed, and whether it is also timed.
CURVES = {
    "forward": ({"backward": False}, True),
    "forward + backward": ({"backward": True}, True),
    "forward + backward, remat=attention": ({"backward": True, "remat": "attention"}, True),
    "forward + backward, remat=full": ({"backward": True, "remat": "full"}, False),
    "the same, scores held whole": (
        {"backward": True, "remat": "full", "attention": "reference"},
        False,
    ),
}
_GIB = 2**30


def main(argv: list[str] | None = None) -> dict:
    """Measures, prints, writes length.json and length.png; returns what the former holds."""
    args = _parser().parse_args(argv)
    from benchmarks.compare import machine
    from benchmarks.work import SIZES
    from experiments import lab
    from experiments.lab import files, reports

    sizes, out = SIZES[args.sizes], Path(args.out)
    common = {"sizes": args.sizes, "threads": args.threads, "folder": ""}
    curves = {}
    for name, (options, timed) in CURVES.items():
        request = common | {"do": "point", "options": options}
        curves[name] = _curve(name, request, sizes, args.seconds if timed else -1)
    command = shlex.join(["python", "-m", "benchmarks.length", *(argv or sys.argv[1:])])
    found = {"command": command, "machine": machine(args.threads), "curves": curves}
    files.save_json(out / "length.json", found)
    draw(curves, out / "length.png")
    for title, header, rows in tables(curves):
        reports.print_table(lab.Table(header, rows, title))
    return found


def _curve(name: str, request: dict, sizes, seconds: float) -> dict:
    """Bytes at every length, and seconds at those that are worth the wait."""
    lengths, times, memory = list(sizes.lengths), [], []
    for T in lengths:
        expected = 4 * times[-1] if times else 0  # attention alone grows with the square
        run = len(times) == len(memory) and expected <= seconds and sizes.long >= T
        point = process.start(request | {"contender": f"{name}, {T}", "length": T, "run": run})
        memory.append(point["temporary_bytes"])
        times += [point["seconds"]] if "seconds" in point else []
        done = f", {point['seconds']:.2f} s" if "seconds" in point else ""
        print(f"{name}, {T:,} tokens: {memory[-1] / _GIB:.2f} GiB{done}", flush=True)
    curve = {"lengths": lengths, "temporary_bytes": memory, "seconds": times}
    curve["memory_exponent"] = exponents(lengths, memory)
    if len(times) > 1:
        curve["time_exponent"] = exponents(lengths[: len(times)], times)
    return curve


def exponents(x: list, y: list) -> tuple[float, float]:
    """Returns the exponent of a power law through all points, and that of the last two."""
    return ratios.exponent(x, y), ratios.exponent(x[-2:], y[-2:])


def tables(curves: dict) -> list[tuple]:
    """Title, header and rows of what is printed: seconds, then memory."""
    return [
        _table("Seconds", curves, "seconds", "time_exponent", "{:.2f}", 1),
        _table(
            "Compiled memory, GiB", curves, "temporary_bytes", "memory_exponent", "{:.2f}", _GIB
        ),
    ]


def _table(title, curves, what, exponent, form, unit) -> tuple:
    lengths = max((curve["lengths"] for curve in curves.values()), key=len)
    rows = []
    for name, curve in curves.items():
        if exponent in curve:
            cells = [f"{value / unit:.2f}" for value in curve[what]]
            fits = "{:.2f} ({:.2f})".format(*curve[exponent])
            rows.append((name, *cells, *[""] * (len(lengths) - len(cells)), fits))
    header = ("", *(f"{T:,}" for T in lengths), "exponent (last)")
    return title, header, rows


def draw(curves: dict, path: Path) -> None:
    """Both as lines on logarithmic axes."""
    from experiments.lab import figures

    with figures.style():
        figure, axes = figures.subplots(1, 2, size=(11, 4.5))
        _panel(axes[0], curves, "seconds", "time_exponent", "seconds", 1)
        _panel(axes[1], curves, "temporary_bytes", "memory_exponent", "compiled memory, GiB", _GIB)
        figures.save_figure(figure, path)


def _panel(axis, curves, what, exponent, label, unit) -> None:
    for name, curve in curves.items():
        if exponent in curve:
            y = [value / unit for value in curve[what]]
            legend = f"{name}: T^{curve[exponent][0]:.2f}"
            axis.loglog(curve["lengths"][: len(y)], y, "o-", base=2, markersize=4, label=legend)
    axis.set_xlabel("tokens")
    axis.set_ylabel(label)
    axis.legend(fontsize=8)


def _parser() -> argparse.ArgumentParser:
    parser = process.parser("length")
    parser.add_argument("--seconds", type=float, default=900, help="longest point to be timed")
    return parser


if __name__ == "__main__":
    process.command_line(main)
