"""Extension without training: numbers from logits, claims from planted scores, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from checkpoints import CONFIG, tokenizer_json, write

from configs import extension_suite as configs
from experiments import extension_cells, extension_report, lab
from experiments import extension_suite as study
from experiments.extension_cells import ANSWERED, ASKED, CROPPED, LOSS, SUITE
from experiments.lab import cli
from longrope_jax import llama, rotary, tasks
from longrope_jax.data import tokenizers
from longrope_jax.evaluation import perplexity, retrieval

MODEL = lab.model("random", lab.Machine())
LENGTH, TRAINED = 256, 128


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of two random documents."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in ("a", "b"):
        sentences = (" ".join(rng.choice(words, 3)).capitalize() + f" {i}." for i in range(90))
        (folder / f"{name}.txt").write_text("\n\n".join(sentences))
    return folder


def tiny(text, **changes):
    config = cli.load_config("configs/extension_suite.py:tiny")
    config.documents = (f"{text}:a.txt", f"{text}:b.txt")
    for field, value in changes.items():
        if value == {}:
            config[field] = value
        else:
            cli.override(config, field, value)
    return config


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny study, its cells, and its report."""
    folder = tmp_path_factory.mktemp("run")
    report = study.main(tiny(text), folder, "the command")
    return folder, study.plan(tiny(text), folder), report


def loss_cell(cells, row, document, length=LENGTH):
    return next(
        cell
        for cell in cells
        if (cell.kind, cell.row) == (LOSS, row)
        and cell.what[2].length == length
        and cell.what[2].document.endswith(document)
    )


def asked_cells(cells, task, row, length, kind=ASKED):
    return [
        cell
        for cell in cells
        if (cell.kind, cell.row) == (kind, row)
        and cell.what[2].length == length
        and extension_cells.task_name(cell.what[3].task) == task
    ]


