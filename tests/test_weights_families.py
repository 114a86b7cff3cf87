"""The families beside Llama: their tiny random models give transformers' numbers, live, both ways.

Biases, norms and windows act in every case: without them the numbers are others.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, numbers

import longrope_jax
from longrope_jax import llama, rotary, weights
from longrope_jax.attention import attend
from longrope_jax.training import optimizer
from longrope_jax.weights import families

TOKENS = np.random.default_rng(11).integers(0, 40, (1, 24)).astype(np.int32)
SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
SIZES |= {"initializer_range": 0.25, "bos_token_id": None, "eos_token_id": None}
SIZES |= {"pad_token_id": None}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
FAMILIES = {
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, a window": ("mistral", {"sliding_window": 5}),
    "mistral, heads of another width": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5, yarn": (
        "qwen2",
        {"rope_parameters": YARN | {"original_max_position_embeddings": 32}},
    ),
    "qwen2, windows in the last layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, biases and windows": (
        "qwen3",
        {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3, biases, yarn, other layers and a window": (
        "smollm3",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": YARN | {"original_max_position_embeddings": 32},
            "no_rope_layers": [0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo3, yarn on the full layers": (
        "olmo3",
        {
            "num_hidden_layers": 5,
            "sliding_window": 5,
            "rope_parameters": {
                "full_attention": YARN | {"original_max_position_embeddings": 32},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e6},
            },
        },
    ),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "sliding_window": 5, "head_dim": 8, "query_pre_attn_scalar": 8},
    ),
    "gemma3, linear on the full layers, scores of another scale, biases, untied": (
        "gemma3_text",
        {
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "head_dim": 16,
            "query_pre_attn_scalar": 7,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            },
        },
    ),
    "phi3, short factors": (
        "phi3",
        {
            "rope_parameters": LONGROPE | {"original_max_position_embeddings": 64},
            "original_max_position_embeddings": 64,
        },
    ),
    "phi3, long factors and a window": (
        "phi3",
        {
            "rope_parameters": LONGROPE | {"original_max_position_embeddings": 16},
            "original_max_position_embeddings": 16,
            "sliding_window": 6,
        },
    ),
}


@pytest.fixture(scope="module")
def transformers():
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    torch = pytest.importorskip("torch", reason=why)
    module = pytest.importorskip("transformers", reason=why)
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    torch.set_num_threads(1)
    return module


def random_model(transformers, path, kind, changes):
    """A random model of transformers, with norms away from 1 and biases away from 0, saved."""
    import torch

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.5 * torch.randn(parameter.shape)
    model.save_pretrained(path)
    return path


def theirs(transformers, path, new=0):
    """Logits [T, V] of TOKENS, and `new` greedy tokens after the first six of them."""
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor(TOKENS.astype(np.int64))
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
        if not new:
            return logits, None
        made = model.generate(ids[:, :6], max_new_tokens=new, do_sample=False, pad_token_id=0)
    return logits, made[0, 6:].numpy()


@pytest.mark.parametrize("case", FAMILIES)
def test_a_family_gives_transformers_numbers_both_ways(transformers, tmp_path, case):
    kind, changes = FAMILIES[case]
    path = random_model(transformers, tmp_path / "in", kind, changes)
    expected, greedy = theirs(transformers, path, 50)
    model = longrope_jax.load(path)
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(model.logits(TOKENS[0]), expected, atol=atol)
    # transformers computes the prefix of Phi-3 again where its factors switch.
    length = "current" if "long factors" in case else "final"
    found = model.generate(TOKENS[0, :6], max_new_tokens=50, rotary_length=length)
    assert found.tolist() == greedy.tolist()
    model.save(tmp_path / "out")
    again, _ = theirs(transformers, tmp_path / "out")
    np.testing.assert_allclose(again, expected, atol=atol)
    back = longrope_jax.load(tmp_path / "out")
    assert (back.config, back.method, back.trained_length) == (
        model.config,
        model.method,
        model.trained_length,
    )


@pytest.mark.parametrize("kind", families.MODEL_TYPES)
def test_what_a_config_leaves_out_is_the_default_of_its_class(transformers, kind):
    theirs = transformers.AutoConfig.for_model(kind)
    ours = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": None}
    ours |= {"eos_token_id": None} | families.DEFAULTS[kind]
    for key in ("sliding_window",) if kind in ("qwen2", "qwen3") else ():
        del ours[key]  # it counts only where use_sliding_window says so
    assert {key: getattr(theirs, key) for key in ours} == ours


PARTS = {
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "qk_norm": True,
    "windows": (3, 0),
    "norms": "both",
    "norm_offset": True,
    "activation": "gelu_tanh",
    "embed_scale": 3.0,
    "score_scale": 0.5,
}
PLAIN = {field.name: field.default for field in dataclasses.fields(llama.LlamaConfig)}


def everything(**changes):
    return dataclasses.replace(CONFIG, **PARTS | changes)


def drawn(config):
    """Random parameters whose biases are not zero."""
    return jax.tree.map(jax.numpy.asarray, numbers(config))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_acts_and_is_absent_from_the_program_where_it_is_off(part):
    config, spec = everything(), rotary.RoPE()
    params = drawn(config)
    off = dataclasses.replace(config, **{part: PLAIN[part]})
    one, other = (np.asarray(llama.logits(c, params, TOKENS, spec)) for c in (config, off))
    assert np.abs(one - other).max() > 1e-3
    shapes = jax.eval_shape(lambda: llama.init_params(CONFIG, jax.random.key(0)))
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes)} == {
        *("embed", "unembed", "scale", "wq", "wk", "wv", "wo", "gate", "up", "down")
    }


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False, "qk_norm_joint": True}])
def test_decoding_with_a_cache_equals_the_whole_forward_with_every_part(changes):
    config, spec = everything(**changes), rotary.RoPE()
    params = drawn(config)
    whole = np.asarray(llama.logits(config, params, TOKENS, spec))
    rot = rotary.make(spec, head_dim=config.head_dim, seq_len=24)
    cache, at = llama.init_cache(config, 1, 24), 0
    for step in (9, 1, 1, 13):
        tokens = TOKENS[:, at : at + step]
        hidden, cache = llama.Llama(config).apply(
            {"params": params}, tokens, rotary=rot, cache=cache
        )
        found = np.asarray(llama.unembed(config, params, hidden))
        np.testing.assert_allclose(found, whole[:, at : at + step], atol=2e-5)
        at += step


def test_a_window_is_the_same_in_every_back_end_and_stays_within_documents():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 24, 4, 8)).astype(np.float32) for _ in range(3))
    arrays = [jax.numpy.asarray(x) for x in (q, k, v)]
    start = np.zeros((2, 24), np.int32)
    start[1, 10:] = 10
    for window in (1, 5, 100):
        far = np.arange(24)[:, None] - np.arange(24)
        seen = (far >= 0) & (far < window) & (np.arange(24) >= start[..., None])
        scores = np.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(8)
        scores = np.where(seen[:, None], scores, -np.inf)
        expected = np.einsum("BNTS,BSNH->BTNH", np.asarray(jax.nn.softmax(scores)), v)
        for backend in ("reference", "blockwise"):
            found = attend(*arrays, segment_start=start, window=window, backend=backend)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    for backend in ("splash", "cudnn"):
        with pytest.raises(ValueError, match=f"a window is not for backend '{backend}'"):
            attend(*arrays, window=4, backend=backend)


def test_biases_are_not_decayed():
    params = drawn(everything())
    decayed = optimizer._decayed(params)
    for path, one in jax.tree_util.tree_leaves_with_path(decayed):
        name = path[-1].key
        assert one == (name not in ("scale", "bq", "bk", "bv", "bo", "bg", "bu", "bd")), name


def test_attention_statistics_see_biases_norms_and_windows():
    """Against queries and keys computed by hand in the second layer's place, the first."""
    from longrope_jax.evaluation.attention_statistics import _heads

    config = everything(n_layers=1, norm_offset=False)
    layer = jax.tree.map(lambda x: x[0], drawn(config)["layers"]["attention"])
    x = np.random.default_rng(1).normal(size=(1, 5, 32)).astype(np.float32)
    for name in "qk":
        raw = np.einsum("BTD,DNH->BTNH", x, layer[f"w{name}"]) + layer[f"b{name}"]
        raw /= np.sqrt((raw**2).mean(-1, keepdims=True) + config.norm_eps)
        expected = raw * layer[f"{name}_norm"]["scale"]
        np.testing.assert_allclose(_heads(config, x, layer, name), expected, atol=1e-5)


