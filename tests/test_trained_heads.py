import json

import numpy as np
import pytest

from configs.attention_decay import get_config
from configs.base_frequency_ablation import get_config as study_config
from experiments import attention_decay, report, trained_heads
from experiments.ablation import plan, train
from experiments.ablation.study import Study
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.training import checkpoints, step


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A study's pretraining whose training was skipped: fresh parameters, saved."""
    workdir = tmp_path_factory.mktemp("study")
    config = study_config("tiny")
    config.corpus = str(workdir / "text")
    (workdir / "text").mkdir()
    for name in range(4):
        sentences = (f"Line {i} of {name}." for i in range(400))
        (workdir / "text" / f"{name}.txt").write_text("\n\n".join(sentences))
    report.save_json(workdir / "results.json", {"config": config})
    study = Study(config, workdir)
    optimizer = train.optimizer_config(config.continuation, 1.0)
    state = step.init_state(study.model, optimizer, study.mesh, seed=0)
    folder = workdir / "runs" / plan.runs(config)[0].pretrained
    with checkpoints.RunCheckpoints(folder / "checkpoints") as saved:
        saved.save(1, state)
    return folder


@pytest.fixture(scope="module")
def heads(run_folder):
    return trained_heads.load(run_folder, windows=2)


def test_a_run_is_found_with_its_method_length_and_parameters(heads):
    config = study_config("tiny")
    assert heads.method == plan.pretraining_method(config) and heads.length == 64
    assert heads.moments.shape == (1, 1, 64, 64) and np.ptp(heads.moments) > 0
    assert heads.values["abf"] == 50 * heads.values["base"]


def test_curves_are_means_of_expected_scores_over_bins(heads):
    (row,) = trained_heads.curves(heads, ("xpos",), 200)
    scores = decay.expected_score(rotary.XPos(), np.arange(201), heads.moments)[0, 0]
    middles = row["distances"]
    assert middles[0] == row["mean"][0] == 0 and np.all(np.diff(middles) > 0)
    np.testing.assert_allclose(row["mean"][1:9], scores[1:9] - scores[0], atol=1e-12)
    # The last bin ends at the last distance.
    half = 200 - middles[-1]
    width = int(2 * half + 1)
    assert row["mean"][-1] == pytest.approx(scores[-width:].mean() - scores[0])
    for name in ("low", "median", "high"):  # one head: all the same
        np.testing.assert_allclose(row[name], row["mean"])


def test_curves_refuse_methods_that_need_more_than_a_distance(heads):
    text = "log_n:inner=(rope),original_length=64"
    with pytest.raises(ValueError, match="depend on more than the distance"):
        trained_heads.curves(heads, (text,), 100)


def test_script_draws_the_heads_under_the_study_s_own_methods(run_folder, tmp_path, capsys):
    config = get_config("trained")
    config.update(checkpoint=str(run_folder), max_distance=255, heatmap_points=8)
    rows = attention_decay.main(config, tmp_path, "the command")
    assert rows[0]["curve"] == "rope:base=156.25"
    saved = json.loads((tmp_path / "heads.json").read_text())
    assert [c["method"] for c in saved["curves"]] == [r["curve"] for r in rows]
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 3
    assert f"Expected score of {run_folder.name}" in capsys.readouterr().out
    config.methods = ("rope:base={bse}",)
    with pytest.raises(ValueError, match="unknown number of a study 'bse'; did you mean 'base'"):
        attention_decay.main(config, tmp_path / "other")


def test_unknown_runs_are_named(run_folder):
    with pytest.raises(ValueError, match=r"unknown run of .*results\.json"):
        trained_heads.load(run_folder.parent / "pretraining-seed9-0", windows=1)
