"""One process per measurement: `python -m benchmarks.process JSON` prints one line of JSON.

The process keeps to the first N of its cores before it imports any array library, so that XLA,
PyTorch and BLAS all take N threads.
"""

import argparse
import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
# For both sides: memory that is freed is kept, as the Makefile has it.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
}
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start(request: dict) -> dict:
    """Runs `request` in a process of its own and returns what it printed.

    Raises:
        ValueError: the process failed; the text is its last line.
    """
    environment = os.environ | {name: str(request["threads"]) for name in _BLAS}
    environment |= KEEP_MEMORY | {
        "JAX_PLATFORMS": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "USE_TF": "0",
    }
    command = [sys.executable, "-m", "benchmarks.process", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        what = request.get("contender", request["do"])
        raise ValueError(f"{what} ended with status {done.returncode}: {last}")
    return json.loads(lines[-1])


def parser(name: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks take."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default="smollm2_135m", choices=("smollm2_135m", "tiny"))
    parser.add_argument("--out", default="docs/results/benchmarks", metavar="DIR")
    return parser


def command_line(main: Callable) -> None:
    """main(), where a wrong option or a failed process is one line of error."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def keep_to(threads: int) -> None:
    """Keeps this process to the first `threads` of its cores.

    Raises:
        ValueError: it has fewer, or the system cannot tell.
    """
    cores = available()
    if not 1 <= threads <= len(cores):
        raise ValueError(f"{threads} threads on {len(cores)} cores: use --threads=1..{len(cores)}")
    os.sched_setaffinity(0, cores[:threads])


def available() -> list[int]:
    """Cores that this process may use.

    Raises:
        ValueError: not on Linux.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise ValueError("benchmarks keep processes to cores, which needs Linux")
    return sorted(os.sched_getaffinity(0))


def peak_bytes() -> int:
    """Largest resident set of this process so far, shared libraries and mapped files included.

    Linux counts from that of the process which started it: keep that one small.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(request: dict) -> dict:
    """Does what `request` says, in this process.

    "export" writes the checkpoints; "logits" saves a contender's; "bandwidth" measures memory;
    "time" measures one contender at one work; "point" and "profile" belong to those scripts.
    """
    from benchmarks import bandwidth, step_profile, work  # not before the threads are set

    sizes = work.SIZES[request["sizes"]]
    if request.get("items"):
        sizes = dataclasses.replace(sizes, items=request["items"])
    folder = Path(request["folder"])
    match request["do"]:
        case "bandwidth":
            return {"bytes_per_second": bandwidth.measure(request["threads"])}
        case "export":
            importlib.import_module("benchmarks.ours").export(sizes, folder)
            return {}
        case "point":
            options = {"length": request["length"], "run": request["run"], **request["options"]}
            return importlib.import_module("benchmarks.ours").point(sizes, **options)
        case "profile":
            return step_profile.step_profile(sizes, request["remat"])
        case "logits":
            import numpy as np

            module = importlib.import_module(f"benchmarks.{request['contender']}")
            np.save(folder / f"{request['contender']}.npy", module.logits(sizes, folder))
            return {}
    return _measured(request, sizes, folder, work.WORKS[request["work"]])


def _measured(request, sizes, folder, work) -> dict:
    contender = work.contenders[request["contender"]]
    began = time.perf_counter()
    module = importlib.import_module(f"benchmarks.{contender.module}")
    threads = module.use_threads(len(available()))
    once = getattr(module, contender.function)(sizes, folder, **contender.options)
    ready_peak = peak_bytes()
    results = [once() for _ in range(work.warm)]
    prepared = time.perf_counter()
    processor = time.process_time()
    results += [once() for _ in range(min(request["samples"], work.samples or request["samples"]))]
    cores = (time.process_time() - processor) / (time.perf_counter() - prepared)
    timed = results[work.warm :]
    return {
        "threads": threads,
        "prepare_seconds": prepared - began,
        "cores": cores,
        "ready_peak_bytes": ready_peak,
        "peak_bytes": peak_bytes(),
        "seconds": [seconds for seconds, _, _ in timed],
        "tokens": results[0][2],
        "values": [float(v) for v in results[0][1]],
    }


if __name__ == "__main__":
    todo = json.loads(sys.argv[1])
    keep_to(todo["threads"])
    print(json.dumps(run(todo)))
