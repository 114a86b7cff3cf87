"""MaxText beside this project: a training step of each, compiled for the same slice of TPUs.

    python3.12 -m venv MAXTEXT
    MAXTEXT/bin/pip install "maxtext[tpu]==0.2.5"
    MAXTEXT/bin/pip install -e .
    python -m benchmarks.maxtext --python=MAXTEXT/bin/python

MaxText needs Python 3.12 and its own versions of JAX and libtpu, so both programs are compiled by
its interpreter, that is by the same compiler. It is given what this project's workload has: the
model, the length, the mesh, 2^22 tokens per step in as many microbatches, recomputation of whole
layers, its flash attention (tokamax's ring where the workload has a ring), synthetic data. Both
texts are read by the same reader (`longrope_jax.aot.roofline`). Results that
docs/results/maxtext holds are not made again; `python -m benchmarks.scaling` draws them into
docs/scaling.md. Each program takes minutes on a core and 2 GB.
"""

import argparse
import dataclasses
import gzip
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scaling_tables import Table, beside_maxtext
from benchmarks.scaling_workloads import ROOT, TOKENS, train
from longrope_jax.aot import compilation, roofline
from longrope_jax.aot.workload import Workload

WORKLOADS = (
    train("7b", 32_768, "v5p:2x2x1", fsdp=4),
    train("70b", 16_384, "v5p:2x2x4", fsdp=2, tensor=8),
    train("7b", 131_072, "v5p:4x4x4", fsdp=8, sequence=8, context="ring"),
    train("7b", 1_048_576, "v5p:4x4x4", sequence=64, context="ring"),
)
# Of MaxText's slices, v5p counts cores.
_CORES = {"v5p": 2, "v5e": 1, "v6e": 1}
_MODELS = {"llama2_long_7b": "llama2-7b", "llama2_long_70b": "llama2-70b"}


def settings(work: Workload, tokens: int) -> list[str]:
    """MaxText's settings of a workload, KEY=VALUE."""
    chip = work.topology.partition(":")[0]
    given: dict[str, Any] = {
        "run_name": "compiled",
        "base_output_directory": tempfile.gettempdir(),
        "enable_checkpointing": "false",
        "dataset_type": "synthetic",
        "model_name": _MODELS[work.model],
        "compile_topology": f"{chip}-{work.chips * _CORES[chip]}",
        "compile_topology_num_slices": 1,
        "max_target_length": work.length,
        "per_device_batch_size": work.batch / work.chips,
        "gradient_accumulation_steps": work.accumulated(tokens),
        "ici_fsdp_parallelism": work.axis("fsdp"),
        "ici_context_parallelism": work.axis("sequence"),
        "ici_tensor_parallelism": work.axis("tensor"),
        "allow_split_physical_axes": "true",
        "remat_policy": work.remat,
        "attention": "flash",
    }
    if work.context == "ring":
        given |= {"context_parallel_strategy": "ring", "use_tokamax_splash": "true"}
    return [f"{key}={value}" for key, value in given.items()]


def compiled(work: Workload, tokens: int, python: str | Path, folder: Path) -> dict[str, Any]:
    """What one compiler says of this project's program and of MaxText's.

    Args:
        work: What to compile.
        tokens: Tokens of a training step.
        python: MaxText's interpreter, which has this project's packages too.
        folder: Where SLUG.json is kept; what it holds is not made again.

    Raises:
        ValueError: MaxText or this project fails there for another reason than memory.
    """
    path = folder / f"{work.slug}.json"
    if path.exists():
        return json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        there = Path(scratch)
        out = there / "maxtext.json"
        child = [python, "-P", ROOT / "benchmarks/maxtext_compile.py", out, *settings(work, tokens)]
        _run(child)
        theirs = json.loads(out.read_text())
        fields = json.dumps(dataclasses.asdict(work))
        _run([python, "-m", compilation.__name__, fields, str(tokens), there])
        ours = json.loads((there / f"{work.slug}.json").read_text())
        if "refused" not in theirs:
            text = gzip.decompress(out.with_suffix(".hlo.gz").read_bytes()).decode()
            theirs["measured"] = roofline.measure(work, tokens, text, theirs["coordinates"])
    found = {"workload": str(work), "tokens": tokens, "ours": ours, "maxtext": theirs}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _run(command) -> None:
    environment = os.environ | compilation.ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"{Path(command[0]).name} {Path(command[2]).name}: {lines[-1]}")


def kept(folder: Path = ROOT / "docs/results/maxtext") -> list[tuple[Workload, Mapping[str, Any]]]:
    """The results that a folder holds, in the order of WORKLOADS."""
    paths = [(work, folder / f"{work.slug}.json") for work in WORKLOADS]
    return [(work, json.loads(path.read_text())) for work, path in paths if path.exists()]


def main(argv: list[str] | None = None) -> None:
    """Compiles what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maxtext")
    parser.add_argument("--python", type=Path, required=True, help="MaxText's interpreter")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/maxtext")
    parser.add_argument("--only", default="", help="workloads whose words hold this")
    args = parser.parse_args(argv)
    for work in WORKLOADS:
        if args.only in str(work):
            print(work, flush=True)
            compiled(work, TOKENS, args.python.absolute(), args.out)
    print_table(beside_maxtext(kept(args.out)))


def print_table(table: Table) -> None:
    """Prints a table of the page in aligned columns."""
    rows = [
        table.header,
        *([f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in table.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
