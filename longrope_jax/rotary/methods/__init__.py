"""The published methods stand here, one file each; importing this package registers them."""

from longrope_jax.rotary.methods.alibi import ALiBi, alibi_slopes
from longrope_jax.rotary.methods.by_layer import ByLayer, distinct
from longrope_jax.rotary.methods.dual_chunk import DualChunk
from longrope_jax.rotary.methods.dynamic_longrope import DynamicLongRoPE
from longrope_jax.rotary.methods.dynamic_ntk import DynamicNTK
from longrope_jax.rotary.methods.dynamic_pi import DynamicPI
from longrope_jax.rotary.methods.dynamic_yarn import DynamicYaRN
from longrope_jax.rotary.methods.fope import FoPE
from longrope_jax.rotary.methods.giraffe import GiraffePower, GiraffeTruncated
from longrope_jax.rotary.methods.hope import HoPE
from longrope_jax.rotary.methods.llama3 import Llama3
from longrope_jax.rotary.methods.log_n import LogN
from longrope_jax.rotary.methods.longrope import LongRoPE
from longrope_jax.rotary.methods.longrope2 import LongRoPE2
from longrope_jax.rotary.methods.nope import NoPE
from longrope_jax.rotary.methods.ntk_aware import NTKAware
from longrope_jax.rotary.methods.ntk_by_parts import NTKByParts, NTKByPartsThreeWay
from longrope_jax.rotary.methods.partial_rotary import PartialRotary
from longrope_jax.rotary.methods.position_interpolation import PositionInterpolation
from longrope_jax.rotary.methods.proportional import Proportional
from longrope_jax.rotary.methods.rerope import LeakyReRoPE, ReRoPE
from longrope_jax.rotary.methods.resonance import Resonance
from longrope_jax.rotary.methods.rope import RoPE
from longrope_jax.rotary.methods.self_extend import SelfExtend
from longrope_jax.rotary.methods.string import STRING
from longrope_jax.rotary.methods.xpos import XPos
from longrope_jax.rotary.methods.yarn import YaRN

__all__ = [
    "STRING",
    "ALiBi",
    "ByLayer",
    "DualChunk",
    "DynamicLongRoPE",
    "DynamicNTK",
    "DynamicPI",
    "DynamicYaRN",
    "FoPE",
    "GiraffePower",
    "GiraffeTruncated",
    "HoPE",
    "LeakyReRoPE",
    "Llama3",
    "LogN",
    "LongRoPE",
    "LongRoPE2",
    "NTKAware",
    "NTKByParts",
    "NTKByPartsThreeWay",
    "NoPE",
    "PartialRotary",
    "PositionInterpolation",
    "Proportional",
    "ReRoPE",
    "Resonance",
    "RoPE",
    "SelfExtend",
    "XPos",
    "YaRN",
    "alibi_slopes",
    "distinct",
]
