"""Progress of a study where there is no terminal."""

import re

import numpy as np
import pytest

from experiments import lab
from experiments.lab import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that stand still until a test moves them."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_cell_steps_speed_and_time_left(capsys, clock):
    with progress.Progress(3) as shown:
        shown.start("loss: RoPE, seed 0", None)
        shown.start("train: RoPE, seed 0", 150.0)
        for done in range(1, 5):
            clock[0] += 20
            progress.step(done, 8, 1000, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[cell 1 of 3] loss: RoPE, seed 0"
    expected = r"\[cell 2 of 3, 1:10 left\] train: RoPE, seed 0: step 4 of 8, 50 tokens/s.*"
    assert re.fullmatch(expected, lines[-1]), lines


def test_the_first_step_compiles_and_says_nothing_of_speed(capsys, clock):
    with progress.Progress(1) as shown:
        shown.start("train", None)
        clock[0] += 1000
        progress.step(1, 8, 1000, 0.0)
    assert "tokens/s" not in capsys.readouterr().out


def test_a_line_every_few_seconds_at_most(capsys, clock):
    with progress.Progress(1) as shown:
        shown.start("train", None)
        for done in range(100):
            clock[0] += 1
            progress.step(done, 100, 1, 0.0)
    assert 5 <= len(capsys.readouterr().out.splitlines()) <= 8


def test_steps_outside_of_a_study_are_not_counted():
    progress.step(1, 2, 3, 0.0)


def test_time_left_is_that_of_finished_cells_of_the_kind(tmp_path, capsys, clock):
    cells = [lab.Cell("slow", str(i)) for i in range(3)] + [lab.Cell("fast", "a")]

    def make(seconds):
        def function(_):
            clock[0] += seconds
            return {"x": np.zeros(1)}

        return function

    functions = {"slow": make(60), "fast": make(1)}
    lab.complete(tmp_path, [cells[0], cells[3]], functions, lab.Machine())
    capsys.readouterr()
    lab.complete(tmp_path, cells, functions, lab.Machine())
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "[cell 1 of 2, 2:00 left] slow: 1, seed 0",
        "[cell 2 of 2, 1:00 left] slow: 2, seed 0",
    ]