def test_what_no_model_of_transformers_has_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model of transformers has these"):
        weights.check_save(everything(), rotary.RoPE(), format="hf", path=tmp_path / "out")


@pytest.mark.parametrize("part", [*list(PARTS)[4:], "a method by layer"])
def test_gguf_refuses_what_llama_cpp_has_no_architecture_for(part):
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    spec = rotary.RoPE()
    if part not in PARTS:
        spec = rotary.ByLayer((0, 1), (spec, rotary.NoPE()))
    config = dataclasses.replace(CONFIG, **({part: PARTS[part]} if part in PARTS else {}))
    with pytest.raises(ValueError, match=r"phi3 and smollm3, none of which has these .*: save as"):
        weights.check_save(config, spec, format="gguf")


def test_factors_per_pair_are_for_one_architecture_of_llama_cpp():
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    qwen = dataclasses.replace(CONFIG, qk_norm=True)
    with pytest.raises(ValueError, match="for llama alone, and this is qwen3: save as Hugging"):
        weights.check_save(qwen, rotary.Llama3(8.0, original_length=64), format="gguf")


def test_a_split_gguf_is_read_by_any_of_its_parts_or_its_folder(tmp_path):
    gguf = pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    weights.save(tmp_path / "whole.gguf", CONFIG, numbers(CONFIG), rotary.RoPE(), format="gguf")
    reader, folder = gguf.GGUFReader(tmp_path / "whole.gguf"), tmp_path / "split"
    folder.mkdir()
    for part in range(3):
        writer = gguf.GGUFWriter(folder / f"m-{part + 1:05}-of-00003.gguf", "llama")
        writer.add_key_value("split.count", 3, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.no", part, gguf.GGUFValueType.UINT16)
        for name, field in reader.fields.items() if part == 0 else ():
            if name.startswith("llama."):
                writer.add_key_value(name, field.contents(), field.types[0])
        for tensor in reader.tensors[part::3]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    expected = longrope_jax.load(tmp_path / "whole.gguf")
    for path in (folder, folder / "m-00001-of-00003.gguf", folder / "m-00003-of-00003.gguf"):
        found = longrope_jax.load(path)
        assert found.config == expected.config
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    (folder / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf is not beside"):
        longrope_jax.load(folder)


def test_layer_types_of_another_number_or_name_are_refused(tmp_path):
    qwen = dataclasses.replace(CONFIG, attention_bias=True)
    weights.save(tmp_path / "m", qwen, numbers(qwen), rotary.RoPE())
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    raw |= {"use_sliding_window": True, "sliding_window": 4}
    for layer_types, message in (
        (["full_attention"], "layer_types must name 2 layers"),
        (["full_attention", "sliding_atention"], "did you mean 'sliding_attention'"),
    ):
        (tmp_path / "m" / "config.json").write_text(json.dumps(raw | {"layer_types": layer_types}))
        with pytest.raises(ValueError, match=message):
            weights.open_checkpoint(tmp_path / "m")
