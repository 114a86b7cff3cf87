"""GGUF files for llama.cpp are written in F32, F16 or BF16, with norms always in F32."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from longrope_jax import rotary
from longrope_jax.weights import gguf_rotary, gguf_vocabulary, names, stream
from longrope_jax.weights.foreign import extended_length
from longrope_jax.weights.gguf_file import require_package

# Each dtype maps to ggml's type, its number as a file type, and numpy's dtype.
DTYPES = {
    "float32": ("F32", 0, np.dtype(np.float32)),
    "float16": ("F16", 1, np.dtype(np.float16)),
    "bfloat16": ("BF16", 32, np.dtype(ml_dtypes.bfloat16)),
}


def save(
    path: Path, config, params, spec, tokenizer, dtype, context_length, special, family=None
) -> None:
    """Writes a GGUF file.

    Raises:
        ValueError: the file exists, or GGUF cannot hold the method, the tokenizer or the values.
    """
    check_free(path)
    metadata, factors = plan(config, spec, tokenizer, dtype, context_length, special, family)
    tensors = {name: (leaf, layer) for name, leaf, layer in names.tensors(config, "gguf")}
    kinds = {n: "float32" if leaf.letters == "D" else dtype for n, (leaf, _) in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(path, metadata, factors, tensors, kinds, config, params)
    except BaseException:
        path.unlink(missing_ok=True)  # the file is incomplete
        raise


def check_free(path: Path) -> None:
    """Checks that a new file can be written.

    Raises:
        ValueError: something is at the path.
    """
    if path.exists():
        raise ValueError(f"{path} exists already: delete it first, or save to another path")


def plan(config, spec, tokenizer, dtype, context_length, special, family=None) -> tuple[dict, dict]:
    """Returns the metadata of the file and the tensors of frequency factors.

    Raises:
        ValueError: GGUF cannot hold the method, the tokenizer or the special tokens, or the package
            gguf is missing.
    """
    require_package("GGUF")
    c = config
    parts = {"biases": c.attention_bias or c.output_bias or c.mlp_bias}
    parts |= {"norms of queries and keys": c.qk_norm or c.qk_norm_joint}
    parts |= {"windows": any(c.windows), "other norms": c.norms != "before" or c.norm_offset}
    parts |= {"another activation": c.activation != "silu"}
    parts |= {"scales": c.embed_scale != 1 or c.score_scale != 0}
    parts |= {"a method per layer": isinstance(spec, rotary.ByLayer)}
    if odd := [what for what, is_so in parts.items() if is_so]:
        raise ValueError(
            f"GGUF is written here for llama.cpp's plain Llama, this one has {' and '.join(odd)}: "
            "save as Hugging Face"
        )
    metadata, factors = gguf_rotary.write(spec, config.head_dim)
    if context_length is None:
        context_length = extended_length(spec)
    metadata |= _metadata(config, context_length) | {"general.file_type": DTYPES[dtype][1]}
    metadata |= gguf_vocabulary.write(tokenizer, config.vocab_size)
    return metadata | gguf_vocabulary.write_special_tokens(special), factors


def _write(path: Path, metadata, factors, tensors, kinds, config, params) -> None:
    writer = _writer(path, metadata)
    for name, values in factors.items():
        _announce(writer, name, values.shape, "float32")
    for name, (leaf, _) in tensors.items():
        _announce(writer, name, names.file_shape(config, leaf), kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in factors.values():
        writer.write_tensor_data(values)
    for name, at in tensors.items():
        kind = DTYPES[kinds[name]][2]
        leaf, layer = at
        values = stream.fetch(config, params, leaf, layer, kind, "interleaved")
        writer.write_tensor_data(np.ascontiguousarray(values).view(np.uint8))
    writer.close()


def _metadata(config, context_length: int) -> dict[str, Any]:
    c = config
    return {
        "general.type": "model",
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": context_length,
        "llama.embedding_length": c.d_model,
        "llama.block_count": c.n_layers,
        "llama.feed_forward_length": c.d_ff,
        "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads,
        "llama.attention.key_length": c.head_dim,
        "llama.attention.value_length": c.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(c.norm_eps),
    }


def _announce(writer, name: str, shape: tuple[int, ...], dtype: str) -> None:
    import gguf

    kind, _, numpy_dtype = DTYPES[dtype]
    count = int(np.prod(shape)) * numpy_dtype.itemsize
    raw = gguf.GGMLQuantizationType[kind]
    writer.add_tensor_info(name, shape, numpy_dtype, count, raw_dtype=raw)


def _writer(path: Path, metadata: dict[str, Any]):
    import gguf

    kinds = gguf.GGUFValueType
    types = {bool: kinds.BOOL, int: kinds.UINT32, str: kinds.STRING, list: kinds.ARRAY}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, float | np.floating):
            writer.add_key_value(key, float(value), kinds.FLOAT32)
        else:
            writer.add_key_value(key, value, types[type(value)])
    return writer
