"""Checkpoints: what is written comes back bit by bit, and the packages' own readers agree."""

import dataclasses
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
import weights_driver
from checkpoints import CONFIG, assert_same, logits, numbers, tokenizer_json, write, write_meta

from longrope_jax import llama, rotary, sharding, weights
from longrope_jax.data import tokenizers
from longrope_jax.weights import __main__ as command
from longrope_jax.weights import (
    gguf_rotary,
    gguf_vocabulary,
    huggingface,
    layout,
    names,
    pretrained,
)

gguf = pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
FORMS = ("hf", "gguf")


# There and back


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stored", rotary.LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_gives_the_same_logits(tmp_path, form, stored, tied):
    config = dataclasses.replace(CONFIG, rotary_layout=stored, tie_embeddings=tied)
    path, params = write(tmp_path, form, config)
    loaded = weights.load(path)
    assert loaded.rotary_spec == rotary.RoPE()
    if loaded.config.rotary_layout == stored:
        assert loaded.config == config
        assert_same(params, loaded.params)
    same = logits(loaded.config, loaded.params, rotary.RoPE())
    np.testing.assert_allclose(same, logits(config, params, rotary.RoPE()), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_each_format_has_the_layout_of_its_software(tmp_path, form):
    """Queries' rows are permuted exactly where the layouts differ, and values' never."""
    params = numbers(CONFIG)
    loaded = weights.load(write(tmp_path, form)[0])
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
    loaded = weights.load(path, param_dtype="float32")
    embed = params["embed"].astype(kind).astype(np.float32)
    assert_same(embed, loaded.params["embed"])
    again = weights.load(path, param_dtype="bfloat16", dtype="bfloat16")
    assert again.config.dtype == "bfloat16" and again.params["embed"].dtype == "bfloat16"
    assert_same(embed.astype(ml_dtypes.bfloat16), again.params["embed"])


def test_big_folders_are_cut_into_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 9000)
    path, params = write(tmp_path, "hf")
    files = sorted(path.glob("*.safetensors"))
    index = json.loads((path / huggingface.INDEX).read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == {f.name for f in files}
    assert all(file.stat().st_size < 12_000 for file in files)
    assert_same(params, weights.load(path).params)


def test_of_a_whole_file_and_an_index_the_file_is_read_as_transformers_does(tmp_path, monkeypatch):
    path, params = write(tmp_path, "hf")
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 1 << 12)
    weights.save(tmp_path / "old", CONFIG, numbers(CONFIG, seed=1), rotary.RoPE())
    for file in (tmp_path / "old").glob("model*"):
        shutil.copy(file, path)
    assert (path / huggingface.INDEX).exists()
    assert_same(params, weights.load(path).params)


SPECS = [
    rotary.RoPE(base=500_000.0),
    rotary.PositionInterpolation(factor=4.0),
    rotary.YaRN(factor=4.0, original_length=64),
    rotary.YaRN(factor=4.0, original_length=64, attn_factor=0.75),
    rotary.Llama3(factor=8.0, original_length=64, base=10_000.0),
]


SAID_BY_GGUF = {"rope", "pi", "ntk", "ntk_by_parts", "ntk_by_parts_3way", "yarn", "llama3"}
SAID_BY_GGUF |= {"giraffe_power", "giraffe_truncated"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_rotary_methods_come_back(tmp_path, form, spec):
    got = weights.load(write(tmp_path, form, spec=spec)[0]).rotary_spec
    assert type(got) is type(spec)
    one, other = (s.frequencies(head_dim=8, seq_len=100) for s in (spec, got))
    np.testing.assert_allclose(other.inv_freq, one.inv_freq, rtol=1e-7)
    assert other.amplitude == pytest.approx(one.amplitude, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "said", "note"),
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
            "rope.scaling.yarn_beta_fast acts here; llama.cpp passes over it in a Llama",
        ),
    ],
)
def test_what_others_write_into_gguf_acts(tmp_path, monkeypatch, spec, said, note):
    said = {f"scaling.{key}": value for key, value in said.items()} | {"freq_base": spec.base}
    monkeypatch.setitem(gguf_rotary._WRITERS, rotary.RoPE, lambda *_: (said, {}))
    loaded = weights.load(write(tmp_path, "gguf", context_length=64)[0])
    one, other = (s.frequencies(head_dim=8, seq_len=100) for s in (spec, loaded.rotary_spec))
    np.testing.assert_allclose(other.inv_freq, one.inv_freq, rtol=1e-7)
    assert other.amplitude == pytest.approx(one.amplitude)
    assert any(note in line for line in loaded.notes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "spec", [rotary.XPos(), rotary.PartialRotary(rotary.RoPE(), 0.5), rotary.NoPE()]
)
def test_methods_that_a_format_lacks_are_refused(tmp_path, form, spec):
    with pytest.raises(ValueError, match=r"GGUF can't say|Hugging Face has no|turns whole heads"):
        write(tmp_path, form, spec=spec)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.glob("*.gguf"))


