"""Progress of a whole study: a bar with tokens/s and time left, or lines without a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from longrope_jax.training.flops import mfu

_LINE_EVERY = 15.0  # seconds between two lines in a log file


class StudyProgress:
    """Counts work in FLOPs, since a token costs more in training and at greater length.

    Args:
        total: FLOPs of the whole study.
        done: FLOPs of what an earlier run finished; they count as done, not as speed.
    """

    def __init__(self, total: float, done: float = 0.0):
        self._total, self._done, self._before = total, done, done
        self._text, self._began, self._last_line = "", time.monotonic(), 0.0
        self._tokens, self._flops, self._since = 0, 0.0, self._began
        self._speed = ""
        self._console = Console()
        self._bar = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total, completed=done, speed="", left="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def describe(self, text: str) -> None:
        """Names what is being done now."""
        self._text, self._tokens, self._flops, self._since = text, 0, 0.0, time.monotonic()
        self._show()

    def advance(self, flops: float, tokens: int) -> None:
        """Counts work that has just been done."""
        self._done += flops
        self._flops += flops
        self._tokens += tokens
        elapsed = max(time.monotonic() - self._since, 1e-9)
        rate = self._flops / elapsed
        used = mfu(rate)
        share = "" if used is None else f", MFU {used:.0%}"
        self._speed = f"{self._tokens / elapsed:,.0f} tokens/s, {rate / 1e9:,.0f} GFLOP/s{share}"
        self._show()

    def _left(self) -> str:
        fresh = self._done - self._before
        if fresh <= 0:
            return "?"
        elapsed = time.monotonic() - self._began
        seconds = int(elapsed * max(self._total - self._done, 0) / fresh)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _show(self) -> None:
        speed, left = self._speed or "starting", self._left()
        if self._bar:
            fields = {"description": self._text, "speed": speed, "left": left}
            self._bar.update(self._task, completed=min(self._done, self._total), **fields)
        elif time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            share = min(self._done / self._total, 1.0)
            line = f"[{share:4.0%}] {self._text}: {speed}, {left} left"
            print(line, flush=True)
