"""Rotary position encoding: methods as data, exact phases, both layouts.

spec = rotary.RoPE(base=500_000)
rot = rotary.make(spec, head_dim=128, seq_len=32_768)
ph = rotary.phases(rot, positions)
q, k = rotary.rotate(q, ph.query), rotary.rotate(k, ph.key)
"""

from longrope_jax.rotary import positions
from longrope_jax.rotary.account import account
from longrope_jax.rotary.compare import diff
from longrope_jax.rotary.explain import explain
from longrope_jax.rotary.frequencies import (
    MAX_POSITION,
    Frequencies,
    check_base,
    check_factor,
    rescale,
    rope_inv_freq,
)
from longrope_jax.rotary.hf import from_hf, to_hf
from longrope_jax.rotary.methods import (
    DynamicLongRoPE,
    DynamicNTK,
    DynamicPI,
    DynamicYaRN,
    GiraffePower,
    GiraffeTruncated,
    HoPE,
    Llama3,
    LogN,
    LongRoPE,
    LongRoPE2,
    NoPE,
    NTKAware,
    NTKByParts,
    NTKByPartsThreeWay,
    PartialRotary,
    PositionInterpolation,
    Proportional,
    Resonance,
    RoPE,
    XPos,
    YaRN,
)
from longrope_jax.rotary.phases import (
    Phase,
    Phases,
    Rotary,
    from_frequencies,
    make,
    phases,
    stack,
)
from longrope_jax.rotary.registry import Method, build, name_of, names, parse, register, unknown
from longrope_jax.rotary.rotation import LAYOUTS, half_from_interleaved, rotate

__all__ = [
    "LAYOUTS",
    "MAX_POSITION",
    "DynamicLongRoPE",
    "DynamicNTK",
    "DynamicPI",
    "DynamicYaRN",
    "Frequencies",
    "GiraffePower",
    "GiraffeTruncated",
    "HoPE",
    "Llama3",
    "LogN",
    "LongRoPE",
    "LongRoPE2",
    "Method",
    "NTKAware",
    "NTKByParts",
    "NTKByPartsThreeWay",
    "NoPE",
    "PartialRotary",
    "Phase",
    "Phases",
    "PositionInterpolation",
    "Proportional",
    "Resonance",
    "RoPE",
    "Rotary",
    "XPos",
    "YaRN",
    "account",
    "build",
    "check_base",
    "check_factor",
    "diff",
    "explain",
    "from_frequencies",
    "from_hf",
    "half_from_interleaved",
    "make",
    "name_of",
    "names",
    "parse",
    "phases",
    "positions",
    "register",
    "rescale",
    "rope_inv_freq",
    "rotate",
    "stack",
    "to_hf",
    "unknown",
]
