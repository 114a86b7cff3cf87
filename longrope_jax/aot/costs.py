"""The arithmetic and the memory traffic of a compiled program, with loops followed."""

import math
import re
from collections.abc import Mapping, Sequence

from longrope_jax.aot.hlo import Instruction, Program

# Matrix products per pair of a query and a key in the kernels of splash attention. The forward
# kernel has two (scores, and their sum over values); the backward ones compute the scores again.
# The fused one makes all three gradients, dq as one part for each block of keys.
SPLASH_PRODUCTS = {
    "splash_mha_fwd": 2,
    "splash_mha_dq": 3,
    "splash_mha_dkv": 4,
    "splash_mha_dkv_fused": 5,
}

# These move nothing themselves: they name what is there, or their work is counted elsewhere.
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "iota", "partition-id", "replica-id", "after-all", "async-start", "async-done",
    "copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done",
    "optimization-barrier",
}  # fmt: skip


_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written


def matmul_flops(program: Program, *, once: bool = False) -> float:
    """The FLOPs of the matrix products that XLA compiles, on one device and without kernels.

    Args:
        program: The program, from `hlo.parse`.
        once: Count the body of every loop once, as XLA's own count does.
    """
    total = 0.0
    for name, instruction, runs in program.instructions():
        if instruction.opcode in ("convolution", "dot"):
            flops = _flops(instruction, program.computations[name])
            total += flops if once else flops * runs
    return total


def _flops(instruction: Instruction, body: Sequence[Instruction]) -> float:
    sizes = {i.name: i.arrays[0].sizes for i in body if i.arrays}
    left, right = (sizes[name] for name in instruction.operands[:2])
    result = instruction.arrays[0].sizes
    if instruction.opcode == "dot":
        (axes,) = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return 2.0 * math.prod(result) * math.prod(left[int(i)] for i in axes.split(",") if i)
    return _convolution(instruction.attributes, left, right, result)


def _convolution(attributes: str, left, right, result) -> float:
    """The FLOPs of a convolution, which is how TPU programs write every matrix product."""
    (labels,) = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    axis = lambda which, sizes, letter: sizes[labels[which].index(letter)]  # noqa: E731
    total = 2.0 * axis(2, result, "b") * axis(2, result, "f") * axis(1, right, "i")
    window = re.search(r"window=\{([^}]*)\}", attributes)
    words = dict(word.split("=") for word in window[1].split()) if window else {}
    for i in range(len(left) - 2):
        given = {key: value.split("x")[i] for key, value in words.items()}
        sizes = axis(0, left, str(i)), axis(2, result, str(i))
        total *= _meetings(*sizes, given)
    return total


def _meetings(size_in: int, size_out: int, window: Mapping[str, str]) -> int:
    """How many pairs of an output and a tap of the window meet an element rather than padding."""
    taps, stride = int(window.get("size", 1)), int(window.get("stride", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    spread, holes = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    last = (size_in - 1) * spread
    places = (out * stride - low + tap * holes for out in range(size_out) for tap in range(taps))
    return sum(1 for place in places if 0 <= place <= last and place % spread == 0)


def kernel_calls(program: Program) -> dict[str, float]:
    """How often each kernel of SPLASH_PRODUCTS runs; a batch counts once per row."""
    found = dict.fromkeys(SPLASH_PRODUCTS, 0.0)
    for _, instruction, runs in program.instructions():
        if instruction.opcode != "custom-call":
            continue
        kernel = re.match("splash_mha_(fwd|dq|dkv)", instruction.name)
        if kernel:
            *before, last = (a.sizes for a in instruction.arrays)
            fused = any(len(sizes) > len(last) for sizes in before)
            found[kernel[0] + "_fused" * fused] += runs * (last[0] if len(last) == 4 else 1)
    return found


def splash_flops(calls: Mapping[str, float], pairs: float, heads: int, head_dim: int) -> float:
    """The FLOPs of splash's kernels; a call multiplies `pairs` of a query and a key per head."""
    products = sum(calls[kernel] * n for kernel, n in SPLASH_PRODUCTS.items())
    return products * 2.0 * pairs * heads * head_dim


def hbm_bytes(program: Program, *, once: bool = False) -> float:
    """The least number of bytes that one device reads from and writes to HBM.

    Every array that an instruction reads or writes counts once per execution, a slice only by its
    part, and what lies on the chip not at all. Kernels that read an array in several passes read
    more.
    """
    total, sizes = 0.0, {}
    for name, instruction, runs in program.instructions():
        if name in program.fused or instruction.opcode in _NO_TRAFFIC:
            continue
        if name not in sizes:
            sizes[name] = {i.name: _size(i) for i in program.computations[name]}
        total += _traffic(instruction, sizes[name], program) * (1 if once else runs)
    return total


def _size(instruction: Instruction) -> int:
    return sum(array.size for array in instruction.arrays if array.in_hbm)


def _traffic(instruction: Instruction, sizes: Mapping[str, int], program: Program) -> float:
    operands = [sizes.get(name, 0) for name in instruction.operands]
    written = _size(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * operands[1]
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * written
    if instruction.opcode.endswith("-start"):  # its result names the operand too
        return 2.0 * max(operands, default=0)
    if instruction.opcode == "fusion" and instruction.called:
        return _fusion_traffic(instruction, operands, program)
    return sum(operands) + written


def _fusion_traffic(instruction: Instruction, operands, program: Program) -> float:
    body = {i.name: i for i in program.computations[instruction.called[0]]}
    total = 0.0
    for parameter in body.values():
        if parameter.opcode == "parameter":
            whole = operands[int(parameter.attributes.partition(")")[0])]
            total += min(whole, _read(parameter.name, instruction.called[0], program))
    root = next(i for i in body.values() if i.root)
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result, array in zip(results, instruction.arrays, strict=False):
        size = array.size * array.in_hbm
        if result.opcode in _IN_PLACE:
            # Written into an operand, of which nothing else is touched.
            new = body[result.operands[_IN_PLACE[result.opcode]]]
            size = min(size, sum(part.size for part in new.arrays))
        total += size
    return total


def _read(name: str, computation: str, program: Program) -> float:
    """The bytes that a fused computation reads of an array; infinity stands for all of them."""
    total = 0.0
    for user in program.computations[computation]:
        if name not in user.operands:
            continue
        if user.opcode in ("bitcast", "reshape"):
            total += _read(user.name, computation, program)
        elif user.opcode in ("dynamic-slice", "slice"):
            total += sum(array.size for array in user.arrays)
        elif user.opcode == "fusion":
            inner = user.called[0]
            index = str(user.operands.index(name))
            for parameter in program.computations[inner]:
                if parameter.opcode == "parameter" and parameter.attributes.startswith(index + ")"):
                    total += _read(parameter.name, inner, program)
        elif not (user.opcode in _IN_PLACE and user.operands[0] == name):
            return math.inf
    return total
