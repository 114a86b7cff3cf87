"""Instruction tuning: what windows hold and weigh, what a writer's text gives, whole tables."""

import dataclasses
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest

from configs import instruction_tuning as presets
from experiments import instruction_tuning as study
from experiments import lab
from longrope_jax.data.instructions import Instruct, InstructionMaker, Pair
from longrope_jax.data.tokenizers import SpecialTokens
from longrope_jax.tasks import Passkey

TASK = Passkey(" {name} {key}.", " {name} ")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    config = presets.get_config("tiny")
    folder = tmp_path_factory.mktemp("text")
    return study.Work(config, folder, lab.Machine(**config.machine)).text


def maker(text, *, pairs=(), length=256, **options):
    recipe = lab.Recipe(None, length, 1, 1, 1e-3)  # pyright: ignore[reportArgumentType]
    instruct = Instruct(TASK, shortest=48, longest=96, **options)
    return InstructionMaker(lab.windows(recipe, text), instruct, tuple(pairs))


def drawn(made, count=20, seed=0):
    rng = np.random.default_rng(seed)
    return [made(int(rng.integers(len(made))), rng) for _ in range(count)]


def segments(window):
    """(tokens, their weights as targets) of each segment, then of the padding, which is 0."""
    tokens, weights = window["tokens"], np.concatenate([[0.0], window["weights"]])
    starts = np.append(window["segment_start"], window["segment_start"][-1])
    end = int(np.flatnonzero(tokens)[-1]) + 1
    edges = [*np.unique(starts[:end]).tolist(), end, len(tokens)]
    return [(tokens[i:j], weights[i:j]) for i, j in itertools.pairwise(edges)]


def test_short_windows_hold_whole_questions_whose_answers_alone_count(text):
    for window in drawn(maker(text, short=1.0)):
        assert window["tokens"].shape == (257,) and window["weights"].shape == (256,)
        *asked, (padding, none) = segments(window)
        assert len(asked) >= 2 and not none.any() and not padding.any()
        for tokens, weights in asked:
            assert tokens[0] == text.tokenizer.special("<bos>") and 48 <= len(tokens) + 1 <= 97
            key = text.tokenizer.decode(tokens[weights == 1])
            assert len(key) == 5 and key.isdecimal() and weights.sum() == 5
            assert text.tokenizer.decode(tokens).count(key) == 2  # stated, and answered


def test_long_windows_hold_one_question_and_padding(text):
    lengths = []
    for weight in (0.0, 1.0):
        for window in drawn(maker(text, long=1.0, prompt_weight=weight)):
            (tokens, weights), (_, none) = segments(window)
            lengths.append(len(tokens))
            assert not none.any() and 96 < len(tokens) <= 257
            assert weights[-5:].tolist() == [1.0] * 5
            assert (weights[1:-5] == weight).all()  # no target is the beginning token
    assert max(lengths) > 200


def test_the_rest_of_the_windows_is_text(text):
    made = maker(text, short=0.5)
    kinds = [bool(window["weights"].all()) for window in drawn(made, 100)]
    assert 0.3 < np.mean(kinds) < 0.7
    assert all(window["weights"].all() for window in drawn(maker(text)))


def test_a_written_pair_follows_text_that_holds_its_answer(text):
    document = text.training[0]
    said = text.tokenizer.decode(document.tokens[600:612])
    pairs = [Pair(document.name, 600, 612, "Who?", said)]
    starts = set()
    for window in drawn(maker(text, pairs=pairs, long=1.0, written=1.0)):
        tokens, weights = segments(window)[0]
        whole, answer = text.tokenizer.decode(tokens), text.tokenizer.decode(tokens[weights == 1])
        context, _, rest = whole.partition("\n\nQuestion: Who?\nAnswer: ")
        assert rest == answer == said + "\n" and said in context
        starts.add(context.index(said))
    assert len(starts) > 10  # anywhere in the text


def test_no_window_holds_text_that_is_held_out(text):
    """Runs of 32 bytes of the held-out documents that no document trained on has."""
    size = 32

    def runs(tokens):
        found = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.uint16), size)
        return {row.tobytes() for row in found}

    seen = {run for document in text.training for run in runs(document.tokens)}
    unseen = {run for document in text.held_out for run in runs(document.tokens)} - seen
    made = maker(text, short=0.4, long=0.4)
    assert len(unseen) > 100_000
    for window in drawn(made, 200):
        assert not unseen & runs(window["tokens"])


