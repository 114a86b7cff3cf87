"""Checkpoints as people ship them: what is only spelled or stored in another way is loaded."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, assert_same, numbers, write

import longrope_jax
from longrope_jax import rotary, weights
from longrope_jax.weights import gguf_vocabulary, names, safetensors_file, stream

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TIED = dataclasses.replace(CONFIG, tie_embeddings=True)


def rewrite(path, change):
    """Changes the tensors {name: array} of a safetensors file."""
    source = safetensors_file.SafetensorsSource("here", [path])
    arrays = {name: source.rows(name, 0, shape[0]) for name, shape in source.shapes.items()}
    change(arrays)
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    safetensors_file.write(path, shapes, lambda name: arrays[name])


def test_tied_embeddings_may_be_stored_as_the_head_alone(tmp_path):
    path, params = write(tmp_path, "hf", TIED)

    def rename(arrays):
        arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")

    rewrite(path / FILE, rename)
    assert_same(longrope_jax.load(path).params, params)


def test_tables_that_the_config_implies_are_passed_over(tmp_path):
    path, params = write(tmp_path, "hf")

    def add(arrays):
        for name in ("inv_freq", "cos_cached", "sin_cached"):
            table = np.ones(4, np.float32)
            arrays[f"model.layers.0.self_attn.rotary_emb.{name}"] = table

    rewrite(path / FILE, add)
    assert_same(longrope_jax.load(path).params, params)


def test_an_index_may_name_a_tied_head_or_frequencies_that_no_file_has(tmp_path):
    path, params = write(tmp_path, "hf", TIED)
    listed = dict.fromkeys(safetensors_file.read_header(path / FILE), FILE)
    spare = {"lm_head.weight": FILE, "model.layers.0.self_attn.rotary_emb.inv_freq": FILE}
    (path / INDEX).write_text(json.dumps({"weight_map": listed | spare}))
    assert_same(longrope_jax.load(path).params, params)
    (path / INDEX).write_text(json.dumps({"weight_map": listed | {"model.more.weight": FILE}}))
    with pytest.raises(ValueError, match=r"'model.more.weight' is in the index, but in no file"):
        weights.open_checkpoint(path)


KEY = "tokenizer.ggml."


def test_empty_tokens_that_fill_up_a_vocabulary_are_no_damage():
    tokens = ["<unk>", "a", "b", "ab", "", ""]
    metadata = {KEY + "model": "llama", KEY + "tokens": tokens, KEY + "scores": [0.0] * 6}
    found = json.loads(gguf_vocabulary.read(metadata, 6))["model"]["vocab"]
    assert found["[PAD4]"] == 4 and found["[PAD5]"] == 5 and found["ab"] == 3


def test_a_vocabulary_without_scores_is_no_tokenizer_and_no_damage():
    metadata = {KEY + "model": "llama", KEY + "tokens": ["a", "b"]}
    with pytest.raises(gguf_vocabulary.UnknownTokenizer, match="scores"):
        gguf_vocabulary.read(metadata, 2)


@pytest.mark.parametrize("pre", ["llama3", "llama-v3", "llama-bpe", "tekken", "qwen2"])
def test_the_names_of_pre_tokenizers_are_those_of_llama_cpp(pre):
    """It begins a text with a token for all of these but qwen2 (llama-vocab.cpp)."""
    metadata = {KEY + "model": "gpt2", KEY + "pre": pre, KEY + "merges": ["a b"]}
    metadata |= {KEY + "tokens": ["a", "b", "ab"]}
    assert gguf_vocabulary.adds_bos(metadata, "here") == (pre != "qwen2")
    parts = json.loads(gguf_vocabulary.read(metadata, 3))
    assert parts["model"]["ignore_merges"] == (pre != "qwen2")
    tokenizers = pytest.importorskip("tokenizers")
    cut = tokenizers.Tokenizer.from_str(json.dumps(parts)).pre_tokenizer.pre_tokenize_str
    words = {
        "tekken": ["Hel", "lo", "Ġw", "1", "2", "3", "4"],
        "qwen2": ["HelLo", "Ġw", "1", "2", "3", "4"],
    }
    if pre == "tekken":
        assert [word for word, _ in cut("helLo w12/")] == ["hel", "Lo", "Ġw", "1", "2", "/"]
    else:
        expected = words.get(pre, ["HelLo", "Ġw", "123", "4"])
        assert [word for word, _ in cut("HelLo w1234")] == expected


def test_an_adapter_without_its_base_is_one_line_that_says_how(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"PEFT adapter without its base: merge.*merge_and_unload"):
        weights.open_checkpoint(tmp_path)


def test_mistrals_native_folder_is_read(tmp_path):
    """Names and layout are Meta's, sizes and base its own (mistral-inference)."""
    config = dataclasses.replace(CONFIG, head_dim=16, rotary_layout="interleaved", windows=(6,))
    params = numbers(config)
    tensors = {
        name: stream.fetch(config, params, leaf, layer, np.dtype("float32"), "interleaved")
        for name, leaf, layer in names.tensors(config, "meta")
    }
    shapes = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    safetensors_file.write(
        tmp_path / "consolidated.safetensors", shapes, lambda name: tensors[name]
    )
    raw = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
    raw |= {"hidden_dim": 48, "norm_eps": 1e-5, "vocab_size": 40, "sliding_window": 6}
    (tmp_path / "params.json").write_text(json.dumps(raw))
    found = longrope_jax.load(tmp_path)
    assert (found.config, found.method) == (config, rotary.RoPE())
    assert_same(found.params, jax.tree.map(np.asarray, params))
    (tmp_path / "params.json").write_text(json.dumps(raw | {"sliding_window": None}))
    assert weights.open_checkpoint(tmp_path).rotary == rotary.RoPE(1e6)
    (tmp_path / "params.json").write_text(json.dumps(raw | {"moe": {"num_experts": 8}}))
    with pytest.raises(ValueError, match="unknown key 'moe'"):
        weights.open_checkpoint(tmp_path)
