"""Compiles tiny cells for TPUs: `python -m tests.compile_tpu_driver DIR CELL ...`, one process."""

import sys
from pathlib import Path

from experiments.tpu import worker  # before jax is used: it sets the environment
from longrope_jax import llama

TOKENS = 24_576
# Every size is another number, so that shapes in the compiled programs can be recognised.
TINY = llama.LlamaConfig(2176, 256, 3, 4, 2, 128, 640)


def main(folder: Path, cells: list[str]) -> None:
    """Writes what `worker` writes, for a model that is no preset."""
    llama.PRESETS["tiny"] = TINY
    for cell in cells:
        worker.main(cell, TOKENS, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
