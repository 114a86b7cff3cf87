"""`longrope evaluate --tasks`: its tables are what the tasks score, and it goes on where it was."""

import dataclasses
import json
import re

import numpy as np
import pytest
from checkpoints import CONFIG, write

import longrope_jax
from longrope_jax import cli, model, rotary, tasks
from longrope_jax.commands import evaluate_tasks
from longrope_jax.data import corpora, documents, tokenizers
from longrope_jax.data.tokenizers import SpecialTokens
from longrope_jax.evaluation import perplexity, retrieval

TRAINED, TOKENIZER = 96, tokenizers.ByteTokenizer()
ASKED = ("--tasks", "passkey", "lines:integer=first", "--samples", 6, "--tokenizer", "bytes")
LENGTHS = ("--lengths", 900, 700)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = dataclasses.replace(CONFIG, vocab_size=260)
    options = {"special_tokens": SpecialTokens(256, 257, True), "context_length": TRAINED * 8}
    return write(tmp_path_factory.mktemp("checkpoint"), "hf", config, **options)[0]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(2):
        sentences = (f"Some words {chr(97 + n % 26)} {chr(98 + i)} again." for n in range(180))
        (folder / f"{i}.txt").write_text("\n".join(sentences))
    return folder


def run(checkpoint, texts, *options):
    words = ("evaluate", checkpoint, "--text", texts, "--bos", *options)
    return cli.main([*map(str, words)])


def drawn(texts, task, length, **changes):
    found = [
        documents.tokenize_document(d, TOKENIZER, min_tokens=4, max_tokens=64)
        for d in corpora.load(texts)
    ]
    options = {"length": length, "count": 6, "seed": 0, "bos": 256} | changes
    return tasks.parse(task).samples(found, TOKENIZER, **options)


def test_answers_are_scored_as_their_logits_say(checkpoint, texts):
    loaded = longrope_jax.load(checkpoint)
    samples = drawn(texts, "passkey", 700, count=3)
    found = retrieval.forced(loaded.config, loaded.params, rotary.RoPE(), samples, batch=2)
    for i, (row, mask) in enumerate(zip(samples.tokens, samples.answer[:, 1:], strict=True)):
        logits = np.asarray(loaded.logits(row[:-1], rotary=rotary.RoPE()), np.float64)[mask]
        nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), row[1:][mask]]
        assert found.nll[i] == pytest.approx(nll.mean(), abs=1e-4)
        assert found.share[i] == pytest.approx((logits.argmax(-1) == row[1:][mask]).mean())


def test_a_cell_is_what_the_samples_score(checkpoint, texts, tmp_path, capsys):
    methods = ("--rotary", "rope", "--rotary", "yarn:factor=2", "--cropped")
    assert run(checkpoint, texts, *ASKED, *LENGTHS, *methods, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "passkey: whole answers that greedy decoding gives, 6 samples" in out
    assert re.search(r"^method +700 +900 +effective +cost at 700 +gain at 900$", out, re.M)
    assert out.count("\nyarn:factor=2 ") == out.count("\ncropped ") == 2
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(x["task"], x["method"]) for x in results][:3] == [
        ("passkey", "rope"),
        ("passkey", "yarn:factor=2"),
        ("passkey", "cropped"),
    ]
    loaded = longrope_jax.load(checkpoint)
    samples = drawn(texts, "passkey", 900)
    rot = rotary.make(loaded.read_rotary("yarn:factor=2"), head_dim=8, seq_len=900)
    expected = retrieval.forced(loaded.config, loaded.params, rot, samples)
    found = results[1]["lengths"]["900"]
    assert found["nll"] == pytest.approx(expected.nll.mean(), rel=1e-5)
    assert found["share"] == pytest.approx(expected.share.mean(), rel=1e-5)
    # Cropped: the first token and the last ones, 768 in all, under the first method.
    last = samples.last(TRAINED * 8)
    last.tokens[:, 0] = samples.tokens[:, 0]
    plain = rotary.make(rotary.RoPE(), head_dim=8, seq_len=900)
    expected = retrieval.forced(loaded.config, loaded.params, plain, last)
    assert "700" not in results[2]["lengths"]
    assert results[2]["lengths"]["900"]["nll"] == pytest.approx(expected.nll.mean(), rel=1e-5)
    assert (tmp_path / "scores.png").is_file() and (tmp_path / "depth-passkey.png").is_file()


def test_what_is_done_is_not_done_again(checkpoint, texts, tmp_path, capsys, monkeypatch):
    ask = (*ASKED, "--rotary", "rope", "--rotary", "pi:factor=2", "--out", tmp_path)
    assert run(checkpoint, texts, *ask, "--lengths", 700) == 0
    first = capsys.readouterr().out
    (cell, *_) = (tmp_path / "cells").iterdir()
    cell.unlink()
    counted = []
    real = evaluate_tasks.measured
    monkeypatch.setattr(evaluate_tasks, "measured", lambda *args: counted.append(1) or real(*args))
    assert run(checkpoint, texts, *ask, "--lengths", 700) == 0
    assert counted == [1] and capsys.readouterr().out == first
    monkeypatch.setattr(model, "load", None)  # nothing is left to measure
    assert run(checkpoint, texts, *ask, "--lengths", 700) == 0
    assert capsys.readouterr().out == first
    cell.write_text("{")
    assert run(checkpoint, texts, *ask, "--lengths", 700) == 2
    assert "is damaged" in capsys.readouterr().err.splitlines()[-1]


