"""Progress of a study by its cells: a bar in a terminal, a line now and then in a log file."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from longrope_jax.training.flops import mfu

_LINE_EVERY = 15.0  # seconds between two lines in a log file
_current: list["Progress"] = []


class Progress:
    """Counts cells, and training steps within a cell.

    Args:
        total: cells to make.
    """

    def __init__(self, total: int):
        self._total, self._done = total, -1
        self._text, self._speed, self._left = "", "", None
        self._share, self._began, self._last_line = 0.0, time.monotonic(), 0.0
        self._step_began, self._tokens, self._first = self._began, 0, True
        self._bar = None
        console = Console()
        if console.is_terminal:
            fields = ("{task.description}", "{task.fields[count]}", "{task.fields[speed]}")
            columns = [TextColumn(fields[0]), BarColumn(), *map(TextColumn, fields[1:])]
            self._bar = Bar(*columns, TimeElapsedColumn(), console=console)
            self._task = self._bar.add_task("", total=total, count="", speed="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        _current.append(self)
        return self

    def __exit__(self, *_):
        _current.remove(self)
        if self._bar:
            self._bar.stop()

    def start(self, text: str, left: float | None) -> None:
        """Begins the next cell; `left` seconds are expected for it and all after it."""
        self._done += 1
        self._text, self._left, self._speed, self._share = text, left, "", 0.0
        self._tokens, self._first, self._step_began = 0, True, time.monotonic()
        self._began = self._step_began
        self._show(force=True)

    def step(self, done: int, of: int, tokens: int, flops_per_token: float) -> None:
        """Counts a training step of `tokens` tokens, `done` of `of`."""
        if self._first:
            # The first step compiles: its time says nothing about speed.
            self._first, self._step_began = False, time.monotonic()
        else:
            self._tokens += tokens
            rate = self._tokens / max(time.monotonic() - self._step_began, 1e-9)
            used = mfu(rate * flops_per_token)
            share = "" if used is None else f", MFU {used:.0%}"
            self._speed = f"step {done:,} of {of:,}, {rate:,.0f} tokens/s{share}"
        self._share = done / of
        self._show()

    def _show(self, *, force: bool = False) -> None:
        count = f"cell {self._done + 1} of {self._total}{self._time_left()}"
        if self._bar:
            done = self._done + self._share
            fields = {"count": count, "speed": self._speed, "description": self._text}
            self._bar.update(self._task, completed=done, **fields)
        elif force or time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            line = f"[{count}] {self._text}" + (f": {self._speed}" if self._speed else "")
            print(line, flush=True)

    def _time_left(self) -> str:
        if self._left is None:
            return ""
        seconds = int(max(self._left - (time.monotonic() - self._began), 0))
        return f", {seconds // 60}:{seconds % 60:02d} left"


def step(done: int, of: int, tokens: int, flops_per_token: float) -> None:
    """Counts a training step in the progress of the cell that is being made, if there is one."""
    if _current:
        _current[-1].step(done, of, tokens, flops_per_token)


def counting(budget: int, tokens: int, flops_per_token: float) -> Callable[[int], None]:
    """A function that counts units of work in the progress of the cell that is being made.

    Args:
        budget: units in all.
        tokens: of one unit.
        flops_per_token: of the work.
    """
    done = 0

    def add(units: int) -> None:
        nonlocal done
        done += units
        step(done, budget, units * tokens, flops_per_token)

    return add
