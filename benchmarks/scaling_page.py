"""What benchmarks/scaling.py writes: a CSV file, a figure and docs/scaling.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling_tables import SPARE, Pairs, Table, name_of
from experiments.lab import figures, files
from longrope_jax.aot.compilation import REVISION
from longrope_jax.aot.memory import hbm_gib, needed, peak_gib, spare_percent
from longrope_jax.aot.roofline import roofline
from longrope_jax.aot.workload import Workload, mesh_text

_SIZES = ("argument", "temp", "output", "alias", "peak")
_MEASURED = ("matmul_flops", "kernel_flops", "model_flops", "hbm_bytes")
_BOUNDS = ("compute", "hbm", "bound", "as_compiled", "mfu_bound", "mfu_as_compiled")


def save_numbers(found: Pairs, path: Path) -> None:
    """Writes one row per program, with all of its single numbers, as a CSV file."""
    rows = [_numbers(work, result) for work, result in found]
    header = list(dict.fromkeys(name for row in rows for name in row))
    files.save_csv(path, header, [[row.get(name) for name in header] for row in rows])


def _numbers(work: Workload, result: Mapping[str, Any]) -> dict[str, Any]:
    row = {"program": work.program, "model": work.model, "length": work.length}
    row |= {"topology": work.topology, "mesh": mesh_text(work.mesh), "remat": work.remat}
    row |= {"context": work.context, "tokens": result["tokens"]}
    row |= {name: result[name] for name in ("compile_seconds", "host_bytes")}
    if "refused" in result:
        return row | {"refused_needing_gib": needed(result["refused"])}
    times = roofline(work, result["measured"])
    row |= {f"{size}_bytes": result["memory"][size] for size in _SIZES}
    row |= {"spare_percent": spare_percent(work, result)}
    row |= {name: result["measured"][name] for name in _MEASURED}
    row |= {"compiler_flops_once": result["xla"]["flops"]}
    return row | {name: times[name] for name in (*_BOUNDS, "computed_per_model_flop")}


@figures.style()
def draw_memory(found: Pairs, path: Path) -> None:
    """Draws the peak memory of every program against its chip's HBM."""
    fig, ax = figures.subplots(size=(9, 1.2 + 0.3 * len(found)))
    y = np.arange(len(found))
    share = np.array([100 * peak_gib(result) / hbm_gib(work) for work, result in found])
    fits = np.array(["refused" not in result for _, result in found])
    colours = figures.colours(["fits", "refused"])
    ax.barh(y[fits], share[fits], color=colours[0], label="fits")
    ax.barh(y[~fits], share[~fits], color=colours[1], label="refused")
    ax.axvline(100, color="black", linewidth=1)
    ax.axvline(100 - SPARE, color="black", linewidth=0.8, linestyle="--")
    ax.set_yticks(y, [name_of(work) for work, _ in found], fontsize=7)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlabel("peak memory of a device, % of HBM (dashed: 5 % spare)")
    ax.legend()
    figures.save_figure(fig, path)


_HEAD = """# Scaling: what fits on which TPU slice, without a TPU

<!-- Written by python -m benchmarks.scaling: change benchmarks/scaling_page.py, not this. -->

Each program is the real one (`training.make_train_step`, the prefill and decode steps of
`generate`), compiled ahead of time by `libtpu` for a slice that need not be there. What fits is
the compiler's verdict; times are bounds from the chips' data sheets, not measurements.

```sh
pip install "longrope_jax[aot]"
# any model, length and slice: training, prefill and decode, a few minutes on one core
longrope fits llama2_7b --length 32768 --topology v5p:4x4x4
# the smallest slice of a chip that trains it, found by compiling; minutes for each that fits
longrope fits llama2_7b --length 32768 --topology v5p
# this page; programs that are done are not compiled again
python -m benchmarks.scaling
```

Chips: v5p 459 TFLOP/s bf16, 2,765 GB/s HBM, 6 links of 100 GB/s each way; v5e 197 TFLOP/s,
819 GB/s, 4 links of 50 GB/s; v6e 918 TFLOP/s, 1,638 GB/s, 4 links of 100 GB/s (Google Cloud's data
sheets). The compiler offers programs 95.74, 15.75 and 31.25 GiB. All numbers:
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
- Blockwise attention (prefill, decode) has loops whose bounds depend on data; their mean under
  causality without packing is taken, and packed documents cost less. The splash kernels, alone or
  in a ring, compare documents and skip none.
- A slice counts as a set of equal links; congestion, latency and the hosts' network are left out.
"""


_EARLIER = """These programs were compiled before queries and keys were turned in one pass on TPUs,
which took 17 % off the HBM traffic of 7B at 32k on four v5p chips and 0.3 % off its peak, and added
0.2 % to its arithmetic. Without their files in `docs/results/compile_tpu/cells` they are compiled
again:"""

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


def markdown(tables: Sequence[Table], found: Pairs) -> str:
    """The text of docs/scaling.md."""
    parts = [_HEAD]
    for table in tables:
        lines = [f"\n## {table.title}\n", _row(table.header)]
        lines.append("|" + "---|" * len(table.header))
        lines += [_row(map(_cell, row)) for row in table.rows]
        parts.append("\n".join(lines) + "\n" + (f"\n{table.note}\n" if table.note else ""))
    earlier = [name_of(work) for work, r in found if r.get("revision", 1) < REVISION]
    if earlier:
        parts.append(f"\n## Of an earlier revision\n\n{_EARLIER}\n\n{'; '.join(earlier)}.\n")
    compilers = sorted({", ".join(map(" ".join, r["versions"].items())) for _, r in found})
    return "".join(parts) + _CAVEATS + _ON_A_CPU + f"\nCompiled with {' or '.join(compilers)}.\n"


def _row(cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float) and value == value:  # NaN aside
        large = f"{value:,.0f}" if value < 1e9 else f"{value:.3e}"
        return f"{value:.3g}" if value < 1000 else large
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
