"""Where the time of one training step goes: forward, backward and AdamW on SmolLM2-135M's shape.

    python -m benchmarks.profile --threads=2

The compiled step runs once under jax.profiler. Each operation's own time (without what runs inside
it) goes to the part of the model whose name XLA kept with it: a fusion counts whole for the part
that its result belongs to, an operation without a name for that of its first user. Operations may
run side by side, so that their sum can exceed the step; the trace itself costs a little, which the
two totals below the table show.
"""

import argparse
from pathlib import Path

from benchmarks import process


def main(argv: list[str] | None = None) -> dict:
    """Measures in a process of its own, prints, writes profile.json; returns what it holds."""
    args = _parser().parse_args(argv)
    from experiments import lab
    from experiments.lab import files, reports

    common = {"sizes": args.sizes, "threads": args.threads, "folder": ""}
    found = process.start(common | {"do": "profile", "remat": args.remat})
    files.save_json(Path(args.out) / "profile.json", found)
    title = f"One training step of {found['tokens']} tokens, remat={args.remat}"
    header = ("part", "forward s", "backward s", "share")
    reports.print_table(lab.Table(header, printed(found["parts"]), title))
    total = sum(sum(times.values()) for times in found["parts"].values())
    print(f"operations {total:.2f} s; step {found['step_seconds']:.2f} s,", end=" ")
    print(f"under the profiler {found['traced_seconds']:.2f} s")
    return found


def printed(parts: dict[str, dict[str, float]]) -> list[tuple]:
    """Cells of the table, the longest first."""
    total = sum(sum(times.values()) for times in parts.values())
    rows = sorted(parts.items(), key=lambda item: -sum(item[1].values()))
    return [
        (name, f"{t['forward']:.3f}", f"{t['backward']:.3f}", f"{sum(t.values()) / total:.1%}")
        for name, t in rows
    ]


def _parser() -> argparse.ArgumentParser:
    parser = process.parser("profile")
    parser.add_argument("--remat", default="none", help="what the backward finds saved")
    return parser


if __name__ == "__main__":
    process.command_line(main)
