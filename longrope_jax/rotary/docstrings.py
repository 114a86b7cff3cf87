"""Reads the facts that a method's docstring holds, for `explain` and for docs/rotary.md."""

import inspect
import re

SECTIONS = ("Source", "Cache", "Peers")

_HEAD = re.compile(r"([A-Z]\w*):(?: +(.*))?$")
_ATTRIBUTE = re.compile(r"    (\w[\w, ]*): (.*)$")


def formula(cls: type) -> str:
    """Returns the first line of a method's docstring, which holds its formula."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def body(cls: type) -> list[str]:
    """Returns what stands between the first line and the sections: paragraphs, and items of lists.

    An item begins with "- " and the name that it explains.
    """
    text = (inspect.getdoc(cls) or "").partition("\n")[2]
    text = re.split(rf"^(?:{'|'.join(SECTIONS)}|Attributes):", text, maxsplit=1, flags=re.M)[0]
    found = [""]
    for line in text.splitlines():
        item = re.match(r"  (\w+): (.*)", line)
        if item:
            found.append(f"- `{item[1]}`: {item[2]}")
        elif not line.strip() or (found[-1].startswith("- ") and not line.startswith(" ")):
            found.append(line.strip())
        else:
            found[-1] = f"{found[-1]} {line.strip()}".strip()
    return [part for part in found if part]


def section(cls: type, name: str) -> str:
    """Returns the text after `name:` at the start of a line, indented lines too; "" without it."""
    text, inside = [], False
    for line in (inspect.getdoc(cls) or "").splitlines():
        head = _HEAD.match(line)
        if head and head[1] == name:
            inside = True
            text.append(head[2] or "")
        elif inside and line.startswith(" "):
            text.append(line.strip())
        else:
            inside = False
    return " ".join(text).strip()


def attributes(cls: type) -> dict[str, str]:
    """Returns what `Attributes:` says of each option; `a, b: text` gives both the same text."""
    lines = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")[2].splitlines()
    found, names = {}, ()
    for line in lines:
        start = _ATTRIBUTE.match(line)
        if start:
            names = tuple(name.strip() for name in start[1].split(","))
            found |= dict.fromkeys(names, start[2])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return found