def test_gguf_says_all_of_a_method_or_refuses_it(tmp_path, spec):
    path = tmp_path / "m.gguf"
    try:
        weights.save(path, CONFIG, numbers(CONFIG), spec, format="gguf")
    except ValueError as error:
        assert "GGUF can't say" in str(error) and not path.exists()
        assert rotary.name_of(spec) not in SAID_BY_GGUF
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
        got = weights.load(write(tmp_path / form, form, spec=spec)[0]).rotary_spec
        assert got.base == pytest.approx(10_000 * 4 ** (8 / 6), rel=1e-7)


def test_one_factor_per_pair_of_no_known_rule_survives_gguf(tmp_path):
    factors = (1.0, 1.5, 2.25, 7.0)
    spec = rotary.LongRoPE(factors, 2048, 1.0, short_factor=factors)
    loaded = weights.load(write(tmp_path, "gguf", spec=spec)[0])
    assert loaded.rotary_spec.long_factor == loaded.rotary_spec.short_factor == factors
    assert any("no known rule" in note for note in loaded.notes)
    with pytest.raises(ValueError, match=r"every pair .* by one frequency at all lengths"):
        longer = dataclasses.replace(spec, short_factor=1.0)
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
    loaded = weights.load(path)
    assert loaded.rotary_spec == rotary.PositionInterpolation(2.0, 5e5)
    assert_same(params, loaded.params)


def test_mistral_is_a_llama_where_no_window_cuts(tmp_path):
    path, params = write(tmp_path, "hf")
    raw = json.loads((path / "config.json").read_text())
    raw |= {"model_type": "mistral", "sliding_window": None}
    (path / "config.json").write_text(json.dumps(raw))
    assert_same(params, weights.load(path).params)
    del raw["sliding_window"]
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="says no sliding_window, which is 4096 in transformers"):
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
    assert found.special_ids == {"bos": 1, "eos": 2} and found.stop_ids == (2,)


def test_a_tied_model_may_hold_its_head_twice(tmp_path):
    params = numbers(CONFIG)
    params["unembed"] = params["embed"].T
    weights.save(tmp_path / "m", CONFIG, params, rotary.RoPE())
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    loaded = weights.load(tmp_path / "m")
    del params["unembed"]
    assert_same(params, loaded.params)
    assert any("equal to the embedding" in note for note in loaded.notes)


# Meta's folder


@pytest.mark.parametrize("parts, embed", [(1, "columns"), (2, "columns"), (2, "rows")])
def test_model_parallel_shards_are_merged(tmp_path, parts, embed):
    pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    config = dataclasses.replace(
        CONFIG, rotary_layout="interleaved", d_ff=llama.swiglu_width(32, multiple_of=16)
    )
    params = numbers(config)
    loaded = weights.load(write_meta(tmp_path / "meta", config, params, parts, embed))
    assert loaded.config == config and loaded.rotary_spec == rotary.RoPE()
    assert_same(params, loaded.params)


def test_llama_3_params_json(tmp_path):
    pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    config = dataclasses.replace(CONFIG, d_ff=llama.swiglu_width(32, multiple_of=16))
    raw = {"rope_theta": 5e5, "use_scaled_rope": True, "vocab_size": 40, "ffn_dim_multiplier": 1.0}
    loaded = weights.load(write_meta(tmp_path / "m", config, numbers(config), **raw))
    assert loaded.rotary_spec == rotary.Llama3()
    assert any("Llama 3.2" in note for note in loaded.notes)


# On a mesh


