"""How a study says that it cannot do what it was asked."""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from longrope_jax import hosts


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Puts `--config.FIELD: ` before the message of any ValueError in the block below it.

    For checks that lie deep in the library, which does not know a config's fields.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--config.{field}: {error}") from error


def fail(message: str) -> NoReturn:
    """Prints `error: message` on stderr as one line and exits with status 2; so do other hosts."""
    if hosts.several():
        hosts.stop(str(message))
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)
