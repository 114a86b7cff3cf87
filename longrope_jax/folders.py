"""A folder of results is local, has one writer at a time, and loses what a killed writer left."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
# What is written beside a file before it is renamed: `.NAME.PROCESS.tmp`.
_HALF = re.compile(r"\..+\.(\d+)\.(tmp|npz)")


def local(path: str | Path) -> Path:
    """Returns a path with ~ expanded.

    Raises:
        ValueError: The path is a URL such as gs://bucket, which would become a local folder `gs:`.
    """
    if _SCHEME.match(str(path)):
        raise ValueError(
            f"{path} is no local path: object stores are not written yet; mount the bucket, or "
            "copy a local folder there"
        )
    return Path(path).expanduser()


def sweep(folder: str | Path) -> None:
    """Removes the halves of files that processes left which were killed while they wrote."""
    for path in Path(folder).rglob(".*"):
        half = _HALF.fullmatch(path.name)
        if half and not _runs(int(half[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Makes a folder and holds it, so that a second process which would write there is refused.

    The operating system lets go of the folder when the process ends, however it ends. A file system
    without locks is not guarded.

    Raises:
        ValueError: Another process holds the folder.
    """
    folder = local(folder)
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
