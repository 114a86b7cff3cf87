"""A folder in an object store, which has no locks, is held by a file that its writer renews.

The file `.lease` names the writer and counts its renewals. A writer that was killed renews no more:
whoever comes next watches the file for `DEAD` seconds by its own clock, so no two clocks are ever
compared, and takes the folder if nothing moved. On the writer's own machine a process that is gone
is known at once.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RENEW = 20.0  # seconds between two renewals
DEAD = 75.0  # seconds without a renewal after which a writer counts as gone
SETTLE = 1.0  # seconds after which of two that began together the later one has won

_NAME = ".lease"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder of an object store; waits up to `DEAD` seconds for a writer that is gone.

    A writer that finds another's name in its lease, after its machine was suspended for longer than
    `DEAD`, ends the process at once with status 1, since the folder is no longer its own.

    Raises:
        ValueError: Another process renews the lease.
    """
    file, me = folder / _NAME, {"host": _host(), "process": os.getpid(), "began": time.time_ns()}
    _wait_until_free(folder, file)
    _renew(file, me, 0)
    time.sleep(SETTLE)
    if not _is_mine(_read(file), me):
        raise ValueError(taken(folder))
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(file, me, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        file.unlink(missing_ok=True)


def taken(folder: Path) -> str:
    """Returns the message for a folder that another process holds."""
    return f"another process is writing in {folder}: wait until it ends, or give another directory"


def runs(process: int) -> bool:
    """Returns whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _wait_until_free(folder: Path, file: Path) -> None:
    seen, since = _read(file), time.monotonic()
    if seen is None or (seen.get("host") == _host() and not runs(int(seen.get("process", 0)))):
        return
    print(
        f"{folder} was last written by a process on {seen.get('host')}: waiting up to {DEAD:.0f} s "
        "to see whether it still runs",
        file=sys.stderr,
    )
    while time.monotonic() - since < DEAD:
        time.sleep(min(1.0, DEAD / 10))
        now = _read(file)
        if now is None:
            return
        if now != seen:
            raise ValueError(f"{taken(folder)} (it runs on {now.get('host')})")


def _keep(file: Path, me: dict[str, Any], ended: threading.Event) -> None:
    count = 0
    while not ended.wait(RENEW):
        count += 1
        try:
            if not _is_mine(_read(file), me):
                print(
                    f"error: another process has taken {file.parent}, since this one did not renew "
                    f"its lease for {DEAD:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
            _renew(file, me, count)
        except OSError as error:  # the network comes back, or the lease is lost
            print(f"{file}: {error}", file=sys.stderr)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {"host": "another host", "text": "damaged"}


def _renew(file: Path, me: dict[str, Any], count: int) -> None:
    file.write_text(json.dumps(me | {"renewed": count}))


def _is_mine(found: dict[str, Any] | None, me: dict[str, Any]) -> bool:
    return found is not None and found.get("began") == me["began"] and found["host"] == me["host"]


def _host() -> str:
    """The machine's name; containers that share it have processes of their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
