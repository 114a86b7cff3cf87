"""The study of searched factors: budgets, numbers from logits, tables, a study cut off twice."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import longrope_search as configs
from experiments import lab
from experiments import longrope_search as study
from experiments import longrope_search_cells as cells_of
from experiments.lab import cells as cells_lib
from experiments.lab import cli
from longrope_jax import llama, rotary
from longrope_jax.search import evolution, fitness, gradient


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of random documents, each with sentences of its own."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in range(6):
        sentences = (
            " ".join(rng.choice(words, size=2)).capitalize() + f" {name} {i}." for i in range(200)
        )
        (folder / f"doc{name}.txt").write_text("\n\n".join(sentences))
    return folder


def tiny(text, **changes):
    config = cli.load_config("configs/longrope_search.py:tiny")
    config.corpus = str(text)
    for field, value in changes.items():
        cli.override(config, field, value)
    return config


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny study that was cut off twice, its cells, report, and calls."""
    folder = tmp_path_factory.mktemp("study")
    original, calls = fitness.Objective.fitness, []

    def dying(self, individuals):
        calls.append(len(individuals))
        if len(calls) in (2, 7):
            raise KeyboardInterrupt
        return original(self, individuals)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitness.Objective, "fitness", dying)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                study.main(tiny(text), folder, "the command")
        report = study.main(tiny(text), folder, "the command")
    return folder, study.plan(tiny(text), folder), report


def worker(text, folder):
    config, facts = cells_of.filled(tiny(text), folder)
    return study.Work(config, facts, folder, lab.Machine(**config.machine))


def cell_of(cells, row, kind, length, seed=0):
    return next(
        cell
        for cell in cells
        if (cell.row, cell.what[1].kind, cell.what[1].length, cell.seed)
        == (row, kind, length, seed)
    )


def searches_of(cells):
    return list(dict.fromkeys(c.after[0] for c in cells if c.after[0].kind == "search"))


def test_every_search_of_the_cpu_preset_has_the_same_budget(tmp_path):
    cells = searches_of(study.plan(configs.get_config("cpu"), tmp_path))
    for cell in cells:
        settings = cell.what[3]
        if "steps" in settings:
            forwards = gradient.cost(settings["steps"])
            assert 168 - 3 < forwards <= settings_of(cells) == 168
        assert cell.what[2].count * cell.what[2].length == 10 * cell.what[1].seq_len
    rows = [cell.row for cell in cells if cell.what[1].factor == 2]
    assert rows.count("LongRoPE") == rows.count("LongRoPE2") == 3
    assert rows.count("gradient") == rows.count("gradient, needle") == 1


def settings_of(cells):
    (sizes,) = {cell.what[3]["sizes"] for cell in cells if "sizes" in cell.what[3]}
    return sizes.evaluations


def test_three_models_each_with_its_own_searches_three_times(tmp_path):
    one, three = (study.plan(configs.get_config(p), tmp_path) for p in ("cpu", "overnight"))
    assert {cell.name for cell in one} < {cell.name for cell in three}
    searches = [cell for cell in searches_of(three) if cell.what[1].factor == 2]
    for name in configs.get_config("overnight").searches:
        own = [cell for cell in searches if cell.row == name]
        models = [cell.after[0].seed for cell in own]
        assert models == [0, 0, 0, 1, 1, 1, 2, 2, 2] and [c.seed for c in own] == [*range(9)]
    starts = [c.what[3].get("start", 0) for c in searches if c.row == "gradient, monotone"]
    assert starts == [0, 1, 2] * 3
    monotone = {cell.row for cell in searches if cell.what[3].get("monotone")}
    assert monotone == {"gradient, monotone", "gradient, needle, monotone"}
    larger = searches_of(study.plan(configs.get_config("paper"), tmp_path))
    assert settings_of(larger) == 1344
    assert {cell.after[0] for cell in larger} == {cell.after[0] for cell in searches}


