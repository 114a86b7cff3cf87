"""docs/scaling.md: Llama 2 Long on the smallest TPU slices that hold it, compiled without a TPU.

    python -m benchmarks.scaling

compiles what docs/results/compile_tpu/cells does not hold yet (an hour on one core for all of it;
needs the extra `aot`, and without anything to compile only `experiments`), and writes the page, its
figure and cells.csv. `longrope fits` answers the same for any model, length and slice.
"""

import argparse
from pathlib import Path

from benchmarks.scaling_workloads import ROOT, TOKENS, WORKLOADS
from longrope_jax.aot import compilation


def main(argv: list[str] | None = None) -> None:
    """Compiles what is missing and writes the page, its figure and the numbers of every program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/compile_tpu")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/scaling.md")
    args = parser.parse_args(argv)
    from benchmarks import maxtext, scaling_page, scaling_tables

    found = []
    for i, work in enumerate(WORKLOADS):
        print(f"{i + 1} of {len(WORKLOADS)}: {work}", flush=True)
        found.append((work, compilation.compiled(work, TOKENS, args.out / "cells")))
    scaling_page.save_numbers(found, args.out / "cells.csv")
    scaling_page.draw_memory(found, args.out / "memory.png")
    args.page.write_text(scaling_page.markdown(scaling_tables.tables(found, maxtext.kept()), found))


if __name__ == "__main__":
    main()
