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
from experiments import granularity as granularity_script
from experiments import lab
from longrope_jax.analysis import base_bound


def test_granularity_writes_everything(tmp_path, capsys):
    report = granularity_script.main(granularity_config("tiny"), tmp_path, "the command")
    found = {p.name for p in tmp_path.iterdir() if p.name != ".lock"}
    csvs = {"granularity.csv", "spheres.csv", "interpolation.csv"}
    assert found == {"results.json", "granularity.png", "report.html"} | csvs
    result = report.results
    assert [r["method"] for r in result["constants"]] == ["RoPE", "PI 0.25", "PI 0.125", "ABF 50"]
    assert {r["holds"] for r in result["constants"]} == {"no"}
    assert "fails for 4 of 4 methods" in report.claims[0]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["interpolation"]["worst"]["value"] < saved["interpolation"]["corrected_bound"]
    # RoPE's encodings of trained positions are where they were, of the others they are not.
    rope = result["spheres"][0]
    assert rope["d from trained RoPE"] > 0.5
    assert rope["d as printed"] == pytest.approx(0, abs=1e-6)
    assert "ABF 50" in capsys.readouterr().out


@pytest.fixture(scope="module")
def bounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bound")
    return folder, bound_script.main(bound_config("tiny"), folder, "the command")


def test_base_bound_writes_everything(bounds):
    folder, report = bounds
    found = {p.name for p in folder.iterdir() if p.name != ".lock"}
    csvs = {"bounds.csv", "intervals.csv", "bases.csv"}
    assert found == {"cells", "results.json", "bounds.png", "intervals.png", "report.html"} | csvs
    rows = list(csv.DictReader((folder / "bounds.csv").open()))
    assert [int(r["length"]) for r in rows] == [64, 256, 1024]
    assert float(rows[2]["smallest"]) == pytest.approx(4293.4376, abs=1e-3)
    saved = json.loads((folder / "results.json").read_text())
    smallest = report.results["bounds"][2]["smallest"]
    assert saved["intervals"]["1024"][0][0] == pytest.approx(smallest, rel=1e-8)


def test_base_bound_searches_nothing_again_and_another_length_alone(bounds, monkeypatch):
    folder, report = bounds
    monkeypatch.setattr(base_bound, "intervals", lambda *_, **__: pytest.fail("searches again"))
    again = bound_script.main(bound_config("tiny"), folder)
    assert again.results["bounds"] == report.results["bounds"]
    config = bound_config("tiny")
    config.lengths = (*config.lengths, 2048)
    (new,) = lab.missing(folder, bound_script.plan(config, folder))
    assert (new.kind, new.row) == ("smallest", "2k")


def test_four_digits_meet_the_requirement_and_are_rounded_up(bounds):
    for row in bounds[1].results["bounds"]:
        base = row["4 digits"]
        assert row["smallest"] <= base < row["smallest"] * 1.001
        assert base_bound.first_failure(base, row["length"], head_dim=128) is None
    assert bound_script._four_digits(58_496_174.4, 58_496_423.1) is None
    assert bound_script._four_digits(26_952.34, 26_973.0) == 26_960


def published_row(head_dim):
    cell = lab.Cell("smallest", "4k", what=(head_dim, 4096))
    return bound_script._row(cell, {"low": 26_952.3, "high": 26_952.4, "until": 26_973, "at": 4012})


def test_entries_above_the_smallest_base_are_named_and_rounding_is_not_blamed(bounds):
    row = bounds[1].results["bounds"][2]
    assert row["2405.14591"] == row["Su"] == 4300 and row["2405.14591 fails at"] is None
    row, other = published_row(128), published_row(64)
    assert row["2405.14591"] == row["Su"] == 2.7e4
    assert row["2405.14591 fails at"] == row["Su fails at"] == 4079
    assert {other[name] for name in ("2405.14591", "Su", "Su fails at")} == {None}
    claims = bound_script._claims({"bounds": [row], "fits": {}})
    assert claims[0].startswith("2405.14591: 0 of 1 entries lie above the smallest base by more")
    assert "As printed, 1 fail" in claims[0]
    above = row | {"smallest": 11_587.2, "2405.14591": 1.6e4}
    claims = bound_script._claims({"bounds": [above], "fits": {}})
    assert "1 of 1 entries lie above" in claims[0] and "16,000 at 4k (1.38 times)" in claims[0]


def test_both_theories_of_reach_stand_beside_each_other(bounds):
    config = bound_config("full")
    config.lengths = (1024, 32_768)
    reach = bound_script._reach(1e6, config)
    assert reach["fails_at"] == 27_115
    assert reach["works_to"] == pytest.approx(2 * np.pi * 1e6 ** (92 / 128))


COMMITTED = Path(__file__).parents[1] / "docs" / "results" / "base_bound" / "results.json"


@pytest.mark.parametrize(
    "row", json.loads(COMMITTED.read_text())["bounds"], ids=lambda r: str(r["length"])
)
def test_committed_bounds_touch_zero_and_failing_entries_fail(row):
    def exact(base, m):
        with mpmath.workdps(40):
            return sum(mpmath.cos(m * mpmath.mpf(base) ** (-mpmath.mpf(j) / 64)) for j in range(64))

    m = row["touches 0 at"]
    assert m < row["length"] and row["smallest"] / row["low"] - 1 < 1e-7
    assert exact(row["low"] * (1 - 1e-6), m) < 0 <= exact(row["smallest"], m) < 1e-3
    assert row["smallest"] < row["until"]
    for who in bound_script.PUBLISHED:
        fails = row[f"{who} fails at"]
        assert fails is None or (fails < row["length"] and exact(row[who], fails) < 0)


def test_fit_is_a_power_law():
    rows = [{"length": n, "smallest": 0.5 * n**1.5} for n in (100, 1000, 5000)]
    fit = bound_script._fits(rows)["these bases"]
    assert (fit["factor"], fit["power"]) == pytest.approx((0.5, 1.5))
    assert fit["rms_log"] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(bound_script._fits(rows)["the paper's"]["rms_log"])


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        ("granularity", ["--config.alphas=(2.0,)"], ("--config.alphas", "got 2.0")),
        ("granularity", ["--config.head_dim=7"], ("head_dim must be even",)),
        ("granularity", ["--config.base=0.5"], ("base must be finite",)),
        ("base_bound", ["--config.lengths=(64,)"], ("--config.lengths", "at least two")),
        ("base_bound", ["--config.head_dim=4"], ("head_dim must be even and at least 6",)),
        ("base_bound", ["--config.lengths=(1, 64)"], ("length must be at least 2",)),
        ("base_bound", ["--config.bases=(1.0,)"], ("base must be finite and above 1",)),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, script, args, words):
    main = {"granularity": granularity_script.main, "base_bound": bound_script.main}[script]
    argv = [script, f"--config=configs/{script}.py:tiny", f"--workdir={tmp_path}", *args]
    with pytest.raises(SystemExit) as end:
        lab.run(main, f"experiments.{script}", argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words)
    assert not [p for p in tmp_path.iterdir() if p.name != ".lock"]
