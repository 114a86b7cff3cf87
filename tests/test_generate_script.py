"""The command line of generation: text in, text out, one line for what is wrong."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest
from checkpoints import tokenizer_json, write
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import generate as script
from experiments import record
from experiments.streaming import TextStream
from longrope_jax import generate, llama, rotary, weights
from longrope_jax.data import tokenizers
from longrope_jax.data.tokenizers import ByteTokenizer
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
    with checkpoints.RunCheckpoints(folder / "checkpoints") as saved:
        saved.save(3, {"params": random_params(CONFIG)})
    return folder


def run(folder, *options, prompt=TEXT):
    script.main(["generate", f"--model={folder}", f"--prompt={prompt}", *options])


def test_a_run_of_our_own_continues_a_text(run_folder, random_params, capsys):
    """The streamed text is what `generate` gives, under the method that was asked for."""
    run(run_folder, "--rotary=rope:base=100", "--new-tokens=40", "--temperature=1", "--seed=3")
    out, err = capsys.readouterr()
    tokens = generate.generate(
        CONFIG,
        random_params(CONFIG),
        rotary.RoPE(100.0),
        [BYTES.encode(TEXT)],
        40,
        sampling=generate.Sampling(1.0, seed=3),
    ).tokens[0]
    assert out == BYTES.decode(tokens) + "\n"
    assert "rotary: RoPE(base=100)" in err
    assert "tokenizer: bytes" in err
    number = r"[0-9,]+\.[0-9] tokens/s"
    counted = rf"prefill 15 tokens, {number}; decode 40 tokens, {number}"
    assert re.fullmatch(
        rf"{counted} \(loading, compilation and printing not counted\)", err.splitlines()[-1]
    )


def test_the_architecture_is_read_from_the_checkpoint(run_folder):
    shapes = checkpoints.params_shapes(run_folder / "checkpoints")
    assert script.config_of(shapes) == CONFIG


@pytest.fixture
def recorded(run_folder, tmp_path):
    """The run, with a record of a shape that its numbers do not tell."""
    shutil.copytree(run_folder, tmp_path / "runs" / "a")
    config = dataclasses.replace(CONFIG, rotary_layout="interleaved", norm_eps=1e-3)
    known = record.Record(config, rotary.PositionInterpolation(factor=2, base=100.0), BYTES)
    record.save(tmp_path / "runs" / "a", known)
    return tmp_path / "runs" / "a"


def test_a_run_says_its_method_and_an_option_overrules_it(recorded, capsys):
    """And its layout and its norms' epsilon, which the parameters alone do not tell."""
    known, model = record.load(recorded), script.load(str(recorded), "float32")
    assert model.config == known.model != CONFIG and model.tokenizer == BYTES
    assert script.load(str(recorded / "checkpoints"), "bfloat16").config.dtype == "bfloat16"
    assert script.method_of(None, model) == rotary.PositionInterpolation(factor=2, base=100.0)
    assert "factor=2, base=100.0), the checkpoint's own" in capsys.readouterr().err.splitlines()[-1]
    assert script.method_of("nope", model) == rotary.NoPE()
    with pytest.raises(SystemExit):
        run(recorded.parents[1])
    assert "holds runs: give" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_one_line(recorded):
    (recorded / record.NAME).write_text('{"model": {"widht": 3}, "rotary": "rope"}')
    with pytest.raises(ValueError, match=r"run\.json is damaged or of another version: .*widht"):
        script.load(str(recorded), "float32")


def test_a_record_keeps_a_tokenizer_that_lies_in_no_file(tmp_path):
    tokenizer = tokenizers.HuggingFaceTokenizer("a.gguf", tokenizer_json())
    tokenizer = dataclasses.replace(tokenizer, special_tokens=tokenizers.SpecialTokens(0, 0, True))
    record.save(tmp_path, record.Record(CONFIG, rotary.RoPE(), tokenizer))
    found = record.load(tmp_path)
    assert (
        found[:2] == (CONFIG, rotary.RoPE())
        and found.tokenizer.special_tokens == tokenizer.special_tokens
    )
    assert found.tokenizer.encode("the cat").tolist() == tokenizer.encode("the cat").tolist()


def test_every_id_that_ends_a_text_stops(tmp_path, monkeypatch):
    """Of a checkpoint as of a run's record."""
    special_tokens = tokenizers.SpecialTokens(0, 3, False, (5, 7))
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json(), special_tokens)
    path, _ = write(tmp_path / "a folder", "hf", tokenizer=tokenizer)
    found = {}
    done = generate.Generation([np.zeros(0, np.int32)], 0, 0, 0.0, 0.0)
    monkeypatch.setattr(generate, "generate", lambda *_, **options: found.update(options) or done)
    run(path, prompt="the cat")
    assert found["stop"] == [(3,), (5,), (7,)]
    record.save(tmp_path, record.Record(CONFIG, rotary.RoPE(), tokenizer))
    assert record.load(tmp_path).tokenizer.special_tokens == special_tokens


