"""Damaged and hostile checkpoints: one clear line each, nothing executed, no memory taken."""

import dataclasses
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile

import numpy as np
import pytest
from checkpoints import CONFIG, numbers, write, write_meta
from fuzz_checkpoints import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

import longrope_jax
from longrope_jax import llama, weights
from longrope_jax.weights import gguf_file, gguf_header, huggingface, safetensors_file

gguf = pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one file, one with an index, and a GGUF file."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, "hf")
    write(folder, "gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "SHARD_BYTES", 9000)
        write(folder / "cut", "hf")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def refused(path, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as error:
        longrope_jax.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def edit(file, **changes):
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def edit_header(file, change):
    """Rewrites a safetensors header by `change(header)`, the data as they are."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = json.dumps(header).encode() if text is None else text
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


# config.json

CONFIGS = {
    "another architecture": ({"model_type": "gpt2"}, "unknown model_type 'gpt2'"),
    "no width": ({"hidden_size": ...}, "has no hidden_size"),
    "width as text": ({"hidden_size": "32"}, "hidden_size must be a whole number"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
    "layers without end": ({"num_hidden_layers": 2**31 - 1}, "has no tensor 'model.layers.2."),
    "vocabulary without end": ({"vocab_size": 2**31 - 1}, "embed_tokens.weight has shape"),
    "end as text": ({"eos_token_id": [2, "</s>"]}, "eos_token_id must be ids below 40"),
    "no end": ({"eos_token_id": []}, "eos_token_id must be ids below 40, got \\[\\]"),
    "biases": ({"attention_bias": True}, "has no tensor 'model.layers.0.self_attn.q_proj.bias'"),
    "window": ({"sliding_window": 40}, "sliding_window=40 is shorter than the context"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config.* is not supported"),
    "claims to be tied": ({"tie_word_embeddings": True}, "lm_head.weight differs from"),
    "rope as text": ({"rope_parameters": "yarn"}, "rope_parameters must be an object"),
    "rope of another type": ({"rope_parameters": {"rope_type": "yarm"}}, "did you mean 'yarn'"),
    "factor as text": (
        {"rope_parameters": {"rope_type": "linear", "factor": "8"}},
        "factor must be at least 1, got .8.",
    ),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "turns whole heads"),
    "factors of another head": (
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0],
                "factor": 2.0,
                "original_max_position_embeddings": 8,
            }
        },
        "1 factors",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(copy, case):
    changes, message = CONFIGS[case]
    edit(copy / "model" / "config.json", **changes)
    refused(copy / "model", message)


TEXTS = {
    "key twice": (b'{"model_type": "llama", "model_type": "gpt2"}', "'model_type' occurs twice"),
    "not an object": (b"[1]", "expected a JSON object, got list"),
    "infinity": (b'{"rms_norm_eps": Infinity}', "Infinity is not JSON"),
    "deep": (b"[" * 100_000, "recursion|JSON"),
    "not text": (b"\xff\xfe", "cannot be read as JSON"),
    "long number": (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_config(copy, case):
    text, message = TEXTS[case]
    (copy / "model" / "config.json").write_bytes(text)
    refused(copy / "model", message)


# safetensors

NAME, OTHER = "model.norm.weight", "model.layers.0.input_layernorm.weight"


def set_key(key, value, name=NAME):
    return lambda header: header[name].update({key: value})


HEADERS = {
    "offsets beyond the file": (set_key("data_offsets", [0, 2**40]), "does not fill its offsets"),
    "negative offsets": (set_key("data_offsets", [-128, 0]), "expected sizes"),
    "overlap": (lambda h: h[NAME].update(data_offsets=h[OTHER]["data_offsets"]), "starts at byte"),
    "wrong shape": (set_key("shape", [2**60]), "impossible shape"),
    "shape of another size": (set_key("shape", [31]), "does not fill its offsets"),
    "wrong dtype": (set_key("dtype", "F16"), "does not fill its offsets"),
    "unknown dtype": (set_key("dtype", "F6_E2M3"), "has dtype 'F6_E2M3'"),
    "integers": (set_key("dtype", "I32"), "has dtype I32, expected a float type"),
    "missing tensor": (lambda h: h.__setitem__("x", h.pop(NAME)), "has no tensor 'model.norm"),
    "name twice": (
        lambda h: json.dumps(h).replace(OTHER, NAME).encode(),
        "'model.norm.weight' occurs twice",
    ),
    "not JSON": (lambda h: b"{" * 1000, "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers(copy, case):
    change, message = HEADERS[case]
    edit_header(copy / "model" / "model.safetensors", change)
    refused(copy / "model", message)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0])
def test_safetensors_header_lengths(copy, length):
    file = copy / "model" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused(copy / "model", "truncated or wrong|cannot be read as JSON")


@pytest.mark.parametrize("keep", [0, 7, 100, -4])
def test_truncated_files(copy, keep):
    for name, message in (("model/model.safetensors", "model"), ("model.gguf", "model")):
        file = copy / name
        file.write_bytes(file.read_bytes()[:keep])
        refused(file.parent if "/" in name else file, message)


def test_extra_tensors_are_not_ignored(copy):
    shapes = {"model.layers.0.self_attn.q_proj.bias": ((4,), np.dtype("<f4"))}
    extra = copy / "model" / "x.safetensors"
    safetensors_file.write(extra, shapes, lambda name: np.zeros(4, np.float32))
    listed = safetensors_file.read_header(copy / "model" / "model.safetensors")
    index = dict.fromkeys(listed, "model.safetensors") | dict.fromkeys(shapes, "x.safetensors")
    (copy / "model" / huggingface.INDEX).write_text(json.dumps({"weight_map": index}))
    refused(copy / "model", "q_proj.bias' that a Llama of this config has no place for")


def test_weights_that_are_not_finite(tmp_path):
    params = numbers(CONFIG)
    params["embed"][3, 3] = 1e30
    from longrope_jax import rotary

    weights.save(tmp_path / "m", CONFIG, params, rotary.RoPE())
    assert longrope_jax.load(tmp_path / "m").params["embed"][3, 3] == np.float32(1e30)
    with pytest.raises(ValueError, match=r"embed_tokens.weight holds .* beyond float16"):
        longrope_jax.load(tmp_path / "m", param_dtype="float16")


# The index

TRICKS = ["../model/model.safetensors", "/etc/passwd", "a\0.safetensors", ".safetensors", "x.bin"]
TRICKS += ["sub/x.safetensors", "x\\..\\y.safetensors", "", 7, None, ["x.safetensors"]]


@pytest.mark.parametrize("trick", TRICKS, ids=repr)
def test_paths_in_an_index_stay_in_the_folder(copy, trick):
    folder = copy / "cut" / "model"
    index = json.loads((folder / huggingface.INDEX).read_text())["weight_map"]
    edit(folder / huggingface.INDEX, weight_map=index | {NAME: trick})
    refused(folder, "expected the name of a .safetensors file")


def test_missing_shards_and_tensors_in_two_files(copy):
    folder = copy / "cut" / "model"
    files = sorted(folder.glob("*.safetensors"))
    shutil.copy(files[0], folder / "twin.safetensors")
    index = json.loads((folder / huggingface.INDEX).read_text())["weight_map"]
    edit(folder / huggingface.INDEX, weight_map=index | {"new": "twin.safetensors"})
    refused(folder, "is in model-00001")
    edit(folder / huggingface.INDEX, weight_map=index | {"new": files[0].name})
    refused(folder, "'new' is in the index, but in no file")
    edit(folder / huggingface.INDEX, weight_map=index)
    files[1].unlink()
    refused(folder, "no such file; is the checkpoint complete")


# GGUF


def test_counts_of_a_small_gguf_file_do_not_fill_memory(tmp_path):
    """Each is under 100 bytes and claims 2^40 entries; the package's reader takes gigabytes."""
    file = tmp_path / "small.gguf"
    start = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k"
    array = key + struct.pack("<II", 9, 8)  # an array of strings
    tensor = struct.pack("<QQ", 1, 0) + key
    for rest in (
        struct.pack("<QQ", 2**40, 0),
        struct.pack("<QQ", 0, 2**40),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**40),
        struct.pack("<QQ", 0, 1) + array + struct.pack("<Q", 2**40),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 0, 2**40),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 9, 1),
        tensor + struct.pack("<I", 2**31),
        tensor + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0),
        tensor + struct.pack("<IQIQ", 1, 8, 0, 2**63),
        tensor + struct.pack("<IQIQ", 1, 8, 999, 0),
    ):
        file.write_bytes(start + rest)
        refused(file, "small.gguf")


