"""Reads the text of a compiled program: its instructions, and how often each of them runs.

XLA's own counts take the body of a loop once. This reader follows loops: the number of turns is the
constant that the condition compares with; where it depends on data, the caller gives a mean.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

_BITS = {"pred": 8, "token": 0}
_SHAPE = re.compile(r"\b(pred|bf16|f8e\w+|[suf]\d+|c64|c128)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that an instruction makes; `in_hbm` is false where it lies on the chip."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        """The number of bytes."""
        total = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype.partition("e")[0]))
        for n in self.sizes:
            total *= n
        return total // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation in the program's text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # what follows the operands; a constant's value or a parameter's number too
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that the instruction makes."""
        return tuple(
            Array(dtype, tuple(int(n) for n in sizes.split(",") if n), "S(1)" not in layout)
            for dtype, sizes, layout in _SHAPE.findall(self.shape)
        )

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that the instruction runs."""
        found = (many or one for many, one in _CALLED.findall(self.attributes))
        return tuple(name.strip().lstrip("%") for names in found for name in names.split(","))


@dataclasses.dataclass(frozen=True)
class Program:
    """The instructions of each computation, and how often each computation runs.

    Attributes:
        computations: Instructions by the name of their computation.
        runs: How often each computation runs in one execution of the program on one device.
        fused: Computations inside a fusion, none of whose arrays lie in memory.
        depends_on_data: Loops whose number of turns came from the caller.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    runs: Mapping[str, float]
    fused: frozenset[str]
    depends_on_data: tuple[str, ...]

    def instructions(self) -> Iterator[tuple[str, Instruction, float]]:
        """Every instruction that runs, as (computation, instruction, runs)."""
        for name, body in self.computations.items():
            if self.runs[name]:
                yield from ((name, instruction, self.runs[name]) for instruction in body)


def parse(text: str, turns: Sequence[float] = ()) -> Program:
    """Reads the text of a compiled program, which `compiled.as_text()` gives.

    Args:
        text: The program.
        turns: The mean number of turns of loops whose bounds depend on data: first the outermost
            loop, then those that run inside it.

    Raises:
        ValueError: There is no entry computation, or loops are nested deeper than `turns`.
    """
    computations, entry = _read(text)
    runs = dict.fromkeys(computations, 0.0)
    fused: set[str] = set()
    dynamic: list[str] = []

    def count(name: str, times: float, depth: int, inside: bool) -> None:
        runs[name] += times
        if inside:
            fused.add(name)
        for instruction in computations[name]:
            here, deeper = times, depth
            if instruction.opcode == "while":
                bound = trip_count(instruction, computations)
                if bound is None:
                    bound, deeper = _given(turns, depth, instruction), depth + 1
                    dynamic.append(instruction.name)
                here = times * bound
            within = inside or instruction.opcode in ("fusion", "reduce", "custom-call")
            for called in instruction.called:
                if called in computations:
                    count(called, here, deeper, within)

    count(entry, 1.0, 0, False)
    return Program(computations, runs, frozenset(fused), tuple(dict.fromkeys(dynamic)))


def _given(turns: Sequence[float], depth: int, loop: Instruction) -> float:
    if depth >= len(turns):
        raise ValueError(f"loop {loop.name}: its number of turns depends on data and is not given")
    return turns[depth]


def _read(text: str) -> tuple[dict[str, tuple[Instruction, ...]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(*match.groups()))
    if entry is None:
        raise ValueError("no entry computation: this is not the text of a compiled program")
    return {name: tuple(body) for name, body in computations.items()}, entry


def _instruction(root, name, shape, opcode, rest) -> Instruction:
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    inside, after = rest[: end - 1], rest[end:]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    attributes = f"{inside}){after}" if opcode in ("constant", "parameter") else after
    return Instruction(name, shape, opcode, operands, attributes, bool(root))


def trip_count(
    loop: Instruction, computations: Mapping[str, tuple[Instruction, ...]]
) -> int | None:
    """The number of turns of a while loop, or None if it depends on data.

    It is what the compiler notes, or else the constant that the condition compares with, since
    JAX's loops count up from 0 by 1.
    """
    noted = re.search(r'known_trip_count\\?":\s*\{\\?"n\\?":\s*\\?"(\d+)', loop.attributes)
    if noted:
        return int(noted[1])
    (condition,) = re.findall(r"condition=%?([\w.\-]+)", loop.attributes)
    bounds = [
        int(match[0])
        for i in _with_called(condition, computations)
        if i.opcode == "constant" and i.shape.startswith(("s32[]", "u32[]", "s64[]"))
        if (match := re.match(r"-?\d+", i.attributes))
    ]
    return max(bounds, default=None)


def _with_called(name: str, computations) -> Iterator[Instruction]:
    for instruction in computations[name]:
        yield instruction
        for called in instruction.called:
            if called in computations:
                yield from _with_called(called, computations)
