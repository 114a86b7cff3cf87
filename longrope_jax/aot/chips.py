"""What a TPU chip can do at most, from its data sheet."""

import dataclasses

from longrope_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak numbers of one chip.

    Attributes:
        flops: FLOP/s of bfloat16 matrix products.
        hbm: Bytes of memory that the compiler lets a program use.
        hbm_bandwidth: Bytes/s between memory and chip.
        link: Bytes/s over one link to a neighbour, in one direction.
        wraps: An axis of a slice is a ring, not a line, where its size is a multiple of this.
        slices: The shapes of slices, the smallest first.
    """

    flops: float
    hbm: int
    hbm_bandwidth: float
    link: float
    wraps: int
    slices: tuple[str, ...]


_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# docs.cloud.google.com/tpu/docs/v5p, /v5e and /v6e, "Key chip specifications": 459, 197 and 918
# TFLOP/s; 2,765, 819 and 1,638 GB/s; both ways 1,200 GB/s over 6 links, 400 over 4 and 800 over 4.
# Of the sheets' 95, 16 and 32 GB the compiler (libtpu 0.0.42.1) offers 95.74, 15.75 and 31.25 GiB,
# as its refusals say. Rings: whole cubes of 4x4x4 chips (v5p), whole pods of 16x16 (v5e, v6e).
CHIPS = {
    "v5p": Chip(459e12, int(95.74 * 2**30), 2765e9, 100e9, 4, _3D),
    "v5e": Chip(197e12, int(15.75 * 2**30), 819e9, 50e9, 16, _2D),
    "v6e": Chip(918e12, int(31.25 * 2**30), 1638e9, 100e9, 16, _2D),
}


def chip(topology: str) -> Chip:
    """The chip of a slice such as v5p:4x4x4, or of its name alone.

    Raises:
        ValueError: The chip is not in CHIPS.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ValueError(unknown_name("TPU", name, CHIPS))
    return CHIPS[name]


def slices(name: str) -> tuple[str, ...]:
    """The slices of a chip as libtpu names them, the smallest first."""
    return tuple(f"{name}:{shape}" for shape in chip(name).slices)


def links(topology: str, coordinates: list[list[int]]) -> int:
    """How many links of one chip a group of chips can use at the same time, at least 1.

    Along each axis of the slice that the group covers there are two where that axis is a ring, and
    one where it is a line.
    """
    sizes = [int(n) for n in topology.partition(":")[2].split("x")]
    total = 0
    for axis, size in enumerate(sizes):
        covered = len({c[axis] for c in coordinates})
        ring = covered == size and size % chip(topology).wraps == 0
        total += 0 if covered == 1 else 1 + ring
    return max(total, 1)