def test_several_models_are_seeds_and_their_restarts_are_averaged(tmp_path):
    config = configs.get_config("overnight")
    cells = [c for c in study.plan(config, tmp_path) if c.row in ("PI", "gradient", "LongRoPE")]
    for cell in cells:
        if cell.row != "LongRoPE" or cell.seed != 5:  # a model that is not finished
            arrays = {"loss": [cell.seed, cell.seed + 10.0], "documents": ["a", "b"]}
            cells_lib._save(lab.path(tmp_path, cell), cell, arrays, lab.Machine(), 0.0)
    found = cells_of.quantities(config, tmp_path, cells, "loss")["needle at 2x"].values
    np.testing.assert_array_equal(found["PI"], [[0, 10], [1, 11], [2, 12]])
    np.testing.assert_array_equal(found["gradient"], [[1, 11], [4, 14], [7, 17]])
    np.testing.assert_array_equal(found["LongRoPE"], [[1, 11]])


def test_start_tokens_stay_below_the_trained_length(tmp_path):
    cells = searches_of(study.plan(configs.get_config("tiny"), tmp_path))
    counts = {max(cell.what[3]["start_counts"]) for cell in cells if cell.row == "LongRoPE"}
    assert counts == {32}


def test_training_searches_and_test_have_no_document_in_common(text, tmp_path):
    work = worker(text, tmp_path)
    training = {document.name for document in work.text.training}
    for kind in cells_of.KINDS:
        asked = cells_of.Asked(kind, 128, 8, 2, test=False, prompt="<retrieve>", end="<answer_end>")
        found = [work.sequences(dataclasses.replace(asked, test=test)) for test in (False, True)]
        searched, tested = (set(names.tolist()) for *_, names in found)
        assert len(searched) == len(tested) == 2
        assert not searched & tested and not training & (searched | tested)
        assert {tokens.shape for tokens, *_ in found} == {(8, 129)}


def test_needles_weigh_the_answer_alone(text, tmp_path):
    work = worker(text, tmp_path)
    asked = cells_of.Asked("needle", 128, 4, 2, test=True, prompt="<retrieve>", end="<answer_end>")
    for tokens, weights in zip(*work.sequences(asked)[:2], strict=True):
        decode = work.text.tokenizer.decode
        answer = decode(tokens[1:][weights > 0])
        assert answer and decode(tokens[1:]).startswith(answer)


