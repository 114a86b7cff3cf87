"""Compiles a workload with libtpu, in a process of its own, and keeps what came out.

libtpu then disturbs no other JAX program, its memory can be measured, and a compiler that dies
takes nothing along. The process is `python -m longrope_jax.aot.compilation WORKLOAD TOKENS FOLDER`
with the workload as JSON.
"""

import dataclasses
import gzip
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from longrope_jax.aot import programs, roofline
from longrope_jax.aot.workload import Workload

# No TPU is looked for on this host, and several compilers may run at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
# Raised where a change of this package changes what every program moves or computes, so that kept
# results of earlier programs can be told. 2: queries and keys turn in one pass on TPUs.
REVISION = 2
_SIZES = ("argument", "output", "alias", "temp", "generated_code", "host_temp")


def compiled(workload: Workload, tokens: int, folder: Path) -> dict[str, Any]:
    """What the compiler says of a workload; a result that the folder holds is read, not made again.

    Args:
        workload: What to compile.
        tokens: Tokens of a training step.
        folder: Where SLUG.json (memory, costs, times, or why it does not fit) and the text of the
            program, SLUG.hlo.gz, are kept.

    Raises:
        ValueError: The compiler fails for another reason than memory; the message is its last line.
    """
    path = folder / f"{workload.slug}.json"
    if path.exists() and (found := json.loads(path.read_text()))["tokens"] == tokens:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(workload))]
    command += [str(tokens), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"{workload}: {lines[-1].removeprefix('ValueError: ')}")
    return json.loads(path.read_text())


def compile_here(workload: Workload, tokens: int, folder: Path) -> None:
    """Compiles a workload in this process, whose environment should hold ENVIRONMENT."""
    mesh = programs.mesh_of(workload)
    began = time.perf_counter()
    lowered = programs.lower(workload, mesh, tokens)
    lower_seconds = time.perf_counter() - began
    began = time.perf_counter()
    result: dict[str, Any] = {"workload": str(workload), "tokens": tokens, "revision": REVISION}
    executable = None
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result["refused"] = str(error)[:2000]
    result |= {
        "lower_seconds": lower_seconds,
        "compile_seconds": time.perf_counter() - began,
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "libtpu")},
    }
    if executable is not None:
        text = executable.as_text() or ""
        (folder / f"{workload.slug}.hlo.gz").write_bytes(gzip.compress(text.encode(), 3))
        where = [list(device.coords) for device in mesh.devices.flat]
        result |= {"memory": _memory(executable), "xla": _cost(executable)}
        result["measured"] = roofline.measure(workload, tokens, text, where)
    path = folder / f"{workload.slug}.json"
    # Renamed at the end, so that a result that is there is whole.
    half = path.with_suffix(f".{os.getpid()}.tmp")
    half.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    half.replace(path)


def _memory(executable) -> dict[str, int]:
    """Bytes on each device."""
    found = executable.memory_analysis()
    sizes = {name: getattr(found, f"{name}_size_in_bytes") for name in _SIZES}
    return sizes | {"peak": found.peak_memory_in_bytes}


def _cost(executable) -> dict[str, float]:
    """The compiler's own count, which takes the body of every loop once."""
    found = executable.cost_analysis()
    return {"flops": found["flops"], "bytes": found["bytes accessed"]}


def read_workload(text: str) -> Workload:
    """A workload from the JSON of its fields."""
    fields = json.loads(text)
    return Workload(**fields | {"mesh": tuple(map(tuple, fields["mesh"]))})


if __name__ == "__main__":
    compile_here(read_workload(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