def patched(file, old, new):
    data = file.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    file.write_bytes(data.replace(old, new, 1))


def test_gguf_tensors_that_overlap_or_lie_outside(copy):
    file = copy / "model.gguf"
    infos = gguf_header.read_header(file).tensors
    assert len({info.offset for info in infos.values()}) == len(infos) == 21
    name = struct.pack("<Q", 18) + b"output_norm.weight"
    entry = file.read_bytes().index(name) + len(name)
    where = entry + 4 + 8 + 4  # after dimensions, one size, type
    for offset, message in ((0, "overlaps"), (2**62, "truncated|overlaps|ends at"), (3, "aligned")):
        data = bytearray(file.read_bytes())
        data[where : where + 8] = struct.pack("<Q", offset)
        (copy / "bad.gguf").write_bytes(data)
        refused(copy / "bad.gguf", message)


GGUF_PATCHES = {
    "another architecture": (b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0gemma", "'gemma' is not"),
    "missing key": (b"llama.block_count", b"llama.block_xxxxx", "has no llama.block_count"),
    "name twice": (b"blk.1.ffn_up", b"blk.0.ffn_up", "'blk.0.ffn_up.weight' occurs twice"),
    "unknown tensor": (b"blk.1.ffn_up", b"blk.9.ffn_up", "has no tensor 'blk.1.ffn_up.weight'"),
    "big-endian or old": (b"GGUF\3\0\0\0", b"GGUF\0\0\0\3", "version 50331648 is not supported"),
}


@pytest.mark.parametrize("case", GGUF_PATCHES)
def test_gguf_metadata(copy, case):
    *change, message = GGUF_PATCHES[case]
    patched(copy / "model.gguf", *change)
    refused(copy / "model.gguf", message)


def test_one_part_of_a_split_gguf_says_so(copy, monkeypatch):
    header = gguf_header.read_header(copy / "model.gguf")
    header.metadata["split.count"] = 3
    monkeypatch.setattr(gguf_file, "read_header", lambda _: header)
    refused(copy / "model.gguf", "is one of 3 parts, whose names must end in -00001-of-0000N")
    (copy / "model.gguf").rename(copy / "m-00001-of-00003.gguf")
    refused(copy / "m-00001-of-00003.gguf", "m-00002-of-00003.gguf is not beside it")


def test_a_generation_config_that_cannot_be_read(copy):
    (copy / "model" / "generation_config.json").write_text("[]")
    refused(copy / "model", "generation_config.json: expected a JSON object")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_gguf_header_are_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.gguf"
    file.write_bytes(b"GGUF\3\0\0\0" + data)
    with pytest.raises(ValueError):
        longrope_jax.load(file)


# Meta's pickles


class Attack:
    """A pickle that makes a file when it is read."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_pickles_with_code_are_not_executed(tmp_path):
    torch = pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 2, "n_heads": 4}')
    file, proof = tmp_path / "consolidated.00.pth", tmp_path / "executed"
    torch.save({"norm.weight": Attack(proof)}, file)
    refused(tmp_path, "damaged, or holds more than tensors")
    file.write_bytes(pickle.dumps({"norm.weight": Attack(proof)}))
    refused(tmp_path, "not a torch file")
    assert not proof.exists()


def test_archives_that_unpack_to_more_than_they_are(tmp_path):
    torch = pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 2, "n_heads": 4}')
    file = tmp_path / "consolidated.00.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    refused(tmp_path, "is compressed")
    torch.save({"norm.weight": torch.zeros(1).expand(2**40)}, file)
    refused(tmp_path, "empty or not contiguous")


def test_dtypes_and_flags_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="LOUD SKIP: Meta's pickles need torch")
    config = dataclasses.replace(CONFIG, d_ff=llama.swiglu_width(32, multiple_of=16))
    write_meta(tmp_path, config, numbers(config))
    file = tmp_path / "consolidated.00.pth"
    tensors = torch.load(file, weights_only=True)
    norm = tensors["norm.weight"]
    torch.save(tensors | {"norm.weight": norm.requires_grad_()}, file)
    scale = longrope_jax.load(tmp_path).params["final_norm"]["scale"]
    np.testing.assert_array_equal(scale, norm.detach().numpy())
    for bad in (norm.detach().to(torch.complex64), norm.detach().to(torch.float8_e4m3fn)):
        torch.save(tensors | {"norm.weight": bad}, file)
        refused(tmp_path, "expected a plain float type")


def test_missing_shards_of_meta(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 2, "n_heads": 4}')
    refused(tmp_path, "without a gap, found none")
    (tmp_path / "consolidated.01.pth").write_bytes(b"")
    refused(tmp_path, r"without a gap, found consolidated.01.pth")


# Everything else


def has_torch():
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def test_mutations_end_in_one_line_or_a_model():
    """10,000 of them: python tests/fuzz_checkpoints.py."""
    outcomes = fuzz(160, seed=1, meta=has_torch())
    refusals = sum(count for (_, outcome), count in outcomes.items() if outcome == "refused")
    assert outcomes.total() == 160 and refusals > 80
