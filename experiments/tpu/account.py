"""From a compiled program to a row of the table: memory, FLOPs, traffic, a bound on its time."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.tpu import chips, hlo, work
from experiments.tpu.cells import Cell
from experiments.tpu.collectives import Collective, collectives
from experiments.tpu.programs import CHUNK
from longrope_jax import llama
from longrope_jax.attention import blockwise, splash
from longrope_jax.sharding import AXES
from longrope_jax.training.flops import train_flops_per_token

PUE, TONNES_PER_MWH = 1.1, 0.385  # LLaMA (2302.13971 section 6)


def measure(cell: Cell, tokens: int, text: str, coordinates: list[list[int]]) -> dict[str, Any]:
    """What the text of the cell's program says, per device and per run of the program.

    One run is a training step of `tokens`, the prefill of all rows, or one decoded token per row.

    Args:
        cell: that was compiled.
        tokens: of a training step.
        text: `compiled.as_text()`.
        coordinates: in the slice, of each device in the mesh's order.
    """
    program = hlo.parse(text, turns(cell))
    mesh_shape = {name: cell.axis(name) for name in AXES}
    config, calls = cell.config(), work.kernel_calls(program)
    heads = config.n_heads // cell.axis("tensor")
    sent = collectives(program, mesh_shape)
    return {
        "kernels": calls,
        "matmul_flops": work.matmul_flops(program),
        "matmul_flops_once": work.matmul_flops(program, once=True),
        "kernel_flops": work.splash_flops(calls, pairs(cell), heads, config.head_dim),
        "model_flops": model_flops(cell, tokens) / cell.chips,
        "hbm_bytes": work.hbm_bytes(program),
        "hbm_bytes_once": work.hbm_bytes(program, once=True),
        "collectives": [
            dataclasses.asdict(c) | {"seconds": _seconds(c, cell, mesh_shape, coordinates)}
            for c in sent
        ],
        "loops_that_depend_on_data": len(program.depends_on_data),
        "forbidden": hlo.forbidden(text, _lengths(cell), config.vocab_size),
    }


def _lengths(cell: Cell) -> set[int]:
    """T and a device's share of it, without those that are sizes of the model as well."""
    c = cell.config()
    lengths = {cell.length, cell.length // cell.axis("sequence")}
    return lengths - {c.d_model, c.d_ff, c.n_heads * c.head_dim, c.head_dim}


def turns(cell: Cell) -> tuple[float, ...]:
    """Mean turns of the loops whose bounds depend on data: blockwise attention's, a prefill's.

    A block of queries visits the blocks of keys that causality lets it see.
    """
    blocks = cell.length / blockwise.BLOCK_K
    if cell.program == "decode":
        return 1.0, blocks  # a full cache
    if cell.program == "prefill":
        return math.ceil(cell.length / CHUNK), (blocks + 1) / 2
    # Of a ring the device visits two half chunks of keys in each of its P steps.
    return ((blocks + 1) / 4 / cell.axis("sequence"),)


def pairs(cell: Cell) -> float:
    """Queries times keys that splash multiplies per call and device: whole blocks."""
    return cell.length * (cell.length + splash.BLOCK) / 2 / cell.axis("sequence")


def model_flops(cell: Cell, tokens: int) -> float:
    """The model's own FLOPs for one run, over all chips: no recomputation, causal attention."""
    config = cell.config()
    per_token = train_flops_per_token(config, cell.length)
    if cell.program == "train":
        return per_token * tokens
    head = 2.0 * config.d_model * config.vocab_size
    if cell.program == "prefill":  # no logits
        return (per_token / 3 - head) * cell.batch * cell.length
    # One query over all keys: twice the mean query of a causal forward.
    return train_flops_per_token(config, 2 * cell.length) / 3 * cell.batch


def kv_cache_bytes(config: llama.LlamaConfig, length: int, value_bytes: int = 2) -> int:
    """Keys and values of one sequence in all layers."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * value_bytes * length


def parameters(config: llama.LlamaConfig) -> int:
    """Of the whole model."""
    c = config
    layer = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_model * c.d_ff
    tables = 1 if c.tie_embeddings else 2
    return tables * c.vocab_size * c.d_model + c.n_layers * (layer + 2 * c.d_model) + c.d_model


def energy_mwh(chip_hours: float, watts: float) -> float:
    """LLaMA's formula: hours times power times the data centre's overhead, in MWh."""
    return chip_hours * watts * PUE / 1e6


def co2_tonnes(mwh: float) -> float:
    """LLaMA's formula: at the mean of the US grid, tonnes of CO2 equivalent."""
    return mwh * TONNES_PER_MWH


def _seconds(
    c: Collective, cell: Cell, mesh_shape: Mapping[str, int], coordinates: list[list[int]]
) -> float:
    """At least, on all links that the group has; a permutation has one route."""
    at = np.arange(cell.chips).reshape(tuple(mesh_shape.values()))
    group = at[tuple(slice(None) if name in c.axes else 0 for name in mesh_shape)].ravel()
    used = chips.links(cell.topology, [coordinates[i] for i in group])
    used = 1 if c.kind == "collective-permute" else used
    return c.sent / (used * chips.chip(cell.topology).link)


def roofline(cell: Cell, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds on the seconds of one run, and what share of the peak the model's FLOPs then are.

    `bound` lets everything overlap; `as_compiled` lets only those collectives overlap that the
    compiler split into start and done.
    """
    chip = chips.chip(cell.topology)
    flops = measured["matmul_flops"] + measured["kernel_flops"]
    local = {"compute": flops / chip.flops, "hbm": measured["hbm_bytes"] / chip.hbm_bandwidth}
    ici: dict[str, float] = {}
    waits = 0.0
    for c in measured["collectives"]:
        axes = "+".join(c["axes"])
        ici[axes] = ici.get(axes, 0.0) + c["seconds"]
        waits += c["seconds"] * (1 - c["asynchronous_bytes"] / c["bytes"] if c["bytes"] else 0)
    bound = max(*local.values(), *ici.values(), 0.0)
    as_compiled = max(*local.values(), sum(ici.values()) - waits) + waits
    ideal = measured["model_flops"] / chip.flops
    each = local | {f"links over {axes}": seconds for axes, seconds in ici.items()}
    return local | {
        "ici": ici,
        "limit": max(each, key=each.get),
        "bound": bound,
        "as_compiled": as_compiled,
        "mfu_bound": ideal / bound,
        "mfu_as_compiled": ideal / as_compiled,
        "computed_per_model_flop": flops / measured["model_flops"],
    }
