"""Compiles MaxText's training step with MaxText's own command and keeps what came out.

benchmarks/maxtext.py runs this in MaxText's interpreter: maxtext_compile.py OUT.json KEY=VALUE ...
It stands alone, since that interpreter has other packages.
"""

import gzip
import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path

from maxtext.trainers.pre_train import train_compile

_SIZES = ("argument", "output", "alias", "temp", "generated_code", "host_temp")


def main(out: str, *settings: str) -> None:
    """Writes OUT.json (memory, seconds, or the compiler's refusal) and OUT.hlo.gz, the program."""
    path, compile_once = Path(out), train_compile.jit_and_compile
    result, began = {}, time.perf_counter()

    def kept(function, inputs, named, mesh, *rest):
        nonlocal began
        result["coordinates"] = [list(device.coords) for device in mesh.devices.flat]
        began = time.perf_counter()
        compiled = compile_once(function, inputs, named, mesh, *rest)
        result["compile_seconds"] = time.perf_counter() - began
        sizes = compiled.memory_analysis()
        result["memory"] = {name: getattr(sizes, f"{name}_size_in_bytes") for name in _SIZES}
        result["memory"]["peak"] = sizes.peak_memory_in_bytes
        text = compiled.as_text() or ""
        path.with_suffix(".hlo.gz").write_bytes(gzip.compress(text.encode(), 3))
        return compiled

    train_compile.jit_and_compile = kept
    config = Path(train_compile.__file__).parents[2] / "configs/base.yml"
    try:
        train_compile.main(["train_compile", str(config), *settings])
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result["refused"] = str(error)[:2000]
        result["compile_seconds"] = time.perf_counter() - began
    names = ("maxtext", "jax", "jaxlib", "libtpu")
    result["versions"] = {name: importlib.metadata.version(name) for name in names}
    result["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
