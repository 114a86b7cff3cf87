"""Published methods, one file each; importing this package registers them all."""

from longrope_jax.rotary.methods.position_interpolation import PositionInterpolation
from longrope_jax.rotary.methods.rope import RoPE
from longrope_jax.rotary.methods.xpos import XPos

__all__ = ["PositionInterpolation", "RoPE", "XPos"]
