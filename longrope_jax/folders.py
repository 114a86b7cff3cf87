"""A folder of results has one writer at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Makes a folder and holds it, so that a second process which would write there is refused.

    The operating system lets go of the folder when the process ends, however it ends. A file system
    without locks is not guarded.

    Raises:
        ValueError: Another process holds the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is writing in {folder}: wait until it ends, or give another "
                "directory"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
