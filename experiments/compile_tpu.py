"""Does it fit, and how fast can it be? Real programs compiled for TPU slices that are not there.

    python -m experiments.compile_tpu --config=configs/llama2_7b_long.py --topology=v5p:4x4x4

compiles the training step (forward, backward, AdamW), the prefill and the decode step of Llama 2
Long 7B with libtpu (`pip install "longrope_jax[aot]"`; no TPU needed), and reports memory per
device, FLOPs, traffic, every collective, a roofline bound on the time, KV cache, energy. Without
--topology all slices of that config; results go to runs/compile_tpu unless --workdir says
otherwise, one file per cell, so that a second run compiles only what is missing. The whole table,
about an hour on one core:

    python -m experiments.compile_tpu --config=configs/compile_tpu.py:table \
        --workdir=docs/results/compile_tpu --config.page=docs/scaling.md

Presets of configs/compile_tpu.py: table, long (131,072 and 1,048,576 tokens with ring attention),
tiny. Expected of the first command, in a few minutes: the training step peaks at 17.7 GiB of 95.7
per chip, MFU at most 0.66.
"""

import json
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli, report
from experiments.tpu import cells as cells_lib
from experiments.tpu import chips, page
from experiments.tpu import tables as tables_lib
from experiments.tpu.cells import Cell
from longrope_jax.errors import unknown_name

WORKDIR = "runs/compile_tpu"


def main(config: ConfigDict, workdir: Path, command: str = "") -> list[dict]:
    """Compiles the cells that are missing, writes the report and returns the results, in order.

    Raises:
        ValueError: a cell or a topology that is not known, no libtpu, a compiler that fails.
    """
    chosen = select(config.cells, config.topology)
    for cell in chosen:  # before anything is compiled
        chips.chip(cell.topology)
        if cell.program == "train":
            cell.accumulated(config.tokens)
    results = []
    for i, cell in enumerate(chosen):
        path = workdir / "cells" / f"{cell.slug}.json"
        if not _is_done(path, config.tokens):
            print(f"{i + 1} of {len(chosen)}: {cell}", flush=True)
            compile_cell(cell, config.tokens, path)
        results.append(json.loads(path.read_text()))
    tables = tables_lib.tables(chosen, results, config)
    header, rows = page.flat(chosen, results)
    record = {"command": command, "config": config, "versions": _versions(results)}
    report.save_json(workdir / "results.json", record | {"cells": _dicts(header, rows)})
    report.save_csv(workdir / "cells.csv", header, rows)
    page.draw_memory(chosen, results, workdir / "memory.png")
    sections = page.sections(tables, workdir / "memory.png")
    report.write_html(workdir / "report.html", page.TITLE, command, sections, record["versions"])
    for table in tables:
        report.print_table(table.title, table.header, table.rows)
    if config.page:
        Path(config.page).write_text(page.markdown(tables, record["versions"]))
    return results


def select(texts: tuple[str, ...], topology: str) -> list[Cell]:
    """The cells of one slice; all where it is empty.

    Raises:
        ValueError: a cell that does not parse, or no cell of that slice.
    """
    cells = [cells_lib.parse(text) for text in texts]
    known = list(dict.fromkeys(cell.topology for cell in cells))
    if topology and topology not in known:
        raise ValueError(unknown_name("slice of this config", topology, known))
    return [cell for cell in cells if topology in ("", cell.topology)]


def compile_cell(cell: Cell, tokens: int, path: Path) -> None:
    """Runs the compiler in a process of its own, which writes `path`.

    Raises:
        ValueError: it fails for another reason than memory; its last words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.tpu.worker"]
    command += [str(cell), str(tokens), str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"{cell}: {lines[-1].removeprefix('ValueError: ')}")


def _is_done(path: Path, tokens: int) -> bool:
    return path.exists() and json.loads(path.read_text())["tokens"] == tokens


def _versions(results: list[dict]) -> dict:
    compilers = {", ".join(map(" ".join, result["versions"].items())) for result in results}
    return report.versions() | {"compiled with": " or ".join(sorted(compilers))}


def _dicts(header, rows) -> list[dict]:
    return [dict(zip(header, row, strict=True)) for row in rows]


def arguments(argv: list[str]) -> list[str]:
    """The command line with --topology as the config's field, and a directory if there is none."""
    short = "--topology"
    argv = [a.replace(short, "--config.topology", 1) if a.startswith(short) else a for a in argv]
    named = any(a.startswith("--workdir") for a in argv)
    return argv if named else [*argv, f"--workdir={WORKDIR}"]


if __name__ == "__main__":
    cli.run(main, "compile_tpu", arguments(sys.argv))
