"""Metrics are logged as JSON lines and TensorBoard events; resuming drops lines after the step."""

import json
import math
import tempfile
from pathlib import Path

from longrope_jax import folders

# Two runs of the same training may differ in these fields.
WALL_CLOCK = ("seconds", "tokens_per_second")


class MetricsLog:
    """A MetricsLog writes `metrics.jsonl`, one object per logged step, and TensorBoard events.

    When a run resumes at `step`, opening the log drops later lines and an incomplete last line.

    Raises:
        ValueError: `tensorboard` is True but `longrope_jax[tensorboard]` is not installed.
    """

    def __init__(self, directory: str | Path, *, step: int = 0, tensorboard: bool = True):
        directory = folders.located(directory)
        self._path = directory / "metrics.jsonl"
        self._lines = _kept(directory, step)
        folders.write(self._path, "".join(self._lines).encode())
        # An object cannot be appended to: it is written again with each flush.
        self._file = None if folders.is_url(directory) else self._path.open("a")
        self._events = directory / "tensorboard"
        self._kept_here = tempfile.TemporaryDirectory() if folders.is_url(directory) else None
        here = Path(self._kept_here.name) if self._kept_here else self._events
        self._board = _board(here, step) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line, of a local file at once; NaN and infinity become null, as in JSON."""
        line = _line({"step": step, **values})
        if self._file:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what is not yet in a bucket; call it before a checkpoint is saved."""
        if self._kept_here is None:
            return
        folders.write(self._path, "".join(self._lines).encode())
        if self._board:
            self._board.flush()
            for file in Path(self._kept_here.name).iterdir():
                folders.write(self._events / file.name, file.read_bytes())

    def close(self) -> None:
        """Closes the metrics file and the TensorBoard writer."""
        self.flush()
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()
        if self._kept_here:
            self._kept_here.cleanup()


def read(directory: str | Path) -> list[dict]:
    """Returns the logged lines of a run in order, with NaN for null.

    An incomplete last line is left out.
    """
    path = folders.located(directory) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: math.nan if v is None else v for k, v in line.items()} for line in found]


def _line(values: dict[str, float]) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _kept(directory: Path, step: int) -> list[str]:
    """The lines up to a step."""
    return [_line(values) for values in read(directory) if values["step"] <= step]


def _board(directory: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "TensorBoard events need tensorboardX: pip install 'longrope_jax[tensorboard]', or "
            "pass tensorboard=False"
        ) from error
    return SummaryWriter(str(directory), purge_step=step + 1)
