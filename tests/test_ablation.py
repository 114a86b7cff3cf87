"""The base-frequency ablation: plan, verdicts, and a whole tiny study in one process."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import assert_same, tokenizer_json, write

from configs import base_frequency_ablation as configs
from configs import reproduce as reproduce_configs
from experiments import base_frequency_ablation, reproduce
from experiments.ablation import compare, plan, train
from experiments.ablation.study import Study
from longrope_jax import llama, runs, weights
from longrope_jax.data import corpora, tokenizers
from longrope_jax.training import step

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of random documents, each with sentences of its own."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in range(6):
        sentences = (
            " ".join(rng.choice(words, size=2)).capitalize() + f" {name} {i}." for i in range(400)
        )
        (folder / f"doc{name}.txt").write_text("\n\n".join(sentences))
    return folder


@pytest.fixture(scope="module")
def tiny(text):
    config = configs.get_config("tiny")
    config.corpus = str(text)
    return config


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a whole tiny study."""
    workdir = tmp_path_factory.mktemp("study")
    base_frequency_ablation.main(tiny, workdir, "the command")
    return workdir


def scores_of(config, runs: dict[str, list[dict]]) -> compare.Scores:
    return compare.Scores(config, runs, {})


def run_with_loss(loss: float, rng, windows=24) -> dict:
    documents = np.repeat([f"d{i}" for i in range(6)], windows // 6)
    blocks = loss + 0.01 * rng.standard_normal((windows, 64))
    return {"trained/blocks": blocks, "untrained/blocks": blocks + 1, "documents": documents}


def test_bases_keep_the_turns_of_the_slowest_pair_of_the_paper():
    config = configs.get_config("laptop")
    rows = {row[0]: row[1:] for row in compare.turns_table(config)}
    ours = [rows[case][0] for case in ("stock at L", "stock at 8L", "ABF at 8L")]
    paper = [rows[case][2] for case in ("stock at L", "stock at 8L", "ABF at 8L")]
    np.testing.assert_allclose(ours, [0.080, 0.638, 0.014], atol=6e-4)
    np.testing.assert_allclose(paper, [0.075, 0.602, 0.013], atol=6e-4)


def test_the_laptop_preset_has_the_protocol_s_sizes():
    config = configs.get_config("laptop")
    specs = {row: plan.method(config, settings) for row, settings in config.rows.items()}
    assert plan.pretraining_method(config).base == 625
    assert specs["RoPE"].base == 625
    assert specs["RoPE ABF"].base == 31_250
    assert (specs["RoPE PI"].factor, specs["RoPE PI"].base) == (8, 625)
    assert (specs["xPos ABF"].scale_base, specs["xPos ABF"].gamma) == (256, 0.8)
    assert plan.continued_length(config) == 2048
    assert all(config.rows[r].seeds == 3 for r in ("RoPE", "RoPE PI", "RoPE ABF", "xPos ABF"))
    assert sum(not settings.taught for settings in config.rows.values()) == 1


def test_the_tpu_preset_has_the_paper_s_sizes():
    config = configs.get_config("tpu_7b")
    assert plan.pretraining_method(config).base == 10_000
    assert plan.method(config, config.rows["RoPE ABF"]).base == 500_000
    assert plan.method(config, config.rows["xPos ABF"]).scale_base == 4096
    assert plan.continued_length(config) == 32_768
    tokens = config.continuation.batch * plan.continued_length(config)
    assert tokens == 2**22
    assert plan.model_config(config, 32_000) == llama.preset(
        "llama2_7b", dtype="bfloat16", remat="full"
    )
    with pytest.raises(ValueError, match="32000 tokens, the tokenizer 50000"):
        plan.model_config(config, 50_000)


def test_whatever_decides_a_run_s_numbers_changes_its_name(tiny):
    names = {run.slug for run in plan.runs(tiny)}
    assert len(names) == 4
    for field, value in (("length", 96), ("abf_factor", 10), ("corpus", "plays")):
        changed = tiny.copy_and_resolve_references()
        changed[field] = value
        assert not names & {run.slug for run in plan.runs(changed)}
    changed = tiny.copy_and_resolve_references()
    changed.hypotheses.H1.claim = "other words"
    assert names == {run.slug for run in plan.runs(changed)}


def test_methods_of_one_seed_share_pretraining_and_data_order(tiny, tmp_path):
    first, second = (run for run in plan.runs(tiny) if run.seed == 0)
    assert (first.row, second.row) == ("RoPE", "RoPE ABF")
    assert first.pretrained == second.pretrained
    study = Study(tiny, tmp_path)
    maker = study.training_windows("continuation", taught=True)
    batches = [
        next(train.packing.iterator(maker, batch=2, seed=train.data_seed(run)))["tokens"]
        for run in (first, second)
    ]
    np.testing.assert_array_equal(*batches)


@pytest.mark.parametrize(
    ("losses", "check", "verdict"),
    [
        ((3.0, 2.0), "loss: RoPE - RoPE ABF > 0", "holds"),
        ((2.0, 3.0), "loss: RoPE - RoPE ABF > 0", "reversed"),
        ((2.0, 2.0), "loss: RoPE - RoPE ABF > 0", "indistinguishable"),
        ((2.0, 2.0), "loss: |RoPE - RoPE ABF| <= 0.5", "holds"),
        ((3.0, 2.0), "loss: |RoPE - RoPE ABF| <= 0.5", "reversed"),
        ((2.0, 3.0), "loss: RoPE - RoPE ABF < 0", "holds"),
        ((2.0, 3.0), "loss: RoPE - 2.5 < 0", "holds"),
        ((2.0, 3.0), "loss: RoPE ABF - 2.5 < 0", "reversed"),
        ((2.0, 3.0), "loss untrained: RoPE ABF - RoPE > 0.5", "holds"),
    ],
)
def test_verdicts_follow_from_the_losses(tiny, losses, check, verdict):
    runs = {
        row: [run_with_loss(loss, np.random.default_rng(seed)) for seed in range(3)]
        for row, loss in zip(("RoPE", "RoPE ABF"), losses, strict=True)
    }
    assert compare.check(scores_of(tiny, runs), check).verdict == verdict


def test_a_hypothesis_with_one_reversed_check_is_reversed(tiny):
    def found(verdict):
        return compare.Check("", None, verdict, 1)

    def hypothesis(*verdicts):
        return compare.Hypothesis("H", "", tuple(found(v) for v in verdicts)).verdict

    assert hypothesis("holds", "holds") == "holds"
    assert hypothesis("holds", "reversed", "indistinguishable") == "reversed"
    assert hypothesis("holds", "indistinguishable") == "indistinguishable"
    assert hypothesis("holds", "not run") == "not run"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("loss RoPE better than PI", "cannot read the check"),
        ("los: RoPE - RoPE ABF > 0", "unknown quantity 'los'; did you mean 'loss'?"),
        ("loss: RoPE - chance > 0", "unknown row 'chance'"),
        ("loss: chance - RoPE > 0", "unknown row 'chance'"),
        ("loss: RoPE - RoPE ABF > -0.1", "must not be negative"),
        ("loss: RoPE - RoPE ABC > 0", "unknown row 'RoPE ABC'; did you mean 'RoPE ABF'?"),
    ],
)
def test_a_bad_check_is_refused_before_anything_is_trained(tiny, tmp_path, check, message):
    config = tiny.copy_and_resolve_references()
    config.hypotheses.H1.checks = (check,)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        base_frequency_ablation.main(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("continuation.warmup_steps", 10, "warmup_steps must be .* below total_steps"),
        ("continuation.batch", 6, "batch of 6 does not divide over 8 devices"),
        ("continuation.steps", 0, "continuation has no steps"),
        ("continuation.evaluate_at", (1.5,), "evaluate_at must lie in"),
        ("evaluation.windows_per_document", 1000, "ask for fewer"),
        ("evaluation.lengths", (1.0, 0.25), "lengths must rise"),
        ("evaluation.lengths", (0.02, 1.0), "do not hold"),
        ("evaluation.generated", 50, "generated must be 1 to 4"),
        ("factor", 6, "factor must be a power of two"),
        ("length", 50, "a multiple of 64"),
        ("retrieval.passkey_fact", "no key. ", "must hold {key}"),
        ("retrieval.answer_weight", -3.0, "answer_weight must be positive"),
        ("bos", "<box>", "<bos>"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_trained(tiny, tmp_path, field, value, message):
    config = tiny.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        base_frequency_ablation.main(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_diverged_run_is_left_out_and_the_rest_reported(finished, tiny, tmp_path):
    shutil.copytree(finished / "scores", tmp_path / "scores")
    run = next(r for r in plan.runs(tiny) if r.row == "RoPE" and r.seed == 1)
    path = tmp_path / "scores" / f"{run.slug}.npz"
    with np.load(path) as saved:
        arrays = {k: saved[k] for k in saved.files}
    arrays["trained/blocks"][0, 0] = np.nan
    np.savez(path, **arrays)
    scores = compare.load(tiny, tmp_path)
    assert (len(scores.runs["RoPE"]), len(scores.runs["RoPE ABF"])) == (1, 2)


def test_controls_are_judged_against_chance(tiny):
    def run(rouge, rng):
        arrays = {"retrieval/documents": np.repeat([f"d{i}" for i in range(6)], 4)}
        noise = rng.standard_normal(24)
        arrays |= {f"control/{c}/rouge": rouge + noise for c in ("removed", "other")}
        return arrays | {"chance/rouge": np.full(24, 2.0)}

    runs = {
        row: [run(rouge, np.random.default_rng(seed)) for seed in range(3)]
        for row, rouge in (("RoPE", 2.0), ("RoPE ABF", 40.0))
    }
    verdicts = [c.verdict for c in compare.controls(scores_of(tiny, runs))]
    assert verdicts == ["holds", "holds", "reversed", "reversed"]


def test_an_unknown_preset_or_placeholder_is_one_line(tiny):
    with pytest.raises(ValueError, match=r"unknown preset .* did you mean 'laptop'"):
        configs.get_config("labtop")
    config = tiny.copy_and_resolve_references()
    config.rows.RoPE.method = "rope:base={bass}"
    with pytest.raises(ValueError, match="unknown placeholder 'bass'; did you mean 'base'"):
        plan.runs(config)


def test_a_study_writes_tables_figures_and_a_report_without_references(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [row["row"] for row in results["summary"]] == ["RoPE", "RoPE ABF"]
    assert results["hypotheses"]["H1"] in ("holds", "reversed", "indistinguishable")
    assert results["seeds"] == {"RoPE": 2, "RoPE ABF": 2}
    assert 0 < results["taught"]["pretraining"]["answer_tokens"] < 1
    page = (finished / "report.html").read_text()
    assert "Departures from the paper" in page and "the command" in page
    assert 'src="http' not in page
    assert all(p.stat().st_size < 300_000 for p in finished.glob("*.png"))
    assert len(list(finished.glob("*.png"))) == 6


def test_controls_and_scores_are_kept_per_seed_and_sample(finished, tiny):
    scores = compare.load(tiny, finished)
    lengths, samples = tiny.evaluation.lengths, tiny.evaluation.samples
    assert scores.get("RoPE", "first_sentence/exact").shape == (2, len(lengths), samples)
    assert scores.get("RoPE", "control/removed/rouge").shape == (2, tiny.evaluation.generated)
    assert scores.get("RoPE", "matrix/loss").shape[:2] == (2, len(tiny.evaluation.scales))
    header, rows = base_frequency_ablation.page.per_document(scores)
    assert len(rows) == 2 * 2 * tiny.held_out and len(header) == len(rows[0])


def test_untrained_scores_of_two_methods_differ_and_scale_1_is_the_method_itself(finished, tiny):
    scores = compare.load(tiny, finished)
    untrained = [scores.get(row, "untrained/blocks") for row in ("RoPE", "RoPE ABF")]
    assert np.abs(untrained[0] - untrained[1]).max() > 0
    blocks = scores.get("RoPE", "trained/blocks")
    own = list(tiny.evaluation.scales).index(1.0)
    full = blocks[..., : blocks.shape[-1] // 2].mean(-1)
    np.testing.assert_allclose(scores.get("RoPE", "matrix/loss")[:, own], full, rtol=1e-5)


def test_a_second_run_trains_nothing_and_needs_no_text(finished, tiny, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("not needed")

    monkeypatch.setattr(train, "pretrained", refuse)
    monkeypatch.setattr(corpora, "load", refuse)
    before = (finished / "results.json").read_text()
    base_frequency_ablation.main(tiny, finished, "the command")
    assert (finished / "results.json").read_text() == before


def test_a_study_continues_from_a_given_checkpoint(finished, tiny, tmp_path):
    run = plan.runs(tiny)[0]
    config = tiny.copy_and_resolve_references()
    config.init_checkpoint = str(finished / "runs" / run.pretrained / "checkpoints")
    study = Study(config, tmp_path)
    loaded = train.pretrained(study, run, None)
    optimizer = train.optimizer_config(tiny.continuation, 1.0)
    fresh = step.init_state(study.model, optimizer, study.mesh, seed=0).params
    assert np.abs(np.asarray(loaded["embed"]) - np.asarray(fresh["embed"])).max() > 0
    config.init_checkpoint = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no checkpoint at"):
        train.pretrained(Study(config, tmp_path), run, None)
    known = runs.load(finished / "runs" / run.slug)
    assert (known.config, known.method) == (study.model, run.method)
    assert (known.tokenizer, known.trained_length) == (
        study.tokenizer,
        plan.continued_length(config),
    )


@pytest.mark.parametrize("form", weights.FORMATS)
def test_a_study_continues_from_a_checkpoint_of_other_software(tiny, tmp_path, form):
    """Its numbers, layout and epsilon; the study's way to compute. What does not fit is refused."""
    config = tiny.copy_and_resolve_references()
    model = llama.LlamaConfig(260, 16, 1, 1, 1, 64, 48, norm_eps=1e-3)
    spec, known = plan.pretraining_method(config), {"context_length": config.length}
    path, params = write(tmp_path, form, model, spec, **known)
    config.init_checkpoint = str(path)
    config.pretraining.steps = 0
    study = Study(config, tmp_path / "study")
    layout = "half" if form == "hf" else "interleaved"
    assert study.model == dataclasses.replace(model, rotary_layout=layout)
    found = train.pretrained(study, plan.runs(config)[0], None)
    assert_same(params["embed"], found["embed"])
    assert_same(params["layers"]["mlp"], found["layers"]["mlp"])
    study.check()
    for change, message in (
        ({"length": 32}, r"has 64, this study 32: see --config\.length"),
        ({"model.n_layers": 2}, r"has 1, this study 2: see --config\.model\.n_layers"),
        ({"base_per_token": 5.0}, r"RoPE\(base=320.0\): see --config\.base_per_token"),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(change)
        with pytest.raises(ValueError, match=message):
            _ = Study(other, tmp_path / "study").model


def test_the_tokenizer_of_a_given_checkpoint_is_taken_where_none_is_named(tiny, tmp_path):
    config = tiny.copy_and_resolve_references()
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    path, _ = write(tmp_path, "gguf", tokenizer=tokenizer)
    config.init_checkpoint, config.tokenizer = str(path), ""
    assert Study(config, tmp_path).tokenizer.specials == ("<eos>",)


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_same_scores(finished, tiny, tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.base_frequency_ablation"),
        f"--config={ROOT / 'configs' / 'base_frequency_ablation.py'}:tiny",
        f"--config.corpus={tiny.corpus}",
        f"--workdir={tmp_path}",
    ]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    rng = np.random.default_rng(time.time_ns())
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        time.sleep(rng.uniform(6, 14))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    once, again = (compare.load(tiny, folder) for folder in (finished, tmp_path))
    for row in once.runs:
        for a, b in zip(once.runs[row], again.runs[row], strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_reproduce_joins_all_reports_into_one(finished, tiny, tmp_path, monkeypatch):
    config = reproduce_configs.get_config("tiny")
    config.ablation = tiny
    (tmp_path / "ablation").mkdir()
    os.symlink(finished / "scores", tmp_path / "ablation" / "scores")
    path = reproduce.main(config, tmp_path, "make reproduce")
    page = path.read_text()
    titles = ("Table 5 in miniature", "Score by distance", "Figure 8", "appendix B")
    for title in (*titles, "Smallest base", "Wavelengths of every method"):
        assert title in page
