"""Progress of a study where there is no terminal."""

import re

from experiments import progress


def test_lines_tell_share_speed_and_time_left(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.StudyProgress(total=100e9) as study:
        study.describe("RoPE, seed 0")
        for _ in range(4):
            clock[0] += 20
            study.advance(10e9, tokens=1000)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\[ 40%\] RoPE, seed 0: 50 tokens/s, 0 GFLOP/s, 2:00 left", last), last


def test_a_line_every_few_seconds_at_most(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.StudyProgress(total=1000.0) as study:
        for _ in range(100):
            clock[0] += 1
            study.advance(1.0, tokens=1)
    assert 5 <= len(capsys.readouterr().out.splitlines()) <= 8


def test_work_beyond_the_plan_never_shows_more_than_all(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.StudyProgress(total=1.0) as study:
        clock[0] += 60
        study.advance(5.0, tokens=1)
    assert capsys.readouterr().out.startswith("[100%]")
