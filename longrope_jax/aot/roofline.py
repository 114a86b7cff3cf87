"""From a compiled program to numbers: FLOPs, traffic, collectives, a bound on its time."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from longrope_jax import llama
from longrope_jax.aot import chips, costs, hlo
from longrope_jax.aot.collectives import Collective, collectives
from longrope_jax.aot.programs import CHUNK
from longrope_jax.aot.workload import Workload
from longrope_jax.attention import blockwise, splash_kernel
from longrope_jax.sharding import AXES
from longrope_jax.training.flops import train_flops_per_token


def measure(work: Workload, tokens: int, text: str, coordinates: list[list[int]]) -> dict[str, Any]:
    """What the text of a compiled program says, per device and per run of the program.

    One run is a training step of `tokens`, the prefill of all rows, or one decoded token per row.

    Args:
        work: What was compiled.
        tokens: Tokens of a training step.
        text: The program, from `compiled.as_text()`.
        coordinates: Where each device lies in the slice, in the mesh's order.
    """
    program = hlo.parse(text, turns(work))
    mesh_shape = {name: work.axis(name) for name in AXES}
    config, calls = work.config(), costs.kernel_calls(program)
    heads = config.n_heads // work.axis("tensor")
    sent = collectives(program, mesh_shape)
    return {
        "kernels": calls,
        "matmul_flops": costs.matmul_flops(program),
        "matmul_flops_once": costs.matmul_flops(program, once=True),
        "kernel_flops": costs.splash_flops(calls, pairs(work), heads, config.head_dim),
        "model_flops": model_flops(work, tokens) / work.chips,
        "hbm_bytes": costs.hbm_bytes(program),
        "hbm_bytes_once": costs.hbm_bytes(program, once=True),
        "collectives": [
            dataclasses.asdict(c) | {"seconds": _seconds(c, work, mesh_shape, coordinates)}
            for c in sent
        ],
    }


def turns(work: Workload) -> tuple[float, ...]:
    """Mean iterations of each loop whose bounds depend on data, from the outermost loop inwards.

    They are those of a prefill and of blockwise attention, in which a block of queries visits the
    blocks of keys that causality lets it see.
    """
    blocks = work.length / blockwise.BLOCK_K
    if work.program == "decode":
        return 1.0, blocks  # a full cache
    if work.program == "prefill":
        return math.ceil(work.length / CHUNK), (blocks + 1) / 2
    # In a ring each device visits two half chunks of keys in each of its P steps.
    return ((blocks + 1) / 4 / work.axis("sequence"),)


def pairs(work: Workload) -> float:
    """The pairs of a query and a key in the whole blocks that a call of splash multiplies."""
    parts = work.axis("sequence")
    if work.context == "ring" and parts > 1:
        # The mean square of half chunks: 2 on the diagonal, 2 P - 1 without a mask.
        half = work.length / parts / 2
        return half * (half + splash_kernel.BLOCK + (2 * parts - 1) * half) / (2 * parts + 1)
    return work.length * (work.length + splash_kernel.BLOCK) / 2 / parts


def model_flops(work: Workload, tokens: int) -> float:
    """The model's own FLOPs of one run on all chips, without recomputation, attention causal."""
    config = work.config()
    per_token = train_flops_per_token(config, work.length)
    if work.program == "train":
        return per_token * tokens
    head = 2.0 * config.d_model * config.vocab_size
    if work.program == "prefill":  # no logits
        return (per_token / 3 - head) * work.batch * work.length
    # One query over all keys: twice the mean query of a causal forward.
    return train_flops_per_token(config, 2 * work.length) / 3 * work.batch


def kv_cache_bytes(config: llama.LlamaConfig, length: int, value_bytes: int = 2) -> int:
    """The bytes that the keys and values of one sequence take in all layers."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * value_bytes * length


def _seconds(
    c: Collective, work: Workload, mesh_shape: Mapping[str, int], coordinates: list[list[int]]
) -> float:
    """The least time of a collective on all links of its group; a permutation has one route."""
    at = np.arange(work.chips).reshape(tuple(mesh_shape.values()))
    group = at[tuple(slice(None) if name in c.axes else 0 for name in mesh_shape)].ravel()
    used = chips.links(work.topology, [coordinates[i] for i in group])
    used = 1 if c.kind == "collective-permute" else used
    return c.sent / (used * chips.chip(work.topology).link)


def roofline(work: Workload, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The least seconds of one run, and the share of the peak that the model's FLOPs then are.

    "bound" lets everything overlap; "as_compiled" lets only those collectives overlap that the
    compiler split into a start and a done. "limit" names the slowest part.
    """
    chip = chips.chip(work.topology)
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
        "limit": max(each, key=each.__getitem__),
        "bound": bound,
        "as_compiled": as_compiled,
        "mfu_bound": ideal / bound,
        "mfu_as_compiled": ideal / as_compiled,
        "computed_per_model_flop": flops / measured["model_flops"],
    }
