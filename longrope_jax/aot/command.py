"""`longrope fits`: does a model train, prefill and decode at a length on a TPU slice?

    longrope fits llama2_7b --length 32768 --topology v5p:4x4x4

compiles the training step (forward, backward, AdamW), the prefill and the decode step with libtpu
(pip install 'longrope_jax[aot]'; no TPU is needed) and prints memory, FLOPs, collectives and a
bound on the time, after a few minutes on one core. Expected of this command: training peaks at 16.7
of 95.7 GiB per chip, with an MFU of at most 0.65.

    longrope fits llama2_7b --length 32768 --topology v5p

names a chip alone: the smallest of its slices that trains the model is found by compiling for one
after another, with the mesh, the recomputation and the microbatches that take the least time there.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from longrope_jax.aot import chips, compilation, memory, search
from longrope_jax.aot.programs import check_compiler
from longrope_jax.aot.roofline import kv_cache_bytes, roofline
from longrope_jax.aot.workload import PROGRAMS, Workload, default_mesh, mesh_text, shape_of
from longrope_jax.folders import local

_NOTE = (
    "Memory is the compiler's verdict. Times are bounds at peak rates, so a real step is slower; "
    "collectives that are not asynchronous wait. All numbers but tokens/s are per device."
)
Pairs = Sequence[tuple[Workload, Mapping[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("model", help="a preset such as llama2_7b, or a checkpoint")
    parser.add_argument("--length", type=int, required=True, help="tokens per sequence")
    parser.add_argument(
        "--topology",
        required=True,
        help="the slice, such as v5p:4x4x4 or v5e:4x8; a chip alone (v5p): find its smallest slice",
    )
    parser.add_argument(
        "--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="default: all of them"
    )
    parser.add_argument(
        "--mesh",
        help="fsdp=16,tensor=4; default: training by fsdp, then sequence; serving by tensor",
    )
    parser.add_argument(
        "--tokens-per-batch", type=int, default=2**22, help="of a training step (default 4194304)"
    )
    parser.add_argument("--remat", default="full", help="none, attention, linear or full (default)")
    parser.add_argument("--context", default="all_gather", help="all_gather (default) or ring")
    parser.add_argument("--rows", type=int, default=1, help="sequences per shard at one time")
    parser.add_argument("--out", type=Path, help="folder for the numbers and the programs' text")


def main(args: argparse.Namespace) -> int:
    """Compiles what the arguments name, prints the answer, and returns 0.

    Raises:
        ValueError: An argument is wrong, libtpu is missing, or the compiler fails.
    """
    check_compiler()
    if ":" in args.topology:
        print(report(fits(workloads(args), args.tokens_per_batch, args.out)))
    else:
        print(found_report(smallest(args)))
    return 0


def fits(
    works: Sequence[Workload], tokens_per_batch: int = 2**22, out: Path | None = None
) -> Pairs:
    """Compiles workloads and returns what the compiler says of each, for `report`.

    Args:
        works: What to compile.
        tokens_per_batch: Tokens of a training step.
        out: A folder for the numbers and the programs' text; what it holds is not compiled again.

    Raises:
        ValueError: libtpu is missing, or the compiler fails for another reason than memory.
    """
    with _compiler(tokens_per_batch, out) as compiled:
        return [(work, compiled(work)) for work in works]


@contextmanager
def _compiler(tokens: int, out: Path | None) -> Iterator[search.Verdict]:
    """Gives a function that compiles a workload and keeps the result in `out`, if that is given."""

    def compiled(work: Workload) -> Mapping[str, Any]:
        print(f"compiling {work} ...", flush=True)
        return compilation.compiled(work, tokens, Path(where))

    with nullcontext(local(out)) if out else tempfile.TemporaryDirectory() as where:
        yield compiled


def smallest(args: argparse.Namespace) -> Pairs:
    """Searches the smallest slice that trains; all that was compiled, the chosen workload last.

    Raises:
        ValueError: An argument is of no use to the search, or no slice holds the training step.
    """
    given = {
        "--programs": args.programs != PROGRAMS,
        "--mesh": args.mesh,
        "--remat": args.remat != "full",
        "--context": args.context != "all_gather",
        "--rows": args.rows != 1,
    }
    if any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise ValueError(
            f"{names} cannot be given with a chip alone ({args.topology}), since the search finds "
            "them for training: name a slice, such as v5p:4x4x4"
        )
    chips.chip(args.topology)
    shape_of(args.model)
    with _compiler(args.tokens_per_batch, args.out) as compiled:
        where = args.length, args.topology, args.tokens_per_batch
        return search.smallest(args.model, *where, compiled)


def found_report(tried: Pairs) -> str:
    """What a search says: every workload that was compiled, then the answer for the chosen one."""
    rows = [["compiled", "peak, GiB", "spare, %", "s at least"]]
    for work, result in tried:
        fits = "refused" not in result
        facts = bounded(work, result, result["tokens"]) if fits else {}
        rest = [facts.get(name, "refused") for name in ("memory left, %", "seconds at least")]
        rows.append([str(work), f"{memory.peak_gib(result):.3g}", *rest])
    work, _ = tried[-1]
    answer = (
        f"Smallest slice that trains with {search.SPARE:g} % of memory left: {work.topology}, mesh "
        f"{mesh_text(work.mesh)}, remat {work.remat}, rows {work.rows}"
    )
    return "\n".join(["", _aligned(rows), report(tried[-1:]), "", answer])


def workloads(args: argparse.Namespace) -> list[Workload]:
    """The workloads that the arguments name, checked before anything is compiled.

    Raises:
        ValueError: A model, chip, mesh or policy is unknown, or the batch does not divide.
    """
    chips.chip(args.topology)
    config, found = shape_of(args.model), []
    for program in args.programs:
        where = args.length, args.topology
        mesh = default_mesh(program, config, *where, args.tokens_per_batch)
        mesh = read_mesh(args.mesh) if args.mesh else mesh
        how = {"remat": args.remat, "context": args.context} if program == "train" else {}
        work = Workload(program, args.model, *where, mesh, **how, rows=args.rows)
        if program == "train":
            work.accumulated(args.tokens_per_batch)
        found.append(work)
    return found


def read_mesh(text: str) -> tuple[tuple[str, int], ...]:
    """The mesh that a text such as "fsdp=16,tensor=4" says.

    Raises:
        ValueError: The text has another form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(size.isdigit() for _, _, size in pairs):
        raise ValueError(f"mesh must read axis=size,axis=size, got {text!r}")
    return tuple((axis.strip(), int(size)) for axis, _, size in pairs)


