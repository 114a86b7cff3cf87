"""Progress of a study by its cells: a bar in a terminal, a line now and then in a log file."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from longrope_jax.training.flops import mfu

_LINE_EVERY = 15.0  # seconds between two lines in a log file
_current: list["Progress"] = []
_SHOWN = ("text", "speed")  # of each process, in a terminal
_sent: list[Callable[..., None]] = []  # takes the steps of a process that has no progress


@dataclasses.dataclass
class _Lane:
    """What one process is at."""

    text: str = ""
    speed: str = ""
    share: float = 0.0  # of its cell
    tokens: int = 0
    first: bool = True
    began: float = dataclasses.field(default_factory=time.monotonic)

    def step(self, done: int, of: int, tokens: int, flops_per_token: float) -> None:
        if self.first:
            # The first step compiles: its time says nothing about speed.
            self.first, self.began = False, time.monotonic()
        else:
            self.tokens += tokens
            rate = self.tokens / max(time.monotonic() - self.began, 1e-9)
            used = mfu(rate * flops_per_token)
            share = "" if used is None else f", MFU {used:.0%}"
            self.speed = f"step {done:,} of {of:,}, {rate:,.0f} tokens/s{share}"
        self.share = done / of

    def __str__(self) -> str:
        return self.text + (f": {self.speed}" if self.speed else "")


class Progress:
    """Counts cells, and training steps within a cell; cells may be made by several processes.

    Args:
        total: cells to make.
    """

    def __init__(self, total: int):
        self._total, self._started, self._left = total, 0, None
        self._lanes: dict[int, _Lane] = {}
        self._began, self._last_line = time.monotonic(), 0.0
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

    def start(self, text: str, left: float | None, lane: int = 0) -> None:
        """Begins the next cell of a process; `left` seconds are expected for all that is left."""
        self._started += 1
        self._lanes[lane] = _Lane(text)
        self._left, self._began = left, time.monotonic()
        self._show(force=True)

    def step(
        self, done: int, of: int, tokens: int, flops_per_token: float, *, lane: int = 0
    ) -> None:
        """Counts a training step of `tokens` tokens, `done` of `of`."""
        self._lanes[lane].step(done, of, tokens, flops_per_token)
        self._show()

    def _show(self, *, force: bool = False) -> None:
        count = f"cell {self._started} of {self._total}{self._time_left()}"
        lanes = [self._lanes[i] for i in sorted(self._lanes)]
        if self._bar:
            done = self._started - len(lanes) + sum(lane.share for lane in lanes)
            texts = {key: " | ".join(getattr(lane, key) for lane in lanes) for key in _SHOWN}
            fields = {"count": count, "speed": texts["speed"], "description": texts["text"]}
            self._bar.update(self._task, completed=done, **fields)
        elif force or time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            print(f"[{count}] {' | '.join(map(str, lanes))}", flush=True)

    def _time_left(self) -> str:
        if self._left is None:
            return ""
        seconds = int(max(self._left - (time.monotonic() - self._began), 0))
        return f", {seconds // 60}:{seconds % 60:02d} left"


def step(done: int, of: int, tokens: int, flops_per_token: float, *, lane: int = 0) -> None:
    """Counts a training step in the progress of the cell that is being made, if there is one."""
    if _current:
        _current[-1].step(done, of, tokens, flops_per_token, lane=lane)
    elif _sent:
        _sent[-1](done, of, tokens, flops_per_token)


@contextlib.contextmanager
def sent(take: Callable[[int, int, int, float], None]) -> Iterator[None]:
    """Meanwhile `take` gets the training steps: this process has no progress of its own."""
    _sent.append(take)
    try:
        yield
    finally:
        _sent.remove(take)


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