def test_what_cannot_be_packed_is_refused(text):
    with pytest.raises(ValueError, match="shares"):
        maker(text, short=0.7, long=0.7)
    with pytest.raises(ValueError, match="no length for long instances"):
        maker(text, long=1.0, length=96)
    with pytest.raises(ValueError, match="about 'other'"):
        maker(text, pairs=[Pair("other", 0, 1, "a", "b")])
    with pytest.raises(ValueError, match="in memory"):
        maker(dataclasses.replace(text, training=()))


def test_pairs_are_kept_where_the_answer_stands_in_the_chunk(text):
    """A stub answers with words of the chunk, with others, and in another form, in turn."""
    asked, turns = [], iter(range(9))

    def generate(ids, max_new_tokens):
        del max_new_tokens
        asked.append(text.tokenizer.decode(ids))
        words = re.findall(r"[A-Za-z]{4,}", asked[-1])[2]
        said = (f"Question: Who?\nAnswer: {words}", "Question: Who?\nAnswer: Nobody9.", "Well.")
        return text.tokenizer.encode(said[next(turns) % 3])

    special = SpecialTokens(chat_template="{{ messages[0].content }}")
    writer = SimpleNamespace(
        tokenizer=text.tokenizer,
        special_tokens=special,
        decode=text.tokenizer.decode,
        generate=generate,
    )
    settings = presets.get_config("tiny").writer
    with settings.unlocked():
        settings.update({"chunks": 9, "tokens": 200})
    found = study.written(writer, settings, text)  # pyright: ignore[reportArgumentType]
    assert found["kept"].tolist() == [True, False, False] * 3
    held_in = {document.name: document.tokens for document in text.training}
    for pair in study.pairs(found):
        assert pair.answer in text.tokenizer.decode(held_in[pair.document][pair.start : pair.end])
    assert len(study.pairs(found)) == 3 and all("Write one question" in prompt for prompt in asked)


@pytest.mark.parametrize(
    ("said", "pair"),
    [
        ('Question: Who is it?\nAnswer: "The king."', ("Who is it?", "The king")),
        ("Sure!\nQuestion: Who?\n\nAnswer: Ann\nMore", ("Who?", "Ann")),
        ("Question: Who?", ("", "")),
        ("Question:\nAnswer: Ann", ("", "")),
    ],
)
def test_a_writers_two_lines_are_read(said, pair):
    assert study.parsed(said) == pair


def test_reach_counts_doublings_that_keep_80_percent():
    right = np.zeros((2, 10, 4))
    right[0, :8, :] = [1, 1, 0, 1]  # 0.8, 0.8, 0, 0.8: what comes after a gap is no reach
    right[1, :10, :] = [1, 1, 1, 0]
    right[1, 0, 2] = 0  # 0.9
    scores = lab.Scores({"a": right, "b": np.zeros((1, 10, 4))}, {"a": np.arange(10), "b": []})
    found = study.reaches(scores)
    assert found.values["a"].mean(1).tolist() == [1, 2] and not found.values["b"].any()


# The study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    config = presets.get_config("tiny")
    return config, folder, study.main(config, folder)


def test_the_report_has_every_row_and_verdict(finished):
    config, folder, report = finished
    cells = study.plan(config, folder)
    assert not lab.missing(folder, cells)
    for name, part in study.quantities(folder, cells).items():
        assert sorted(part.values) == sorted(study.rows(config)), name
    assert len(report.claims) == 1 and (folder / "report.html").exists()


def test_done_again_it_only_redraws(finished, monkeypatch):
    config, folder, report = finished
    monkeypatch.setattr(study.Work, "train", None)
    monkeypatch.setattr(study.Work, "text", None)
    assert study.main(config, folder).claims == report.claims


def test_adapters_start_from_the_same_model_as_full_tuning(finished):
    config, folder, _ = finished
    cells = {cell.row: cell for cell in study.plan(config, folder) if cell.kind == "keys"}
    starts = {row: cell.after[0].after for row, cell in cells.items() if ", none" not in row}
    assert starts["ABF, short"] == starts["ABF, short + long, prompts, LoRA"]
    assert starts["ABF, short"] != starts["PI, short"]
    logged = [lab.read(folder, cells[f"ABF, {arm}"].after[0]) for arm in config.arms]
    numbers = [int(one["trainable"]) for one in logged]
    assert min(numbers) < max(numbers) / 2


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_hypotheses_of_every_preset_can_be_read(preset):
    config = presets.get_config(preset)
    if config.seeds == 1 and preset.startswith("pod"):
        config.model = "random"
    lab.check_hypotheses(config.hypotheses, study.QUANTITIES, study.rows(config))
    names = [cell.name for cell in study.plan(config, None)]
    assert len(names) == len(set(names)) == 2 * config.seeds * len(study.rows(config))
