"""Methods are registered and looked up by name; `name:option=value` is how they are written."""

import ast
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from longrope_jax.errors import unknown_name
from longrope_jax.rotary.frequencies import Frequencies


class Method(Protocol):
    """A rotary method is a frozen dataclass with this one method."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the frequencies for heads of `head_dim` in sequences of `seq_len` tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class _Entry:
    cls: type
    defaults: dict[str, Any]


_ENTRIES: dict[str, _Entry] = {}
_T = TypeVar("_T")


def register(name: str, **defaults: Any) -> Callable[[type[_T]], type[_T]]:
    """Decorates a frozen dataclass with `.frequencies`, which is then known as `name`.

    One class may have several names; `defaults` replace its field defaults under this name.

    Raises:
        ValueError: the class is not a frozen dataclass or has no `.frequencies`, or another class
            has the name.
    """

    def add(cls: type[_T]) -> type[_T]:
        params = getattr(cls, "__dataclass_params__", None)
        if params is None or not params.frozen:
            raise ValueError(f"{cls.__name__} must be a frozen dataclass: @dataclass(frozen=True)")
        if not callable(getattr(cls, "frequencies", None)):
            raise ValueError(f"{cls.__name__} needs a method frequencies(*, head_dim, seq_len)")
        taken = _ENTRIES.get(name)
        if taken and taken.cls.__qualname__ != cls.__qualname__:
            raise ValueError(f"the name {name!r} is taken by {taken.cls.__name__}")
        _ENTRIES[name] = _Entry(cls, defaults)
        return cls

    return add


def names() -> tuple[str, ...]:
    """Returns all registered names, sorted."""
    return tuple(sorted(_ENTRIES))


def method_class(name: str) -> type:
    """Returns the class that is registered as `name`.

    Raises:
        ValueError: no method has that name; the message says the nearest one.
    """
    if name not in _ENTRIES:
        raise ValueError(unknown_name("rotary method", name, names()))
    return _ENTRIES[name].cls


def name_of(spec: Method) -> str:
    """Returns the first registered name of a method's class, or the class's own without one."""
    return next(iter(names_of(type(spec))), type(spec).__name__)


def names_of(cls: type) -> tuple[str, ...]:
    """Returns all registered names of a class, in order of registration."""
    return tuple(name for name, entry in _ENTRIES.items() if entry.cls is cls)


def classes() -> tuple[type, ...]:
    """Returns the registered classes, each once, in order of registration."""
    return tuple(dict.fromkeys(entry.cls for entry in _ENTRIES.values()))


def defaults(name: str) -> dict[str, Any]:
    """Returns the options that a name sets to other values than the class's defaults."""
    return dict(_ENTRIES[name].defaults)


def build(name: str, **options: Any) -> Method:
    """Returns the method that is registered as `name`, with these options.

    Raises:
        ValueError: the name or an option is unknown (the message says the nearest known one), or an
            option is missing or has a bad value.
    """
    fields = {f.name: f for f in dataclasses.fields(method_class(name))}
    entry = _ENTRIES[name]
    for option in options:
        if option not in fields:
            raise ValueError(unknown_name(f"option of {name}", option, fields))
    merged = entry.defaults | options
    required = [n for n, f in fields.items() if n not in merged and not _has_default(f)]
    if required:
        given = "".join(f"{option}={value}," for option, value in options.items())
        told = " (a checkpoint tells it)" if "original_length" in required else ""
        raise ValueError(
            f"{name} needs {', '.join(required)}: write {name}:{given}{required[0]}=...{told}"
        )
    return entry.cls(**merged)


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, with the nearest known value, unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(unknown_name(option, str(value), known))


def check_method(option: str, value: Any) -> None:
    """Raises ValueError unless `value` is a rotary method; its text is not one."""
    if isinstance(value, type) or not callable(getattr(value, "frequencies", None)):
        raise ValueError(f"{option} must be a method, got {value!r}; write {option}=(rope)")


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def parse(text: str, fill: Mapping[str, Any] | None = None) -> Method:
    """Reads `name` or `name:option=value,option=value`, e.g. `pi:factor=8,base=10_000`.

    Commas inside brackets belong to the value: `long_factor=(1.0,2.0)` is a tuple,
    `inner=(pi:factor=8,base=500_000)` another method, and `methods=((rope),(nope))` several.

    Args:
        text: in this notation.
        fill: values, e.g. of a checkpoint, for options that the text and the name leave open.

    Raises:
        ValueError: the text has another form, or `build` refuses its name or options.
    """
    name, options = read_options(text, fill)
    return build(name, **_filled(name, options, fill or {}))


def notation(spec: Method) -> str:
    """Returns the method in the notation of `parse`, with every option written out.

    Raises:
        ValueError: the method's class is not registered.
    """
    if not names_of(type(spec)):
        raise ValueError(f"{type(spec).__name__} has no name: rotary.register it")
    written = (f"{f.name}={_written(getattr(spec, f.name))}" for f in dataclasses.fields(spec))
    return f"{name_of(spec)}:{','.join(written)}"


def _written(value: Any) -> str:
    """Returns an option's value as `parse` reads it, methods in brackets."""
    if hasattr(value, "frequencies"):
        return f"({notation(value)})"
    if isinstance(value, tuple) and value and all(hasattr(one, "frequencies") for one in value):
        return f"({','.join(map(_written, value))})"
    return repr(value)


def read_options(text: str, fill: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Returns name and options of `name:option=value,...` as `parse` reads them.

    The name is not looked up. `fill` is used for methods within brackets.

    Raises:
        ValueError: the text has another form, or gives an option twice.
    """
    name, _, rest = text.partition(":")
    options = {}
    for item in filter(None, _split(rest)):
        option, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"cannot read {item!r} in {text!r}: write name:option=value,...")
        option = option.strip()
        if option in options:
            raise ValueError(f"{option} is given twice in {text!r}")
        options[option] = _literal(value.strip(), fill)
    return name.strip(), options


def _filled(name: str, options: dict[str, Any], fill: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options, and those of `fill` that they and the name's defaults leave open."""
    entry = _ENTRIES.get(name)
    if entry is None:
        return options
    open_ = {f.name for f in dataclasses.fields(entry.cls)} - entry.defaults.keys()
    return {key: value for key, value in fill.items() if key in open_} | options


def _split(text: str) -> list[str]:
    """Splits a text at the commas that are outside all brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([") - (c in ")]")
        if depth < 0:
            break
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    if depth:
        raise ValueError(f"brackets do not match in {text!r}")
    return parts


def _literal(text: str, fill: Mapping[str, Any] | None = None) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if not (text.startswith("(") and text.endswith(")")):
            return text
        if text.startswith("(("):
            return tuple(_literal(one, fill) for one in _split(text[1:-1]) if one)
        return parse(text[1:-1], fill)