def report(found: Pairs) -> str:
    """The answer as text: a column per program, then its collectives.

    Several slices may stand side by side, for one model and length.
    """
    work, result = found[0]
    slices = dict.fromkeys(
        f"{w.topology}: {w.chips} chips of {memory.hbm_gib(w):.2f} GiB" for w, _ in found
    )
    head = (
        f"\n{work.model}, {work.length:,} tokens, {'; '.join(slices)}, "
        f"libtpu {result['versions']['libtpu']}\n"
    )
    columns = [column(work, result) for work, result in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    parts = [head, _aligned([["", *_titles(found)], *rows])]
    if sent := collective_rows(found):
        header = ["program", "collective", "over", "executions", "GB", "s at least"]
        parts += ["", _aligned([header, *sent])]
    return "\n".join([*parts, "", _NOTE])


def column(work: Workload, result: Mapping[str, Any]) -> dict[str, str]:
    """What is said of one program, by name of the line."""
    tokens = result["tokens"] if work.program == "train" else work.batch
    each = {"train": 1, "prefill": work.length, "decode": 1}[work.program]
    cache = kv_cache_bytes(work.config(), work.length) / memory.GIB
    fits = "refused" not in result
    facts = {
        "mesh": mesh_text(work.mesh),
        "batch": f"{tokens:,} " + ("tokens" if work.program == "train" else "sequences"),
        "verdict": "fits" if fits else "does not fit",
        "peak memory, GiB": f"{memory.peak_gib(result):.3g}",
    }
    if fits:
        facts |= bounded(work, result, tokens * each)
    if work.program != "train":
        facts["KV cache of a sequence, GiB"] = f"{cache:.3g}"
    return facts


def bounded(work: Workload, result: Mapping[str, Any], tokens: int) -> dict[str, str]:
    """What is said of a program that fits and computes `tokens` in one run."""
    bounds, measured = roofline(work, result["measured"]), result["measured"]
    flops = (measured["matmul_flops"] + measured["kernel_flops"]) / 1e12
    return {
        "memory left, %": f"{memory.spare_percent(work, result):.3g}",
        "TFLOP computed": f"{flops:.4g}",
        # Above 1 is what the backward pass computes again.
        "computed / model's FLOPs": f"{bounds['computed_per_model_flop']:.3g}",
        "arithmetic, s": f"{bounds['compute']:.3g}",
        "memory traffic, s": f"{bounds['hbm']:.3g}",
        "links, s": f"{sum(bounds['ici'].values()):.3g}",
        "seconds at least": f"{bounds['as_compiled']:.3g}",
        "tokens/s at most": f"{tokens / bounds['as_compiled']:,.0f}",
        "MFU at most": f"{bounds['mfu_as_compiled']:.3g}",
        "limited by": bounds["limit"],
    }


def collective_rows(found: Pairs) -> list[list[str]]:
    """The collectives of every program that fits, above 1 MB, the largest first."""
    return [
        [
            title,
            c["kind"],
            "+".join(c["axes"]),
            f"{c['count']:,.0f}",
            f"{c['bytes'] / 1e9:.3g}",
            f"{c['seconds']:.3g}",
        ]
        for title, (_, result) in zip(_titles(found), found, strict=True)
        for c in result.get("measured", {}).get("collectives", ())
        if c["bytes"] >= 1e6
    ]


def _titles(found: Pairs) -> list[str]:
    """The program of each column, and its slice where there are several."""
    several = len({work.topology for work, _ in found}) > 1
    return [f"{w.program} {w.topology}" if several else w.program for w, _ in found]


def _aligned(rows: list[list[str]]) -> str:
    """Rows as text in columns, all but the first to the right."""
    first, *widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in rows
    )
