"""Speed and memory against transformers' Llama in PyTorch on the CPU: ratios of medians.

    python -m benchmarks.compare --threads=2

Same random weights (SmolLM2-135M's shape, written by `weights.save`, read by both), float32, same
cores. Contenders take turns, each time in a new process; a first call, which compiles, is not
timed. Before that, logits of both are compared, and within each work the losses, gradient norms and
chosen tokens: with another result than the peer's there is no ratio.

speed   tokens per second over the peer's: ratio of medians (smallest to largest of the pairs that
        ran one after the other); 2 means twice as fast
memory  peak resident set of the whole process over the peer's: interpreter, libraries, weights,
        gradients, what compilation took
cores   processor time over wall time; below --threads where the work is not parallel, or the
        machine had other work: then the numbers are of a shared machine
prepare seconds to import, load, compile and end the first call, in no other number

Decoding is also compared with the memory's read bandwidth: bytes of all weights and of the filled
cache per token, over the fastest of a few streaming passes (`bandwidth.py`).

Needs `pip install 'longrope_jax[peer,experiments]'` and Linux. Takes about 45 minutes on 2 cores
without `long`, which alone takes about an hour: choose with --only.
"""

import argparse
import dataclasses
import json
import platform
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks import process, ratios
from longrope_jax.errors import unknown_name

TOLERANCE = 1e-3
_GIB = 2**30
_HEADER = (
    "contender",
    "tokens/s",
    "speed / peer",
    "peak GiB",
    "memory / peer",
    "cores",
    "prepare s",
)


def main(argv: list[str] | None = None) -> dict:
    """Measures, prints, writes compare.json; returns what it holds."""
    args = _parser().parse_args(argv)
    from benchmarks.work import SIZES, WORKS
    from experiments import lab
    from experiments.lab import files, reports

    for name in args.only or ():
        if name not in WORKS:
            raise ValueError(unknown_name("work", name, WORKS))
    sizes = SIZES[args.sizes]
    if args.items:
        sizes = dataclasses.replace(sizes, items=args.items)
    command = shlex.join(["python", "-m", "benchmarks.compare", *(argv or sys.argv[1:])])
    path = Path(args.out) / "compare.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        common = {"sizes": args.sizes, "folder": folder, "threads": args.threads}
        common |= {"samples": args.samples, "items": args.items}
        process.start(common | {"do": "export"})
        print(f"logits agree within {_agree(common):.1e}")
        for name in args.only or WORKS:
            runs = take_turns(common | {"work": name}, WORKS[name], args.processes)
            title = WORKS[name].title.format(s=sizes)
            entry = {"title": title, "command": command, "machine": machine(args.threads)}
            entry |= {"rows": rows(runs), "runs": runs}
            if name == "decode":
                entry["bandwidth"] = _bandwidth(common, runs, sizes)
            saved[name] = entry
            reports.print_table(lab.Table(_HEADER, printed(entry["rows"]), title))
            if name == "decode":
                print(_bandwidth_line(entry["bandwidth"]))
            files.save_json(path, saved)
    return saved


def take_turns(request: dict, work, processes: int) -> dict[str, list[dict]]:
    """What the processes of each contender measured, A B A B ...; values must agree.

    Raises:
        ValueError: a process failed, or a contender's values are not the peer's.
    """
    runs = {name: [] for name in work.contenders}
    for _ in range(min(processes, work.processes or processes)):
        for name in work.contenders:
            runs[name].append(process.start(request | {"do": "time", "contender": name}))
    if "peer" in runs:
        for name, own in runs.items():
            off = ratios.disagreement(own[0]["values"], runs["peer"][0]["values"])
            if off > TOLERANCE:
                raise ValueError(f"{request['work']}: {name} is {off:.1e} off the peer's values")
    return runs


