"""Reads a method's text for a checkpoint, which knows the options that the text leaves open."""

import contextlib
import dataclasses
import re
from typing import Any

from longrope_jax.rotary.methods.rope import RoPE
from longrope_jax.rotary.registry import Method, parse


def parse_for_checkpoint(
    text: str, own: Method, trained_length: int | None
) -> tuple[Method, dict[str, Any]]:
    """The method that a text names, its open options filled from a checkpoint.

    Filled are `base` (of the checkpoint's pretraining), `original_length` (of its method, or of
    plain RoPE the trained length) and `inner` (its method, for methods around another): what can be
    meant in one way only. What the text or the method's name sets is never replaced.

    Args:
        text: as `parse` reads it, such as "yarn:factor=4".
        own: the checkpoint's method.
        trained_length: tokens that the checkpoint declares, or None.

    Returns:
        The method, and the options that were filled, by name.

    Raises:
        ValueError: The text cannot be read, or an option is still missing.
    """
    known = _known_options(own, trained_length)
    method = _parsed(text, known)
    items = _options(method)
    unsaid = {k: v for k, v in known.items() if not re.search(rf"\b{k}\s*=", text)}
    return method, {k: v for k, v in unsaid.items() if (k, v) in items}


def _parsed(text: str, known: dict[str, Any]) -> Method:
    try:
        return parse(text, known)
    except ValueError:
        # Of NTK-aware's two rules one needs an original length and the other refuses it.
        rest = {name: value for name, value in known.items() if name != "original_length"}
        with contextlib.suppress(ValueError):
            return parse(text, rest)
        raise


def _known_options(own: Method, trained_length: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {"inner": own}
    method = own
    while hasattr(method, "inner"):
        method = method.inner
    if hasattr(method, "base"):
        options["base"] = method.base
    # A context that a method has extended is no trained length.
    fallback = trained_length if isinstance(method, RoPE) else None
    length = getattr(method, "original_length", None) or fallback
    return options if length is None else options | {"original_length": length}


def _options(method: Any) -> list[tuple[str, Any]]:
    """The options of a method and of the methods around which it is, as (name, value)."""
    own = [(f.name, getattr(method, f.name)) for f in dataclasses.fields(method)]
    return own + [item for name, value in own if name == "inner" for item in _options(value)]
