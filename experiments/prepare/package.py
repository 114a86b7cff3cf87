"""Packages of the extra `corpus`, imported where they are used."""

import importlib
from types import ModuleType


def package(name: str, use: str) -> ModuleType:
    """A package of the extra `corpus`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "pip install 'longrope_jax[corpus]'"
        raise ValueError(f"{use} needs the package {name}: {hint}") from error
