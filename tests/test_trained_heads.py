"""Scores by distance of a model's own queries and keys, from a run and without it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.trained_heads import get_config
from experiments import lab, trained_heads
from longrope_jax import rotary, runs
from longrope_jax.analysis import decay
from longrope_jax.training import checkpoints


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of ours whose training was skipped: a random model of 64 tokens, saved."""
    folder = tmp_path_factory.mktemp("study") / "runs" / "train-rope-seed0-12345678"
    model = dataclasses.replace(lab.model("random", lab.Machine()), trained_length=64)
    method = rotary.RoPE(base=625.0)
    record = runs.RunRecord(model.config, method, model.tokenizer, model.trained_length)
    runs.save(folder, record)
    checkpoints.save_params(folder / "checkpoints", 1, model.params)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of four documents."""
    folder = tmp_path_factory.mktemp("text")
    for name in range(4):
        sentences = (f"Line {i} of {name}." for i in range(400))
        (folder / f"{name}.txt").write_text("\n\n".join(sentences))
    return folder


def config(run_folder, text, **changes):
    given = {"model": str(run_folder), "corpus": str(text), "bos": "<bos>"}
    settings = get_config("tiny")
    settings.update(given | changes)
    return settings


@pytest.fixture(scope="module")
def study(run_folder, text, tmp_path_factory):
    """The folder and the report of the measured run."""
    folder = tmp_path_factory.mktemp("heads")
    return folder, trained_heads.main(config(run_folder, text), folder, "the command")


def test_a_run_says_its_base_and_its_length(study):
    _, report = study
    methods = [curve["method"] for curve in report.results["curves"]]
    assert methods[0] == "rope:base=625.0" and methods[2] == "rope:base=31250.0"
    assert methods[3].endswith("scale_base=64") and report.results["heads"] == 2
    assert "at 64 tokens" in report.sections[0].blocks[0].caption


def test_other_methods_are_drawn_without_the_run(study, run_folder, text, monkeypatch):
    folder, report = study
    monkeypatch.setattr(lab, "model", lambda *_: pytest.fail("loads the model again"))
    settings = config(
        run_folder, text, methods=("rope:base={base}", "yarn:factor=2,original_length=64")
    )
    again = trained_heads.main(settings, folder)
    first = again.results["curves"][0]
    np.testing.assert_array_equal(first["mean"], report.results["curves"][0]["mean"])
    assert again.results["curves"][1]["method"].startswith("yarn")


def test_committed_results_are_drawn_again_without_their_model(tmp_path):
    committed = Path(__file__).parents[1] / "docs" / "results" / "trained_heads"
    shutil.copytree(committed / "cells", tmp_path / "cells")
    saved = json.loads((committed / "results.json").read_text())
    settings = get_config()
    settings.update({name: saved["config"][name] for name in ("model", "trained_length", "bos")})
    drawn = trained_heads.main(settings, tmp_path).results["curves"]
    for curve, before in zip(drawn, saved["curves"], strict=True):
        assert curve["method"] == before["method"]
        np.testing.assert_allclose(curve["mean"], before["mean"], atol=1e-9)


def test_curves_are_means_of_expected_scores_over_bins():
    moments = np.random.default_rng(0).normal(size=(1, 1, 8, 8))
    row = trained_heads.curve(rotary.XPos(), moments, 200, layout="half")
    scores = decay.expected_score(rotary.XPos(), np.arange(201), moments)[0, 0]
    middles = row["distances"]
    assert middles[0] == row["mean"][0] == 0 and np.all(np.diff(middles) > 0)
    np.testing.assert_allclose(row["mean"][1:9], scores[1:9] - scores[0], atol=1e-12)
    # The last bin ends at the last distance.
    half = 200 - middles[-1]
    width = int(2 * half + 1)
    assert row["mean"][-1] == pytest.approx(scores[-width:].mean() - scores[0])
    for name in ("low", "median", "high"):  # one head: all the same
        np.testing.assert_allclose(row[name], row["mean"])


def test_what_cannot_be_drawn_is_refused(study, run_folder, text, tmp_path):
    folder, _ = study
    for changes, words in (
        ({"methods": ("rope:base={bse}",)}, ("'bse'", "'base'")),
        ({"methods": ("log_n:inner=(rope),original_length=64",)}, ("log_n", "--config.methods")),
        ({"bos": ""}, ("--config.bos",)),
        ({"bos": "<start>"}, ("<start>", "<bos>")),
        ({"model": "random"}, ("random", "--config.trained_length")),
        ({"model": ""}, ("--config.model",)),
    ):
        with pytest.raises(ValueError) as error:
            trained_heads.main(config(run_folder, text, **changes), folder)
        assert all(word in str(error.value) for word in words), error.value
