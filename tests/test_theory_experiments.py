"""The scripts granularity and base_bound."""

import csv
import json
from pathlib import Path

import mpmath
import numpy as np
import pytest

from configs.base_bound import get_config as bound_config
from configs.granularity import get_config as granularity_config
from experiments import base_bound as bound_script
from experiments import cli
from experiments import granularity as granularity_script
from longrope_jax.analysis import base_bound


def test_granularity_writes_everything(tmp_path, capsys):
    result = granularity_script.main(granularity_config("tiny"), tmp_path, "the command")
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {"results.json", "granularity.csv", "granularity.png", "report.html"}
    assert [r["method"] for r in result["constants"]] == ["RoPE", "PI 0.25", "PI 0.125", "ABF 50"]
    assert not any(r["printed_holds"] for r in result["constants"])
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["command"] == "the command"
    assert saved["interpolation"]["worst"]["value"] < saved["interpolation"]["corrected_bound"]
    # RoPE's encodings of trained positions are where they were, of the others they are not.
    rope = result["spheres"][0]
    assert rope["distance"] > 0.5 and rope["printed_distance"] == pytest.approx(0, abs=1e-6)
    assert "ABF 50" in capsys.readouterr().out


@pytest.fixture(scope="module")
def bounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bound")
    return folder, bound_script.main(bound_config("tiny"), folder, "the command")


def test_base_bound_writes_everything(bounds):
    folder, result = bounds
    found = {p.name for p in folder.iterdir()}
    assert found == {
        "results.json", "bounds.csv", "intervals.csv", "bounds.png", "intervals.png", "report.html",
    }  # fmt: skip
    rows = list(csv.DictReader((folder / "bounds.csv").open()))
    assert [int(r["length"]) for r in rows] == [64, 256, 1024]
    assert float(rows[2]["high"]) == pytest.approx(4293.4376, abs=1e-3)
    saved = json.loads((folder / "results.json").read_text())
    assert saved["intervals"]["1024"][0]["low"] == pytest.approx(result["bounds"][2]["high"])


def test_four_digits_meet_the_requirement_and_are_rounded_up(bounds):
    for row in bounds[1]["bounds"]:
        base = row["four_digits"]
        assert row["high"] <= base < row["high"] * 1.001
        assert base_bound.first_failure(base, row["length"], head_dim=128) is None
    assert bound_script._four_digits(58_496_174.4, 58_496_423.1) is None
    assert bound_script._four_digits(26_952.34, 26_973.0) == 26_960


def test_failing_entries_are_named(bounds):
    row = bounds[1]["bounds"][2]
    assert row["paper"] == row["su"] == 4300 and row["paper_fails_at"] is None
    assert bound_script._published(4096, 128) == {
        "paper": 2.7e4, "paper_fails_at": 4079, "su": 2.7e4, "su_fails_at": 4079,
    }  # fmt: skip
    assert set(bound_script._published(4096, 64).values()) == {None}
    known = [dict(row) | {"length": 4096} | bound_script._published(4096, 128)]
    text = bound_script._verdict({"bounds": known, "fits": {}})
    assert "2405.14591: 1 of 1 entries fail: 27,000 at 4k (m = 4,079)." in text


COMMITTED = Path(__file__).parents[1] / "docs" / "results" / "base_bound" / "results.json"


@pytest.mark.parametrize(
    "row", json.loads(COMMITTED.read_text())["bounds"], ids=lambda r: str(r["length"])
)
def test_committed_bounds_touch_zero_and_failing_entries_fail(row):
    def exact(base, m):
        with mpmath.workdps(40):
            return sum(mpmath.cos(m * mpmath.mpf(base) ** (-mpmath.mpf(j) / 64)) for j in range(64))

    m = row["touches_at"]
    assert m < row["length"] and row["high"] / row["low"] - 1 < 1e-7
    assert exact(row["low"] * (1 - 1e-6), m) < 0 <= exact(row["high"], m) < 1e-3
    assert row["high"] < row["until"]
    for who in ("paper", "su"):
        fails = row[f"{who}_fails_at"]
        assert fails is None or (fails < row["length"] and exact(row[who], fails) < 0)


def test_fit_is_a_power_law():
    rows = [{"length": n, "high": 0.5 * n**1.5} for n in (100, 1000, 5000)]
    fit = bound_script._fits(rows)["these bases"]
    assert (fit["factor"], fit["power"]) == pytest.approx((0.5, 1.5))
    assert fit["rms_log"] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(bound_script._fits(rows)["the paper's"]["rms_log"])


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("granularity", ["--config.alphas=(2.0,)"], "alphas must be above 0"),
        ("granularity", ["--config.head_dim=7"], "head_dim must be even"),
        ("granularity", ["--config.base=0.5"], "base must be finite"),
        ("base_bound", ["--config.lengths=(64,)"], "lengths must name at least two"),
        ("base_bound", ["--config.head_dim=4"], "head_dim must be even and at least 6"),
        ("base_bound", ["--config.lengths=(1, 64)"], "length must be at least 2"),
        ("base_bound", ["--config.bases=(1.0,)"], "base must be finite and above 1"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, script, args, message):
    main = {"granularity": granularity_script.main, "base_bound": bound_script.main}[script]
    argv = [script, f"--config={cli.CONFIGS}/{script}.py:tiny", f"--workdir={tmp_path}", *args]
    with pytest.raises(SystemExit) as end:
        cli.run(main, script, argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
