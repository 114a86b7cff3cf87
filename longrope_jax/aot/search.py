"""Finds the smallest TPU slice that trains a model at a length, by compiling for one after another.

Slices are tried from the smallest. What cannot fit is not compiled: the parameters, both moments
and a gradient, and the inputs of every layer, which the backward pass starts from, need no
compiler to be counted. The compiler then refuses in seconds what is too large, and takes minutes
for what fits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax

from longrope_jax import llama
from longrope_jax.aot import chips, memory
from longrope_jax.aot.roofline import roofline
from longrope_jax.aot.workload import Workload, chips_of
from longrope_jax.attention import splash_ring

SPARE = 5.0  # % of HBM that a program must leave to count as fitting
_STATE = 16  # bytes per parameter: it, two moments and a gradient in float32
_TENSOR = (1, 2, 4, 8)  # heads are divided over the chips of one host or two
_LESS_RECOMPUTED = ("linear", "attention")  # remat policies beside "full", the fastest first
Verdict = Callable[[Workload], Mapping[str, Any]]


def smallest(
    model: str, length: int, chip: str, tokens: int, compiled: Verdict
) -> list[tuple[Workload, Mapping[str, Any]]]:
    """Compiles training steps for slices of a chip, the smallest first, until a slice holds one.

    On that slice the division over chips with the least time is taken, then tried with less
    recomputation and with fewer microbatches (more rows at one time).

    Args:
        model: A preset or a checkpoint.
        length: Tokens per sequence.
        chip: The name of a chip of `chips.CHIPS`.
        tokens: Tokens of a training step.
        compiled: What compiles a workload, see `compilation.compiled`.

    Returns:
        All workloads that were compiled, with their results; the chosen one last.

    Raises:
        ValueError: No slice of this chip holds it, or the step is no whole number of sequences.
    """
    if tokens % length:
        raise ValueError(
            f"tokens per batch must be a multiple of {length:,}, the tokens of a sequence, got "
            f"{tokens:,}"
        )
    tried: list[tuple[Workload, Mapping[str, Any]]] = []

    def best_of(works) -> Workload | None:
        tried.extend((work, compiled(work)) for work in works if _may_fit(work))
        fitting = [(work, result) for work, result in tried if _fits(work, result)]
        return min(fitting, key=lambda pair: _seconds(*pair), default=(None,))[0]

    for topology in chips.slices(chip):
        if found := best_of(meshes(model, length, topology, tokens)):
            faster = (dataclasses.replace(found, remat=remat) for remat in _LESS_RECOMPUTED)
            found = best_of(faster) or found
            rows = dataclasses.replace(found, rows=2 * found.rows)
            found = best_of([rows] if _divides(rows, tokens) else []) or found
            return [p for p in tried if p[0] != found] + [p for p in tried if p[0] == found]
    raise ValueError(
        f"no slice of {chip} trains {model} at {length:,} tokens: the largest, "
        f"{chips.slices(chip)[-1]}, does not hold it; try another chip or a shorter length"
    )


def meshes(model: str, length: int, topology: str, tokens: int) -> list[Workload]:
    """Returns divisions of a training step over a slice, those that need least memory first.

    Heads are divided over up to 8 chips (tensor), the batch over as many of the others as it has
    sequences for (fsdp), or over half of those, and each sequence over the rest (sequence).
    """
    found = []
    for tensor in _TENSOR:
        rest, odd = divmod(chips_of(topology), tensor)
        most = math.gcd(rest, tokens // length)
        for fsdp in {most, max(most // 2, 1)} if not odd else ():
            work = _divided(model, length, topology, fsdp, tensor)
            if work and _divides(work, tokens):
                found.append(work)
    return sorted(found, key=lambda work: (at_least(work), work.axis("sequence")))


def _divided(model: str, length: int, topology: str, fsdp: int, tensor: int) -> Workload | None:
    sequence, rest = divmod(chips_of(topology), fsdp * tensor)
    if rest:
        return None
    sizes = {"fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    mesh = tuple((axis, size) for axis, size in sizes.items() if size > 1)
    ring = sequence > 1 and splash_ring.refusal(length, sequence) is None
    context = "ring" if ring else "all_gather"
    return Workload("train", model, length, topology, mesh, context=context)


def _divides(work: Workload, tokens: int) -> bool:
    """Whether every axis of the model, the sequence and the batch divides over the mesh."""
    c, parts, tensor = work.config(), work.axis("sequence"), work.axis("tensor")
    pairs = [(size, tensor) for size in (c.n_kv_heads, c.d_ff, c.vocab_size)]
    pairs += [(c.d_model, work.axis("fsdp") * parts), (tokens, work.batch * work.length)]
    pairs += [(work.length, parts * tensor), (work.length, 2 * parts if parts > 1 else 1)]
    return all(size % by == 0 for size, by in pairs)


def at_least(work: Workload) -> float:
    """The bytes on each chip without which no training step runs: state and saved activations."""
    c = work.config()
    here = work.rows * work.length / work.axis("sequence") / work.axis("tensor")
    heads, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    saved = {"full": 0, "attention": heads, "linear": 2 * heads + 2 * kv + 2 * c.d_ff}
    activations = 2.0 * c.n_layers * here * (c.d_model + saved[work.remat])
    return _STATE * _parameters(c) / work.chips + activations


@cache
def _parameters(config: llama.LlamaConfig) -> int:
    make = partial(llama.init_params, config)
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(make, jax.random.key(0))))


def _may_fit(work: Workload) -> bool:
    return at_least(work) <= (1 - SPARE / 100) * chips.chip(work.topology).hbm


def _fits(work: Workload, result: Mapping[str, Any]) -> bool:
    return "refused" not in result and memory.spare_percent(work, result) >= SPARE


def _seconds(work: Workload, result: Mapping[str, Any]) -> float:
    return roofline(work, result["measured"])["as_compiled"]
