"""The search experiment: budgets, bad configs, and a whole tiny study in one process."""

import csv
import json

import numpy as np
import pytest

from configs import longrope_search as configs
from experiments import longrope_search
from experiments.search import compare, execute, measure, plan
from longrope_jax import rotary
from longrope_jax.search import fitness


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny preset on a folder of random documents, each with sentences of its own."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in range(6):
        sentences = (
            " ".join(rng.choice(words, size=2)).capitalize() + f" {name} {i}." for i in range(200)
        )
        (folder / f"doc{name}.txt").write_text("\n\n".join(sentences))
    config = configs.get_config("tiny")
    config.study.corpus = str(folder)
    return config


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a whole tiny study that was cut off twice, and what was called."""
    workdir = tmp_path_factory.mktemp("study")
    original, calls = fitness.Objective.fitness, []
    fitness.population_nll.clear_cache()

    def dying(self, individuals):
        calls.append(len(individuals))
        if len(calls) in (2, 7):
            raise KeyboardInterrupt
        return original(self, individuals)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitness.Objective, "fitness", dying)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                longrope_search.main(tiny, workdir, "the command")
        longrope_search.main(tiny, workdir, "the command")
    return workdir, calls


def test_every_search_of_the_cpu_preset_has_the_same_budget():
    config = configs.get_config("cpu")
    steps = plan.gradient_steps(config)
    cost = plan.STARTS + plan.FORWARDS_PER_GRADIENT * steps
    assert plan.forwards(config) - plan.FORWARDS_PER_GRADIENT < cost <= plan.forwards(config)
    methods = [s.method for s in plan.searches(config) if s.factor == 2]
    assert methods.count("LongRoPE") == methods.count("LongRoPE2") == config.evolution.seeds
    assert methods.count("gradient") == methods.count("gradient, needle") == 1


def test_more_seeds_search_nothing_again_and_other_settings_search_all():
    config = configs.get_config("cpu")
    slugs = {s.slug for s in plan.searches(config)}
    config.evolution.seeds += 1
    assert slugs < {s.slug for s in plan.searches(config)}
    config.learning_rate = 0.01
    assert not slugs & {s.slug for s in plan.searches(config)}


def test_start_tokens_stay_below_the_trained_length():
    config = configs.get_config("tiny")
    target = plan.target(config, 2, 64)
    assert max(plan.space(config, "LongRoPE", target).start_counts) == 32 < target.length == 64


def test_searches_and_test_have_no_document_in_common(tiny, tmp_path):
    bench = execute.Workbench(tiny, tmp_path)
    training = {d.name for d in bench.study.training}
    for kind in ("text", "needle"):
        searched, tested = (
            set(bench.sequences(kind, 128, test=test).documents.tolist()) for test in (False, True)
        )
        assert len(searched) == len(tested) == 2
        assert not searched & tested and not training & (searched | tested)
        shapes = [bench.sequences(k, 128, test=False).tokens.shape for k in ("text", "needle")]
        assert shapes[0] == shapes[1] == (8, 129)


def test_needles_weigh_the_answer_alone(tiny, tmp_path):
    bench = execute.Workbench(tiny, tmp_path)
    sequences = bench.sequences("needle", 128, test=True)
    decode = bench.study.tokenizer.decode
    for tokens, weights in zip(sequences.tokens, sequences.weights, strict=True):
        answer = decode(tokens[1:][weights > 0])
        assert answer and decode(tokens[1:]).startswith(answer)


def test_a_study_cut_off_twice_equals_an_unbroken_one(tiny, finished, tmp_path):
    workdir, _ = finished
    # The pretrained model is the same file; searches and test run again in one go.
    (tmp_path / "runs").symlink_to(workdir / "runs")
    longrope_search.main(tiny, tmp_path, "the command")
    results = [json.loads((d / "results.json").read_text()) for d in (workdir, tmp_path)]
    for key in ("tables", "claims", "searches", "specs"):
        assert results[0][key] == results[1][key]


def test_one_program_for_each_target_length(finished):
    # Text and needles, evolutions and gradients' starts, all seeds and generations.
    assert fitness.population_nll._cache_size() == 2
    assert len(finished[1]) > 20


def test_the_report_is_drawn_again_without_a_model(tiny, finished, monkeypatch):
    workdir, _ = finished
    for name in ("report.html", "results.json", "factors.png", "progress.png", "losses.csv"):
        (workdir / name).unlink()
    monkeypatch.setattr(execute.Workbench, "study", None)
    sections = longrope_search.main(tiny, workdir, "the command")
    assert [s.title for s in sections][:2] == ["Result", "Loss on test documents"]
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "rotary.LongRoPE(" in page


def test_tables_hold_every_row_with_differences_of_the_same_samples(tiny, finished):
    workdir, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert len(results["tables"]) == 4
    for rows in results["tables"].values():
        labels = [row["row"] for row in rows]
        assert {"RoPE", "PI", "NTK", "YaRN", "ABF x50", *plan.METHODS} < set(labels)
        by = {row["row"]: row for row in rows}
        difference = float(by["RoPE"]["minus PI"].split()[0])
        expected = float(by["RoPE"]["loss"]) - float(by["PI"]["loss"])
        assert difference == pytest.approx(expected, abs=2e-3)
        assert by["PI"]["minus PI"] is None and by["LongRoPE"]["seeds"] == 2
    claims = results["claims"]
    assert len(claims) == 2 * (5 * 3 + 3)
    for claim in claims:
        assert claim["low"] <= claim["difference"] <= claim["high"]
        assert (claim["verdict"] == "holds") == (claim["high"] < 0)
    with (workdir / "losses.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + sum(len(t) for t in results["tables"].values())


def test_winners_are_usable_specs(tiny, finished):
    workdir, _ = finished
    specs = json.loads((workdir / "results.json").read_text())["specs"]
    assert len(specs) == 2 * len(plan.METHODS)
    for entry in specs:
        spec = eval(entry["spec"], {"rotary": rotary})
        read = rotary.from_hf({"rope_parameters": entry["hf"], "head_dim": 64})
        assert read.long_factor == spec.long_factor and read.amplitude == spec.amplitude
        assert entry["hf leaves out start tokens"] == spec.start_count
        rotary.make(spec, head_dim=64, seq_len=spec.original_length * 2)


def test_context_cut_to_the_trained_length_is_plain_rope_on_pieces(tiny, finished):
    workdir, _ = finished
    with np.load(next((workdir / "scores").glob("test-*.npz"))) as file:
        arrays = dict(file)
    assert compare.mean(arrays, 2, "text", measure.CUT) != compare.mean(arrays, 2, "text", "RoPE")
    own = arrays["x1/text/RoPE"]
    assert own.shape == (1, 2) and np.isfinite(own).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"search_documents": 3}, "search_documents must leave 2 of 4"),
        ({"windows": 0}, "windows must be a multiple of"),
        ({"factors": (1,)}, "factor must be above 1 for a search"),
        ({"evolution": {"population": 1}}, "population must be at least 2"),
        ({"evolution": {"population": 2, "generations": 0}}, "6 evaluations"),
        ({"start_counts": (1,)}, "start_counts must include 0"),
    ],
)
def test_a_bad_config_is_refused_before_training(tiny, tmp_path, change, message):
    config = tiny.copy_and_resolve_references()
    config.update(change)
    with pytest.raises(ValueError, match=message):
        longrope_search.main(config, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="tiny"):
        configs.get_config("tinny")
