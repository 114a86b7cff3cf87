"""Weights in 8-bit floats are read as their values times the scales of their blocks."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import CONFIG, numbers

import longrope_jax
from longrope_jax import rotary, weights
from longrope_jax.weights import safetensors_file

F8 = np.dtype(ml_dtypes.float8_e4m3fn)


def quantised(folder, block):
    """A folder whose matrices of layers have 8 bits, and the numbers that they stand for."""
    weights.save(folder, CONFIG, numbers(CONFIG), rotary.RoPE())
    file = folder / "model.safetensors"
    source, tensors, meant = safetensors_file.SafetensorsSource(str(file), [file]), {}, {}
    rng = np.random.default_rng(0)
    for name, shape in source.shapes.items():
        values = source.rows(name, 0, shape[0])
        if len(shape) == 2 and ".layers." in name:
            size = block or shape
            grid = [-(-n // b) for n, b in zip(shape, size, strict=True)]
            scales = rng.uniform(0.01, 0.02, grid).astype(np.float32)
            eight = (rng.normal(size=shape) * 8).astype(F8)
            spread = np.kron(scales, np.ones(size, np.float32))[: shape[0], : shape[1]]
            meant[name] = eight.astype(np.float32) * spread
            tensors[name] = eight
            tensors[f"{name}_scale_inv"] = scales if block else scales.reshape(1)
        else:
            meant[name] = tensors[name] = values
    shapes = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    safetensors_file.write(file, shapes, tensors.__getitem__)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "fp8", "weight_block_size": block}
    (folder / "config.json").write_text(json.dumps(raw))
    return meant


@pytest.mark.parametrize("block", [[16, 16], [10, 20], None])
def test_a_weight_is_its_value_times_the_scale_of_its_block(tmp_path, block, monkeypatch):
    monkeypatch.setattr(weights.stream, "SLICE_VALUES", 200)  # slices that cut blocks
    meant = quantised(tmp_path / "m", block)
    model = longrope_jax.load(tmp_path / "m")
    gate = np.asarray(model.params["layers"]["mlp"]["gate"][1])
    np.testing.assert_allclose(gate.T, meant["model.layers.1.mlp.gate_proj.weight"], rtol=1e-6)
    wo = np.asarray(model.params["layers"]["attention"]["wo"][0]).reshape(32, 32)
    np.testing.assert_allclose(wo.T, meant["model.layers.0.self_attn.o_proj.weight"], rtol=1e-6)
    assert any("8-bit floats are dequantised" in note for note in model.notes)


def test_scales_of_another_shape_and_other_methods_are_refused(tmp_path):
    quantised(tmp_path / "m", [16, 16])
    config = tmp_path / "m" / "config.json"
    raw = json.loads(config.read_text())
    for change, message in (
        ({"quant_method": "fp8", "weight_block_size": [8, 8]}, r"needs scales \[4, 4\]"),
        ({"quant_method": "fp8", "weight_block_size": [16]}, "weight_block_size must be two"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq' is not supported: take the mod"),
        ({"quant_method": "awq"}, "quant_method 'awq' is not supported: .*a GGUF file of it"),
    ):
        config.write_text(json.dumps(raw | {"quantization_config": change}))
        with pytest.raises(ValueError, match=message):
            longrope_jax.load(tmp_path / "m")