def test_tensors_go_to_their_shards(tmp_path, monkeypatch):
    from longrope_jax.weights import stream

    monkeypatch.setattr(stream, "SLICE_VALUES", 400)  # many slices, cut across shards
    path, params = write(tmp_path, "gguf", dataclasses.replace(CONFIG, rotary_layout="interleaved"))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    loaded = weights.load(path, mesh=mesh)
    assert_same(params, loaded.params)
    wq = loaded.params["layers"]["attention"]["wq"]
    assert wq.sharding.spec == sharding.partition_spec("layers", "embed", "heads", "head_dim")
    assert {shard.data.shape for shard in wq.addressable_shards} == {(2, 16, 2, 8)}


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2}, {"data": 2, "sequence": 4}])
def test_the_text_tells_the_layout_on_a_mesh_too(tmp_path, axes):
    tokenizer = tokenizers.HuggingFaceTokenizer("made up", tokenizer_json())
    path, _ = write(tmp_path, "hf", tokenizer=tokenizer)
    alone, devices = weights.load(path), jax.devices()[: math.prod(axes.values())]
    on_mesh = weights.load(path, mesh=sharding.make_mesh(**axes, devices=devices))
    one, other = (
        layout.score(x.config, x.params, x.rotary_spec, x.tokenizer) for x in (alone, on_mesh)
    )
    tokens = len(tokenizer.encode(layout.TEXT))
    assert one == pytest.approx(other, abs=1e-5 if tokens % 8 == 0 or "tensor" in axes else 0.05)


