"""The tables of docs/scaling.md, and what has to be known to read each of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from longrope_jax import llama
from longrope_jax.aot import chips
from longrope_jax.aot.memory import GIB, hbm_gib, needed, peak_gib, spare_percent
from longrope_jax.aot.roofline import kv_cache_bytes, roofline
from longrope_jax.aot.workload import Workload, mesh_text

SPARE = 5.0  # % of HBM that a program must leave to count as fitting
STEPS = 100_000  # of a whole training (2309.16039 section 2.1)
# Per chip. Google publishes no power of these chips: LLaMA's of an A100.
WATTS = 400.0
PUE, TONNES_PER_MWH = 1.1, 0.385  # LLaMA (2302.13971 section 6)
_KV_LENGTHS = (4096, 16_384, 32_768, 131_072)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and what has to be known to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


Pairs = Sequence[tuple[Workload, Mapping[str, Any]]]


def tables(pairs: Pairs, maxtext: Pairs = ()) -> list[Table]:
    """All tables, the verdicts first; `maxtext` has the results of benchmarks/maxtext.py."""
    fitting = [(work, result) for work, result in pairs if "refused" not in result]
    found = [
        _smallest(pairs),
        _training(pairs),
        beside_maxtext(maxtext),
        _serving(fitting),
        _memory(fitting),
        _flops(fitting),
        _time(fitting),
        _collectives(fitting),
        _kv_cache(),
        _energy(fitting),
        _compiler(pairs),
    ]
    return [table for table in found if table.rows]


def beside_maxtext(pairs: Pairs) -> Table:
    """Programs of this project and of MaxText for the same work, as one compiler says."""
    rows = []
    for work, found in pairs:
        ours, theirs = (_quantities(work, found[who]) for who in ("ours", "maxtext"))
        for name in ours:
            a, b = ours[name], theirs[name]
            ratio = a / b if isinstance(a, float) and isinstance(b, float) and b else None
            rows.append([name_of(work), name, a, b, ratio])
    note = (
        f"Compiled by one interpreter, so by one compiler ({_versions(pairs)}), with the same "
        "mesh, microbatches, recomputation of whole layers and 2^22 tokens a step, and read by the "
        "same reader; `python -m benchmarks.maxtext` makes and prints them. Below 1 this project "
        "needs less. Compiling: seconds on a busy machine."
    )
    header = ["program", "what, of each device", "here", "MaxText", "here / MaxText"]
    return Table("Beside MaxText", header, rows, note if rows else "")


def _versions(pairs: Pairs) -> str:
    found = {tuple(result["maxtext"]["versions"].items()) for _, result in pairs}
    return " or ".join(", ".join(map(" ".join, versions)) for versions in sorted(found))


def _quantities(work: Workload, result: Mapping[str, Any]) -> dict[str, float | str | None]:
    seconds = result.get("lower_seconds", 0.0) + result["compile_seconds"]
    names = ("arguments, GiB", "temporaries, GiB", "HBM traffic, TB", "products, PFLOP")
    names += ("sent over links, GB", "bound, s", "MFU at most")
    if "refused" in result:
        said = f"refused, needs {needed(result['refused']):.1f}"
        return {"peak, GiB": said, **dict.fromkeys(names), "compiling, s": seconds}
    memory, measured = result["memory"], result["measured"]
    times = roofline(work, measured)
    values = (
        memory["argument"] / GIB,
        memory["temp"] / GIB,
        measured["hbm_bytes"] / 1e12,
        (measured["matmul_flops"] + measured["kernel_flops"]) / 1e15,
        sum(c["sent"] for c in measured["collectives"]) / 1e9,
        times["bound"],
        times["mfu_bound"],
    )
    found = dict(zip(names, values, strict=True))
    return {"peak, GiB": peak_gib(result), **found, "compiling, s": seconds}


def name_of(work: Workload) -> str:
    """The workload in a few words."""
    size = work.model.removeprefix("llama2_long_").replace("b", "B")
    how = "" if work.program != "train" or work.remat == "full" else f" remat={work.remat}"
    return f"{size} {work.program} {work.length:,} {work.topology} {mesh_text(work.mesh)}{how}"


def _smallest(pairs) -> Table:
    """Makes the table of the smallest slice that each model and length fits, by kind of chip."""
    groups: dict[tuple, list] = {}
    for work, result in pairs:
        if work.program == "train":
            key = work.model, work.length, work.topology.partition(":")[0]
            groups.setdefault(key, []).append((work, result))
    rows = []
    for (model, length, kind), tried in groups.items():
        fits = [p for p in tried if "refused" not in p[1] and spare_percent(*p) >= SPARE]
        best = min(fits, key=lambda p: (p[0].chips, -spare_percent(*p)), default=None)
        others = [
            p for p in tried if best is None or (p[0].chips <= best[0].chips and p is not best)
        ]
        shown = ["none tried", "-", None, None]
        if best:
            work = best[0]
            half = _state(work) / (work.chips / 2) / chips.chip(work.topology).hbm
            shown = [work.topology, mesh_text(work.mesh), spare_percent(*best), 100 * half]
        rows.append([model, length, kind, *shown, "; ".join(map(_verdict, others)) or "-"])
    header = ["model", "tokens", "chip", "smallest slice", "mesh", "spare %"]
    header += ["state on half the chips, % of HBM", "also tried, no larger"]
    note = (
        f"The full training step, with the same global batch on every slice; a slice counts if at "
        f"least {SPARE:g} % of its HBM stays free. State: parameters, two moments and one gradient "
        "in float32, 16 bytes per parameter; near 100 there is no room for activations. v5p:2x2x1 "
        "is the smallest v5p slice. Smallest of those tried: the last column has them all."
    )
    return Table("Smallest slice that trains", header, rows, note)


def _state(work: Workload) -> float:
    make = partial(llama.init_params, work.config())
    return 16.0 * sum(x.size for x in jax.tree.leaves(jax.eval_shape(make, jax.random.key(0))))


def _verdict(pair) -> str:
    work, result = pair
    head = f"{work.topology} {mesh_text(work.mesh)}"
    if "refused" in result:
        return f"{head}: refused, needs {needed(result['refused']):.1f} GiB"
    return f"{head}: {spare_percent(*pair):.4g} % spare"


def _training(pairs) -> Table:
    rows = []
    for work, result in pairs:
        if work.program != "train":
            continue
        tokens = result["tokens"]
        how = [work.remat, work.context if work.axis("sequence") > 1 else "-"]
        head = [work.model, work.length, work.topology, mesh_text(work.mesh), *how]
        head.append(work.accumulated(tokens))
        if "refused" in result:
            rows.append([*head, needed(result["refused"]), "refused", *[None] * 6])
            continue
        times = roofline(work, result["measured"])
        rows.append(
            [
                *head,
                peak_gib(result),
                spare_percent(work, result),
                times["computed_per_model_flop"],
                times["bound"],
                times["as_compiled"],
                times["mfu_as_compiled"],
                tokens / times["as_compiled"],
                times["limit"],
            ]
        )
    header = ["model", "tokens", "slice", "mesh", "remat", "context", "microbatches", "peak GiB"]
    header += ["spare %", "computed / model FLOPs", "bound s", "as compiled s", "MFU at most"]
    header += ["tokens/s at most", "limit"]
    note = (
        "One step of 2^22 tokens on the whole slice. Bound: the slowest of arithmetic, HBM and "
        "links, everything overlapping. As compiled: collectives that the compiler did not split "
        "into start and done wait; MFU and tokens/s are at most those of this time. Both "
        "assume peak rates, so a real step is slower."
    )
    return Table("Training", header, rows, note)


def _serving(fitting) -> Table:
    rows = []
    for work, result in fitting:
        if work.program == "train":
            continue
        times = roofline(work, result["measured"])
        tokens = work.batch * (work.length if work.program == "prefill" else 1)
        head = [
            work.model,
            work.program,
            work.length,
            work.topology,
            mesh_text(work.mesh),
            work.batch,
        ]
        memory = [peak_gib(result), spare_percent(work, result)]
        rate = [times["as_compiled"], tokens / times["as_compiled"], times["mfu_as_compiled"]]
        rows.append([*head, *memory, *rate, times["limit"]])
    header = ["model", "program", "tokens", "slice", "mesh", "sequences", "peak GiB", "spare %"]
    header += ["s at least", "tokens/s at most", "MFU at most", "limit"]
    note = (
        "Weights and cache in bfloat16. Prefill: a whole prompt of every sequence, in chunks of "
        "512 tokens. Decode: one call for one token of every sequence, its cache full; what a call "
        "does but once counts wholly (where the key heads of a device fill no tile, the cache is "
        "copied into another layout and back). Products with a single row are compiled to sums "
        "and not counted as FLOPs."
    )
    return Table("Prefill and decode", header, rows, note)


def _memory(fitting) -> Table:
    parts = ("argument", "temp", "output", "alias", "generated_code", "peak")
    rows = []
    for work, result in fitting:
        sizes = [result["memory"][part] / GIB for part in parts]
        rows.append([name_of(work), *sizes, hbm_gib(work)])
    header = ["program", "arguments", "temporaries", "output", "aliased", "code", "peak", "HBM"]
    note = (
        "GiB on each device, as the compiler reports them. Outputs lie where the arguments were "
        "(aliased: the state and the cache are donated). The peak is what must fit: temporaries "
        "sum parts that are not alive at the same time, and programs compile whose arguments and "
        "temporaries together exceed HBM."
    )
    return Table("Memory", header, rows, note)


def _flops(fitting) -> Table:
    rows = []
    for work, result in fitting:
        m = result["measured"]
        rows.append(
            [
                name_of(work),
                result["xla"]["flops"],
                m["matmul_flops_once"],
                m["matmul_flops"],
                m["kernel_flops"],
                m["model_flops"],
                (m["matmul_flops"] + m["kernel_flops"]) / m["model_flops"],
            ]
        )
    header = ["program", "compiler's count", "same, from the text", "products, loops followed"]
    note = (
        "Per device and run. The compiler's count takes the body of each loop once and knows "
        "nothing of kernels. The second column counts the matrix products in the program's text "
        "in the same way, which checks the reader; the third multiplies by the loops' turns "
        "(blockwise attention's loops depend on data and count with their mean under causality). "
        "Kernels: executions of the splash kernels in the text, times whole blocks, times 2, 3 "
        "and 4 matrix products in forward, dq and dk/dv, or 5 in all three gradients at once (the "
        "ring's). Model: 6 per weight and token, causal "
        "attention, no recomputation (training/flops.py); a third of it forward. The quotient "
        "above 1 is recomputation (remat, and the kernels' scores in the backward)."
    )
    return Table("FLOPs", [*header, "kernels", "model", "computed / model"], rows, note)


def _time(fitting) -> Table:
    rows = []
    for work, result in fitting:
        times, m = roofline(work, result["measured"]), result["measured"]
        ici = ", ".join(f"{axes} {seconds:.3g}" for axes, seconds in times["ici"].items())
        traffic = [m["hbm_bytes"] / 1e9, m["hbm_bytes_once"] / result["xla"]["bytes"]]
        rows.append([name_of(work), times["compute"], times["hbm"], ici or "none", *traffic])
    header = ["program", "arithmetic s", "HBM s", "links s, by mesh axes", "GB through HBM"]
    note = (
        "Per device and run, at peak rates. GB through HBM: every array that an instruction reads "
        "or writes, once per execution, of a slice only the part; the last column is that sum "
        "with loops taken once over the compiler's own. Links: bytes that one chip must send, "
        "over the links that the axis has in this slice (two where the slice closes to a ring)."
    )
    return Table("Where the time goes", [*header, "counted once / compiler's"], rows, note)


def _collectives(fitting) -> Table:
    rows = []
    for work, result in fitting:
        for c in result["measured"]["collectives"]:
            if c["bytes"] >= 1e6:
                counts = [round(c["count"]), round(c["asynchronous"])]
                what = [c["kind"], "+".join(c["axes"]), *counts]
                rows.append([name_of(work), *what, c["bytes"] / 1e9, c["seconds"]])
    header = ["program", "kind", "mesh axes", "executions", "asynchronous", "GB", "s at least"]
    note = (
        "Per device and run, above 1 MB. GB: of the whole arrays that are gathered, reduced or "
        "passed on. The kind is the compiler's: where a group is all of a v5p cube, it may write a "
        "gather or a scatter as an all-reduce, which sends twice as much."
    )
    return Table("Collectives", header, rows, note)


def _kv_cache() -> Table:
    models = [name for name in llama.PRESETS if name.startswith("llama2_long_")]
    rows = []
    for model in models:
        sizes = [kv_cache_bytes(llama.preset(model), n) / GIB for n in (1024, *_KV_LENGTHS)]
        rows.append([model, sizes[0] * 2**10, *sizes[1:]])
    header = ["model", "KiB per token", *(f"{n:,} tokens, GiB" for n in _KV_LENGTHS)]
    note = "Keys and values of one sequence in bfloat16."
    return Table("KV cache of one sequence", header, rows, note)


def energy_mwh(chip_hours: float, watts: float) -> float:
    """LLaMA's formula: hours times power times the data centre's overhead, in MWh."""
    return chip_hours * watts * PUE / 1e6


def co2_tonnes(mwh: float) -> float:
    """LLaMA's formula: tonnes of CO2 equivalent at the mean of the US grid."""
    return mwh * TONNES_PER_MWH


def _energy(fitting) -> Table:
    rows = []
    for work, result in fitting:
        if work.program != "train":
            continue
        seconds = roofline(work, result["measured"])["as_compiled"] * STEPS
        hours = seconds / 3600 * work.chips
        mwh = energy_mwh(hours, WATTS)
        rows.append([name_of(work), seconds / 86_400, hours, mwh, co2_tonnes(mwh)])
    header = ["program", "days", "chip-hours", "MWh", "t CO2e"]
    note = (
        f"At least, for {STEPS:,} steps. LLaMA's formula: hours times {WATTS:g} W "
        f"times a PUE of {PUE}, {TONNES_PER_MWH} t CO2e per MWh. Google publishes "
        "no power of these chips; the watts are LLaMA's of an A100."
    )
    return Table("Energy", header, rows, note)


def _compiler(pairs) -> Table:
    rows = [
        [name_of(work), r["lower_seconds"], r["compile_seconds"], r["host_bytes"] / GIB]
        for work, r in pairs
    ]
    return Table("Compiler", ["program", "tracing s", "compiling s", "host GiB"], rows)
