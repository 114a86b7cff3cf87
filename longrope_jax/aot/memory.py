"""The compiler's verdict on memory, in numbers that a table can show."""

import re
from collections.abc import Mapping

from longrope_jax.aot import chips
from longrope_jax.aot.workload import Workload

GIB = 2**30


def hbm_gib(work: Workload) -> float:
    """The memory of one chip that the compiler lets a program use."""
    return chips.chip(work.topology).hbm / GIB


def peak_gib(result: Mapping) -> float:
    """The peak memory of a program on each device; where it was refused, what it asked for."""
    return needed(result["refused"]) if "refused" in result else result["memory"]["peak"] / GIB


def spare_percent(work: Workload, result: Mapping) -> float:
    """The share of a chip's memory that a program leaves."""
    return 100 * (1 - result["memory"]["peak"] / chips.chip(work.topology).hbm)


def needed(refusal: str) -> float:
    """The GiB that the compiler asked for when it refused; NaN if its message does not say."""
    match = re.search(r"\((\d+\.\d+)G\)|Used (\d+\.\d+)G of", refusal)
    return float(match[1] or match[2]) if match else float("nan")
