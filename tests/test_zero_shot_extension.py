"""Zero-shot extension: its numbers from logits, its claims, and what it asks of a text."""

import dataclasses

import numpy as np
import pytest
from checkpoints import CONFIG, tokenizer_json, write

from configs import zero_shot_extension as configs
from experiments import lab
from experiments import zero_shot_extension as study
from experiments.lab import cli
from longrope_jax import llama, rotary
from longrope_jax.data import tokenizers

MODEL = lab.model("random", lab.Machine())
LENGTH, TRAINED = 256, 128


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


def tiny(text, **changes):
    config = cli.load_config("configs/zero_shot_extension.py:tiny")
    config.documents = (f"{text}:a.txt", f"{text}:b.txt")
    for field, value in changes.items():
        cli.override(config, field, value)
    return config


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny study, its cells, and its report."""
    folder = tmp_path_factory.mktemp("run")
    report = study.main(tiny(text), folder, "the command")
    return folder, study.plan(tiny(text), folder), report


def cell_of(cells, row, document, task="loss", length=LENGTH):
    return next(
        cell
        for cell in cells
        if (cell.row, cell.what[2].length) == (row, length)
        and cell.what[2].document.endswith(document)
        and cell.what[3].get("task", "loss") == task
    )


def log_probabilities(method, tokens):
    """[T, V] in float64 from the logits of the model."""
    rot = rotary.make(method, head_dim=MODEL.config.head_dim, seq_len=len(tokens))
    logits = llama.logits(MODEL.config, MODEL.params, np.asarray(tokens)[None], rot)
    logits = np.asarray(logits[0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def document_tokens(text, name):
    characters = np.frombuffer((text / name).read_bytes(), np.uint8)
    return np.concatenate([[MODEL.tokenizer.special("<bos>")], characters[:LENGTH]])


# Numbers


def test_a_loss_cell_is_the_mean_loss_of_its_blocks_of_the_document(finished, text):
    folder, cells, _ = finished
    tokens = document_tokens(text, "b.txt")
    scores = log_probabilities(rotary.PositionInterpolation(2.0, base=1e4), tokens[:-1])
    expected = -scores[np.arange(LENGTH), tokens[1:]].reshape(-1, 32).mean(1)
    found = lab.read(folder, cell_of(cells, "pi", "b.txt"))
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
    found = lab.read(folder, cell_of(cells, study.CROPPED, "a.txt"))
    np.testing.assert_allclose(found["blocks"], nll.reshape(1, -1, 32).mean(2), rtol=2e-5)


@pytest.mark.parametrize(
    ("task", "row", "length"),
    [
        (study.PASSKEY, "rope", 256),
        (study.PASSKEY, study.CROPPED, 256),
        (study.SENTENCE, "rope", 256),
        (study.REMOVED, "rope", 128),
    ],
)
def test_a_retrieval_cell_scores_the_answer_and_nothing_else(finished, text, task, row, length):
    folder, cells, _ = finished
    cell = cell_of(cells, row, "b.txt", task, length)
    work = study.Work(study.filled(tiny(text), folder)[0], lab.Machine())
    samples, found = work.samples(*cell.what[2:]), lab.read(folder, cell)
    assert len(found["nll"]) == len(samples[0]) == (2 if task == study.PASSKEY else 1)
    for i, (tokens, answer) in enumerate(zip(*samples, strict=True)):
        if row == study.CROPPED:  # BOS and the 127 tokens that come last
            tokens, answer = (np.concatenate([x[:1], x[-TRAINED + 1 :]]) for x in (tokens, answer))
        scores, at = log_probabilities(rotary.RoPE(), tokens), np.flatnonzero(answer) - 1
        right = scores[at].argmax(-1) == tokens[answer]
        assert found["nll"][i] == pytest.approx(-scores[at, tokens[answer]].mean(), rel=2e-5)
        assert found["share"][i] == pytest.approx(right.mean())
        assert found["exact"][i] == right.all()


def test_pass_keys_lie_at_other_depths_in_every_document(finished, text):
    folder, cells, _ = finished
    work, depths = study.Work(study.filled(tiny(text), folder)[0], lab.Machine()), []
    for name in ("a.txt", "b.txt"):
        cell = cell_of(cells, "rope", name, study.PASSKEY)
        texts = [MODEL.tokenizer.decode(x[x < 256]) for x in work.samples(*cell.what[2:])[0]]
        depths += [t.index("Key ") for t in texts]
    assert len(set(depths)) == 4 and max(depths) - min(depths) > 100


def test_a_control_has_no_answer_in_its_context(finished, text):
    folder, cells, _ = finished
    work = study.Work(study.filled(tiny(text), folder)[0], lab.Machine())
    for task, stated in ((study.SENTENCE, True), (study.REMOVED, False)):
        cell = cell_of(cells, "rope", "a.txt", task, 128)
        (tokens,), (answer,) = work.samples(*cell.what[2:])
        asked, prompt = tokens[answer][:-1], tokens[: int(np.argmax(answer))]
        assert (bytes(asked.tolist()) in bytes(prompt[1:].clip(0, 255).tolist())) == stated


def test_methods_with_the_same_frequencies_are_measured_once(finished, text):
    folder, cells, report = finished
    config, facts = study.filled(tiny(text), folder)
    same = {label: row for label, (_, row) in study.rows_at(config, facts, LENGTH).items()}
    assert (same["dynamic_ntk"], same["pi"]) == ("ntk", "pi")
    assert study.rows_at(config, facts, TRAINED)["pi"][1] == "rope"
    assert not any(cell.row == "dynamic_ntk" for cell in cells)
    assert "ntk = dynamic_ntk" in {line["method"] for line in report.results["loss"][LENGTH]}


# Claims and tables


def put_losses(folder, cells, losses):
    """Loss cells of the longest windows: (within, beyond) the trained length by row, document."""
    for cell in cells:
        row, document = cell.row, cell.what[2].document
        if cell.kind == "loss" and cell.what[2].length == LENGTH and row in losses:
            within, beyond = losses[row][document.endswith("b.txt")]
            blocks = np.repeat([within, beyond], 4)[None].astype(np.float32)
            arrays = {"blocks": blocks, "documents": np.asarray([document])}
            lab.complete(folder, [cell], {"loss": lambda _, a=arrays: a}, lab.Machine())


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
    lab.path(tmp_path, cell_of(cells, "abf", "b.txt")).unlink()
    config.machine.measure = False
    lines = study.main(config, tmp_path).results["loss"][LENGTH]
    assert {x["method"]: x for x in lines}["abf"]["beyond, minus rope"] == pytest.approx(-5.0)


def test_whole_answers_have_the_binomial_interval(finished):
    _, _, report = finished
    lines = [x for x in report.results["retrieval"] if x["exact"] == 0 and x["samples"] == 4]
    assert lines and all(x["high"] == pytest.approx(1 - 0.025 ** (1 / 4)) for x in lines)


def test_a_row_of_ones_own_stands_in_every_table_and_figure(finished, text):
    folder, _, _ = finished
    own, row = "('giraffe_power:factor={factor}',)", "giraffe_power"
    changes = {"windows.mine.methods": own, "retrieval.methods": own, "windows.mine.factor": "2"}
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        figure = lab.Figure
        patch.setattr(lab, "Figure", lambda *made: figures.append(made[1]) or figure(*made))
        report = study.main(tiny(text, **changes), folder)
    loss, answers = report.results["loss"][LENGTH], report.results["retrieval"]
    assert row in {line["method"] for line in loss} & {line["method"] for line in answers}
    beyond, by_position, retrieval = (figure.axes for figure in figures)
    assert row in [label.get_text() for label in beyond[0].get_yticklabels()]
    assert len(by_position[0].lines) == len(loss) + 1  # and the trained length
    assert row in [label.get_text() for label in retrieval[0].get_legend().get_texts()]


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
    # What the numbers are is tested elsewhere.
    monkeypatch.setattr(lab, "losses", lambda *_, **__: np.zeros((1, 48)))
    monkeypatch.setattr(lab, "scored", lambda _, __, tokens, *___: np.zeros((2, len(tokens))))
    arguments = [f"--workdir={tmp_path / 'run'}", f"--config.model={checkpoint}"]
    arguments += [f"--config.documents=('{tmp_path}:a.txt',)"]
    config, folder = cli.parse("experiments.zero_shot_extension", arguments)
    report = study.main(config, folder)
    assert {line["length"] for line in report.results["retrieval"]} == {128, 384}
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
        study.main(tiny(text, documents=names), tmp_path / "run")
    for words in ("c.txt", "d.txt", "'aa.txt'", "--config.documents", "--config.sentence_tokens"):
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
        ({"windows.core.methods": "('pi:factor={facto}',)"}, ("{facto}", "'factor'")),
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
def test_every_beginning_of_a_preset_compares_with_plain_rope(preset, tmp_path):
    facts = lab.Facts(
        llama.preset("smollm2_135m"), rotary.RoPE(1e5), 8192, "<bos>", ("<bos>",), 0, ()
    )
    config = configs.get_config(preset)
    config.trained_length = config.trained_length or 8192
    seen = set()
    for cell in study._cells(config, facts):
        reading = cell.what[2]
        seen.add((cell.row, reading.length, reading.document, cell.kind))
        assert ("rope", reading.length, reading.document, cell.kind) in seen
