"""Methods by name: registration, lookup, and the `name:option=value` notation of command lines."""

import ast
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from longrope_jax.errors import unknown_name
from longrope_jax.rotary.frequencies import Frequencies


class Method(Protocol):
    """What the package needs of a rotary method: a frozen dataclass with this one method."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Frequencies for heads of `head_dim` in sequences of `seq_len` tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class _Entry:
    cls: type
    defaults: dict[str, Any]


_ENTRIES: dict[str, _Entry] = {}
_T = TypeVar("_T")


def register(name: str, **defaults: Any) -> Callable[[type[_T]], type[_T]]:
    """Class decorator that makes a frozen dataclass with `.frequencies` known as `name`.

    One class may have several names; `defaults` replace field defaults under this one.

    Raises:
        ValueError: not a frozen dataclass, no `.frequencies`, or a name taken by another class.
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
    """Registered names, sorted."""
    return tuple(sorted(_ENTRIES))


def method_class(name: str) -> type:
    """The class registered as `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in _ENTRIES:
        raise ValueError(unknown_name("rotary method", name, names()))
    return _ENTRIES[name].cls


def name_of(spec: Method) -> str:
    """The first registered name of the spec's class, or the class name if it has none."""
    return next(iter(names_of(type(spec))), type(spec).__name__)


def names_of(cls: type) -> tuple[str, ...]:
    """All registered names of a class, in order of registration."""
    return tuple(name for name, entry in _ENTRIES.items() if entry.cls is cls)


def classes() -> tuple[type, ...]:
    """Registered classes, each once, in order of registration."""
    return tuple(dict.fromkeys(entry.cls for entry in _ENTRIES.values()))


def defaults(name: str) -> dict[str, Any]:
    """The options that this name sets, where they differ from the class's defaults."""
    return dict(_ENTRIES[name].defaults)


def build(name: str, **options: Any) -> Method:
    """The method registered as `name` with `options`.

    Raises:
        ValueError: unknown name or option (the nearest known one is named), missing or bad option.
    """
    fields = {f.name: f for f in dataclasses.fields(method_class(name))}
    entry = _ENTRIES[name]
    for option in options:
        if option not in fields:
            raise ValueError(unknown_name(f"option of {name}", option, fields))
    merged = entry.defaults | options
    required = [n for n, f in fields.items() if n not in merged and not _has_default(f)]
    if required:
        raise ValueError(f"{name} needs {', '.join(required)}: write {name}:{required[0]}=...")
    return entry.cls(**merged)


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, with the nearest known value, unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(unknown_name(option, str(value), known))


def check_method(option: str, value: Any) -> None:
    """Raises ValueError unless `value` is a rotary method (text is a typing error)."""
    if isinstance(value, type) or not callable(getattr(value, "frequencies", None)):
        raise ValueError(f"{option} must be a method, got {value!r}; write {option}=(rope)")


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def parse(text: str, fill: Mapping[str, Any] | None = None) -> Method:
    """Reads `name` or `name:option=value,option=value`, e.g. `pi:factor=8,base=10_000`.

    Commas inside brackets belong to the value: `long_factor=(1.0,2.0)` is a tuple, and
    `inner=(pi:factor=8,base=500_000)` another method.

    Args:
        text: in this notation.
        fill: values, e.g. of a checkpoint, for options that the text and the name leave open.

    Raises:
        ValueError: as `build`, or text of another form.
    """
    name, options = read_options(text, fill)
    return build(name, **_filled(name, options, fill or {}))


def notation(spec: Method) -> str:
    """The method in the notation of `parse`, every option written out.

    Raises:
        ValueError: a class that is not registered.
    """
    if not names_of(type(spec)):
        raise ValueError(f"{type(spec).__name__} has no name: rotary.register it")
    options = ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
    written = (
        f"{k}=({notation(v)})" if hasattr(v, "frequencies") else f"{k}={v!r}" for k, v in options
    )
    return f"{name_of(spec)}:{','.join(written)}"


def read_options(text: str, fill: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of `name:option=value,...`, as `parse` reads them, nothing looked up.

    `fill` goes to methods within brackets.
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
    """The options, and those of `fill` that neither they nor the name's own defaults set."""
    entry = _ENTRIES.get(name)
    if entry is None:
        return options
    open_ = {f.name for f in dataclasses.fields(entry.cls)} - entry.defaults.keys()
    return {key: value for key, value in fill.items() if key in open_} | options


def _split(text: str) -> list[str]:
    """The parts of `text` between commas that are outside all brackets."""
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
        nested = text.startswith("(") and text.endswith(")")
        return parse(text[1:-1], fill) if nested else text
