"""Compiles tiny programs for TPUs in one process: `python -m tests.aot_driver DIR WORKLOADS`."""

import json
import sys
from pathlib import Path

from longrope_jax import llama
from longrope_jax.aot import compilation
from longrope_jax.aot.workload import Workload

TOKENS = 24_576
# Every size is another number, so that shapes in the compiled programs can be recognised.
TINY = llama.LlamaConfig(2176, 256, 3, 4, 2, 128, 640)


def main(folder: Path, workloads: str) -> None:
    """Compiles the workloads of a JSON object into a folder for each, for a model of no preset."""
    llama.PRESETS["tiny"] = TINY
    for name, (program, length, topology, mesh, *how) in json.loads(workloads).items():
        work = Workload(program, "tiny", length, topology, tuple(mesh.items()), *how)
        (folder / name).mkdir()
        compilation.compile_here(work, TOKENS, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