def log_probabilities(method, tokens):
    """[T, V] in float64 from the logits of the model."""
    rot = rotary.make(method, head_dim=MODEL.config.head_dim, seq_len=len(tokens))
    logits = llama.logits(MODEL.config, MODEL.params, np.asarray(tokens)[None], rot)
    logits = np.asarray(logits[0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def document_tokens(text, name):
    characters = np.frombuffer((text / name).read_bytes(), np.uint8)
    return np.concatenate([[MODEL.tokenizer.special("<bos>")], characters[:LENGTH]])


def worker(text, folder):
    return study.Work(study.filled(tiny(text), folder)[0], lab.Machine())


# Numbers


def test_a_loss_cell_is_the_mean_loss_of_its_blocks_of_the_document(finished, text):
    folder, cells, _ = finished
    tokens = document_tokens(text, "b.txt")
    scores = log_probabilities(rotary.PositionInterpolation(2.0, base=1e4), tokens[:-1])
    expected = -scores[np.arange(LENGTH), tokens[1:]].reshape(-1, 32).mean(1)
    found = lab.read(folder, loss_cell(cells, "pi", "b.txt"))
    np.testing.assert_allclose(found["blocks"], expected[None], rtol=2e-5)
    assert found["documents"] == [f"{text}:b.txt"]


def test_cropped_text_is_read_by_plain_rope_in_windows_of_the_trained_length(finished, text):
    """Every prediction sees at most the last 128 tokens, and at least 112 where they are there."""
    folder, cells, _ = finished
    tokens, stride = document_tokens(text, "a.txt"), TRAINED // 8
    nll = np.empty(LENGTH)
    for start in range(0, LENGTH - TRAINED + 1, stride):
        window = np.concatenate([tokens[:1], tokens[start + 1 : start + TRAINED + 1]])
        scores = log_probabilities(rotary.RoPE(), window[:-1])
        own = np.arange(0 if start == 0 else TRAINED - stride, TRAINED)
        nll[start + own] = -scores[own, window[own + 1]]
    found = lab.read(folder, loss_cell(cells, CROPPED, "a.txt"))
    np.testing.assert_allclose(found["blocks"], nll.reshape(1, -1, 32).mean(2), rtol=2e-5)


@pytest.mark.parametrize(
    ("task", "row", "length"),
    [("passkey", "rope", 768), ("passkey", CROPPED, 768), ("first_sentence", "pi", 512)],
)
def test_a_task_cell_scores_the_answer_and_nothing_else(finished, text, task, row, length):
    folder, cells, _ = finished
    _, cell = asked_cells(cells, task, row, length)
    samples = worker(text, folder).samples(cell.what[3], length)
    method = rotary.PositionInterpolation(6.0, base=1e4) if row == "pi" else rotary.RoPE()
    found = lab.read(folder, cell)
    assert len(found["nll"]) == 2
    for i, (tokens, answer) in enumerate(zip(samples.tokens, samples.answer, strict=True)):
        if row == CROPPED:  # BOS and the 127 tokens that come last
            tokens, answer = (np.concatenate([x[:1], x[-TRAINED + 1 :]]) for x in (tokens, answer))
        scores, at = log_probabilities(method, tokens), np.flatnonzero(answer) - 1
        right = scores[at].argmax(-1) == tokens[answer]
        assert found["nll"][i] == pytest.approx(-scores[at, tokens[answer]].mean(), rel=2e-5)
        assert found["share"][i] == pytest.approx(right.mean())
        assert found["exact"][i] == found["scores"][i] == right.all()


def test_the_parts_of_a_task_are_the_samples_that_it_draws(finished, text):
    folder, cells, _ = finished
    work, task = worker(text, folder), tasks.TASKS["passkey"]
    options = MODEL.tokenizer, work.config.sentence_tokens
    chosen = [lab.document(name, *options) for name in work.config.documents]
    whole = task.samples(chosen, MODEL.tokenizer, length=768, count=4, seed=0, bos="<bos>")
    parts = [work.samples(cell.what[3], 768) for cell in asked_cells(cells, "passkey", "rope", 768)]
    assert [len(part.tokens) for part in parts] == [2, 2]
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert [*parts[0].documents, *parts[1].documents] == ["a.txt", "b.txt"] * 2
    (answered,) = asked_cells(cells, "passkey", "rope", 128, ANSWERED)
    few = work.samples(answered.what[3], 128)
    np.testing.assert_array_equal(
        few.tokens,
        work.samples(asked_cells(cells, "passkey", "rope", 128)[0].what[3], 128).tokens[:1],
    )


def test_a_method_is_one_row_at_every_length_of_its_tasks(finished):
    _, cells, _ = finished
    methods = {
        cell.what[2].method for cell in cells if cell.kind in (ASKED, ANSWERED) and cell.row == "pi"
    }
    assert methods == {rotary.PositionInterpolation(6.0, base=1e4)}


def test_methods_with_the_same_frequencies_are_measured_once(text, tmp_path):
    config = tiny(text, **{"windows.core.methods": "('ntk:factor={factor}', 'dynamic_ntk')"})
    config, facts = study.filled(config, tmp_path)
    same = {row.label: row.same_as for row in extension_cells.loss_rows(config, facts, LENGTH)}
    assert same == {"rope": "rope", CROPPED: CROPPED, "ntk": "ntk", "dynamic_ntk": "ntk"}
    assert not any(cell.row == "dynamic_ntk" for cell in extension_cells.every(config, facts))


def test_a_method_that_follows_the_length_is_asked_at_each(text, tmp_path):
    """At 6 times the trained length dynamic PI is PI, at the trained length it is RoPE."""
    config = tiny(text, methods="('pi:factor={factor}', 'dynamic_pi')")
    config, facts = study.filled(config, tmp_path)
    labels = {row.label: row.same_as for row in extension_cells.task_rows(config, facts)}
    assert labels["dynamic_pi"] == "dynamic_pi"
    config.tasks, config.answered.tasks = (("passkey", (6.0,)),), ()
    labels = {row.label: row.same_as for row in extension_cells.task_rows(config, facts)}
    assert labels["dynamic_pi"] == "pi"
    kinds = {(c.kind, c.row) for c in extension_cells.every(config, facts) if c.kind != LOSS}
    assert (ASKED, "pi") in kinds
    assert not {row for _, row in kinds} & {"dynamic_pi"}


def test_all_methods_of_frequencies_share_one_program(text, tmp_path, compilations):
    perplexity._score_tokens.clear_cache()
    config = tiny(text, tasks="()", **{"windows.shorter.methods": "('pi:factor={factor}',)"})
    config.answered.tasks = ()
    study.main(config, tmp_path)
    # Whole windows of two lengths, and the windows of cropping.
    assert sum("_score_tokens" in name for name in compilations) == 3


def test_a_suite_is_scored_under_every_method(text, tmp_path):
    rows = [
        {
            "doc_id": i,
            "idx": j,
            "label": i % 2,
            "request": {"context": f"question {i} is", "continuation": f" answer {j}{i}"},
        }
        for i in range(4)
        for j in range(2)
    ]
    suite = tmp_path / "mine.jsonl"
    suite.write_text("\n".join(map(json.dumps, rows)))
    config = tiny(text, windows={}, tasks="()", suites=f"(('{suite}', 3),)")
    config.answered.tasks = ()
    report = study.main(config, tmp_path / "run")
    lines = report.results["suites"]
    assert [line["method"] for line in lines] == ["rope", "pi", "yarn", "self_extend"]
    assert all(line["items"] == 3 for line in lines)
    found = []
    for i in range(3):
        ways = []
        for j in range(2):
            ids = MODEL.tokenizer.encode(f"question {i} is answer {j}{i}")
            at = len(MODEL.tokenizer.encode(f"question {i} is"))
            tokens = np.concatenate([[MODEL.tokenizer.special("<bos>")], ids])
            first = MODEL.beginning()
            tokens = tokens if first is not None else tokens[1:]
            at += first is not None
            scores = log_probabilities(rotary.RoPE(), tokens)
            ways.append(scores[np.arange(at - 1, len(tokens) - 1), tokens[at:]].sum())
        found.append(float(np.argmax(ways) == i % 2))
    assert lines[0]["score"].estimate == pytest.approx(np.mean(found))


# Claims and tables


def put(folder, cell, **arrays):
    lab.complete(folder, [cell], {cell.kind: lambda _: arrays}, lab.Machine())


def put_losses(folder, cells, losses):
    """Loss cells of the longest windows: (within, beyond) the trained length by row, document."""
    for cell in cells:
        row, document = cell.row, cell.what[2].document
        if cell.kind == LOSS and cell.what[2].length == LENGTH and row in losses:
            within, beyond = losses[row][document.endswith("b.txt")]
            blocks = np.repeat([within, beyond], 4)[None].astype(np.float32)
            put(folder, cell, blocks=blocks, documents=np.asarray([document]))


def drawn(text, folder, losses, **changes):
    config = tiny(text, **changes)
    put_losses(folder, study.plan(config, folder), losses)
    config.machine.measure = False
    return study.main(config, folder)


def test_claims_say_what_the_paired_differences_say(text, tmp_path):
    losses = {
        "rope": ((3, 9), (3, 7)),
        "cropped": ((3, 4), (3, 2.5)),
        "abf": ((3, 4), (3, 2.1)),
        "pi": ((5, 9.1), (5, 6.9)),
        "ntk": ((3, 9.5), (3, 7.6)),
    }
    report = drawn(text, tmp_path, losses)
    (claim,) = report.claims
    for words in (
        "At 128 to 256 tokens abf has the lowest loss, 3.050 nats",
        "rope has 8.000 there and 3.000 within 128",
        "1 of 3 are below rope (abf), 1 above, 1 cannot be told from it",
        "cropped has 3.250 there",
        "0 of 3 are below cropped, 2 above, 1 cannot be told from it",
        # pi is worse by 2 everywhere: what is left of its difference is length.
        "beyond less within 2 of 3 are below rope (abf, pi), 1 above",
    ):
        assert words in claim
    lines = {line["method"]: line for line in report.results["loss"][LENGTH]}
    assert lines["pi"]["within, minus rope"].estimate == pytest.approx(2.0)
    assert lines["pi"]["beyond, minus rope"].estimate == pytest.approx(0.0, abs=1e-6)
    assert lines["pi"]["beyond less within"].estimate == pytest.approx(-2.0)
    assert lines["abf"]["beyond, minus cropped"].estimate == pytest.approx(-0.2)
    assert "cells of this study are not measured yet" in (tmp_path / "report.html").read_text()


def test_one_document_gives_no_interval_and_the_claim_says_so(text, tmp_path):
    losses = {"rope": ((3, 9), (0, 0)), "abf": ((3, 4), (0, 0))}
    report = drawn(text, tmp_path, losses, documents=f"('{text}:a.txt',)")
    assert "1 of 1 are below rope on one document: no interval" in report.claims[0]
    assert "cropped is not measured yet" in report.claims[0]
    lines = {line["method"]: line for line in report.results["loss"][LENGTH]}
    assert lines["abf"]["beyond, minus rope"] == pytest.approx(-5.0)


def test_a_difference_is_taken_on_the_documents_that_both_have(text, tmp_path):
    config = tiny(text)
    cells = study.plan(config, tmp_path)
    put_losses(tmp_path, cells, {"rope": ((3, 9), (3, 7)), "abf": ((3, 4), (3, 2))})
    lab.path(tmp_path, loss_cell(cells, "abf", "b.txt")).unlink()
    config.machine.measure = False
    lines = study.main(config, tmp_path).results["loss"][LENGTH]
    assert {x["method"]: x for x in lines}["abf"]["beyond, minus rope"] == pytest.approx(-5.0)


@pytest.mark.parametrize("able", [True, False])
def test_a_task_has_an_effective_length_if_plain_rope_can_do_it(text, tmp_path, able):
    """RoPE finds all keys or none when short, PI all at both lengths, cropping none when long."""
    config = tiny(text, windows={})
    cells = study.plan(config, tmp_path)
    scores = {("rope", 128): able, ("rope", 768): 0, (CROPPED, 768): 0}
    for row, length in (("rope", 128), ("rope", 768), ("pi", 128), ("pi", 768), (CROPPED, 768)):
        for cell in asked_cells(cells, "passkey", row, length):
            values = np.full(2, scores.get((row, length), 1), np.float32)
            about = {"depths": np.linspace(0, 1, 2), "documents": np.asarray(["a.txt", "b.txt"])}
            put(tmp_path, cell, exact=values, share=values, nll=values, scores=values, **about)
    config.machine.measure = False
    report = study.main(config, tmp_path)
    (claim,) = report.claims
    lines = {x["method"]: x for x in report.results["tasks"]}
    assert lines["pi"]["samples"] == {128: 4, 768: 4} and "yarn" not in lines
    # Up to the trained length cropping reads all that RoPE reads.
    np.testing.assert_equal(lines[CROPPED]["lengths"][128], lines["rope"]["lengths"][128])
    if able:
        assert claim.startswith("passkey, effective length on 4 to 4 samples: rope 128 [128, 128]")
        assert "pi 768 [768, 768]" in claim
    else:
        assert claim == "passkey: not testable here, rope scores 0.00 at 128 tokens (gate: 0.5)."


def test_first_sentences_are_scored_by_the_share_of_their_tokens(text, tmp_path):
    config = tiny(text, windows={})
    for cell in asked_cells(study.plan(config, tmp_path), "first_sentence", "rope", 256):
        about = {"depths": np.zeros(2), "documents": np.asarray(["a.txt", "b.txt"])}
        none = dict.fromkeys(("exact", "scores", "nll"), np.zeros(2))
        put(tmp_path, cell, share=np.array([0.5, 1.0]), **none, **about)
    config.machine.measure = False
    report = study.main(config, tmp_path)
    found = {x["method"]: x["lengths"][256] for x in report.results["tasks"]}
    assert (found["rope"]["score"], found["rope"]["exact"]) == (0.75, 0.0)
    assert report.claims[0].startswith("first_sentence, effective length on 4 to 4 samples: rope")


def test_hours_left_follow_from_the_seconds_of_finished_cells(finished, text, tmp_path):
    folder, cells, _ = finished
    facts = study.filled(tiny(text), folder)[1]
    lines = extension_cells.costs(facts, folder, cells)
    assert sum(line["cells"] for line in lines) == len(cells)
    assert all((line["left"], line["hours left"]) == (0, 0) for line in lines)
    none = extension_cells.costs(facts, tmp_path, cells)
    assert all(line["hours left"] is None and line["left"] == line["cells"] for line in none)
    # A cell of which nothing is known but that it has twice the samples costs twice as much.
    cell, _ = asked_cells(cells, "passkey", "rope", 768)
    *start, reading, part = cell.what
    twice = dataclasses.replace(cell, what=(*start, reading, dataclasses.replace(part, count=4)))
    costs = [extension_cells._flops(facts, one) for one in (cell, twice)]
    assert costs[1] == 2 * costs[0]
    (line,) = extension_cells.costs(facts, folder, [cell, twice])
    seconds = lab.record(folder, cell)["seconds"]
    assert line["left"] == 1
    assert line["hours left"] == pytest.approx(round(2 * seconds / 3600, 2))


def test_a_row_of_ones_own_stands_in_every_table_and_figure(finished, text):
    folder, _, _ = finished
    own, row = "('giraffe_power:factor={factor}',)", "giraffe_power"
    changes = {"windows.mine.methods": own, "methods": own, "windows.mine.factor": "2"}
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        figure = lab.Figure
        patch.setattr(lab, "Figure", lambda *made: figures.append(made) or figure(*made))
        report = study.main(tiny(text, **changes), folder)
    loss, answers = report.results["loss"][LENGTH], report.results["tasks"]
    assert row in {line["method"] for line in loss} & {line["method"] for line in answers}
    made = {name: drawing.axes for name, drawing, *_ in figures}
    assert row in [label.get_text() for label in made["beyond"][0].get_yticklabels()]
    assert len(made["loss_by_position"][0].lines) == len(loss) + 1  # and the trained length
    assert row in [label.get_text() for label in made["tasks"][0].get_legend().get_texts()]
    assert row in [axes.get_title() for axes in made["depth_passkey"]]


# Own text, presets and refusals


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Hugging Face folder that declares its length; its software puts nothing before a text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "tokenizer.json").write_text(tokenizer_json().replace("<eos>", "<|endoftext|>"))
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    path, _ = write(folder, "hf", config, tokenizer=tokenizer, context_length=256)
    return path


def test_a_checkpoint_and_a_text_of_ones_own_are_enough(checkpoint, tmp_path, monkeypatch):
    words, rng = ["the", "cat", "sat", "with", "thin", "thought"], np.random.default_rng(0)
    text = "\n\n".join(f"T{' '.join(rng.choice(words, 9))}." for _ in range(80))
    (tmp_path / "a.txt").write_text(text)
    one = dict.fromkeys(("exact", "share", "nll", "scores", "depths"), np.zeros(4))
    # What the numbers are is tested elsewhere.
    monkeypatch.setattr(lab, "losses", lambda *_, **__: np.zeros((1, 48)))
    monkeypatch.setattr(
        retrieval, "measured", lambda *_, **__: one | {"documents": np.array(["a"] * 4)}
    )
    arguments = [f"--workdir={tmp_path / 'run'}", f"--config.model={checkpoint}"]
    arguments += [f"--config.documents=('{tmp_path}:a.txt',)", "--config.suites=()"]
    arguments += ["--config.tasks=(('passkey', (0.5, 1.0)),)"]
    config, folder = cli.parse("experiments.extension_suite", arguments)
    report = study.main(config, folder)
    assert {n for line in report.results["tasks"] for n in line["lengths"]} == {128, 256}
    assert list(report.results["loss"]) == [384]
    assert "after &lt;|endoftext|&gt;" in (folder / "report.html").read_text()


def test_everything_wrong_with_the_texts_is_said_before_the_model_is_loaded(
    text, tmp_path, monkeypatch
):
    monkeypatch.setattr(lab, "model", lambda *_, **__: pytest.fail("loads the model"))
    (tmp_path / "c.txt").write_text("One short sentence here.")
    (tmp_path / "d.txt").write_text("1, 2, 3")
    names = f"('{tmp_path}:c.txt', '{tmp_path}:d.txt', '{text}:a.txt', '{text}:aa.txt')"
    with pytest.raises(ValueError) as error:
        study.main(tiny(text, documents=names, suites="(('piqqa', 3),)"), tmp_path / "run")
    for words in ("c.txt", "d.txt", "'aa.txt'", "--config.documents", "'piqa'"):
        assert words in str(error.value)
    assert not list((tmp_path / "run").glob("cells/loss*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bos": "<boss>"}, ("--config.bos", "<boss>", "<bos>")),
        ({"trained_length": "0"}, ("--config.trained_length",)),
        ({"documents": "('a', 'b')"}, ("CORPUS:DOCUMENT", "'a'")),
        ({"blocks": "5"}, ("--config.blocks=5", "128")),
        ({"windows.core.factor": "1"}, ("--config.windows.core.factor", "above 1", "got 1")),
        ({"windows.core.factor": "1.3"}, ("--config.windows.core.factor", "got 1.3")),
        ({"edges": "(1.3,)"}, ("--config.edges", "got 1.3")),
        ({"reference": "rop"}, ("rop", "did you mean")),
        ({"windows.core.methods": "('yan:factor=2',)"}, ("yan:factor=2", "'yarn'")),
        ({"methods": "('pi:factor={facto}',)"}, ("{facto}", "'factor'")),
        ({"tasks": "(('passky', (1.0,)),)"}, ("passky", "'passkey'")),
        ({"samples": "5"}, ("--config.part=2", "--config.samples")),
        ({"target": "0.5"}, ("--config.target", "0.5")),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(text, tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        study.main(tiny(text, **changes), tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.glob("cells/loss*"))


def test_an_empty_folder_has_nothing_to_show(text, tmp_path):
    study.plan(tiny(text), tmp_path)  # the facts of the checkpoint are there
    with pytest.raises(ValueError, match=r"machine\.measure"):
        study.main(tiny(text, **{"machine.measure": "False"}), tmp_path)


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_every_beginning_of_a_preset_compares_with_plain_rope(preset):
    facts = lab.Facts(
        llama.preset("smollm2_135m"), rotary.RoPE(1e5), 8192, "<bos>", ("<bos>",), 0, ()
    )
    config = configs.get_config(preset)
    config.trained_length = config.trained_length or 8192
    seen = set()
    for cell in extension_cells.every(config, facts):
        about = cell.what[-2:] if cell.kind == SUITE else (repr(cell.what[3]), cell.what[2].length)
        about = (cell.kind, *about, getattr(cell.what[2], "document", ""))
        seen.add((cell.row, *about))
        assert ("rope", *about) in seen


def test_suite_claims_compare_with_the_first_row():
    lines = [
        {"suite": "piqa", "method": "rope", "items": 9, "score": 0.7, "difference": None},
        {"suite": "piqa", "method": "pi", "items": 9, "score": 0.6, "difference": -0.1},
    ]
    said = extension_report.suite_claim("piqa", lines)
    assert said == "piqa, 9 items: rope 0.700; minus that, pi -0.100."
