"""Compiles one cell in a process of its own: `python -m experiments.tpu.worker CELL TOKENS DIR`.

libtpu then disturbs nobody, its memory can be measured, and a compiler that dies takes nothing
along. Writes DIR/SLUG.json (memory, costs, times, or why it does not fit) and the program's text.
"""

import gzip
import os
import resource
import sys
import time
from pathlib import Path

# Before jax is imported: no TPU is looked for, and several compilers may run at once.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}

import importlib.metadata

import jax

from experiments.files import save_json, write
from experiments.tpu import account, cells, programs

_SIZES = ("argument", "output", "alias", "temp", "generated_code", "host_temp")


def main(text: str, tokens: int, folder: Path) -> None:
    """Compiles the cell and writes what came out."""
    cell = cells.parse(text)
    mesh = programs.mesh_of(cell)
    began = time.perf_counter()
    lowered = programs.lower(cell, mesh, tokens)
    lower_seconds = time.perf_counter() - began
    began = time.perf_counter()
    result = {"cell": text, "tokens": tokens, "lower_seconds": lower_seconds}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, result["refused"] = None, str(error)[:2000]
    result |= {
        "compile_seconds": time.perf_counter() - began,
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "libtpu")},
    }
    if compiled is not None:
        text = compiled.as_text()
        write(folder / f"{cell.slug}.hlo.gz", gzip.compress(text.encode(), 3))
        where = [list(device.coords) for device in mesh.devices.flat]
        result |= {"memory": _memory(compiled), "xla": _cost(compiled)}
        result["measured"] = account.measure(cell, tokens, text, where)
    save_json(folder / f"{cell.slug}.json", result)


def _memory(compiled) -> dict[str, int]:
    """Bytes on each device."""
    found = compiled.memory_analysis()
    sizes = {name: getattr(found, f"{name}_size_in_bytes") for name in _SIZES}
    return sizes | {"peak": found.peak_memory_in_bytes}


def _cost(compiled) -> dict[str, float]:
    found = compiled.cost_analysis()
    return {"flops": found["flops"], "bytes": found["bytes accessed"]}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
