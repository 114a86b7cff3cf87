"""The table of methods in docs/rotary.md is written from the code by

python -m longrope_jax.rotary.documentation [docs/rotary.md]
"""

import dataclasses
import re
import sys
from pathlib import Path

from longrope_jax.rotary import docstrings, hf
from longrope_jax.rotary.registry import classes, defaults, names_of

BEGIN = "<!-- the table is written by: python -m longrope_jax.rotary.documentation -->"
END = "<!-- end of the table -->"
_COLUMNS = ("method", "formula", "Hugging Face", "source")


def update(path: Path) -> None:
    """Writes the table between the two marks of the file; the text around them stays.

    Raises:
        ValueError: there is no such file, it has no marks, or a method's docstring lacks a section.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    path.write_text(updated(text), encoding="utf-8")


def updated(text: str) -> str:
    """Returns the text with the current table between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no lines {BEGIN!r} and {END!r} to write the table between")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def table() -> str:
    """Returns a Markdown table with a short row for every registered method of this package."""
    own = (__package__ or "").partition(".")[0]
    found = [cls for cls in classes() if cls.__module__.partition(".")[0] == own]
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *sorted(_short(cls) for cls in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _short(cls: type) -> list[str]:
    """A row that leaves the rest to the method's page, which docs/tools/methods.py writes."""
    name, formula, _, source, exported, *_ = row(cls)
    name = f"{name.rpartition('<br>')[0]}<br>[page](methods/{names_of(cls)[0]}.md)"
    return [name, formula, exported, source]


def row(cls: type) -> list[str]:
    """Returns the cells of one method.

    Raises:
        ValueError: a section is missing; the message says which, and what to write.
    """
    sections = {name: _section(cls, name) for name in docstrings.SECTIONS}
    formula = docstrings.formula(cls).partition(": ")[2] or docstrings.formula(cls)
    formula = formula.rstrip(".").replace("`", "").replace("|", "\\|")
    names = "<br>".join(_name(name) for name in names_of(cls))
    return [
        f"{names}<br>[{cls.__name__}]({_file(cls)})",
        f"`{formula}`",
        "<br>".join(_options(cls)) or "none",
        _papers(escaped(sections["Source"])),
        _exported(cls),
        escaped(sections["Cache"].rstrip(".")),
        escaped(sections["Peers"]),
    ]


def _section(cls: type, name: str) -> str:
    text = docstrings.section(cls, name)
    if not text:
        raise ValueError(
            f"the docstring of {cls.__name__} has no section {name!r}: write a line "
            f"'{name}: ...' at its left margin, further lines indented by four spaces "
            "(Source: paper, section, equation; Cache: rotated keys, or no and why; "
            "Peers: who computes it otherwise, and how)"
        )
    return text


def _name(name: str) -> str:
    given = ", ".join(f"{k} {v:g}" for k, v in defaults(name).items())
    return f"`{name}`" + (f" ({given})" if given else "")


def _options(cls: type) -> list[str]:
    """Returns a line for each text of the docstring: its options with their defaults, and it.

    Raises:
        ValueError: the docstring says nothing about an option.
    """
    described, lines = docstrings.attributes(cls), {}
    for field in dataclasses.fields(cls):
        if field.name not in described:
            raise ValueError(
                f"the docstring of {cls.__name__} says nothing of option {field.name!r}: write "
                f"'    {field.name}: ...' under 'Attributes:', with the default and its origin"
            )
        text = described[field.name]
        said = re.search(r"\b(required|default)\b", text)
        needed = field.default is dataclasses.MISSING
        value = "" if said else " (needed)" if needed else f" = {field.default!r}"
        lines.setdefault(text, []).append(f"`{field.name}`{value}")
    return [f"{', '.join(names)}: {escaped(text.rstrip('.'))}" for text, names in lines.items()]


def _exported(cls: type) -> str:
    if cls is hf.PartialRotary:
        return "the inner type with `partial_rotary_factor`"
    if cls is hf.ByLayer:
        return "the methods' types, nested by layer type"
    name = hf.rope_type_of(cls)
    if name:
        return f"`{name}`"
    return "as `default`, by its base" if hasattr(cls, "to_hf") else "no type"


def _file(cls: type) -> str:
    return "../" + cls.__module__.replace(".", "/") + ".py"


def escaped(text: str) -> str:
    """Escapes a text for Markdown, except what stands in backticks."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"([*_<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _papers(text: str) -> str:
    return re.sub(r"\((\d{4}\.\d{5})\)", r"([\1](https://arxiv.org/abs/\1))", text)


if __name__ == "__main__":
    update(Path(*sys.argv[1:2] or ["docs/rotary.md"]))
