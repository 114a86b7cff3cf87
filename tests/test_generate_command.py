"""`longrope generate`: text in, text out, one line for what is wrong, found before loading."""

import re

import jax
import numpy as np
import pytest
from checkpoints import tokenizer_json, write

from longrope_jax import cli, generate, llama, model, rotary, runs, weights
from longrope_jax.data import tokenizers
from longrope_jax.data.tokenizers import ByteTokenizer
from longrope_jax.sampling import Sampling
from longrope_jax.training import checkpoints

BYTES = ByteTokenizer()
CONFIG = llama.LlamaConfig(
    vocab_size=BYTES.vocab_size,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    tie_embeddings=True,
)
TEXT = "In the beginning"


@pytest.fixture(scope="module")
def run_folder(random_params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    runs.save(folder, runs.RunRecord(CONFIG, rotary.RoPE(100.0), BYTES, None))
    with checkpoints.RunCheckpoints(folder / "checkpoints") as saved:
        saved.save(3, {"params": random_params(CONFIG)})
    return folder


def run(folder, *options, prompt=TEXT):
    return cli.main(["generate", str(folder), "--prompt", prompt, *options])


def test_a_text_is_continued(run_folder, random_params, capsys):
    """The streamed text is what `generate` gives, without the prompt."""
    options = ("--max-new-tokens", "40", "--temperature", "1", "--seed", "3")
    assert run(run_folder, "--rotary", "rope:base=200", *options) == 0
    out, err = capsys.readouterr()
    tokens = generate.generate(
        CONFIG,
        random_params(CONFIG),
        rotary.RoPE(200.0),
        [BYTES.encode(TEXT)],
        40,
        sampling=Sampling(1.0, seed=3),
    ).tokens[0]
    assert out == BYTES.decode(tokens) + "\n"
    assert "rotary: RoPE(base=200)" in err
    number = r"[0-9,]+\.[0-9] tokens/s"
    counted = rf"prefill 15 tokens, {number}; decode 40 tokens, {number}"
    assert re.fullmatch(
        rf"{counted} \(loading, compilation and printing not counted\)", err.splitlines()[-1]
    )
    stop = BYTES.decode(tokens)[3]
    run(run_folder, "--rotary", "rope:base=200", *options, "--stop", stop)
    assert capsys.readouterr().out == BYTES.decode(tokens).split(stop)[0] + "\n"


def test_the_method_is_the_checkpoints_own_unless_asked_otherwise(run_folder, capsys):
    run(run_folder, "--max-new-tokens", "1")
    assert "rotary: RoPE(base=100.0), the checkpoint's own" in capsys.readouterr().err
    run(run_folder, "--max-new-tokens", "1", "--rotary", "yarn:factor=4,original_length=64")
    assert "from the checkpoint: base=100.0\n" in capsys.readouterr().err


def test_every_id_that_ends_a_text_stops(tmp_path, monkeypatch):
    ends = tokenizers.SpecialTokens(0, 3, False, (5, 7))
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    path, _ = write(tmp_path / "a folder", "hf", tokenizer=tokenizer, special_tokens=ends)
    found = {}
    done = generate.Generation([np.zeros(0, np.int32)], 0, 0, 0.0, 0.0)
    monkeypatch.setattr(generate, "generate", lambda *_, **options: found.update(options) or done)
    run(path, prompt="the cat")
    assert found["stop"] == [(3,), (5,), (7,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rotary=yarm:factor=4",), "error: unknown rotary method 'yarm'; did you mean 'yarn'?"),
        (("--rotary=yarn:factor=4",), "error: yarn needs original_length"),
        (("--rotary-length=curent",), "error: argument --rotary-length: invalid choice: 'curent'"),
        (("--max-new-tokens=0",), "error: --max-new-tokens must be at least 1"),
        (("--refresh-every=2",), "error: refresh_every needs rotary_length='current'"),
        (("--rotary=xpos", "--max-new-tokens=100000"), "error: xPos holds its opposite gains"),
        (("--top-p=0.5",), "error: top_p=0.5 needs a temperature"),
        (("--top-p=2",), "error: top_p must be above 0"),
        (("--cache-dtype=bf16",), "error: unknown cache dtype 'bf16'"),
        (("--dtype=bf16",), "error: unknown dtype 'bf16'"),
        (("--bos",), "error: --bos: this checkpoint says no beginning token"),
        (("--prompt-file=x",), "error: give the text to continue: either"),
        (("--rotari=rope",), "error: unrecognized arguments: --rotari=rope; see longrope generate"),
        (("extra",), "error: unrecognized arguments: extra"),
        (("--tokenizer=nowhere",), "error: unknown tokenizer 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_line_before_parameters_are_read(
    options, message, run_folder, capsys, monkeypatch
):
    monkeypatch.setattr(model, "load", None)
    assert run(run_folder, *options) == 2
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith(message)


def test_a_prompt_comes_from_a_file_or_is_refused(tmp_path, run_folder, capsys):
    def last(*words):
        assert cli.main(["generate", str(run_folder), *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "the prompt is empty" in last("--prompt", "")
    assert "give the text to continue" in last()
    (tmp_path / "latin").write_bytes(b"abc\xff")
    assert last("--prompt-file", str(tmp_path / "latin")).endswith("UTF-8 text: byte 3 is wrong")
    assert "No such file" in last("--prompt-file", str(tmp_path / "nothing"))
    (tmp_path / "text").write_text(TEXT)
    words = ["--prompt-file", str(tmp_path / "text"), "--max-new-tokens", "4"]
    assert cli.main(["generate", str(run_folder), *words]) == 0
    found = capsys.readouterr().out
    run(run_folder, "--max-new-tokens", "4")
    assert capsys.readouterr().out == found


def test_memory_that_does_not_suffice_is_one_line(run_folder, capsys, monkeypatch):
    """What else XLA raises stays as it is."""

    def generated(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(generate, "generate", generated)
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore"
    assert run(run_folder) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: out of memory: RESOURCE_EXHAUSTED") and "--dtype" in last
    message = "INTERNAL: bad"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(run_folder)


def test_a_checkpoint_without_a_tokenizer_needs_one_that_fits(tmp_path, capsys):
    path, _ = write(tmp_path, "hf")
    assert run(path) == 2
    assert "no tokenizer: give --tokenizer FILE" in capsys.readouterr().err
    assert run(path, "--tokenizer", "bytes") == 2
    assert "--tokenizer has 260 ids, the model 40" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    options = ("--tokenizer", str(tmp_path / "tokenizer.json"), "--max-new-tokens", "2")
    assert run(path, *options, prompt="the cat") == 0


@pytest.mark.parametrize("form", weights.FORMATS)
@pytest.mark.parametrize("adds", [True, False])
def test_a_prompt_begins_as_the_checkpoint_says_unless_asked_otherwise(tmp_path, form, adds):
    """Kept from the tokenizer through the file; `bos` overrules it."""
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    special = tokenizers.SpecialTokens(0, 0, adds)
    path, _ = write(tmp_path, form, tokenizer=tokenizer, special_tokens=special)
    found = model.open_model(path)
    assert found.special_tokens == special
    text = tokenizer.encode("the cat").tolist()
    assert found.encode("the cat").tolist() == [0] * adds + text
    assert found.encode("the cat", bos=True).tolist() == [0, *text]
    assert found.encode("the cat", bos=False).tolist() == text
