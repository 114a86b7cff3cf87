"""A method's text is read for a checkpoint, which knows the options that the text leaves open."""

import contextlib
import dataclasses
import re
from typing import Any

from longrope_jax.rotary.methods.rope import RoPE
from longrope_jax.rotary.registry import Method, parse


def parse_for_checkpoint(
    text: str, own: Method, trained_length: int | None
) -> tuple[Method, dict[str, Any]]:
    """Returns the method that a text names, with its open options filled from a checkpoint.

    The options that can mean one thing only are filled: `base` is that of pretraining,
    `original_length` is that of the checkpoint's method, or the trained length where that is plain
    RoPE, and `inner` is the checkpoint's method. What the text or the method's name sets is never
    replaced.

    Args:
        text: as `parse` reads it, such as "yarn:factor=4".
        own: the checkpoint's method.
        trained_length: tokens that the checkpoint declares, or None.

    Returns:
        The method, and the options that were filled, by name.

    Raises:
        ValueError: the text cannot be read, or an option is still missing.
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
    method: Any = own
    while hasattr(method, "inner"):
        method = method.inner
    if hasattr(method, "base"):
        options["base"] = method.base
    # A length that a method has extended is not the trained length.
    fallback = trained_length if isinstance(method, RoPE) else None
    length = getattr(method, "original_length", None) or fallback
    return options if length is None else options | {"original_length": length}


def _options(method: Any) -> list[tuple[str, Any]]:
    """Returns the options of a method and of the methods inside it, as (name, value)."""
    own = [(f.name, getattr(method, f.name)) for f in dataclasses.fields(method)]
    return own + [item for name, value in own if name == "inner" for item in _options(value)]
