"""Zero-shot extension: a tiny study whole, cut off and resumed; its claims and refusals."""

import json
import shutil

import jax
import numpy as np
import pytest
from experiments.progress import StudyProgress

from configs import zero_shot_extension as configs
from experiments import zero_shot_extension
from experiments.zero_shot import compare
from experiments.zero_shot.measure import Study
from experiments.zero_shot.plan import LOSS, PASSKEY, REMOVED, SENTENCE, Plan
from longrope_jax import llama, rotary

SMOLLM2 = llama.preset("smollm2_135m")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of two random documents."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in ("a", "b"):
        sentences = (" ".join(rng.choice(words, 3)).capitalize() + f" {i}." for i in range(60))
        (folder / f"{name}.txt").write_text("\n\n".join(sentences))
    return folder


@pytest.fixture
def tiny(text):
    return config_of(text)


def config_of(text):
    config = configs.get_config("tiny")
    config.documents = (f"{text}:a.txt", f"{text}:b.txt")
    return config


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny study, and what it returned."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, zero_shot_extension.main(config_of(text), workdir, "the command")


def numbers(workdir):
    """Every array of every cell but the time it took."""
    found = {}
    for path in sorted((workdir / "cells").glob("*.npz")):
        with np.load(path) as saved:
            found |= {(path.stem, name): saved[name] for name in saved.files if name != "seconds"}
    return found


