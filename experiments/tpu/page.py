"""What compile_tpu writes: rows for a CSV file, a figure, the report and docs/scaling.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import report
from experiments.tpu import account, chips
from experiments.tpu.cells import Cell
from experiments.tpu.tables import GIB, SPARE, Table, mesh_text, name_of, needed, spare

TITLE = "Long context on TPU slices, compiled without a TPU"


def flat(cells: Sequence[Cell], results: Sequence[Mapping]) -> tuple[list[str], list[list]]:
    """Header and one row per cell, of all single numbers."""
    header = ["program", "model", "length", "topology", "mesh", "remat", "context", "tokens"]
    sizes = ["argument", "temp", "output", "alias", "peak"]
    numbers = ["matmul_flops", "kernel_flops", "model_flops", "hbm_bytes"]
    bounds = ["compute", "hbm", "bound", "as_compiled", "mfu_bound", "mfu_as_compiled"]
    bounds += ["computed_per_model_flop"]
    rows = []
    for cell, r in zip(cells, results, strict=True):
        head = [cell.program, cell.model, cell.length, cell.topology, mesh_text(cell)]
        row = [*head, cell.remat, cell.context, r["tokens"], r["compile_seconds"], r["host_bytes"]]
        if "refused" in r:
            width = len(sizes) + len(numbers) + len(bounds) + 2
            rows.append([*row, *[None] * width, needed(r["refused"])])
            continue
        times = account.roofline(cell, r["measured"])
        row += [r["memory"][size] for size in sizes] + [spare(cell, r)]
        row += [r["measured"][n] for n in numbers] + [r["xla"]["flops"]]
        rows.append([*row, *(times[b] for b in bounds), None])
    header += ["compile_seconds", "host_bytes", *(f"{size}_bytes" for size in sizes)]
    header += ["spare_percent", *numbers, "compiler_flops_once", *bounds, "refused_needing_gib"]
    return header, rows


@report.style()
def draw_memory(cells: Sequence[Cell], results: Sequence[Mapping], path: Path) -> None:
    """Peak of every cell against its chip's HBM."""
    pairs = list(zip(cells, results, strict=True))
    fig, ax = report.subplots(size=(9, 1.2 + 0.3 * len(pairs)))
    y = np.arange(len(pairs))
    hbm = np.array([chips.chip(cell.topology).hbm / GIB for cell, _ in pairs])
    peak = np.array(
        [needed(r["refused"]) if "refused" in r else r["memory"]["peak"] / GIB for _, r in pairs]
    )
    fits = np.array(["refused" not in r for _, r in pairs])
    colours = report.colours(["fits", "refused"])
    ax.barh(y[fits], (100 * peak / hbm)[fits], color=colours[0], label="fits")
    ax.barh(y[~fits], (100 * peak / hbm)[~fits], color=colours[1], label="refused")
    ax.axvline(100, color="black", linewidth=1)
    ax.axvline(100 - SPARE, color="black", linewidth=0.8, linestyle="--")
    ax.set_yticks(y, [name_of(cell) for cell, _ in pairs], fontsize=7)
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.set_xlabel("peak memory of a device, % of HBM (dashed: 5 % spare)")
    ax.legend()
    report.save_figure(fig, path)


def sections(found: Sequence[Table], figure: Path) -> list[report.Section]:
    """Of the HTML report."""
    parts = [
        report.Section(t.title, [report.Table(t.header, t.rows), report.Text(t.note)])
        for t in found
    ]
    first = report.Figure(figure, "Peak memory of each program on one device.")
    return [*parts[:1], report.Section("Memory at a glance", [first]), *parts[1:]]


_HEAD = """# Scaling: what fits on which TPU slice, without a TPU

<!-- Written by experiments/compile_tpu.py: change that, not this. -->

Each program is the real one (`training.make_train_step`, the prefill and decode steps of
`generate`), compiled ahead of time by `libtpu` for a slice that need not be there. What fits is
the compiler's verdict; times are bounds from the chips' data sheets, not measurements.

```sh
pip install "longrope_jax[aot]"
# one model on one slice: training, prefill and decode, a few minutes on one core
python -m experiments.compile_tpu --config=configs/llama2_7b_long.py --topology=v5p:4x4x4
# this page; cells that are done are not compiled again
python -m experiments.compile_tpu --config=configs/compile_tpu.py:table \\
    --workdir=docs/results/compile_tpu --config.page=docs/scaling.md
```

Chips: v5p 459 TFLOP/s bf16, 2,765 GB/s HBM, 6 links of 100 GB/s each way; v5e 197 TFLOP/s,
819 GB/s, 4 links of 50 GB/s (Google Cloud's data sheets). The compiler offers programs 95.74 and
15.75 GiB. All numbers: [results.json](results/compile_tpu/results.json),
[cells.csv](results/compile_tpu/cells.csv).

![Peak memory of each program](results/compile_tpu/memory.png)
"""

_CAVEATS = """
## What this does not say

- No step was run: the bounds assume peak rates of the matrix units, of HBM and of the links, which
  no real program reaches; a step's real time, and its energy, are larger.
- Kernels are counted by whole blocks and read each array once here; the splash kernel reads keys
  and values once per block of queries.
- Only one compiler was asked, with its default options.
- Blockwise attention (ring attention, prefill, decode) has loops whose bounds depend on data; their
  mean under causality without packing is taken. Packed documents cost less.
- A slice counts as a set of equal links; congestion, latency and the hosts' network are left out.
"""


_ON_A_CPU = """
## Time and memory against length, on a CPU

```sh
python -m benchmarks.length --threads=2
```

![Seconds and compiled memory from 1k to 128k tokens](results/benchmarks/length.png)

SmolLM2-135M's shape in float32; memory is what the compiler sets aside for intermediate values.
Attention's work grows with the square of the length, so the exponents of time rise towards 2; those
of memory come to 1, where scores that are held whole have 2. The committed figure was drawn with
`--seconds=240`, which ends the gradients' curves of time at 8k tokens; the default goes further.
Where the time of one step goes: `python -m benchmarks.profile --threads=2`. Beside transformers in
PyTorch: the README's section on speed.
"""


def markdown(found: Sequence[Table], versions: Mapping[str, Any]) -> str:
    """docs/scaling.md."""
    parts = [_HEAD]
    for table in found:
        lines = [f"\n## {table.title}\n", _row(table.header)]
        lines.append("|" + "---|" * len(table.header))
        lines += [_row(map(_cell, row)) for row in table.rows]
        parts.append("\n".join(lines) + "\n" + (f"\n{table.note}\n" if table.note else ""))
    shown = ", ".join(f"{name} {value}" for name, value in versions.items())
    return "".join(parts) + _CAVEATS + _ON_A_CPU + f"\nVersions: {shown}.\n"


def _row(cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float) and value == value:  # NaN aside
        large = f"{value:,.0f}" if value < 1e9 else f"{value:.3e}"
        return f"{value:.3g}" if value < 1000 else large
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
