"""SIGTERM, by which schedulers announce the end of a machine, and Ctrl-C let a run save first."""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
from jax.experimental import multihost_utils

# What a process exits with that was stopped and would go on, so that a supervisor starts it again;
# a failure has another status. 75 is EX_TEMPFAIL of sysexits.h, 130 what shells give to Ctrl-C.
TERMINATED, INTERRUPTED = 75, 130

_CALLS = itertools.count(1)


@dataclass
class Stop:
    """A Stop knows the signals that came.

    Attributes:
        several: whether there are several hosts, which stop at the same step.
        came: numbers of the signals, in order.
    """

    several: bool = False
    came: list[int] = field(default_factory=list)

    def asked(self) -> bool:
        """Returns whether to save and stop after the step at hand; each host calls it each step."""
        if self.several:
            # By calls, since a dispatch of several steps may jump over the step JAX waits for.
            return multihost_utils.reached_preemption_sync_point(next(_CALLS))
        return bool(self.came)

    @property
    def status(self) -> int:
        """The exit status: INTERRUPTED on the host that got Ctrl-C, else TERMINATED."""
        return INTERRUPTED if signal.SIGINT in self.came else TERMINATED


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Yields a Stop to ask after each step; a second Ctrl-C raises KeyboardInterrupt at once.

    On several hosts JAX's own handler of SIGTERM serves, and all hosts stop at the same step, soon
    after one of them got a signal. In a thread other than the main one nothing is caught.
    """
    stop = Stop(several=jax.process_count() > 1)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def caught(number, frame):
        stop.came.append(number)
        if number == signal.SIGINT:
            print(
                "\ninterrupted: saving after this step; Ctrl-C again stops at once",
                file=sys.stderr,
                flush=True,
            )
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if stop.several:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other hosts

    numbers = [signal.SIGINT] + ([] if stop.several else [signal.SIGTERM])
    before = {number: signal.signal(number, caught) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