def log_probabilities(study, spec, tokens):
    """[T, V] in float64 from the logits of the model."""
    base = study.base
    rot = rotary.make(spec, head_dim=base.model.head_dim, seq_len=len(tokens))
    logits = np.asarray(llama.logits(base.model, base.params, tokens[None], rot)[0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cell_of(study, **wanted):
    return next(
        cell
        for cell in study.plan.cells
        if all(getattr(cell, name) == value for name, value in wanted.items())
    )


# Numbers


def test_a_loss_cell_is_the_mean_loss_of_its_blocks_of_the_document(finished, tiny, text):
    study = Study(tiny, finished[0])
    cell = cell_of(study, task=LOSS, method="pi", length=256, document=1)
    characters = np.frombuffer((text / "b.txt").read_bytes(), np.uint8)
    tokenizer = study.base.tokenizer
    tokens = np.concatenate([[tokenizer.special("<bos>")], characters[:256]]).astype(np.int32)
    spec = rotary.PositionInterpolation(factor=2.0, base=study.base.method.base)
    scores = log_probabilities(study, spec, tokens[:-1])
    expected = -scores[np.arange(256), tokens[1:]].reshape(-1, tiny.block).mean(1)
    np.testing.assert_allclose(study.read(cell)["blocks"], expected, rtol=2e-5)


@pytest.mark.parametrize("task", [PASSKEY, SENTENCE, REMOVED])
def test_a_retrieval_cell_scores_the_answer_and_nothing_else(finished, tiny, task):
    study = Study(tiny, finished[0])
    cell = cell_of(study, task=task, method="rope", document=1)
    samples, found = study.samples(cell), study.read(cell)
    assert len(found["nll"]) == len(samples.tokens) == (2 if task == PASSKEY else 1)
    assert set(samples.documents) == {"b.txt"}
    for row, answer in enumerate(samples.references()):
        tokens = samples.tokens[row]
        scores = log_probabilities(study, rotary.RoPE(study.base.method.base), tokens)
        at = samples.prompt_length - 1 + np.arange(len(answer))
        right = scores[at].argmax(-1) == answer
        assert found["nll"][row] == pytest.approx(-scores[at, answer].mean(), rel=2e-5)
        assert found["share"][row] == pytest.approx(right.mean())
        assert found["exact"][row] == right.all()


def test_pass_keys_lie_at_other_depths_in_every_document(tiny, tmp_path):
    study = Study(tiny, tmp_path)
    depths = []
    for document in range(2):
        samples = study.samples(cell_of(study, task=PASSKEY, length=256, document=document))
        texts = [study.base.tokenizer.decode(row[row < 256]) for row in samples.tokens]
        depths += [t.index("Key ") for t in texts]
    assert len(set(depths)) == 4 and max(depths) - min(depths) > 100


def test_a_control_has_no_answer_in_its_context(tiny, tmp_path):
    study = Study(tiny, tmp_path)
    for task, stated in ((SENTENCE, True), (REMOVED, False)):
        samples = study.samples(cell_of(study, task=task, document=0))
        asked, prompt = samples.references()[0][:-1], samples.tokens[0, : samples.prompt_length]
        assert (bytes(asked.tolist()) in bytes(prompt[1:].clip(0, 255).tolist())) == stated


# A whole study


def test_methods_with_the_same_frequencies_are_measured_once(finished, tiny):
    study = Study(tiny, finished[0])
    assert cell_of(study, method="dynamic_ntk", length=256).same_as == "ntk"
    assert cell_of(study, method="pi", length=128).same_as == "rope"
    assert cell_of(study, method="pi", length=256).same_as == "pi"
    files = list((finished[0] / "cells").glob("*.npz"))
    assert {path.stem for path in files} == {cell.slug for cell in study.plan.cells}
    assert len(files) < len(study.plan.cells)


def test_cut_off_at_any_cell_it_ends_the_same(finished, tiny, monkeypatch, tmp_path):
    advance, left = StudyProgress.advance, [7]

    def cut_off(self, flops, tokens):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        advance(self, flops, tokens)

    monkeypatch.setattr(StudyProgress, "advance", cut_off)
    with pytest.raises(KeyboardInterrupt):
        zero_shot_extension.main(tiny, tmp_path, "the command")
    assert 0 < len(numbers(tmp_path)) < len(numbers(finished[0]))
    result = zero_shot_extension.main(tiny, tmp_path, "the command")
    found, expected = numbers(tmp_path), numbers(finished[0])
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert result["claims"] == finished[1]["claims"]


def test_done_again_it_only_redraws(finished, tiny, monkeypatch):
    monkeypatch.setattr(Study, "measure", None)
    before = json.loads((finished[0] / "results.json").read_text())
    zero_shot_extension.main(tiny, finished[0], "the command")
    assert json.loads((finished[0] / "results.json").read_text()) == before


def test_a_part_is_shown_without_measuring(finished, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(Study, "measure", None)
    tiny.measure = False
    with pytest.raises(ValueError, match="has no cell to show"):
        zero_shot_extension.main(tiny, tmp_path, "the command")
    files = sorted((finished[0] / "cells").glob("loss-*-256-*"))
    (tmp_path / "cells").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "cells")
    cells = zero_shot_extension.main(tiny, tmp_path, "the command")["cells"]
    assert cells["done"] == len(files) < cells["planned"]


def test_the_report_holds_claims_and_command_and_its_files_are_small(finished):
    workdir, result = finished
    html = (workdir / "report.html").read_text()
    assert "the command" in html and "http" not in html
    assert len(result["claims"]) == 3
    for claim in result["claims"]:
        assert claim in html.replace("&#x27;", "'")
    names = ("loss_by_position.png", "beyond.png", "retrieval.png", "loss.csv", "retrieval.csv")
    for name in (*names, "results.json"):
        assert 0 < (workdir / name).stat().st_size < 300_000
    assert result["cells"]["done"] == result["cells"]["planned"]


@pytest.mark.parametrize(("option", "value"), [("seed", 1), ("block", 64), ("model", "other")])
def test_other_settings_never_meet_in_one_cell(tiny, option, value):
    def slugs():
        return {c.slug for c in Plan(tiny, SMOLLM2, 1e5).work()}

    before = slugs()
    tiny[option] = value
    kept = slugs() & before
    assert not any(slug.startswith("loss") for slug in kept)
    assert bool(kept) == (option == "block")  # which retrieval does not depend on


# Claims


def write_losses(study, losses):
    """Loss cells with the given loss beyond the trained length, by method and document."""
    for cell in study.plan.work():
        if cell.task == LOSS and cell.length == 256 and cell.method in losses:
            blocks = np.full(8, 3.0, np.float32)
            blocks[4:] = losses[cell.method][cell.document]
            study.path(cell).parent.mkdir(exist_ok=True)
            np.savez(study.path(cell), blocks=blocks, seconds=1.0)


def test_claims_say_what_the_paired_differences_say(tiny, tmp_path):
    study = Study(tiny, tmp_path)
    write_losses(study, {"rope": (9, 7), "abf": (4, 2.1), "pi": (9.1, 6.9), "ntk": (9.5, 7.6)})
    (claim,) = compare.claims(study, compare.curves(study), [])
    assert "positions 128 to 256 the lowest loss is 3.050" in claim and "by abf" in claim
    assert "rope has 8.000 there and 3.000 within" in claim
    assert "Of 3 other methods with frequencies of their own 1 have a lower loss" in claim
    assert "(abf), 1 a higher one, and 1 cannot be told from it" in claim
    rows = {row["method"]: row for row in compare.loss_rows(study, compare.curves(study)[256])}
    assert rows["abf"]["difference"]["mean"] == pytest.approx(-4.95)
    assert rows["dynamic_ntk"]["beyond"] == rows["ntk"]["beyond"]


def test_one_document_gives_no_interval_and_the_claim_says_so(tiny, tmp_path):
    for group in tiny.loss.values():
        group.documents = 1
    study = Study(tiny, tmp_path)
    write_losses(study, {"rope": (9, 0), "abf": (4, 0)})
    (claim,) = compare.claims(study, compare.curves(study), [])
    assert "With one document there is no interval" in claim
    assert compare.loss_rows(study, compare.curves(study)[256])[0]["128-256"]["interval"] is None


def test_a_difference_is_taken_on_the_documents_that_both_have(tiny, tmp_path):
    study = Study(tiny, tmp_path)
    write_losses(study, {"rope": (9, 7), "abf": (4, 2)})
    missing = cell_of(study, task=LOSS, method="abf", length=256, document=1)
    study.path(missing).unlink()
    found = {c.method: c for c in compare.curves(study)[256]}
    assert compare.against(study, found["abf"], found["rope"]) == (-5.0, None)


def test_exact_answers_have_the_binomial_interval():
    answers = compare.Answers(PASSKEY, "rope", 8, "rope", np.ones(4, bool), *[np.zeros(4)] * 3)
    interval = answers.exact_interval
    assert (interval.estimate, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.025 ** (1 / 4))


# Presets


def test_full_measures_every_method_under_the_checkpoints_base():
    config = configs.get_config("full")
    plan = Plan(config, SMOLLM2, 1e5)
    texts = {text.partition(":")[0] for text in plan.methods.values()}
    assert texts == set(rotary.names())
    for cell in plan.cells:
        assert "base=10000.0" not in repr(plan.spec(cell.method, cell.length))
    longest = {c.method: 0 for c in plan.cells}
    for cell in plan.cells:
        longest[cell.method] = max(longest[cell.method], cell.length)
    assert {longest[m] for m in ("rope", "abf", "pi", "ntk", "yarn", "dynamic_ntk")} == {32_768}
    assert min(longest.values()) == 16_384


@pytest.mark.parametrize(("preset", "hours"), [("quick", 1 / 6), ("full", 8)])
def test_presets_fit_their_time(preset, hours):
    """At 125 GFLOP/s: two idle cores did 150 to 220 in windows of 12,288 tokens."""
    plan = Plan(configs.get_config(preset), SMOLLM2, 1e5)
    assert sum(map(plan.flops, plan.work())) / 125e9 < hours * 3600


def test_every_beginning_of_full_compares_with_plain_rope():
    plan = Plan(configs.get_config("full"), SMOLLM2, 1e5)
    seen = set()
    for cell in plan.work():
        if cell.task == LOSS:
            seen.add((cell.method, cell.length, cell.document))
            assert ("rope", cell.length, cell.document) in seen


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": ("a", "b")}, "CORPUS:DOCUMENT"),
        ({"edges": (0, 192, 256)}, "trained length of 128"),
        ({"block": 48}, "block must divide"),
        ({"retrieval.methods": ()}, "retrieval needs methods"),
        ({"retrieval.documents": 3}, "3 documents are asked for, the config has 2"),
        ({"loss.1.length": 200}, "must be an edge beyond 128"),
        ({"loss.2.methods": ("abf",)}, "rope must be measured at 192"),
        ({"loss.2.methods": ("rope", "yan:factor=2")}, "did you mean 'yarn'"),
        ({"loss.2.methods": ("rope", "pi:factor={facto}")}, "did you mean 'factor'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tiny, tmp_path, change, message):
    tiny.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        zero_shot_extension.main(tiny, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_text_too_short_is_refused_before_anything_is_measured(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("One short sentence here.")
    tiny.documents = (f"{tmp_path}:a.txt",) * 2
    with pytest.raises(ValueError, match=r"a\.txt"):
        zero_shot_extension.main(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_unknown_preset_and_document_are_named(tiny, tmp_path, text):
    with pytest.raises(ValueError, match="did you mean 'quick'"):
        configs.get_config("quik")
    tiny.documents = (f"{text}:aa.txt", f"{text}:b.txt")
    with pytest.raises(ValueError, match=r"did you mean 'a\.txt'"):
        zero_shot_extension.main(tiny, tmp_path)


def test_nothing_runs_on_more_than_one_device(tiny, tmp_path):
    assert len(jax.devices()) > 1
    study = Study(tiny, tmp_path)
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(study.base.params))
