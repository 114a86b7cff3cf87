"""Reads a compiled program's text: instructions, and how often each of them runs.

XLA's own counts take the body of a loop once. Here loops are followed: their number of turns is
the constant that the condition compares with; where that depends on data, the caller gives a mean.
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
    """Of an instruction's result: type, sizes, and whether it lies in HBM (or on the chip)."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        """Bytes."""
        total = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype.partition("e")[0]))
        for n in self.sizes:
            total *= n
        return total // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # all that follows the operands; of constants and parameters these too
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result."""
        return tuple(
            Array(dtype, tuple(int(n) for n in sizes.split(",") if n), "S(1)" not in layout)
            for dtype, sizes, layout in _SHAPE.findall(self.shape)
        )

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs."""
        found = (many or one for many, one in _CALLED.findall(self.attributes))
        return tuple(name.strip().lstrip("%") for names in found for name in names.split(","))


@dataclasses.dataclass(frozen=True)
class Program:
    """Instructions by computation; `runs` says how often each computation runs.

    Attributes:
        computations: instructions by name of the computation.
        runs: times each runs in one execution of the program, on one device.
        fused: computations that a fusion is made of: no arrays of theirs lie in memory.
        depends_on_data: names of the loops whose number of turns was given by the caller.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    runs: Mapping[str, float]
    fused: frozenset[str]
    depends_on_data: tuple[str, ...]

    def instructions(self) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, runs) of whatever runs."""
        for name, body in self.computations.items():
            if self.runs[name]:
                yield from ((name, instruction, self.runs[name]) for instruction in body)


def parse(text: str, turns: Sequence[float] = ()) -> Program:
    """Reads `compiled.as_text()`.

    Args:
        text: of the program.
        turns: mean number of turns of loops whose bounds depend on data: of the outermost first,
            then of those that run inside it.

    Raises:
        ValueError: no entry computation, or more loops within each other than `turns`.
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
        raise ValueError(f"loop {loop.name}: its number of turns depends on data, none was given")
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
    """Turns of a while loop; None if they depend on data.

    As the compiler notes them, or the constant that the condition compares with: JAX's loops count
    up from 0 by 1.
    """
    noted = re.search(r'known_trip_count\\?":\s*\{\\?"n\\?":\s*\\?"(\d+)', loop.attributes)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]
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


def shapes(text: str) -> set[tuple[int, ...]]:
    """Sizes of every array in `text`, on one device."""
    return {tuple(int(n) for n in sizes.split(",") if n) for _, sizes, _ in _SHAPE.findall(text)}


def forbidden(text: str, lengths: set[int], vocab: int) -> list[tuple[int, ...]]:
    """Arrays with two axes of a sequence's length, or of one and the vocabulary.

    Args:
        text: of the program.
        lengths: T, and a device's share of it; none that the model has as another size too.
        vocab: V.
    """

    def bad(sizes: tuple[int, ...]) -> bool:
        along = [n for n in sizes if n in lengths]
        return len(along) > 1 or bool(along and vocab in sizes)

    return sorted(filter(bad, shapes(text)))
