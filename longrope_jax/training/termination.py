"""SIGTERM, by which schedulers announce the end of a machine, lets a run save before it stops."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_CALLS = itertools.count(1)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that returns whether SIGTERM has come.

    On several hosts it is true at the same step on each, soon after one host got the signal; then
    JAX's own handler serves. In a thread other than the main one nothing is caught.
    """
    if jax.process_count() > 1:
        # By calls, since a dispatch of several steps may jump over the step that JAX waits for.
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(_CALLS))
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda step: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