def test_stopped_by_hand_it_prints_no_traceback(monkeypatch):
    monkeypatch.setattr(script, "_run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as exit_:
        script.main(["generate"])
    assert exit_.value.code == 130


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "error: this checkpoint does not say its method: give --rotary=NAME:..."),
        (("--rotary=yarm:factor=4",), "error: unknown rotary method 'yarm'; did you mean 'yarn'?"),
        (("--rotary=yarn:factor=4",), "error: yarn needs original_length"),
        (("--rotary=rope", "--rotary-length=curent"), "error: flag --rotary-length=curent"),
        (("--rotary=rope", "--new-tokens=0"), "error: new_tokens must be at least 1"),
        (("--rotary=rope", "--top-p=0.5"), "error: top_p 0.5 needs a temperature"),
        (("--rotary=rope", "--top-p=2"), "error: top_p must lie above 0"),
        (("--rotary=rope", "--cache-dtype=bf16"), "error: unknown cache dtype 'bf16'"),
        (("--rotary=rope", "--bos"), "error: --bos: this checkpoint says no beginning token"),
        (("--rotary=rope", "--prompt-file=x"), "error: give the text to continue: either"),
        (("--rotari=rope",), "error: Unknown command line flag 'rotari'. Did you mean: rotary"),
        (("--rotary=rope", "extra"), "error: unexpected argument 'extra'"),
        (("--rotary=rope", "--tokenizer=nowhere"), "error: unknown tokenizer 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_line(options, message, run_folder, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(run_folder, *options)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith(message)


def test_memory_that_does_not_suffice_is_one_line(run_folder, capsys, monkeypatch):
    """What else XLA raises stays as it is."""

    def generated(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(generate, "generate", generated)
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore"
    with pytest.raises(SystemExit) as exit_:
        run(run_folder, "--rotary=rope")
    assert exit_.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: out of memory: RESOURCE_EXHAUSTED") and "--cache-dtype" in last
    message = "INTERNAL: bad"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(run_folder, "--rotary=rope")


def test_an_empty_folder_and_an_empty_prompt_are_refused(tmp_path, run_folder, capsys):
    with pytest.raises(SystemExit):
        run(run_folder, "--rotary=rope", prompt="")
    assert "the prompt is empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no checkpoint in"):
        checkpoints.params_shapes(tmp_path)


@pytest.mark.parametrize("form", weights.FORMATS)
@pytest.mark.parametrize("adds", [True, False])
def test_a_prompt_begins_as_the_checkpoint_says_unless_asked_otherwise(tmp_path, form, adds):
    """Kept from the tokenizer through the file; --bos and --nobos overrule it."""
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    tokenizer = dataclasses.replace(tokenizer, special_tokens=tokenizers.SpecialTokens(0, 0, adds))
    path, _ = write(tmp_path, form, tokenizer=tokenizer)
    loaded = script.load(str(path), "float32")
    assert loaded.adds_bos is adds and loaded.special_ids == {"bos": 0, "eos": 0}
    text = tokenizer.encode("the cat").tolist()

    def ids(bos):
        return script._encoded("the cat", loaded.tokenizer, loaded, bos=bos).tolist()

    assert ids(None) == [0] * adds + text
    assert ids(True) == [0, *text] and ids(False) == text


def model(method, context_length=8192):
    return script.Model(CONFIG, None, method, None, context_length, {}, (), False, ())


def test_open_options_come_from_the_checkpoint(capsys):
    """Base and trained length, not factor; what the text says, wins; and all of it is told."""
    plain = model(rotary.RoPE(100_000.0))
    found = script.method_of("yarn:factor=4", plain)
    assert found == rotary.YaRN(base=100_000.0, factor=4, original_length=8192)
    assert "from the checkpoint: base=100000.0, original_length=8192" in capsys.readouterr().err
    found = script.method_of("yarn:factor=4,base=5e5", plain)
    assert found == rotary.YaRN(base=500_000.0, factor=4, original_length=8192)
    assert "from the checkpoint: original_length=8192\n" in capsys.readouterr().err
    # ABF is another base by its name; a context that was extended is no trained length.
    assert script.method_of("abf", plain) == rotary.RoPE(500_000.0)
    extended = model(rotary.PositionInterpolation(factor=4, base=100_000.0))
    with pytest.raises(ValueError, match="yarn needs original_length"):
        script.method_of("yarn:factor=4", extended)
    llama3 = model(rotary.build("llama3", factor=8, original_length=4096))
    assert script.method_of("dynamic_ntk", llama3).original_length == 4096
    assert script.method_of("log_n", plain).inner == rotary.RoPE(100_000.0)
    assert script.method_of(None, plain) == rotary.RoPE(100_000.0)
    assert script.method_of("partial:inner=(rope),fraction=0.5", plain).inner.base == 100_000.0


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12), sizes=st.lists(st.integers(1, 5), min_size=60, max_size=60))
def test_streamed_characters_are_never_broken(text, sizes):
    """Every piece is whole characters, at once: no more than the last one waits."""
    ids, stream, given_ = BYTES.encode(text).tolist(), TextStream(BYTES.decode, [65]), ""
    for size in sizes:
        part, ids = ids[:size], ids[size:]
        piece = stream.add(part)
        given_ += piece
        assert text.startswith(given_)
    assert given_ + stream.close() == text


@settings(max_examples=60, deadline=None)
@given(data=st.lists(st.integers(0, 255), max_size=40), size=st.integers(1, 5))
def test_streamed_pieces_of_invalid_bytes_are_the_whole(data, size):
    """What can never become a character doesn't hold up what follows."""
    stream, given_ = TextStream(BYTES.decode), ""
    for start in range(0, len(data), size):
        given_ += stream.add(data[start : start + size])
        certain = BYTES.decode(data[: max(0, min(start + size, len(data)) - 3)]).rstrip("\ufffd")
        assert len(given_) >= len(certain)
    assert given_ + stream.close() == BYTES.decode(np.asarray(data, np.int64))
