"""GGUF files for llama.cpp are written in F32, F16 or BF16, with norms always in F32."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from longrope_jax.weights import gguf_families, gguf_rotary, gguf_vocabulary, names, stream
from longrope_jax.weights.foreign import extended_length
from longrope_jax.weights.gguf_file import require_package

ARCHITECTURE = "general.architecture"
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
    tensors = {name: [(leaf, layer)] for name, leaf, layer in names.tensors(config, "gguf")}
    if metadata[ARCHITECTURE] == gguf_families.FUSED:
        tensors = gguf_families.joined(tensors)
    # llama.cpp wants all vectors in float32.
    kinds = {n: dtype if "," in parts[0][0].axes else "float32" for n, parts in tensors.items()}
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
    arch = gguf_families.architecture(config, spec, family)
    own = gguf_families.one_method(arch, spec)
    metadata, factors = gguf_rotary.write(own, config.head_dim, arch)
    if context_length is None:
        context_length = extended_length(spec)
    metadata |= _metadata(config, context_length) | {"general.file_type": DTYPES[dtype][1]}
    metadata |= gguf_vocabulary.write(tokenizer, config.vocab_size)
    metadata = {ARCHITECTURE: arch} | gguf_families.renamed(metadata, "llama", arch)
    return metadata | gguf_vocabulary.write_special_tokens(special), factors


def _write(path: Path, metadata, factors, tensors, kinds, config, params) -> None:
    writer = _writer(path, metadata)
    for name, values in factors.items():
        _announce(writer, name, values.shape, "float32")
    for name, parts in tensors.items():
        _announce(writer, name, names.joined_shape(config, parts), kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in factors.values():
        writer.write_tensor_data(values)
    layout = gguf_families.LAYOUTS[metadata[ARCHITECTURE]]
    for name, parts in tensors.items():
        kind = DTYPES[kinds[name]][2]
        values = np.concatenate(
            [stream.fetch(config, params, leaf, layer, kind, layout) for leaf, layer in parts]
        )
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
    writer = gguf.GGUFWriter(path, metadata[ARCHITECTURE])
    for key, value in metadata.items():
        if key == ARCHITECTURE:
            continue  # the writer has written it
        if isinstance(value, float | np.floating):
            writer.add_key_value(key, float(value), kinds.FLOAT32)
        else:
            writer.add_key_value(key, value, types[type(value)])
    return writer