def rows(runs: dict[str, list[dict]]) -> list[dict]:
    """One summary per contender, with ratios to the peer's where there is one."""
    out = []
    for name, own in runs.items():
        seconds, peak = (ratios.process_medians(own, what) for what in ("seconds", "peak_bytes"))
        row = {"contender": name, "tokens_per_second": own[0]["tokens"] / ratios.median(seconds)}
        row |= {"peak_bytes": ratios.median(peak)}
        for what in ("cores", "prepare_seconds"):
            row[what] = ratios.median(ratios.process_medians(own, what))
        if "peer" in runs and name != "peer":
            theirs = runs["peer"]
            row["speed"] = ratios.ratio(ratios.process_medians(theirs, "seconds"), seconds)
            row["memory"] = ratios.ratio(peak, ratios.process_medians(theirs, "peak_bytes"))
        out.append(row)
    return out


def printed(rows: list[dict]) -> list[tuple]:
    """Cells of the table."""

    def spread(row, what):
        return "{:.2f} ({:.2f} to {:.2f})".format(*row[what]) if what in row else ""

    return [
        (
            row["contender"],
            f"{row['tokens_per_second']:.1f}",
            spread(row, "speed"),
            f"{row['peak_bytes'] / _GIB:.2f}",
            spread(row, "memory"),
            f"{row['cores']:.2f}",
            f"{row['prepare_seconds']:.1f}",
        )
        for row in rows
    ]


def decode_bytes(config, prompt: int, new: int, *, bytes_per_value: int = 4) -> float:
    """Bytes that one step of decoding has to read: all weights once, the mean filled cache."""
    c = config
    layer = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_model * c.d_ff
    weights = c.n_layers * (layer + 2 * c.d_model) + c.d_model + c.vocab_size * c.d_model
    cache = 2 * c.n_layers * c.n_kv_heads * c.head_dim * (prompt + new / 2)
    return bytes_per_value * (weights + cache)


def machine(threads: int) -> dict:
    """What the numbers were measured on."""
    import importlib.metadata

    names = ("jax", "jaxlib", "torch", "transformers", "numpy")
    packages = {name: importlib.metadata.version(name) for name in names}
    return {"cpu": _cpu(), "threads": threads, "python": platform.python_version()} | packages


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


def _agree(common: dict) -> float:
    """Largest difference of the contenders' logits."""
    import numpy as np

    for name in ("ours", "peer"):
        process.start(common | {"do": "logits", "contender": name})
    ours, peer = (np.load(f"{common['folder']}/{name}.npy") for name in ("ours", "peer"))
    off = float(np.abs(ours - peer).max())
    if not off <= TOLERANCE:
        raise ValueError(f"logits differ by {off:.1e}, more than {TOLERANCE}: not the same model")
    return off


def _bandwidth(common: dict, runs: dict, sizes) -> dict:
    ways = process.start(common | {"do": "bandwidth"})["bytes_per_second"]
    step = decode_bytes(sizes.model, sizes.prompt, sizes.new)
    limit = max(ways.values())
    speeds = {row["contender"]: row["tokens_per_second"] for row in rows(runs)}
    shares = {name: speed * step / limit for name, speed in speeds.items()}
    return {"bytes_per_token": step, "bytes_per_second": ways, "share_of_limit": shares}


def _bandwidth_line(found: dict) -> str:
    limit = max(found["bytes_per_second"].values())
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["share_of_limit"].items())
    step = found["bytes_per_token"] / 1e6
    return f"bandwidth {limit / 1e9:.1f} GB/s, {step:.0f} MB per token, share of it: {shares}\n"


def _parser() -> argparse.ArgumentParser:
    parser = process.parser("compare")
    parser.add_argument("--only", nargs="+", metavar="WORK", help="some works; default all")
    parser.add_argument("--processes", type=int, default=3, help="of each contender, by turns")
    parser.add_argument("--samples", type=int, default=3, help="timed calls per process")
    parser.add_argument("--items", type=int, default=0, help="of HellaSwag, for requests")
    return parser


if __name__ == "__main__":
    process.command_line(main)
