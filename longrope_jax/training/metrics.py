"""Metrics are logged as JSON lines and TensorBoard events; resuming drops lines after the step."""

import json
import math
import os
from pathlib import Path

# Two runs of the same training may differ in these fields.
WALL_CLOCK = ("seconds", "tokens_per_second")


class MetricsLog:
    """A MetricsLog writes `metrics.jsonl`, one object per logged step, and TensorBoard events.

    When a run resumes at `step`, opening the log drops later lines and an incomplete last line.

    Raises:
        ValueError: `tensorboard` is True but `longrope_jax[tensorboard]` is not installed.
    """

    def __init__(self, directory: str | Path, *, step: int = 0, tensorboard: bool = True):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        _cut_back(path, step)
        self._file = path.open("a")
        self._board = _board(directory / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line and flushes it; NaN and infinity are written as null, as JSON has none."""
        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the metrics file and the TensorBoard writer."""
        self._file.close()
        if self._board:
            self._board.close()


def read(directory: str | Path) -> list[dict]:
    """Returns the logged lines of a run in order, with NaN for null.

    An incomplete last line is left out.
    """
    path = Path(directory) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: math.nan if v is None else v for k, v in line.items()} for line in found]


def _line(values: dict[str, float]) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _cut_back(path: Path, step: int) -> None:
    kept = [line for line in read(path.parent) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(map(_line, kept)))
    os.replace(temporary, path)


def _board(directory: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "TensorBoard events need tensorboardX: pip install 'longrope_jax[tensorboard]', or "
            "pass tensorboard=False"
        ) from error
    return SummaryWriter(str(directory), purge_step=step + 1)
