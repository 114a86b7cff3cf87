"""A method's text is read for a checkpoint, which knows the options that the text leaves open."""

import contextlib
import dataclasses
import re
from typing import Any

from longrope_jax.rotary.methods.by_layer import ByLayer
from longrope_jax.rotary.methods.nope import NoPE
from longrope_jax.rotary.methods.rope import RoPE
from longrope_jax.rotary.registry import Method, notation, parse, read_options


def parse_for_checkpoint(
    text: str, own: Method, trained_length: int | None
) -> tuple[Method, dict[str, Any]]:
    """Returns the method that a text names, with its open options filled from a checkpoint.

    The options that can mean one thing only are filled: `base` is that of pretraining,
    `original_length` is that of the checkpoint's method, or the trained length where that is plain
    RoPE, and `inner` is the checkpoint's method. What the text or the method's name sets is never
    replaced.

    Where the checkpoint's method differs by layer, its layers without rotation stay as they are,
    and the text is about all others if they have one method. If they have several, only
    by_layer says which layers are meant, and each method in it states its base.

    Args:
        text: as `parse` reads it, such as "yarn:factor=4".
        own: the checkpoint's method.
        trained_length: tokens that the checkpoint declares, or None.

    Returns:
        The method, and the options that were filled, by name.

    Raises:
        ValueError: the text cannot be read, an option is still missing, or the checkpoint has
            several methods and the text is not of by_layer.
    """
    if isinstance(own, ByLayer):
        return _for_layers(text, own, trained_length)
    known = _known_options(own, trained_length)
    method = _parsed(text, known)
    items = _options(method)
    unsaid = {k: v for k, v in known.items() if not re.search(rf"\b{k}\s*=", text)}
    return method, {k: v for k, v in unsaid.items() if (k, v) in items}


def _for_layers(text: str, own: ByLayer, trained_length: int | None):
    turning = [method for method in own.methods if method != NoPE()]
    if read_options(text)[0] == "by_layer":
        bases = {getattr(method, "base", None) for method in turning}
        known = {"base": bases.pop()} if len(bases) == 1 else {"base": None}
        try:
            return parse(text, known), {}
        except ValueError as error:
            if "got None" in str(error):
                raise ValueError(
                    f"{text!r}: the bases of this checkpoint differ by layer, so write base=... in "
                    f"each method; its own is {notation(own)}"
                ) from error
            raise
    if len(turning) > 1:
        raise ValueError(
            f"this checkpoint's method differs by layer, so {text!r} does not say which layers are "
            f"meant: change the methods of {notation(own)}"
        )
    method, filled = parse_for_checkpoint(text, turning[0], trained_length)
    methods = tuple(one if one == NoPE() else method for one in own.methods)
    return dataclasses.replace(own, methods=methods), filled


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
