"""Our GGUF files in llama.cpp itself: the same numbers, tokens and conversations."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.nn
import ml_dtypes
import numpy as np
import pytest
from checkpoints import CONFIG, logits, numbers, tokenizer_json

from longrope_jax import rotary, weights
from longrope_jax.data import tokenizers
from longrope_jax.weights import gguf_export

DRIVER = Path(__file__).parent / "llama_cpp_driver.py"
# Every kind of metadata that GGUF has for a Llama; 48 tokens are beyond all original lengths.
SPECS = (
    rotary.RoPE(10_000),
    rotary.RoPE(500.0),
    rotary.NTKAware(factor=4),
    rotary.PositionInterpolation(factor=4),
    rotary.YaRN(factor=4, original_length=16),
    rotary.YaRN(factor=8, original_length=32, base=500.0, attention_factor=1.0),
    rotary.YaRN(factor=2, original_length=16, attn_factor=1.5),
    rotary.YaRN(factor=4, original_length=16, base=100.0, beta_fast=3.0, beta_slow=0.5),
    rotary.YaRN(factor=4, original_length=16, base=100.0, ramp="rotations"),
    rotary.YaRN(factor=4, original_length=16, base=100.0, extrapolation_factor=0.5),
    rotary.Llama3(factor=8, original_length=16),
    rotary.GiraffePower(base=100.0),
    rotary.LongRoPE(2.0, original_length=16, factor=4, short_factor=2.0),
    rotary.LongRoPE((1, 1.5, 3, 4), original_length=16, factor=1, short_factor=(1, 1.5, 3, 4)),
)
NOPE = rotary.NoPE()
SHAPES = {
    "grouped": CONFIG,
    "plain heads, untied": dataclasses.replace(CONFIG, n_kv_heads=4, tie_embeddings=False),
    "tied": dataclasses.replace(CONFIG, tie_embeddings=True),
    "interleaved here": dataclasses.replace(CONFIG, rotary_layout="interleaved"),
    "wide heads": dataclasses.replace(CONFIG, n_heads=2, n_kv_heads=1, head_dim=64),
}
TOKENS = np.random.default_rng(3).integers(0, 40, 48).astype(np.int32)
CUTS = (2, 17, 48)  # prompts: the first so many of TOKENS
PROMPTS = [TOKENS[:n].tolist() for n in CUTS]
CHAT = "{% for m in messages %}the {{ m['content'] }}{% endfor %}"


def ask(jobs):
    """llama.cpp's log-probabilities [prompts, V] of each job."""
    why = "LOUD SKIP: pip install xllamacpp to load our GGUF files into llama.cpp"
    pytest.importorskip("xllamacpp", reason=why)
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    done = subprocess.run(
        [sys.executable, DRIVER],
        input=json.dumps(jobs),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [np.array(found) for found in json.loads(done.stdout)]


def tokenizer():
    return tokenizers.HuggingFaceTokenizer("random", tokenizer_json())


def special(**declared):
    return tokenizers.SpecialTokens(**{"bos": 0, "eos": 0, "adds_bos": False} | declared)


def save(path, config=CONFIG, spec=SPECS[0], params=None, **options):
    params = numbers(config) if params is None else params
    default = {"tokenizer": tokenizer(), "special_tokens": special(), "context_length": 64}
    options = default | options
    weights.save(path, config, params, spec, format="gguf", **options)
    return str(path)


def ours(config, spec, tokens=TOKENS, cuts=CUTS, params=None):
    """Log-probabilities [cuts, V] of the token after the first so many of `tokens`."""
    params = numbers(config) if params is None else params
    rows = logits(config, params, spec, np.asarray(tokens, np.int32)[None])
    return np.asarray(jax.nn.log_softmax(rows[np.array(cuts) - 1]))


def test_llama_cpp_gives_our_numbers_under_every_method_that_gguf_can_say(tmp_path):
    paths = [save(tmp_path / f"{at}.gguf", spec=spec) for at, spec in enumerate(SPECS)]
    found = ask([{"path": path, "prompts": PROMPTS} for path in paths])
    for spec, got in zip(SPECS, found, strict=True):
        # Its frequencies are float32 recurrences.
        np.testing.assert_allclose(got, ours(CONFIG, spec), atol=1e-5, err_msg=repr(spec))
    for spec, path in zip(SPECS, paths, strict=True):
        back = weights.open_checkpoint(path).rotary
        one, other = (s.frequencies(head_dim=8, seq_len=48) for s in (spec, back))
        np.testing.assert_allclose(other.inv_freq, one.inv_freq, rtol=1e-6)
        assert other.amplitude == pytest.approx(one.amplitude, rel=1e-6)
    far = [np.abs(one - other).max() for i, one in enumerate(found) for other in found[:i]]
    assert min(far) > 1e-3  # no two of the methods are the same


def test_llama_cpp_gives_our_numbers_for_every_shape_and_layout(tmp_path):
    jobs = [
        {"path": save(tmp_path / f"{at}.gguf", config), "prompts": PROMPTS}
        for at, config in enumerate(SHAPES.values())
    ]
    for (name, config), got in zip(SHAPES.items(), ask(jobs), strict=True):
        expected = ours(config, SPECS[0])
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def long_rope(original_length):
    short, long = (1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 8.0)
    return rotary.LongRoPE(long, original_length, factor=4.0, short_factor=short)


# llama.cpp's context is 256 tokens: beyond 16, within 300.
FAMILIES = {
    "llama, all biases": ("llama", changed(attention_bias=True, output_bias=True, mlp_bias=True)),
    "qwen2": ("qwen2", changed(attention_bias=True), SPECS[4]),
    "qwen2, tied": ("qwen2", changed(attention_bias=True, tie_embeddings=True)),
    "qwen3": ("qwen3", changed(qk_norm=True), SPECS[4]),
    "phi3, long factors": ("phi3", CONFIG, long_rope(16)),
    "phi3, short factors": ("phi3", CONFIG, long_rope(300)),
    "smollm3": ("smollm3", changed(n_layers=5), rotary.ByLayer((0, 0, 0, 1), (SPECS[1], NOPE))),
}


def test_llama_cpp_gives_our_numbers_for_every_family_of_its_own(tmp_path):
    jobs, expected = [], []
    for at, (arch, config, *spec) in enumerate(FAMILIES.values()):
        path = save(tmp_path / f"{at}.gguf", config, *(spec or SPECS[:1]), family=arch)
        found = weights.open_checkpoint(path)
        assert found.family == arch
        back, params, _ = weights.read_params(found)
        # The numbers are ours before the file and after it, in the layout of the file.
        before = ours(config, *(spec or SPECS[:1]))
        np.testing.assert_allclose(ours(back, found.rotary, params=params), before, atol=1e-5)
        jobs.append({"path": path, "prompts": PROMPTS})
        expected.append(before)
    for name, one, got in zip(FAMILIES, expected, ask(jobs), strict=True):
        np.testing.assert_allclose(got, one, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_llama_cpp_reads_short_floats(tmp_path, dtype):
    """Compared with a model of the rounded numbers; products round their other operand as well."""
    to = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rounded = jax.tree.map(lambda x: x.astype(to).astype(np.float32), numbers(CONFIG))
    path = save(tmp_path / "m.gguf", params=rounded, dtype=dtype)
    (found,) = ask([{"path": path, "prompts": PROMPTS}])
    expected = ours(CONFIG, SPECS[0], params=rounded)
    np.testing.assert_allclose(found, expected, atol=0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.parametrize("begins", [False, True])
def test_llama_cpp_cuts_text_and_begins_it_as_we_do(tmp_path, begins):
    own, declared = tokenizer(), special(adds_bos=begins, bos=1, chat_template=CHAT)
    text = "the cat sat on the mat 42"
    ids = own.encode(text).tolist()
    chat = [{"role": "user", "content": text.removeprefix("the ")}]
    path = save(tmp_path / "m.gguf", tokenizer=own, special_tokens=declared)
    (found,) = ask([{"path": path, "prompts": [text, [1] * begins + ids], "chats": [chat]}])
    np.testing.assert_array_equal(found[0], found[1])
    tokens = [1] * begins + ids
    expected = ours(CONFIG, SPECS[0], tokens, [len(tokens)])[0]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(found[2], expected, atol=1e-5)  # by the chat template


def test_llama_cpp_begins_a_sentencepiece_vocabulary_without_ids_of_its_own_as_we_say(
    tmp_path, monkeypatch
):
    """Its first ids are then 1 and 2, whatever they are."""
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{at:02X}>" for at in range(256)), "▁", *"aehtf"]
    types = [2, 3, 3, *[6] * 256, *[1] * 6]
    key, plan = "tokenizer.ggml.", gguf_export.plan
    declared = {"model": "llama", "tokens": pieces, "token_type": types}
    declared["scores"] = [0.0] * len(pieces)
    declared = {key + name: value for name, value in declared.items()}
    monkeypatch.setattr(gguf_export, "plan", lambda *a: (plan(*a)[0] | declared, {}))
    config = dataclasses.replace(CONFIG, vocab_size=len(pieces))
    nothing = tokenizers.SpecialTokens()
    path = save(tmp_path / "m.gguf", config, tokenizer=None, special_tokens=nothing)
    found = weights.open_checkpoint(path)
    assert found.special_tokens == tokenizers.SpecialTokens(1, 2, True)
    ids = found.tokenizer.encode("the fat").tolist()
    (got,) = ask([{"path": path, "prompts": ["the fat", [1, *ids], ids]}])
    np.testing.assert_array_equal(got[0], got[1])
    assert np.abs(got[0] - got[2]).max() > 1e-3
