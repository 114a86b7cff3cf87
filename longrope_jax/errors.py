"""The one way to say that a name is not known."""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """A message of one line for a name that is not known: the nearest known one, and the list.

    Args:
        what: the kind of thing that the name should be, such as "rotary method".
        name: as it was given.
        known: all names that would do.
    """
    known = sorted(map(str, known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(known)})"