def test_a_study_cut_off_twice_equals_an_unbroken_one(finished, text, tmp_path):
    folder, cells, report = finished
    # The pretrained model is the same; searches and test run again in one go.
    (trained,) = cells_of.pretraining(*cells_of.filled(tiny(text), folder))
    for name in ("cells", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs" / trained.name).symlink_to(lab.run_folder(folder, trained))
    (tmp_path / "cells" / f"{trained.name}.npz").symlink_to(lab.path(folder, trained))
    again = study.main(tiny(text), tmp_path)
    assert again.claims == report.claims
    for cell in (*cells, *searches_of(cells)):
        once, twice = lab.read(folder, cell), lab.read(tmp_path, cell)
        for name, array in once.items():
            np.testing.assert_array_equal(array, twice[name], err_msg=f"{cell.name}: {name}")


@pytest.mark.parametrize("row", ["PI", "LongRoPE", cells_of.CROPPED])
def test_a_text_cell_is_the_loss_under_the_rows_method(finished, text, row):
    folder, cells, _ = finished
    work, cell = worker(text, folder), cell_of(cells, row, "text", 128)
    tokens, found = work.sequences(cell.what[1])[0], lab.read(folder, cell)
    work.model(cell)
    method = rotary.PositionInterpolation(2.0, base=156.25)
    if row == "LongRoPE":
        (search,) = cell.after
        method = search.what[1].spec(evolution.from_arrays(lab.read(folder, search)).best)
    for i, sequence in enumerate(tokens):
        nll = cropped(work, sequence) if row == cells_of.CROPPED else losses(work, method, sequence)
        expected = nll.mean(), nll[:64].mean(), nll[64:].mean()
        measured = [found[name][i] for name in ("loss", "within", "beyond")]
        np.testing.assert_allclose(measured, expected, rtol=2e-5)


def cropped(work, tokens):
    """Plain RoPE on windows of 64 tokens every 8, each behind BOS."""
    nll = []
    for start in range(0, len(tokens) - 64, 8):
        window = np.append(tokens[:1], tokens[start + 1 : start + 65])
        nll.append(losses(work, rotary.RoPE(156.25), window)[56 if start else 0 :])
    return np.concatenate(nll)


def losses(work, method, tokens):
    rot = rotary.make(method, head_dim=64, seq_len=len(tokens) - 1)
    (model,) = work._held.values()
    logits = llama.logits(model.config, jax.device_get(model.params), tokens[None, :-1], rot)
    logits = np.asarray(logits[0], np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -scores[np.arange(len(tokens) - 1), tokens[1:]]


def test_tables_hold_every_row_and_claims_say_what_their_intervals_say(finished):
    folder, _, report = finished
    loss = report.results["loss"]
    assert list(loss) == [f"{kind} at {x}x" for x in (1, 2, 4) for kind in cells_of.KINDS]
    rows = {
        "RoPE",
        "PI",
        "NTK",
        "YaRN",
        "ABF x50",
        *configs.get_config("tiny").searches,
        cells_of.PLAIN,
    }
    assert all(rows < set(loss[f"{kind} at {x}x"]) for kind in cells_of.KINDS for x in (2, 4))
    assert cells_of.CROPPED in loss["text at 4x"] and cells_of.CROPPED not in loss["needle at 4x"]
    table = (folder / "text_at_2x.csv").read_text().splitlines()
    assert table[0].endswith('minus cropped,"within L, minus RoPE",tokens right')
    assert len(table) == 1 + len(loss["text at 2x"])
    (rope,) = (line for line in table if line.startswith("RoPE,"))
    assert float(rope.split(",")[2]) == pytest.approx(float(loss["text at 2x"]["RoPE"]), abs=1e-3)
    # A random model finds no needle: nothing can be said of searches on needles.
    assert "LongRoPE2 at 2x: " in " ".join(report.claims)
    assert report.claims[-1].endswith("not testable here.")


def test_winners_are_usable_specs(finished):
    specs = finished[2].results["specs"]
    assert len(specs) == 2 * len(configs.get_config("tiny").searches)
    for entry in specs:
        spec = eval(entry["spec"], {"rotary": rotary})
        read = rotary.from_hf({"rope_parameters": json.loads(entry["hf"]), "head_dim": 64})
        assert read.long_factor == spec.long_factor and read.amplitude == spec.amplitude
        assert entry["hf leaves out start tokens"] == spec.start_count
        rotary.make(spec, head_dim=64, seq_len=spec.original_length * 2)


def test_the_report_needs_no_text_and_no_model(finished, text, monkeypatch):
    folder, _, report = finished
    monkeypatch.setattr(study, "Work", lambda *_: _Refuses())
    again = study.main(tiny(text), folder, "the command")
    assert again.claims == report.claims
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64") == 3 and "rotary.LongRoPE(" in page


class _Refuses:
    train = search = loss = None


def test_a_checkpoint_is_searched_in_place_of_a_model_that_is_trained(finished, text, tmp_path):
    (trained,) = cells_of.pretraining(*cells_of.filled(tiny(text), tmp_path))
    run = str(lab.run_folder(finished[0], trained))
    changes = {"model": run, "bos": "<bos>", "factors": "(2,)", "seeds": "1"}
    cells = study.plan(tiny(text, **changes), tmp_path)
    assert all(not before.after for cell in cells for before in cell.after)
    assert {cell.kind for cell in lab.missing(tmp_path, cells)} == {"loss", "search"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search_documents": "3"}, ("--config.search_documents=3", "it needs 2")),
        ({"windows": "0"}, ("--config.windows=0", "devices")),
        ({"factors": "(1,)"}, ("factor must be above 1", "search")),
        ({"evolution.population": "1"}, ("population must be at least 2",)),
        ({"seeds": "0"}, ("--config.seeds=0",)),
        ({"restarts": "4"}, ("--config.restarts=4", "1 to 3")),
        ({"models": "0"}, ("--config.models=0",)),
        ({"searches": "('gradient, monoton',)"}, ("--config.searches", "'gradient, monotone'")),
        ({"start_counts": "(1,)"}, ("start_counts", "0", "(1,)")),
        ({"rows.PI.method": "pj:factor=2"}, ("--config.rows.PI.method", "'pi'")),
        ({"pretraining.batch": "3"}, ("--config.pretraining", "batch of 3")),
    ],
)
def test_a_bad_config_is_refused_before_training(text, tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        study.main(tiny(text, **changes), tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "runs").exists()
