"""Independent cells made side by side: one process for each share of the cores.

A small model keeps one core busy and hardly two, so a study of several seeds is done soonest with a
process for each. A process gets whole groups of cells, those that stand on one another, and ends
when the study ends, however that ends; a training that is stopped saves first.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import jax
from absl import logging as absl_logging

from experiments.lab import progress
from experiments.lab.machine import Machine
from longrope_jax.training.termination import TERMINATED

_LAST_SAVE = 60.0  # seconds that a process has to save and end when it is stopped


def quiet() -> None:
    """Keeps jax from telling of devices that are not there, and orbax of every file it writes.

    What orbax logs as an error, with its traceback, it raises as well.
    """
    logging.getLogger("jax").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = _without_echoes


def _without_echoes(unraisable: Any) -> None:
    """Leaves out what TensorStore prints for each write that was under way when another failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def check(machine: Machine) -> None:
    """Refuses more processes than can run side by side.

    Raises:
        ValueError: fewer than one process, more than cores, several hosts, an accelerator.
    """
    asked, cores = f"--config.machine.processes={machine.processes}", len(_cores())
    if machine.processes < 1:
        raise ValueError(f"{asked}: at least one process makes cells")
    if machine.processes > max(cores, 1):
        raise ValueError(f"{asked}: there are {cores} cores, and each process takes one or more")
    if machine.processes > 1 and (machine.multihost or jax.default_backend() != "cpu"):
        raise ValueError(f"{asked} is for the CPUs of one host: =1 makes one cell after another")


def shares(cells: Sequence[Any], count: int) -> list[list[Any]]:
    """Splits cells among at most `count` processes; cells that stand on one another stay together.

    Finished cells join others too: what was trained on another machine may have to be trained again
    here, by one process.
    """
    above: dict[Any, Any] = {}

    def top(cell):
        while above.setdefault(cell, cell) != cell:
            cell = above[cell]
        return cell

    def join(cell):
        for before in cell.after:
            join(before)
            above[top(before)] = top(cell)

    groups: dict[Any, list[Any]] = {}
    for cell in cells:
        join(cell)
    for cell in cells:
        groups.setdefault(top(cell), []).append(cell)
    found: list[list[Any]] = [[] for _ in range(min(count, len(groups)))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(found, key=len).extend(group)
    order = {cell: i for i, cell in enumerate(cells)}
    return [sorted(share, key=order.__getitem__) for share in found]


def side_by_side(
    work: Sequence[Sequence[Any]],
    make: Callable[[Any], float],
    on_start: Callable[[int, Any], None],
    on_end: Callable[[Any, float], None],
) -> None:
    """Makes each sequence of cells in a process of its own.

    Args:
        work: cells of each process, in order.
        make: makes a cell and returns the seconds it took; it goes to the processes by pickle.
        on_start: called with the number of a process and the cell that it begins.
        on_end: called with a cell and the seconds it took.

    Raises:
        ValueError: `make` cannot be pickled, what it raised, or the end of a process that was
            killed. The others are stopped and save first.
    """
    try:
        pickle.dumps(make)
    except Exception as error:
        raise ValueError(
            f"this study cannot give its work to other processes ({error}): "
            "--config.machine.processes=1"
        ) from error
    context = multiprocessing.get_context("spawn")
    pipes: dict[Any, int] = {}
    children = []
    try:
        for i, share in enumerate(work):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(theirs, share, make), daemon=True)
            with _on_cores(_cores()[i :: len(work)]):
                child.start()
            theirs.close()  # so that the end of the process ends the pipe
            children.append(child)
            pipes[ours] = i
        while pipes:
            for pipe in wait(list(pipes)):
                _receive(pipe, pipes, work, children, on_start, on_end)
    finally:
        with _not_stopped_again():
            for child in children:
                child.terminate()
            for child in children:
                child.join(_LAST_SAVE)
                child.kill()


@contextmanager
def _not_stopped_again() -> Iterator[None]:
    """Meanwhile SIGTERM, which supervisors may send twice, does not keep processes from saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _receive(pipe, pipes: dict, work, children, on_start, on_end) -> None:
    """Takes one message of a process."""
    i = pipes[pipe]
    try:
        kind, *values = pipe.recv()
    except EOFError:
        del pipes[pipe]
        children[i].join()
        if children[i].exitcode:
            raise ValueError(
                f"a process that makes cells ended with {children[i].exitcode}: the same command "
                "goes on where it was"
            ) from None
        return
    if kind == "failed":
        raise ValueError(values[0])
    if kind == "step":
        progress.step(*values, lane=i)
    elif kind == "start":
        on_start(i, work[i][values[0]])
    else:
        on_end(work[i][values[0]], values[1])


def _child(pipe: Connection, share: Sequence[Any], make: Callable[[Any], float]) -> None:
    """Makes a share of the cells and tells the study of it."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in a terminal goes to the study alone, which stops its processes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    quiet()

    def tell(*message) -> None:
        try:
            pipe.send(message)
        except OSError:  # the study is gone
            os._exit(TERMINATED)

    with progress.sent(lambda *values: tell("step", *values)):
        try:
            for i, cell in enumerate(share):
                tell("start", i)
                tell("end", i, make(cell))
        except (ValueError, OSError) as error:
            tell("failed", str(error))


def _end_with_the_study() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        wait([parent.sentinel])
    except OSError:  # closed, since this process ends by itself
        return
    os._exit(TERMINATED)  # it was killed: another may write in its folder next


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """A process that is started meanwhile computes on these cores alone."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
