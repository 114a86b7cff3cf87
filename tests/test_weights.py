"""Checkpoints: what is written comes back bit by bit, and the packages' own readers agree."""

import dataclasses
import json
import shutil
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoints import CONFIG, assert_same, logits, numbers, tokenizer_json, write, write_meta

import longrope_jax
from longrope_jax import cli, llama, rotary, weights
from longrope_jax.data import tokenizers
from longrope_jax.weights import gguf_rotary, huggingface, layout, names, pretrained

gguf = pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
FORMS = ("hf", "gguf")


# There and back


@pytest.mark.parametrize("form", FORMS)
def test_what_is_cut_off_while_it_is_written_is_not_there(tmp_path, form, monkeypatch):
    """Not after an error, and what a killed process left is removed by the next one."""
    left = tmp_path / (".model.gguf.999999999.tmp" if form == "gguf" else ".model.999999999.tmp")
    (left / "sub").mkdir(parents=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights.stream, "fetch", full)
        with pytest.raises(ValueError, match=r"cannot write .*model.*: No space left"):
            write(tmp_path, form)
    assert not list(tmp_path.iterdir())
    path, _ = write(tmp_path, form)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stored", rotary.LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_gives_the_same_logits(tmp_path, form, stored, tied):
    config = dataclasses.replace(CONFIG, rotary_layout=stored, tie_embeddings=tied)
    path, params = write(tmp_path, form, config)
    loaded = longrope_jax.load(path)
    assert loaded.method == rotary.RoPE()
    if loaded.config.rotary_layout == stored:
        assert loaded.config == config
        assert_same(params, loaded.params)
    same = logits(loaded.config, loaded.params, rotary.RoPE())
    np.testing.assert_allclose(same, logits(config, params, rotary.RoPE()), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_each_format_has_the_layout_of_its_software(tmp_path, form):
    """Queries' rows are permuted exactly where the layouts differ, and values' never."""
    params = numbers(CONFIG)
    loaded = longrope_jax.load(write(tmp_path, form)[0])
    ours, theirs = params["layers"]["attention"], loaded.params["layers"]["attention"]
    if form == "hf":
        return assert_same(ours, theirs)
    # llama.cpp's converter: [2, H/2] becomes [H/2, 2] within each head.
    for name in ("wq", "wk"):
        split = ours[name].reshape(*ours[name].shape[:-1], 2, 4)
        assert_same(np.swapaxes(split, -1, -2).reshape(ours[name].shape), theirs[name])
    assert_same(ours["wv"], theirs["wv"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_of_files_are_rounded_once_and_read_exactly(tmp_path, form, dtype):
    config = dataclasses.replace(CONFIG, rotary_layout="half" if form == "hf" else "interleaved")
    path, params = write(tmp_path, form, config, dtype=dtype)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    loaded = longrope_jax.load(path, param_dtype="float32")
    embed = params["embed"].astype(kind).astype(np.float32)
    assert_same(embed, loaded.params["embed"])
    again = longrope_jax.load(path, param_dtype="bfloat16", dtype="bfloat16")
    assert again.config.dtype == "bfloat16" and again.params["embed"].dtype == "bfloat16"
    assert_same(embed.astype(ml_dtypes.bfloat16), again.params["embed"])


def test_big_folders_are_cut_into_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 9000)
    path, params = write(tmp_path, "hf")
    files = sorted(path.glob("*.safetensors"))
    index = json.loads((path / huggingface.INDEX).read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == {f.name for f in files}
    assert all(file.stat().st_size < 12_000 for file in files)
    assert_same(params, longrope_jax.load(path).params)


def test_of_a_whole_file_and_an_index_the_file_is_read_as_transformers_does(tmp_path, monkeypatch):
    path, params = write(tmp_path, "hf")
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 1 << 12)
    weights.save(tmp_path / "old", CONFIG, numbers(CONFIG, seed=1), rotary.RoPE())
    for file in (tmp_path / "old").glob("model*"):
        shutil.copy(file, path)
    assert (path / huggingface.INDEX).exists()
    assert_same(params, longrope_jax.load(path).params)


SPECS = [
    rotary.RoPE(base=500_000.0),
    rotary.PositionInterpolation(factor=4.0),
    rotary.YaRN(factor=4.0, original_length=64),
    rotary.YaRN(factor=4.0, original_length=64, attn_factor=0.75),
    rotary.Llama3(factor=8.0, original_length=64, base=10_000.0),
]


DECLARED_BY_GGUF = {"rope", "pi", "ntk", "ntk_by_parts", "ntk_by_parts_3way", "yarn", "llama3"}
DECLARED_BY_GGUF |= {"giraffe_power", "giraffe_truncated"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_rotary_methods_come_back(tmp_path, form, spec):
    got = longrope_jax.load(write(tmp_path, form, spec=spec)[0]).method
    assert type(got) is type(spec)
    one, other = (s.frequencies(head_dim=8, seq_len=100) for s in (spec, got))
    np.testing.assert_allclose(other.inv_freq, one.inv_freq, rtol=1e-7)
    assert other.amplitude == pytest.approx(one.amplitude, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "declared", "note"),
    [
        (
            rotary.LongRoPE(4.0, 64, factor=1, short_factor=4.0, attention_factor=0.5),
            {"type": "linear", "factor": 4, "attn_factor": 0.5},
            "one factor per pair",
        ),
        (
            rotary.YaRN(4.0, 64, base=100, beta_fast=16, beta_slow=2, attn_factor=0.5),
            {"type": "yarn", "factor": 4, "yarn_beta_fast": 16, "yarn_beta_slow": 2}
            | {"original_context_length": 64, "yarn_attn_factor": 0.5},
            "rope.scaling.yarn_beta_fast is applied here, but llama.cpp ignores it for a Llama",
        ),
    ],
)
def test_what_others_write_into_gguf_acts(tmp_path, monkeypatch, spec, declared, note):
    declared = {f"scaling.{key}": value for key, value in declared.items()}
    declared["freq_base"] = spec.base
    monkeypatch.setitem(gguf_rotary._WRITERS, rotary.RoPE, lambda *_: (declared, {}))
    loaded = longrope_jax.load(write(tmp_path, "gguf", context_length=64)[0])
    one, other = (s.frequencies(head_dim=8, seq_len=100) for s in (spec, loaded.method))
    np.testing.assert_allclose(other.inv_freq, one.inv_freq, rtol=1e-7)
    assert other.amplitude == pytest.approx(one.amplitude)
    assert any(note in line for line in loaded.notes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "spec", [rotary.XPos(), rotary.PartialRotary(rotary.RoPE(), 0.5), rotary.NoPE()]
)
def test_methods_that_a_format_lacks_are_refused(tmp_path, form, spec):
    with pytest.raises(
        ValueError, match=r"GGUF cannot describe|Hugging Face has no|turns whole heads"
    ):
        write(tmp_path, form, spec=spec)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.glob("*.gguf"))


def test_gguf_says_all_of_a_method_or_refuses_it(tmp_path, spec):
    path = tmp_path / "m.gguf"
    try:
        weights.save(path, CONFIG, numbers(CONFIG), spec, format="gguf")
    except ValueError as error:
        assert "GGUF cannot describe" in str(error) and not path.exists()
        assert rotary.name_of(spec) not in DECLARED_BY_GGUF
        return
    got = weights.open_checkpoint(path).rotary
    for length in (1, 500, 600, 100_000):
        one, other = (s.frequencies(head_dim=8, seq_len=length) for s in (spec, got))
        np.testing.assert_allclose(other.inv_freq, one.inv_freq, rtol=1e-6)
        assert other.amplitude == pytest.approx(one.amplitude, rel=1e-6)
        exact = dataclasses.replace(one, inv_freq=other.inv_freq, amplitude=other.amplitude)
        assert dataclasses.replace(exact, start_inv_freq=None).equals(other)


def test_ntk_aware_is_exported_as_the_base_it_equals(tmp_path):
    spec = rotary.NTKAware(factor=4.0)
    for form in FORMS:
        got = longrope_jax.load(write(tmp_path / form, form, spec=spec)[0]).method
        assert got.base == pytest.approx(10_000 * 4 ** (8 / 6), rel=1e-7)


def test_one_factor_per_pair_of_no_known_rule_survives_gguf(tmp_path):
    factors = (1.0, 1.5, 2.25, 7.0)
    spec = rotary.LongRoPE(factors, 2048, 1.0, short_factor=factors)
    loaded = longrope_jax.load(write(tmp_path, "gguf", spec=spec)[0])
    assert loaded.method.long_factor == loaded.method.short_factor == factors
    assert any("no known rule" in note for note in loaded.notes)
    with pytest.raises(ValueError, match=r"every pair .* by one frequency at all lengths"):
        longer = rotary.XPos()
        weights.save(tmp_path / "x.gguf", CONFIG, numbers(CONFIG), longer, format="gguf")


# Other readers and writers


def test_the_packages_read_what_we_write(tmp_path):
    from safetensors import numpy as package

    path, params = write(tmp_path, "hf")
    tensors = package.load_file(path / "model.safetensors")
    assert len(tensors) == 2 * 9 + 3
    assert_same(params["embed"], tensors["model.embed_tokens.weight"])
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    assert_same(params["layers"]["mlp"]["down"][1], down.T)
    reader = gguf.GGUFReader(write(tmp_path, "gguf")[0])
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert_same(down, tensors["blk.1.ffn_down.weight"])
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "Q4_K", "Q6_K", "Q2_K"])
def test_slices_of_rows_dequantise_as_the_package_does_at_once(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, (6, 512 // block * size)).astype(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from longrope_jax.weights.gguf_file import GGUFSource, read_header

    source = GGUFSource(tmp_path / "q.gguf", read_header(tmp_path / "q.gguf"))
    assert source.shapes["t"] == (6, 512)
    parts = [source.rows("t", at, at + 2) for at in (0, 2, 4)]
    assert_same(gguf.dequantize(data, kind), np.concatenate(parts))


def test_old_configs_with_defaults_left_out_are_understood(tmp_path):
    path, params = write(tmp_path, "hf", dataclasses.replace(CONFIG, n_kv_heads=4))
    raw = json.loads((path / "config.json").read_text())
    for key in ("head_dim", "num_key_value_heads", "rope_parameters", "tie_word_embeddings"):
        del raw[key]
    raw |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (path / "config.json").write_text(json.dumps(raw))
    loaded = longrope_jax.load(path)
    assert loaded.method == rotary.PositionInterpolation(2.0, 5e5)
    assert_same(params, loaded.params)


def test_mistral_is_a_llama_where_no_window_cuts(tmp_path):
    path, params = write(tmp_path, "hf")
    raw = json.loads((path / "config.json").read_text())
    raw |= {"model_type": "mistral", "sliding_window": None}
    (path / "config.json").write_text(json.dumps(raw))
    assert_same(params, longrope_jax.load(path).params)
    del raw["sliding_window"]
    raw["max_position_embeddings"] = 8192
    (path / "config.json").write_text(json.dumps(raw))
    assert weights.open_checkpoint(path).config.windows == (4096,)  # transformers' default
    # A window as long as the context cuts nothing, in a Llama neither.
    for kind, length in (("mistral", 4096), ("llama", 4096)):
        raw |= {"model_type": kind, "sliding_window": 4096, "max_position_embeddings": length}
        (path / "config.json").write_text(json.dumps(raw))
        found = weights.open_checkpoint(path)
        assert found.config.windows == () and "sliding_window=4096" in " ".join(found.notes)
    raw["sliding_window"] = 4095
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="transformers has no window for llama"):
        weights.open_checkpoint(path)


@pytest.mark.parametrize("kind, heads", [("llama", 16), ("mistral", 8)])
def test_what_a_config_leaves_out_is_what_transformers_puts_in(tmp_path, kind, heads):
    config = dataclasses.replace(CONFIG, n_heads=16, n_kv_heads=heads, head_dim=2)
    path, _ = write(tmp_path, "hf", config)
    raw = json.loads((path / "config.json").read_text())
    raw |= {"model_type": kind, "sliding_window": None}
    for key in ("num_key_value_heads", "bos_token_id", "eos_token_id"):
        del raw[key]
    (path / "config.json").write_text(json.dumps(raw))
    found = weights.open_checkpoint(path)
    assert found.config.n_kv_heads == heads
    assert found.special_tokens.ids() == {"bos": 1, "eos": 2} and found.special_tokens.stops == (2,)


def test_a_tied_model_may_hold_its_head_twice(tmp_path):
    params = numbers(CONFIG)
    params["unembed"] = params["embed"].T
    weights.save(tmp_path / "m", CONFIG, params, rotary.RoPE())
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    loaded = longrope_jax.load(tmp_path / "m")
    del params["unembed"]
    assert_same(params, loaded.params)
    assert any("lm_head.weight is present" in note for note in loaded.notes)


# Meta's folder


@pytest.mark.parametrize("parts, embed", [(1, "columns"), (2, "columns"), (2, "rows")])
def test_model_parallel_shards_are_merged(tmp_path, parts, embed):
    pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    config = dataclasses.replace(
        CONFIG, rotary_layout="interleaved", d_ff=llama.swiglu_width(32, multiple_of=16)
    )
    params = numbers(config)
    loaded = longrope_jax.load(write_meta(tmp_path / "meta", config, params, parts, embed))
    assert loaded.config == config and loaded.method == rotary.RoPE()
    assert_same(params, loaded.params)


def test_llama_3_params_json(tmp_path):
    pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    config = dataclasses.replace(CONFIG, d_ff=llama.swiglu_width(32, multiple_of=16))
    raw = {"rope_theta": 5e5, "use_scaled_rope": True, "vocab_size": 40, "ffn_dim_multiplier": 1.0}
    loaded = longrope_jax.load(write_meta(tmp_path / "m", config, numbers(config), **raw))
    assert loaded.method == rotary.Llama3(factor=32.0)  # the 1B and 3B are narrower than 4096
    assert any("Llama 3.2" in note for note in loaded.notes)
    told = write_meta(tmp_path / "t", config, numbers(config), **raw, rope_scaling_factor=8.0)
    assert longrope_jax.load(told).method == rotary.Llama3()


# What is recognised


def trained_looking(layout_, config=CONFIG):
    """Parameters whose pairs have like norms, each pair its own, as in trained models."""
    params = numbers(config)
    sizes = np.repeat(np.linspace(0.2, 4.0, config.head_dim // 2), 2)  # interleaved pairs
    if layout_ == "half":
        sizes = sizes[rotary.half_from_interleaved(config.head_dim)]
    for name in ("wq", "wk"):
        params["layers"]["attention"][name] *= sizes.astype(np.float32)
    return params


@pytest.mark.parametrize("truth", rotary.LAYOUTS)
@pytest.mark.parametrize("claimed", rotary.LAYOUTS)
def test_the_probe_doubts_a_layout_exactly_when_it_is_wrong(truth, claimed):
    config = dataclasses.replace(CONFIG, d_model=512, head_dim=64, rotary_layout=claimed)
    verdict, doubt = layout.probe(config, trained_looking(truth, config))
    assert doubt == (truth != claimed), verdict


def test_a_doubtful_layout_warns_and_can_be_overruled(tmp_path):
    config = dataclasses.replace(CONFIG, d_model=512, head_dim=64)
    lie = trained_looking("interleaved", config)
    weights.save(tmp_path / "m", config, lie, rotary.RoPE())
    with pytest.warns(UserWarning, match="they look interleaved, the format says half"):
        longrope_jax.load(tmp_path / "m")
    with warnings.catch_warnings(action="error"):
        loaded = longrope_jax.load(tmp_path / "m", rotary_layout="interleaved")
    assert loaded.config.rotary_layout == "interleaved"


def test_random_weights_say_nothing():
    verdict, doubt = layout.probe(CONFIG, numbers(CONFIG))
    assert "show none" in verdict and not doubt


def test_inspect_prints_without_reading_tensors(tmp_path, capsys):
    path, _ = write(tmp_path, "gguf", spec=SPECS[2], context_length=256)
    assert cli.main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    for expected in ("trained_length   256", "YaRN(factor=4.0", "interleaved layout", "21 F32"):
        assert expected in printed
    assert cli.main(["inspect", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at")


def test_tables_of_names_cover_the_parameter_tree():
    paths = {"/".join(leaf.path) for leaf in names.leaves(CONFIG)}
    tree = jax.tree_util.tree_flatten_with_path(numbers(CONFIG))[0]
    assert paths == {"/".join(key.key for key in path) for path, _ in tree}


# What is refused


def test_what_is_in_the_way_is_not_overwritten(tmp_path):
    for form in FORMS:
        path, params = write(tmp_path, form)
        with pytest.raises(ValueError, match="already"):
            weights.save(path, CONFIG, params, rotary.RoPE(), format=form)


def test_a_tokenizer_that_lies_in_the_folder_is_not_taken_for_the_models(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer_json())
    with pytest.raises(ValueError, match=r"already holds tokenizer\.json"):
        write(tmp_path, "hf")


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_written_is_one_line_and_no_half_file(tmp_path, form):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^cannot write .*file"):
        write(tmp_path / "file", form)
    params = numbers(CONFIG)
    params["final_norm"]["scale"][0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        weights.save(tmp_path / "m", CONFIG, params, rotary.RoPE(), format=form)
    assert not (tmp_path / "m").is_file()
    assert not (tmp_path / "m" / "config.json").exists()


def test_what_a_format_cannot_say_is_known_before_the_parameters_are():
    weights.check_save(CONFIG, rotary.RoPE(), format="gguf")
    for form, spec in (("gguf", rotary.DynamicNTK(4.0, 32)), ("hf", rotary.XPos())):
        with pytest.raises(ValueError, match=rotary.name_of(spec)):
            weights.check_save(CONFIG, spec, format=form)
    with pytest.raises(ValueError, match="tokenizer=None"):
        weights.check_save(CONFIG, rotary.RoPE(), tokenizers.ByteTokenizer(), format="hf")


def test_a_model_by_name_is_verified_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGROPE_CACHE", str(tmp_path))
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"expected sha256 b179c9523d0e.*delete it"):
        longrope_jax.load("smollm2-135m")
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        pretrained.fetch("smollm2-135")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "gguff"}, "did you mean 'gguf'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"tokenizer": tokenizers.ByteTokenizer()}, "tokenizer=None"),
    ],
)
def test_bad_options_of_save_are_one_line(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        weights.save(tmp_path / "m", CONFIG, numbers(CONFIG), rotary.RoPE(), **options)
    assert "\n" not in str(error.value)
