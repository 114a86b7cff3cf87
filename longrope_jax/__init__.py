"""Long-context rotary position encoding in JAX: exact, pluggable, measured."""
