"""Several hosts of one program agree before they work, and end when one of them is lost.

Both go through JAX's coordination service, not through the devices, so they answer within a stated
time whatever the devices are waiting for.
"""

import atexit
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import jax
from jax._src import distributed  # the client of the coordination service has no public name

T = TypeVar("T")

LATE = 300  # seconds that hosts wait for each other before work
BEAT = 2  # seconds between two signs of life
LOST = 60  # seconds without a sign of life; JAX itself aborts after 100, with a page

_WEEK = 7 * 24 * 3600 * 1000  # milliseconds; a host that is lost ends the wait before

_AGREEMENTS, _MADE = itertools.count(), itertools.count()
_DONE = threading.Event()
_ALIVE, _ENDED = "longrope_jax/alive", "ended"
_SAME_COMMAND = "start the same command on every host again, and it goes on where it was"


def start(*, late: float = LATE, lost: float = LOST, **options) -> None:
    """Joins the processes of a pod or cluster; call it before any other use of JAX.

    From then on a host that is killed ends the others: after `lost` seconds without a sign of its
    life each prints one line on stderr and exits with status 2. Where host 0 is killed, which holds
    JAX's coordination service, JAX itself aborts the others at once, with lines of its own.

    Where the others do not come in time, the process ends in the same way.

    Args:
        late: seconds to wait for the other hosts.
        lost: seconds without a sign of life.
        **options: of `jax.distributed.initialize`, where nothing tells it the cluster.
    """
    words = f"the hosts did not come together within {late:g} s: start the same command on all"
    clock = threading.Timer(late, _end, args=(words,))  # JAX itself would abort with a page
    clock.daemon = True
    clock.start()
    # JAX ends the others itself when host 0 goes: jaxlib 0.10 takes a callback for that moment, but
    # calls it with a status that Python cannot hold, and aborts (std::bad_cast).
    try:
        jax.distributed.initialize(initialization_timeout=int(late) + 60, **options)
    finally:
        clock.cancel()
    if several():
        _watch(lost)


def several() -> bool:
    """Returns whether this process is one of several, without touching a device."""
    return (distributed.global_state.num_processes or 1) > 1


def agree(what: Mapping[str, object], *, seconds: float = LATE) -> None:
    """Compares values that must be equal on all hosts; with one host it does nothing.

    Args:
        what: values by name, as JSON has them; give digests of what is long.
        seconds: to wait for the other hosts.

    Raises:
        ValueError: A host has another value, which is named, or did not come in time.
    """
    if not several():
        return
    client, me = _client(), distributed.global_state.process_id
    key = f"longrope_jax/agree/{next(_AGREEMENTS)}"
    mine = json.loads(json.dumps(what))
    client.key_value_set(f"{key}/{me}", json.dumps(mine))
    for host in range(distributed.global_state.num_processes):
        try:
            found = client.blocking_key_value_get(f"{key}/{host}", int(1000 * seconds))
        except RuntimeError as error:
            raise ValueError(
                f"host {host} did not come within {seconds:g} s: {_SAME_COMMAND}"
            ) from error
        for name, theirs in json.loads(found).items():
            if mine.get(name) != theirs:
                raise ValueError(
                    f"host {me} has {name} {mine.get(name)}, host {host} has {theirs}: give every "
                    "host the same command, text and packages"
                )


def made_once(make: Callable[[], T], read: Callable[[], T]) -> T:
    """Returns make() on host 0, and on the others read(), after what host 0 made is there.

    Every host must call it, in the same order. With one process it is make(). If host 0 fails, the
    others end by its word, see `stop`.
    """
    if not several():
        return make()
    key = f"longrope_jax/made/{next(_MADE)}"
    if _me() == 0:
        found = make()
        _client().key_value_set(key, "")
        return found
    _client().blocking_key_value_get(key, _WEEK)
    return read()


def stop(message: str) -> NoReturn:
    """Prints one line, tells the other hosts, and ends this one with status 2.

    It does not wait for the others, as the end of a process otherwise does.
    """
    _DONE.set()
    line = " ".join(message.split())
    print("error:", line, file=sys.stderr, flush=True)
    try:
        _say(f"stopped: {line}")
        time.sleep(2 * BEAT)  # in which the others hear it; host 0 answers for all of them
    finally:
        os._exit(2)


def _client():
    client = distributed.global_state.client
    assert client is not None
    return client


def _say(text: str) -> None:
    name = f"{_ALIVE}/{distributed.global_state.process_id}"
    _client().key_value_set(name, text, allow_overwrite=True)


def _watch(lost: float) -> None:
    """Tells the others every moment that this host lives, and looks for their word, in a thread."""
    thread = threading.Thread(target=_look, args=(lost,), daemon=True)
    thread.start()

    def end() -> None:  # before JAX's own end, at which this host waits for the others
        _DONE.set()
        thread.join()
        with contextlib.suppress(RuntimeError):  # host 0 is gone already
            _say(_ENDED)

    atexit.register(end)


def _look(lost: float) -> None:
    others = [h for h in range(distributed.global_state.num_processes) if h != _me()]
    heard = {host: ("", time.monotonic()) for host in others}
    for beat in itertools.count():
        if _DONE.wait(BEAT):
            return
        words = _exchange(str(beat))
        for host, (word, since) in heard.items():
            found = words.get(str(host), "")
            if found.startswith("stopped: "):
                _end(f"host {host} {found}")
            if word == _ENDED or found not in ("", word):
                heard[host] = found or word, time.monotonic()
            elif time.monotonic() - since > lost:
                who = f"host {host}" if words else "host 0"
                _end(f"{who} is lost, nothing was heard of it for {lost:g} s: {_SAME_COMMAND}")


def _me() -> int:
    return distributed.global_state.process_id


def _exchange(mine: str) -> dict[str, str]:
    """Says a word and returns those of all hosts; none where host 0 does not answer."""
    try:
        _say(mine)
        found = _client().key_value_dir_get(_ALIVE)
    except RuntimeError:
        return {}
    return {key.rpartition("/")[2]: word for key, word in found}


def _end(line: str) -> NoReturn:
    print("error:", line, file=sys.stderr, flush=True)
    os._exit(2)
