"""Closed forms in float64 that need no model: decay curves, the helix picture."""

from longrope_jax.analysis import decay, helix

__all__ = ["decay", "helix"]
