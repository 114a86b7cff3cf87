"""Closed forms in float64 need no model: decay, helix, granularity, bounds on bases."""

from longrope_jax.analysis import (
    base_bound,
    critical_dimension,
    decay,
    granularity,
    helix,
    interpolation,
)

__all__ = [
    "base_bound",
    "critical_dimension",
    "decay",
    "granularity",
    "helix",
    "interpolation",
]
