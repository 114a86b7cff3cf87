"""The tables of compile_tpu, and what has to be known to read each of them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tpu import account, chips
from experiments.tpu.cells import Cell
from longrope_jax import llama

GIB = 2**30
SPARE = 5.0  # % of HBM that a program must leave to count as fitting
_KV_LENGTHS = (4096, 16_384, 32_768, 131_072)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and what has to be known to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def tables(cells: Sequence[Cell], results: Sequence[Mapping], config) -> list[Table]:
    """All tables, the verdicts first."""
    pairs = list(zip(cells, results, strict=True))
    fitting = [(cell, result) for cell, result in pairs if "refused" not in result]
    found = [
        _smallest(pairs),
        _training(pairs),
        _serving(fitting),
        _memory(fitting),
        _flops(fitting),
        _time(fitting),
        _collectives(fitting),
        _kv_cache(),
        _energy(fitting, config),
        _compiler(pairs),
    ]
    return [table for table in found if table.rows]


def spare(cell: Cell, result: Mapping) -> float:
    """Per cent of HBM that the program leaves."""
    return 100 * (1 - result["memory"]["peak"] / chips.chip(cell.topology).hbm)


def needed(refusal: str) -> float:
    """GiB that the compiler asked for when it refused; NaN if it does not say."""
    match = re.search(r"\((\d+\.\d+)G\)|Used (\d+\.\d+)G of", refusal)
    return float(match[1] or match[2]) if match else float("nan")


def name_of(cell: Cell) -> str:
    """The cell in a few words."""
    size = cell.model.removeprefix("llama2_long_").replace("b", "B")
    how = "" if cell.program != "train" or cell.remat == "full" else f" remat={cell.remat}"
    return f"{size} {cell.program} {cell.length:,} {cell.topology} {mesh_text(cell)}{how}"


def mesh_text(cell: Cell) -> str:
    """Mesh axes and their sizes."""
    return " ".join(f"{axis}={size}" for axis, size in cell.mesh) or "one chip"


def _smallest(pairs) -> Table:
    """By model, length and kind of chip: the slice with the fewest chips that fits."""
    groups: dict[tuple, list] = {}
    for cell, result in pairs:
        if cell.program == "train":
            key = cell.model, cell.length, cell.topology.partition(":")[0]
            groups.setdefault(key, []).append((cell, result))
    rows = []
    for (model, length, kind), tried in groups.items():
        fits = [p for p in tried if "refused" not in p[1] and spare(*p) >= SPARE]
        best = min(fits, key=lambda p: (p[0].chips, -spare(*p)), default=None)
        others = [
            p for p in tried if best is None or (p[0].chips <= best[0].chips and p is not best)
        ]
        shown = ["none tried", "-", None, None]
        if best:
            cell = best[0]
            half = _state(cell) / (cell.chips / 2) / chips.chip(cell.topology).hbm
            shown = [cell.topology, mesh_text(cell), spare(*best), 100 * half]
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


def _state(cell: Cell) -> float:
    return 16.0 * account.parameters(cell.config())


def _verdict(pair) -> str:
    cell, result = pair
    head = f"{cell.topology} {mesh_text(cell)}"
    if "refused" in result:
        return f"{head}: refused, needs {needed(result['refused']):.1f} GiB"
    return f"{head}: {spare(*pair):.4g} % spare"


def _training(pairs) -> Table:
    rows = []
    for cell, result in pairs:
        if cell.program != "train":
            continue
        tokens = result["tokens"]
        how = [cell.remat, cell.context if cell.axis("sequence") > 1 else "-"]
        head = [cell.model, cell.length, cell.topology, mesh_text(cell), *how]
        head.append(cell.accumulated(tokens))
        if "refused" in result:
            rows.append([*head, needed(result["refused"]), "refused", *[None] * 6])
            continue
        times = account.roofline(cell, result["measured"])
        rows.append(
            [
                *head,
                result["memory"]["peak"] / GIB,
                spare(cell, result),
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
    for cell, result in fitting:
        if cell.program == "train":
            continue
        times = account.roofline(cell, result["measured"])
        tokens = cell.batch * (cell.length if cell.program == "prefill" else 1)
        head = [cell.model, cell.program, cell.length, cell.topology, mesh_text(cell), cell.batch]
        memory = [result["memory"]["peak"] / GIB, spare(cell, result)]
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
    for cell, result in fitting:
        sizes = [result["memory"][part] / GIB for part in parts]
        rows.append([name_of(cell), *sizes, chips.chip(cell.topology).hbm / GIB])
    header = ["cell", "arguments", "temporaries", "output", "aliased", "code", "peak", "HBM"]
    note = (
        "GiB on each device, as the compiler reports them. Outputs lie where the arguments were "
        "(aliased: the state and the cache are donated). The peak is what must fit: temporaries "
        "sum parts that are not alive at the same time, and programs compile whose arguments and "
        "temporaries together exceed HBM."
    )
    return Table("Memory", header, rows, note)


def _flops(fitting) -> Table:
    rows = []
    for cell, result in fitting:
        m = result["measured"]
        rows.append(
            [
                name_of(cell),
                result["xla"]["flops"],
                m["matmul_flops_once"],
                m["matmul_flops"],
                m["kernel_flops"],
                m["model_flops"],
                (m["matmul_flops"] + m["kernel_flops"]) / m["model_flops"],
            ]
        )
    header = ["cell", "compiler's count", "same, from the text", "products, loops followed"]
    note = (
        "Per device and run. The compiler's count takes the body of each loop once and knows "
        "nothing of kernels. The second column counts the matrix products in the program's text "
        "in the same way, which checks the reader; the third multiplies by the loops' turns "
        "(blockwise attention's loops depend on data and count with their mean under causality). "
        "Kernels: executions of the splash kernels in the text, times whole blocks, times 2, 3 "
        "and 4 matrix products in forward, dq and dk/dv. Model: 6 per weight and token, causal "
        "attention, no recomputation (training/flops.py); a third of it forward. The quotient "
        "above 1 is recomputation (remat, and the kernels' scores in the backward)."
    )
    return Table("FLOPs", [*header, "kernels", "model", "computed / model"], rows, note)


def _time(fitting) -> Table:
    rows = []
    for cell, result in fitting:
        times, m = account.roofline(cell, result["measured"]), result["measured"]
        ici = ", ".join(f"{axes} {seconds:.3g}" for axes, seconds in times["ici"].items())
        traffic = [m["hbm_bytes"] / 1e9, m["hbm_bytes_once"] / result["xla"]["bytes"]]
        rows.append([name_of(cell), times["compute"], times["hbm"], ici or "none", *traffic])
    header = ["cell", "arithmetic s", "HBM s", "links s, by mesh axes", "GB through HBM"]
    note = (
        "Per device and run, at peak rates. GB through HBM: every array that an instruction reads "
        "or writes, once per execution, of a slice only the part; the last column is that sum "
        "with loops taken once over the compiler's own. Links: bytes that one chip must send, "
        "over the links that the axis has in this slice (two where the slice closes to a ring)."
    )
    return Table("Where the time goes", [*header, "counted once / compiler's"], rows, note)


def _collectives(fitting) -> Table:
    rows = []
    for cell, result in fitting:
        for c in result["measured"]["collectives"]:
            if c["bytes"] >= 1e6:
                counts = [round(c["count"]), round(c["asynchronous"])]
                what = [c["kind"], "+".join(c["axes"]), *counts]
                rows.append([name_of(cell), *what, c["bytes"] / 1e9, c["seconds"]])
    header = ["cell", "kind", "mesh axes", "executions", "asynchronous", "GB", "s at least"]
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
        sizes = [account.kv_cache_bytes(llama.preset(model), n) / GIB for n in (1024, *_KV_LENGTHS)]
        rows.append([model, sizes[0] * 2**10, *sizes[1:]])
    header = ["model", "KiB per token", *(f"{n:,} tokens, GiB" for n in _KV_LENGTHS)]
    note = "Keys and values of one sequence in bfloat16."
    return Table("KV cache of one sequence", header, rows, note)


def _energy(fitting, config) -> Table:
    rows = []
    for cell, result in fitting:
        if cell.program != "train":
            continue
        seconds = account.roofline(cell, result["measured"])["as_compiled"] * config.steps
        hours = seconds / 3600 * cell.chips
        mwh = account.energy_mwh(hours, config.watts)
        rows.append([name_of(cell), seconds / 86_400, hours, mwh, account.co2_tonnes(mwh)])
    header = ["cell", "days", "chip-hours", "MWh", "t CO2e"]
    note = (
        f"At least, for {config.steps:,} steps. LLaMA's formula: hours times {config.watts:g} W "
        f"times a PUE of {account.PUE}, {account.TONNES_PER_MWH} t CO2e per MWh. Google publishes "
        "no power of these chips; the watts are LLaMA's of an A100 unless --config.watts says more."
    )
    return Table("Energy", header, rows, note)


def _compiler(pairs) -> Table:
    rows = [
        [name_of(cell), r["lower_seconds"], r["compile_seconds"], r["host_bytes"] / GIB]
        for cell, r in pairs
    ]
    return Table("Compiler", ["cell", "tracing s", "compiling s", "host GiB"], rows)
