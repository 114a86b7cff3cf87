"""The one way to say that a name is not known, and the one way to warn."""

import difflib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

# A caller may have put jaxtyping's run-time checks around the package, as the tests do.
_NOT_THE_CALLER = (str(Path(__file__).parent), "<@beartype", str(Path("jaxtyping", "_")))


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


def warn(text: str) -> None:
    """Warns with the line that called the package, however deep in it the warning arises."""
    frame, level = sys._getframe(1), 1
    while frame is not None and any(part in frame.f_code.co_filename for part in _NOT_THE_CALLER):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level + 1)
