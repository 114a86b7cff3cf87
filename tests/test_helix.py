import csv
import json

import numpy as np
import pytest

from configs.helix import get_config
from experiments import helix as script
from experiments import lab
from longrope_jax.analysis import helix

RED_DOTS = {
    "8a": np.arange(-10, 11, 2),
    "8b": np.arange(-10, 11),
    "8c": np.arange(-20, 21, 2),
}
PANELS = {p.name: p for p in helix.PANELS}


@pytest.mark.parametrize("name", RED_DOTS)
def test_dots_are_those_of_figure_8(name):
    np.testing.assert_array_equal(helix.dot_times(PANELS[name]), RED_DOTS[name])


@pytest.mark.parametrize(("name", "turns", "samples"), [("8a", 5, 500), ("8c", 7, 700)])
def test_curve_is_that_of_figure_8(name, turns, samples):
    t = helix.curve_times(PANELS[name])
    assert len(t) == samples and t[-1] == -t[0] == turns * np.pi
    slow = {"8a": 0.07, "8c": 0.035}[name]
    expected = np.stack([np.cos(t), np.sin(t), np.sin(slow * t)], axis=1)
    np.testing.assert_allclose(helix.curve(PANELS[name]), expected, atol=1e-12)


def test_dots_lie_on_the_curve():
    for panel in helix.PANELS:
        curve, dots = helix.curve(panel), helix.dots(panel)
        nearest = np.linalg.norm(curve[:, None] - dots, axis=-1).min(axis=0)
        assert nearest.max() < 0.04  # half the curve's sampling step


def test_what_the_paper_says_of_the_panels():
    a, b, c = (helix.spacing(p) for p in helix.PANELS)
    assert helix.PANELS[0].speed == 2 * helix.PANELS[2].speed
    assert helix.PANELS[0].speed == helix.PANELS[1].speed
    assert b.neighbours < 0.6 * a.neighbours and b.pitch == pytest.approx(a.pitch)
    assert c.neighbours == pytest.approx(a.neighbours, rel=0.01)
    assert c.turns < 0.75 * a.turns and c.pitch == pytest.approx(a.pitch / 2)


def test_abf_slows_the_fast_pairs_little():
    slowdown = helix.pair_slowdown(1e4, 5e5, head_dim=128)
    assert slowdown[0] == 0 and slowdown[1] == pytest.approx(0.0593, abs=1e-4)
    assert np.all(np.diff(slowdown) > 0) and len(slowdown) == 64


def test_script_writes_everything(tmp_path, capsys):
    script.main(get_config(), tmp_path, "the command")
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {"results.json", "helix.csv", "spacing.csv", "helix.png", "report.html"}
    rows = list(csv.reader((tmp_path / "helix.csv").open()))
    assert rows[0] == ["panel", "kind", "t", "x", "y", "z"]
    assert len(rows) == 1 + 500 + 11 + 500 + 21 + 700 + 21
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["spacing"]["8b"]["neighbours"] == helix.spacing(PANELS["8b"]).neighbours
    assert "pair 1 loses 5.9%" in (tmp_path / "report.html").read_text()
    assert "8c" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config.panels=('8d',)"], ("--config.panels", "'8d'")),
        (["--config.panels=()"], ("--config.panels", "empty", "8a")),
        (["--config.head_dim=3"], ("head_dim", "even")),
        (["--config.new_base=1"], ("base", "above 1")),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, capsys, args, words):
    with pytest.raises(SystemExit) as end:
        lab.run(script.main, "experiments.helix", ["helix", f"--workdir={tmp_path}", *args])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and not list(tmp_path.iterdir())
    assert all(word in error for word in words), error
