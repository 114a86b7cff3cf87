"""Checks, while the tests run, the shapes and types that the package's array functions declare.

conftest.py puts `arrays` around every function of the package as it is imported. Other annotations
are pyright's to check: at run time they would refuse a NumPy integer where an int is meant.
"""

import typing

import jaxtyping
from beartype import beartype


def arrays(function):
    """The function with its array annotations checked at every call, under a trace as well."""
    hints = getattr(function, "__annotations__", {})
    kept = {name: hint for name, hint in hints.items() if _has_array(hint)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(function)


def _has_array(hint) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_array, typing.get_args(hint)))
