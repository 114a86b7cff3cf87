"""Long-context rotary position encoding in JAX: exact, pluggable, measured.

import longrope_jax as lr

model = lr.load("smollm2-135m")
print(model.generate("Once upon a time", max_new_tokens=40, rotary="yarn:factor=4"))

Importing the package loads nothing else; each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longrope_jax import rotary
    from longrope_jax.model import Model, load

    __version__: str

__all__ = ["Model", "__version__", "load", "rotary"]


def __getattr__(name: str):
    if name == "rotary":
        return importlib.import_module("longrope_jax.rotary")
    if name in ("Model", "load"):
        return getattr(importlib.import_module("longrope_jax.model"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("longrope_jax")
    raise AttributeError(f"module 'longrope_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
