"""The curriculum study: the paper's costs to the digit, the same text in all arms."""

import dataclasses

import numpy as np
import pytest

from configs import curriculum as presets
from experiments import curriculum as study
from experiments import lab
from experiments.lab import scratch


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curriculum")
    config = presets.get_config("tiny")
    return config, folder, study.main(config, folder)


def test_costs_are_those_of_table_10():
    """FLOPs of 100,000 steps of 2^22 tokens, switched at 0, 20, 40 and 80 % (2309.16039)."""
    tokens = 100_000 * 2**22
    both = [study.paper_flops(4096, length, 32) for length in (4096, 32_768)]
    found = [tokens * study.cost(switch, *both) for switch in (0, 0.2, 0.4, 0.8)]
    assert [f"{x:.3e}" for x in found] == ["3.783e+22", "3.405e+22", "3.026e+22", "2.270e+22"]


@pytest.mark.parametrize("preset", ["overnight", "pod_7b"])
def test_length_as_width_has_the_papers_ratios(preset):
    table = study.cost_table(presets.get_config(preset))
    ratios = {row[0]: row[1] for row in table.rows}
    assert ratios["long throughout"] == 1 and ratios["short throughout"] == pytest.approx(0.5)
    for share, ratio in ((20, 0.9), (40, 0.8), (80, 0.6)):
        assert ratios[f"switch at {share}%"] == pytest.approx(ratio, abs=1e-12)


def test_arms_train_on_the_same_text_in_the_same_order(tmp_path):
    """Questions are put in its place here and there, so they are left out of the comparison."""
    config = presets.get_config("tiny")
    text = scratch.Scratch(config, tmp_path, lab.Machine(**config.machine), 128).text
    recipes = [study.recipe_of(config, row, 0) for row in config.rows]
    plans = [lab.blended(dataclasses.replace(one, mixture=None), text) for one in recipes]
    targets = [[plan.batch(step)["tokens"][:, 1:].size for step in range(10)] for plan in plans]
    assert targets == [[8 * 128] * 10] * 3
    long, short, switched = plans  # a ConfigDict sorts its names
    for step in range(10):
        whole = long.batch(step)["tokens"][:, 1:]
        np.testing.assert_array_equal(whole.ravel(), switched.batch(step)["tokens"][:, 1:].ravel())
        assert switched.batch(step)["tokens"].shape[1] == (33 if step < 4 else 129)
        assert short.batch(step)["tokens"].shape[1] == 33


def test_the_report_has_every_row_and_verdict(finished):
    config, folder, _ = finished
    assert not lab.missing(folder, study.plan(config, folder))
    parts = study.quantities(config, folder, study.plan(config, folder))
    for name in ("loss", "gain from long context", "keys", study.OVER):
        assert list(parts[name].values) == list(config.rows), name
    np.testing.assert_array_equal(parts[study.OVER].values["long throughout"], 0)
    assert list(parts[study.RECOVERY].values) == ["switch at 40%, base too"]
    assert (folder / "report.html").exists() and (folder / "rows.csv").exists()


def test_done_again_it_only_redraws(finished, monkeypatch):
    config, folder, report = finished
    monkeypatch.setattr(lab, "train", None)
    monkeypatch.setattr(scratch.Scratch, "train", None)
    monkeypatch.setattr(scratch.Scratch, "text", None)
    again = study.main(config, folder)
    assert again.claims == report.claims


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_hypotheses_of_every_preset_can_be_read(preset):
    config = presets.get_config(preset)
    lab.check_hypotheses(config.hypotheses, study.QUANTITIES, config.rows)
    assert len({cell.name for cell in study.plan(config, None)}) == len(study.plan(config, None))