@pytest.mark.slow
def test_two_processes_load_their_own_shards_and_say_the_same(tmp_path):
    """Each half of the heads lies on one process; the probes of the layout need both."""
    tokenizer = tokenizers.HuggingFaceTokenizer("made up", tokenizer_json())
    path, _ = write(tmp_path, "hf", tokenizer=tokenizer)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    command = [sys.executable, weights_driver.__file__, address]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    started = [subprocess.Popen([*command, str(i), str(path)], **pipes) for i in range(2)]
    found = []
    try:
        for process in started:
            out, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()[-2000:]
            found.append(json.loads(out.decode().splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
    one, other = found
    assert one["equal"] and other["equal"]
    assert set(one["wq"]).isdisjoint(other["wq"]) and len(one["wq"]) == 2
    assert one["share"] == other["share"] < 0.6  # norms lie on every device
    assert one["notes"] == other["notes"]
    alone = weights.load(path)
    expected = layout.score(alone.config, alone.params, alone.rotary_spec, alone.tokenizer)
    assert one["losses"] == other["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_host_memory_beside_the_devices_stays_below_one_and_a_half_tensors(tmp_path):
    """8 layers, the largest tensor 24 MiB: anything that keeps tensors on the host shows."""
    config = llama.LlamaConfig(6144, 1024, 8, 8, 2, 128, 2048, tie_embeddings=True)
    script = f"""
        import ctypes, resource, sys, jax, numpy as np
        from longrope_jax import llama, rotary, weights
        from longrope_jax.weights import names, stream
        config = llama.{config!r}
        rng = np.random.default_rng(0)
        stream.fetch = lambda c, p, leaf, *rest: rng.random(
            names.file_shape(c, leaf), np.float32).astype(rest[1])
        weights.save({str(tmp_path / "big")!r}, config, {{}}, rotary.RoPE())
        weights.save({str(tmp_path / "big.gguf")!r}, config, {{}}, rotary.RoPE(), format="gguf")
    """
    run_python(script)
    for path in (tmp_path / "big", tmp_path / "big.gguf"):
        measure = f"""
            import gc, jax
            from longrope_jax import weights
            def status(key):
                lines = open("/proc/self/status").read().splitlines()
                return next(int(x.split()[1]) for x in lines if x.startswith(key)) * 1024
            small = weights.load({str(path)!r})     # compiles every update
            size = sum(x.nbytes for x in jax.tree.leaves(small.params))
            del small
            gc.collect()
            before = status("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")   # VmHWM starts again
            loaded = weights.load({str(path)!r})
            print(status("VmHWM") - before, size)
        """
        over, size = (int(n) for n in run_python(measure).split())
        largest = 6144 * 1024 * 4
        assert size > 8 * largest
        print(path.name, (over - size) / largest)
        assert over - size < 1.5 * largest, f"{path.name}: {(over - size) / largest:.2f} tensors"


def run_python(script):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


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
        weights.load(tmp_path / "m")
    with warnings.catch_warnings(action="error"):
        loaded = weights.load(tmp_path / "m", rotary_layout="interleaved")
    assert loaded.config.rotary_layout == "interleaved"


def test_random_weights_say_nothing():
    verdict, doubt = layout.probe(CONFIG, numbers(CONFIG))
    assert "say nothing" in verdict and not doubt


def test_inspect_prints_without_reading_tensors(tmp_path, capsys):
    path, _ = write(tmp_path, "gguf", spec=SPECS[2], context_length=256)
    assert command.main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    for expected in ("context_length   256", "YaRN(factor=4.0", "interleaved layout", "21 F32"):
        assert expected in printed
    assert command.main(["inspect", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at")


def test_tables_of_names_cover_the_parameter_tree():
    paths = {"/".join(leaf.path) for leaf in names.leaves(CONFIG)}
    tree = jax.tree_util.tree_flatten_with_path(numbers(CONFIG))[0]
    assert paths == {"/".join(key.key for key in path) for path, _ in tree}


# Tokenizers travel along


@pytest.mark.parametrize("form", FORMS)
def test_the_tokenizer_comes_back(tmp_path, form):
    tokenizer = tokenizers.HuggingFaceTokenizer("made up", tokenizer_json())
    path, _ = write(tmp_path, form, tokenizer=tokenizer, special_ids={"eos": 0})
    loaded = weights.load(path)
    text = "the cat sat on the mat 42"
    assert_same(tokenizer.encode(text), loaded.tokenizer.encode(text))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    assert loaded.tokenizer.specials == ("<eos>",) and loaded.special_ids == {"eos": 0}


@pytest.mark.parametrize("form", FORMS)
def test_beginning_and_end_are_kept_without_a_word(tmp_path, form):
    """From file to file with nothing but what `load` gave; what is said outright wins."""
    tokenizer = tokenizers.HuggingFaceTokenizer("made up", tokenizer_json())
    first, _ = write(tmp_path / "1", form, tokenizer=tokenizer, special_ids={"bos": 0, "eos": 3})
    one = weights.load(first)
    assert one.special_ids == {"bos": 0, "eos": 3} and not one.adds_bos
    begun = dataclasses.replace(one.tokenizer.ends, adds_bos=True)
    begun = dataclasses.replace(one.tokenizer, ends=begun)
    for other in FORMS:
        path, _ = write(tmp_path / other, other, tokenizer=begun)
        two = weights.open_checkpoint(path)
        assert two.special_ids == one.special_ids and two.adds_bos
        assert two.tokenizer.ends == begun.ends
    path, _ = write(tmp_path / "3", form, tokenizer=begun, special_ids={"eos": 5})
    three = weights.open_checkpoint(path)
    assert three.special_ids == {"eos": 5} and not three.adds_bos


@pytest.mark.parametrize("form", FORMS)
def test_every_id_that_ends_a_text_is_kept(tmp_path, form):
    """Llama 3 Instruct has three; what is said outright wins over the tokenizer's."""
    ends = tokenizers.Ends(0, 3, False, [5, 7])
    tokenizer = tokenizers.HuggingFaceTokenizer("made up", tokenizer_json(), ends)
    first, _ = write(tmp_path / "1", form, tokenizer=tokenizer)
    one = weights.load(first)
    assert one.special_ids == {"bos": 0, "eos": 3} and one.stop_ids == (3, 5, 7)
    for other in FORMS:
        path, _ = write(tmp_path / other, other, tokenizer=one.tokenizer)
        two = weights.open_checkpoint(path)
        assert two.stop_ids == one.stop_ids and two.tokenizer.ends == ends
    for at, (said, expected) in enumerate(
        [
            ({"special_ids": {"eos": 9}}, (9,)),
            ({"special_ids": {"eos": 3}}, (3, 5, 7)),
            ({"special_ids": {"eos": 9}, "stop_ids": [8, 9]}, (9, 8)),
            ({"stop_ids": [3]}, (3,)),
        ]
    ):
        path, _ = write(tmp_path / f"said{at}", form, tokenizer=tokenizer, **said)
        assert weights.open_checkpoint(path).stop_ids == expected
    path, _ = write(tmp_path / "none", form, stop_ids=[6, 8])
    assert weights.open_checkpoint(path).stop_ids == (6, 8)


def test_a_chat_template_reaches_every_format_unchanged(tmp_path):
    """Read from each place that software writes it to; what is no text is refused."""
    chat = "{% for m in messages %}<|user|>\r\n{{ m['content'] }} é{% endfor %}\n"
    ends = tokenizers.Ends(0, 3, False, chat_template=chat)
    tokenizer = tokenizers.HuggingFaceTokenizer("made up", tokenizer_json(), ends)
    for first in FORMS:
        path, _ = write(tmp_path / first, first, tokenizer=tokenizer)
        one = weights.load(path)
        for other in FORMS:
            path, _ = write(tmp_path / first / other, other, tokenizer=one.tokenizer)
            assert weights.open_checkpoint(path).tokenizer.ends == ends
    path, _ = write(tmp_path / "old", "hf", tokenizer=tokenizer)
    (path / "chat_template.jinja").unlink()
    for said, expected in (
        (None, None),
        (chat, chat),
        ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": chat}], chat),
        ([{"name": "tool_use", "template": "x"}], None),
    ):
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
        assert weights.open_checkpoint(path).tokenizer.ends.chat_template == expected
    for said in (7, [{"name": "default", "template": ["x"]}]):
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
        with pytest.raises(ValueError, match="chat_template must be a text, got"):
            weights.open_checkpoint(path)
    (path / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(ValueError, match="surrogates not allowed"):
        weights.open_checkpoint(path)
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: not UTF-8"):
        weights.open_checkpoint(path)


def pieces_json(**changes):
    """A tokenizer.json of sentencepiece's kind: bytes, letters, a few merges; and its size."""
    merges = [["▁", "t"], ["h", "e"], ["▁t", "he"]]
    tokens = ["<unk>", *(f"<0x{at:02X}>" for at in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    vocab = {token: at for at, token in enumerate([*tokens, *("".join(pair) for pair in merges)])}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>"}
    model |= {"byte_fallback": True, "fuse_unk": True} | changes.pop("model", {})
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    parts = {"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder}
    return json.dumps(parts | changes), len(vocab)


def kept_by_gguf(folder, text, size):
    """The tokenizer, and what becomes of it in a GGUF file."""
    config = dataclasses.replace(CONFIG, vocab_size=size)
    one = tokenizers.HuggingFaceTokenizer("made up", text)
    folder.mkdir(exist_ok=True)
    weights.save(folder / "m.gguf", config, numbers(config), rotary.RoPE(), one, format="gguf")
    return one, weights.open_checkpoint(folder / "m.gguf").tokenizer


METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


@pytest.mark.parametrize("scheme, prefix", [("first", True), ("always", True), ("never", False)])
def test_gguf_keeps_the_first_blank_that_transformers_5_writes_as_metaspace(
    tmp_path, scheme, prefix
):
    text, size = pieces_json(pre_tokenizer=METASPACE | {"prepend_scheme": scheme})
    one, other = kept_by_gguf(tmp_path, text, size)
    for text in ("the cat", "cat the  the", "Cat é 42"):
        assert_same(one.encode(text), other.encode(text))
        assert (one.encode(text)[0] in one.encode(" ")) == (prefix and text != "the cat")


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": METASPACE},
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
        {"model": {"merges": [["▁", "t"], ["h", "e"]]}},  # llama.cpp would make "▁the"
    ],
)
def test_tokenizers_that_llama_cpp_would_cut_otherwise_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match=r"pass tokenizer=None$"):
        kept_by_gguf(tmp_path, *pieces_json(**change))


@pytest.mark.parametrize("change", [{"normalizer": {"type": "Lowercase"}}, {"whole words": True}])
def test_byte_level_tokenizers_that_llama_cpp_would_cut_otherwise_are_refused(tmp_path, change):
    parts = json.loads(tokenizer_json())
    parts["model"]["ignore_merges"] = change.pop("whole words", False)
    with pytest.raises(ValueError, match="cuts text in a way that GGUF has no name for"):
        kept_by_gguf(tmp_path, json.dumps(parts | change), 40)


def test_gguf_has_names_for_three_ends(tmp_path):
    with pytest.raises(ValueError, match=r"GGUF has 3 tokens that end a text, not \(1, 2, 3, 4\)"):
        write(tmp_path, "gguf", stop_ids=[1, 2, 3, 4])


@pytest.mark.parametrize(
    ("config", "generation", "eos", "stops"),
    [
        ([5, 6], None, 5, (5, 6)),
        ([5, 6], {}, 5, (5, 6)),
        (6, {"eos_token_id": [5, 6]}, 6, (6, 5)),
        ([5], {"eos_token_id": [8, 9]}, 8, (8, 9)),
        (5, {"eos_token_id": 9}, 9, (9,)),
        (None, {"eos_token_id": [9, 9]}, 9, (9,)),
        (None, None, None, ()),
    ],
)
def test_a_text_ends_where_transformers_generate_ends_it(tmp_path, config, generation, eos, stops):
    """generation_config.json before config.json, one id or a list."""
    path, _ = write(tmp_path, "hf")
    raw = json.loads((path / "config.json").read_text()) | {"eos_token_id": config}
    (path / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    found = weights.open_checkpoint(path)
    assert found.special_ids.get("eos") == eos and found.stop_ids == stops


def test_whether_a_prompt_begins_with_a_token_is_read_as_each_software_does(tmp_path):
    """tokenizer_config.json before the post-processor; GGUF's key before its kind's default."""
    parts = json.loads(tokenizer_json())
    special = {"<eos>": {"id": "<eos>", "ids": [0], "tokens": ["<eos>"]}}
    begin, text = {"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A"}}
    text["Sequence"]["type_id"] = 0
    cut = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text]}
    template = json.dumps(parts | {"post_processor": cut | {"special_tokens": special}})
    path, _ = write(tmp_path, "hf", special_ids={"bos": 0})
    cases = (
        (tokenizer_json(), {}, False),
        (tokenizer_json(), {"add_bos_token": True}, True),
        (template, {}, True),
        (template, {"add_bos_token": False}, False),
    )
    for case, (written, said, expected) in enumerate(cases):
        path = path.rename(tmp_path / str(case))  # opened tokenizers are kept by path
        (path / "tokenizer.json").write_text(written)
        (path / "tokenizer_config.json").write_text(json.dumps(said))
        assert weights.open_checkpoint(path).adds_bos is expected
    (path / "tokenizer_config.json").write_text('{"add_bos_token": 1}')
    with pytest.raises(ValueError, match="add_bos_token must be true or false, got 1"):
        weights.open_checkpoint(path)
    key = "tokenizer.ggml."
    for kind, pre, said, expected in (
        ("llama", None, None, True),
        ("gpt2", "smollm", None, False),
        ("gpt2", "llama-bpe", None, True),
        ("gpt2", "smollm", True, True),
        ("llama", None, False, False),
    ):
        metadata = {key + "model": kind, key + "pre": pre, key + "add_bos_token": said}
        assert gguf_vocabulary.adds_bos(metadata, "here") is expected
    with pytest.raises(ValueError, match=r"^here: .*add_bos_token must be true or false, got 1$"):
        gguf_vocabulary.adds_bos({key + "add_bos_token": 1}, "here")


def test_a_beginning_token_is_put_first_beside_another_post_processor(tmp_path):
    """Not by tokenizer_config.json alone, whose word transformers 5 passes over."""
    cut = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    cut |= {"use_regex": True}
    for at, before in enumerate((cut, {"type": "Sequence", "processors": [cut, cut]})):
        text = json.dumps(json.loads(tokenizer_json()) | {"post_processor": before})
        tokenizer = tokenizers.HuggingFaceTokenizer("made up", text, tokenizers.Ends(0, 0, True))
        path, _ = write(tmp_path / str(at), "hf", tokenizer=tokenizer)
        (path / "tokenizer_config.json").unlink()
        assert weights.open_checkpoint(path).adds_bos


def test_what_is_in_the_way_is_not_overwritten(tmp_path):
    for form in FORMS:
        path, params = write(tmp_path, form)
        with pytest.raises(ValueError, match="already"):
            weights.save(path, CONFIG, params, rotary.RoPE(), format=form)


def test_a_tokenizer_that_lies_in_the_folder_is_not_taken_for_the_models(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer_json())
    with pytest.raises(ValueError, match=r"holds tokenizer\.json already"):
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
        weights.load("smollm2-135m")
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
