"""`longrope evaluate`: what its table says is what the model's methods measure."""

import re

import numpy as np
import pytest
from checkpoints import tokenizer_json, write

import longrope_jax
from longrope_jax import cli, model
from longrope_jax.commands import evaluate
from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SpecialTokens
from longrope_jax.evaluation.windowing import OnePass, Sliding

TEXTS = ("the cat sat on the mat " * 4, "a dog in a house by the sea " * 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    options = {"special_tokens": SpecialTokens(0, 0, False), "context_length": 32}
    options["tokenizer"] = HuggingFaceTokenizer("random", tokenizer_json())
    return write(tmp_path_factory.mktemp("checkpoint"), "hf", **options)[0]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text)
    return folder


def run(checkpoint, *options):
    return cli.main(["evaluate", str(checkpoint), *map(str, options)])


@pytest.mark.parametrize(
    ("options", "windowing", "bos"),
    [
        ((), OnePass(32), False),
        (("--length", 16, "--bos"), OnePass(16), True),
        (("--length", 16, "--windowing", "sliding", "--stride", 4), Sliding(16, 4), False),
    ],
)
def test_the_table_says_what_the_model_measures(checkpoint, texts, capsys, options, windowing, bos):
    methods = ("rope", "yarn:factor=4")
    named = [word for text in methods for word in ("--rotary", text)]
    assert run(checkpoint, "--text", texts, *named, *options, "--batch-size", 2) == 0
    out = capsys.readouterr().out.splitlines()
    loaded = longrope_jax.load(checkpoint)
    first = None
    for text, line in zip(methods, out[-2:], strict=True):
        expected = loaded.perplexity(TEXTS, text, windowing=windowing, bos=bos)
        label, perplexity, nll, *rest = line.split()
        assert label == text and float(perplexity) == pytest.approx(expected.perplexity, rel=1e-3)
        assert float(nll) == pytest.approx(expected.nll, abs=1e-4)
        if first is None:
            assert rest[0] == "-"
        else:
            assert float(rest[0]) == pytest.approx(expected.nll - first, abs=2e-4)
            low, high = re.findall(r"[+-][0-9.]+", " ".join(rest[1:3]))
            assert float(low) <= float(rest[0]) <= float(high)
        first = first or expected.nll
        curve = loaded.loss_by_position(TEXTS, text, length=windowing.length, bos=bos).mean(0)
        size = windowing.length // 8
        np.testing.assert_allclose(
            [float(x) for x in rest[-8:]], curve.reshape(8, size).mean(1), atol=1e-3
        )
    assert f"1-{size}" in out[-3].split() and windowing.name in out[0]


def test_the_method_is_the_checkpoints_own_and_a_picture_is_drawn(
    checkpoint, texts, capsys, tmp_path
):
    assert run(checkpoint, "--text", texts / "0.txt", "--picture", tmp_path / "a.png") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("rope ")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rotary", "yarm"), "did you mean 'yarn'"),
        (("--text", "/nowhere/a.txt"), "no file or folder /nowhere/a.txt"),
        (("--stride", 4), "--stride is of sliding windows"),
        (("--windowing", "sliding", "--stride", 64), "stride must lie in 1..32"),
        (("--length", 0), "at least 1 token"),
        (("--length", 4096), "no document fills a window of 4096 tokens"),
        (("--picture", "a.nope"), "--picture=a.nope must end in one of"),
        (("--picture", "/nowhere/a.png"), "make the folder /nowhere first"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--dtype", "bf16"), "unknown dtype 'bf16'"),
        (("--tokenizer", "bytes"), "--tokenizer has 260 ids, the model 40"),
    ],
)
def test_what_is_wrong_is_one_line_before_parameters_are_read(
    checkpoint, texts, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(model, "load", None)
    text = () if "--text" in options else ("--text", texts)
    assert run(checkpoint, *text, *options) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert not out and last.startswith("error: ") and message in last


def test_a_checkpoint_that_declares_no_length_asks_for_one(checkpoint, texts, capsys, monkeypatch):
    header = model.open_model(checkpoint)
    unknown = type(header)(header.config, None, header.method, header.tokenizer)
    monkeypatch.setattr(model, "open_model", lambda _: unknown)
    assert run(checkpoint, "--text", texts) == 2
    assert "declares no trained length: give --length" in capsys.readouterr().err


def test_a_window_is_no_longer_than_the_longest_document(checkpoint, capsys, tmp_path):
    (tmp_path / "short.txt").write_text("the cat")
    assert run(checkpoint, "--text", tmp_path / "short.txt") == 0
    assert "1 whole windows of 6 tokens" in capsys.readouterr().out
    (tmp_path / "short.txt").write_text("t")
    assert run(checkpoint, "--text", tmp_path / "short.txt") == 2
    assert "no token to predict" in capsys.readouterr().err


def test_whole_windows_are_those_that_a_document_fills():
    assert evaluate._whole([np.arange(65)], 32, None).tolist() == [True, True]
    assert evaluate._whole([np.arange(65)], 32, 0).tolist() == [True, True, False]
