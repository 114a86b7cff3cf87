"""What the devices of a program send each other: what, over which mesh axes, how often."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from longrope_jax.aot.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of communication over some mesh axes, summed over its executions.

    Attributes:
        kind: One of KINDS, as the compiler wrote it: a gather may become an all-reduce.
        axes: The mesh axes along which the devices of a group differ.
        count: Executions per run of the program.
        asynchronous: How many of them are split into a start and a done, so that they can overlap.
        bytes: The bytes of the whole arrays that are gathered, reduced or passed on.
        asynchronous_bytes: The bytes of those that can overlap.
        sent: The bytes that one device sends at least.
    """

    kind: str
    axes: tuple[str, ...]
    count: float
    asynchronous: float
    bytes: float
    asynchronous_bytes: float
    sent: float


def collectives(program: Program, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """What one run of a program communicates, by kind and mesh axes, the largest first.

    Args:
        program: The program, from `hlo.parse`.
        mesh_shape: The sizes of the mesh axes in their order; devices are numbered row by row.
    """
    found: dict[tuple, np.ndarray] = {}
    for name, instruction, runs in program.instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        chained = "chain_id=" in instruction.attributes
        if chained and not _begins(program.computations[name]):
            continue
        groups = _groups(instruction, mesh_shape)
        axes = _axes(groups, mesh_shape)
        if not axes:  # each device with itself: a copy
            continue
        # How TPUs write a reduce-scatter: an all-reduce in a fusion of that name.
        if name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        starts = chained or instruction.opcode.endswith("-start")
        size = _whole_size(kind, instruction, len(groups[0]))
        sent = size * _share(kind, len(groups[0]))
        row = np.array([1, starts, size, size * starts, sent]) * runs
        found[kind, axes] = found.get((kind, axes), 0) + row
    rows = [Collective(*key, *map(float, row)) for key, row in found.items()]
    return sorted(rows, key=lambda c: -c.bytes)


def _begins(body: Sequence[Instruction]) -> bool:
    """Whether an asynchronous collective starts in this computation.

    The compiler may write one collective several times: where it starts, within the fusions that it
    runs beside, and where it is done.
    """
    return any('"AsyncCollectiveStart"' in instruction.attributes for instruction in body)


def _whole_size(kind: str, instruction: Instruction, group: int) -> float:
    """The bytes of the array that all devices of the group have together."""
    arrays = [array.size for array in instruction.arrays]
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # The result of a start holds its operands, its results and its flags.
        arrays = [max(arrays)]
    inside = "all-reduce" in instruction.opcode
    return sum(arrays) * (group if kind == "reduce-scatter" and not inside else 1)


def _share(kind: str, group: int) -> float:
    """The bytes that one device sends per byte of the array, in the best ring algorithm."""
    once = (group - 1) / group
    passed_on = 1.0 if group > 1 else 0.0
    return {"all-reduce": 2 * once, "collective-permute": passed_on}.get(kind, once)


def _axes(groups: list[list[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of one group differ; () where each is alone."""
    sizes = tuple(mesh_shape.values())
    varying = np.zeros(len(sizes), bool)
    for group in groups:
        coordinates = np.stack(np.unravel_index(group, sizes))
        varying |= (coordinates != coordinates[:, :1]).any(axis=1)
    return tuple(itertools.compress(mesh_shape, varying))


def _groups(instruction: Instruction, mesh_shape: Mapping[str, int]) -> list[list[int]]:
    """The groups of devices that exchange, in any of XLA's notations; a permutation is pairs."""
    text = instruction.attributes
    if match := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        pairs = _listed(match[1])
        # A device that sends to itself sends nothing.
        return [p for p in pairs if p[0] != p[1]] or [[0]]
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        return _of_mesh(match[1], re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source = ([int(n) for n in match[i].split(",")] for i in (1, 2))
        order = [int(n) for n in match[3].split(",")] if match[3] else None
        return np.arange(np.prod(source)).reshape(source).transpose(order).reshape(shape).tolist()
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return _listed(match[1])
    return [list(range(int(np.prod(list(mesh_shape.values())))))]


def _listed(text: str) -> list[list[int]]:
    return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def _of_mesh(axes: str, chosen: list[str]) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    names = list(sizes)
    order = [names.index(n) for n in (*(n for n in names if n not in chosen), *chosen)]
    ids = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values()))
    width = int(np.prod([sizes[n] for n in chosen]))
    return ids.transpose(order).reshape(-1, width).tolist()