def test_all_methods_share_one_program(checkpoint, texts, capsys, compilations):
    perplexity._score_tokens.clear_cache()
    methods = [
        w for text in ("rope", "abf", "pi:factor=4", "dynamic_ntk") for w in ("--rotary", text)
    ]
    assert run(checkpoint, texts, *ASKED, "--lengths", 650, *methods) == 0
    assert sum("_score_tokens" in name for name in compilations) == 1


def test_generated_answers_are_scored_by_the_tasks_rule(checkpoint, texts, capsys, monkeypatch):
    samples = drawn(texts, "passkey", 700)
    right = iter(range(100))

    def answers(config, params, rot, few, *, end, batch):
        assert few.tokens.shape == (4, 700)
        return [r if next(right) % 2 else r[::-1] for r in few.references()]

    monkeypatch.setattr(retrieval, "answers", answers)
    ask = ("--tasks", "passkey", "--lengths", 700, "--samples", 6, "--tokenizer", "bytes")
    assert run(checkpoint, texts, *ask, "--generate", 4) == 0
    out = capsys.readouterr().out
    assert "passkey: generated answers by first_integer, 4 samples" in out
    backwards = sum(w[0] == w[0][::-1] for w in samples.wanted[:4:2])
    assert f"{(2 + backwards) / 4:.2f} [" in out


def test_answers_are_generated(checkpoint, texts, capsys):
    ask = ("--tasks", "passkey", "--lengths", 300, "--samples", 2, "--tokenizer", "bytes")
    assert run(checkpoint, texts, *ask, "--generate", 2, "--control", "removed") == 0
    assert "2 samples, control removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "passky", "--lengths", 9), "unknown task 'passky'; did you mean 'passkey'"),
        (("--tasks", "passkey"), "--tasks needs --lengths"),
        (("--tasks", "passkey", "--lengths", 700, "--samples", 0), "--samples must be at least 1"),
        (("--tasks", "passkey", "--lengths", 700, "--generate", 51), "--generate from 0"),
        (("--tasks", "passkey", "--lengths", 20), "length=20 tokens do not hold a question"),
        (("--tasks", "passkey", "--lengths", 90_000), "shorter than a sample of 90000"),
        (("--tasks", "vt", "--lengths", 2000, "--control", "other"), "no control 'other'"),
        (("--tasks", "altqa", "--lengths", 700, "--articles", "sqad"), "did you mean 'squad'"),
        (("--out", "x"), "are of --tasks"),
        (("--length", 64, "--windowing", "last", "--stride", 4), "--stride is of sliding"),
        (("--length", 64, "--last", 4), "--last is of the windowing last"),
        (("--length", 64, "--cropped"), "--cropped compares windows longer than"),
    ],
)
def test_what_is_wrong_is_one_line_before_parameters_are_read(
    checkpoint, texts, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(model, "load", None)
    assert run(checkpoint, texts, "--tokenizer", "bytes", *options) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert not out and last.startswith("error: ") and message in last


def test_without_text_or_tasks_there_is_nothing_to_do(checkpoint, capsys):
    assert cli.main(["evaluate", str(checkpoint), "--tokenizer", "bytes"]) == 2
    assert "give --text to read, or --tasks to ask" in capsys.readouterr().err


def test_both_sides_of_the_trained_length_and_cropping(checkpoint, texts, capsys):
    length, trained = 1200, TRAINED * 8
    options = ("--length", length, "--tokenizer", "bytes", "--cropped", "--rotary", "rope")
    assert run(checkpoint, texts, *options, "--rotary", "pi:factor=2") == 0
    out = capsys.readouterr().out.splitlines()
    loaded = longrope_jax.load(checkpoint)
    bodies = [TOKENIZER.encode(d.text) for d in corpora.load(texts)]
    plain, pi = (
        loaded.loss_by_position(bodies, m, length=length, bos=True) for m in ("rope", "pi:factor=2")
    )
    assert f"to {trained}" in out[-4] and f"beyond {trained}" in out[-4]
    first, second = (re.findall(r"[-+]?\d+\.\d+", line) for line in out[-3:-1])
    assert float(first[2]) == pytest.approx(plain[:, :trained].mean(), abs=1e-3)
    assert float(first[3]) == pytest.approx(plain[:, trained:].mean(), abs=1e-3)
    gap = (pi[:, trained:] - plain[:, trained:]).mean()
    assert any(float(x) == pytest.approx(gap, abs=1e-3) for x in second if x[0] in "+-")
    # Within its trained length cropping reads what the first window of the plain model reads.
    assert out[-1].startswith("cropped")
    said = re.findall(r"\d+\.\d+", out[-1])
    assert float(said[0]) == pytest.approx(plain[:, :trained].mean(), abs=1e-3)
    assert np.isfinite(float(said[1]))
