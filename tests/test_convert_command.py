"""`longrope convert`: the same numbers and words in another format, or one line before loading."""

import dataclasses

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, TOKENS, numbers, tokenizer_json, write, write_meta

import longrope_jax
from longrope_jax import cli, model, rotary, runs, weights
from longrope_jax.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SpecialTokens
from longrope_jax.training import checkpoints

pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
SPECIAL = SpecialTokens(0, 3, True, (5,), "{{ messages }}")
TOKENIZER = HuggingFaceTokenizer("random", tokenizer_json())


def convert(*words):
    return cli.main(["convert", *map(str, words)])


def source(folder, form, **options):
    options = {"tokenizer": TOKENIZER, "special_tokens": SPECIAL, "context_length": 64} | options
    if form == "run":
        runs.save(folder, runs.RunRecord(CONFIG, rotary.RoPE(), TOKENIZER, 64, SPECIAL))
        with checkpoints.RunCheckpoints(folder / "checkpoints") as saved:
            saved.save(1, {"params": jax.tree.map(jax.numpy.asarray, numbers(CONFIG))})
        return folder
    return write(folder, form, **options)[0]


@pytest.mark.parametrize("form", ["hf", "gguf", "run"])
@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_everything_is_kept_from_format_to_format(tmp_path, capsys, form, out):
    path = source(tmp_path / "in", form)
    assert convert(path, tmp_path / out) == 0
    assert "float32, rope, with its tokenizer, 64 tokens declared" in capsys.readouterr().out
    one, two = longrope_jax.load(path), longrope_jax.load(tmp_path / out)
    assert (two.method, two.special_tokens) == (one.method, SPECIAL)
    assert two.trained_length == 64
    assert two.encode("the cat").tolist() == one.encode("the cat").tolist()
    np.testing.assert_allclose(two.logits(TOKENS), one.logits(TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_a_tokenizer_that_no_format_has_can_be_left_out(tmp_path, capsys, out):
    path = source(tmp_path / "in", "run")
    runs.save(path, dataclasses.replace(runs.load(path), tokenizer=ByteTokenizer()))
    assert convert(path, tmp_path / out) == 2
    assert "tokenizer=None" in capsys.readouterr().err
    assert convert(path, tmp_path / out, "--tokenizer", "none") == 0
    loaded = longrope_jax.load(path)
    loaded.save(tmp_path / f"2{out}", tokenizer=None)
    for written in (tmp_path / out, tmp_path / f"2{out}"):
        again = longrope_jax.load(written)
        assert again.tokenizer is None
        np.testing.assert_allclose(
            again.logits(TOKENS), loaded.logits(TOKENS), rtol=1e-4, atol=1e-5
        )


def test_meta_folders_are_converted(tmp_path):
    pytest.importorskip("torch", reason="LOUD SKIP: pip install torch to test Meta's folders")
    config = dataclasses.replace(CONFIG, rotary_layout="interleaved", d_ff=96)
    path = write_meta(tmp_path / "meta", config, numbers(config))
    assert convert(path, tmp_path / "out") == 0
    one, two = longrope_jax.load(path), longrope_jax.load(tmp_path / "out")
    np.testing.assert_allclose(two.logits(TOKENS), one.logits(TOKENS), rtol=1e-4, atol=1e-5)


def test_another_method_is_declared_with_its_length(tmp_path, capsys):
    path = source(tmp_path / "in", "hf")
    assert convert(path, tmp_path / "a", "--rotary", "yarn:factor=4") == 0
    assert "yarn, with its tokenizer, 256 tokens declared" in capsys.readouterr().out
    found = model.open_model(tmp_path / "a")
    assert found.method == rotary.YaRN(4.0, 64) and found.trained_length == 256
    assert convert(path, tmp_path / "b", "--rotary", "abf", "--context-length", 128) == 0
    found = model.open_model(tmp_path / "b")
    assert found.method == rotary.RoPE(500_000.0) and found.trained_length == 128


def test_the_dtype_is_the_sources_unless_asked_otherwise(tmp_path):
    path = source(tmp_path / "in", "hf", dtype="bfloat16")
    convert(path, tmp_path / "a.gguf")
    kinds = weights.open_checkpoint(tmp_path / "a.gguf").source.kinds
    assert kinds["token_embd.weight"] == "BF16" and kinds["output_norm.weight"] == "F32"
    convert(tmp_path / "a.gguf", tmp_path / "b")
    assert set(weights.open_checkpoint(tmp_path / "b").source.kinds.values()) == {"BF16"}
    convert(tmp_path / "a.gguf", tmp_path / "c", "--dtype", "float16")
    assert set(weights.open_checkpoint(tmp_path / "c").source.kinds.values()) == {"F16"}


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("there", (), "or save into another"),
        ("there/a.gguf", (), "exists already"),
        ("out", ("--rotary", "xpos"), "no rope_type for xpos"),
        ("out.gguf", ("--rotary", "dynamic_ntk"), "GGUF"),
        ("out", ("--rotary", "yarm"), "did you mean 'yarn'"),
        ("out", ("--tokenizer", "bytes"), "--tokenizer has 260 ids"),
        ("out", ("--format", "ggml"), "--format: invalid choice: 'ggml'"),
    ],
)
def test_what_is_wrong_is_one_line_before_parameters_are_read(
    tmp_path, capsys, monkeypatch, out, options, message
):
    path = source(tmp_path / "in", "hf")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.gguf").write_bytes(b"x")
    monkeypatch.setattr(model, "load", None)
    assert convert(path, tmp_path / out, *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
