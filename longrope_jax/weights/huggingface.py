"""Hugging Face folders are read and written: config.json, safetensors and tokenizer files.

The safetensors are one file, or several with an index.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from longrope_jax import rotary
from longrope_jax.data.tokenizers import SpecialTokens
from longrope_jax.llama import LlamaConfig
from longrope_jax.weights import (
    export_families,
    families,
    fp8,
    fused,
    hf_tokenizer,
    names,
    safetensors_file,
    stream,
)
from longrope_jax.weights.files import TensorSource, number, read_json, whole
from longrope_jax.weights.foreign import ForeignCheckpoint, extended_length
from longrope_jax.weights.safetensors_file import SafetensorsSource

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
SHARD_BYTES = 5 * 10**9
# The first conversions of Llama store what the config implies.
_IGNORED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_IGNORED += (fp8.ACTIVATIONS,)


def read(path: Path) -> ForeignCheckpoint:
    """Reads the config, headers and tokenizer of a folder and checks them; no tensor is read yet.

    Raises:
        ValueError: a file is missing or damaged, or the architecture is not supported.
    """
    where = str(path / CONFIG)
    raw = families.defaults(read_json(path / CONFIG))
    stored = SafetensorsSource(str(path), _files(path))
    config, notes = _config(raw, stored, where)
    source: TensorSource = _dequantised(raw, stored, where, notes)
    source = fused.split(source, config) if raw["model_type"] == "phi3" else source
    spec = _rotary(raw, config.head_dim, where)
    ignored = sum("rotary_emb." in name for name in source.shapes)
    if ignored:
        notes.append(f"{ignored} tensors rotary_emb.* are ignored: the config implies them")
    tokenizer = hf_tokenizer.read(path, notes)
    special = hf_tokenizer.special_tokens(path, raw, tokenizer, config.vocab_size, notes)
    return ForeignCheckpoint(
        form="hf",
        family=raw["model_type"],
        config=config,
        rotary=spec,
        source=source,
        tokenizer=tokenizer,
        context_length=whole(raw, "max_position_embeddings", where, None),
        special_tokens=special,
        ignored=(*_IGNORED, *([names.UNEMBED.hf] if config.tie_embeddings else [])),
        notes=notes,
    )


def _rotary(raw: dict, head_dim: int, where: str) -> rotary.Method:
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key), dict | None):
            raise ValueError(f"{where}: {key} must be an object, got {str(raw[key])[:60]!r}")
    try:
        spec = rotary.from_hf(raw)
        # This refuses lists of another length.
        rotary.frequencies_of(spec, head_dim=head_dim, seq_len=1)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{where}: rotary parameters: {error}") from error
    for one in rotary.distinct(spec):
        if isinstance(one, rotary.PartialRotary):
            raise ValueError(
                f"{where}: partial_rotary_factor is {one.fraction}, but model_type "
                f"{raw['model_type']} turns whole heads: remove the key, or is this another "
                "architecture?"
            )
    return spec


def _files(path: Path) -> list[Path]:
    if (path / SINGLE).exists() and not (path / INDEX).exists():
        return [path / SINGLE]
    if not (path / INDEX).exists():
        other = sorted(path.glob("*.bin")) + sorted(path.glob("*.pt"))
        hint = f"; {other[0].name} is a pickle: convert it to safetensors" if other else ""
        raise ValueError(f"{path} has neither {SINGLE} nor {INDEX}{hint}")
    listed = read_json(path / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{path / INDEX} has no weight_map from tensor names to files")
    for name in listed.values():
        # A name with a folder in it could point anywhere on this machine.
        plain = isinstance(name, str) and name.endswith(".safetensors") and name[0] != "."
        if not plain or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(
                f"{path / INDEX}: expected the name of a .safetensors file in the folder, got "
                f"{str(name)[:80]!r}"
            )
    if (path / SINGLE).exists() and SINGLE not in listed.values():
        return [path / SINGLE]  # transformers, too, takes such an index to be a leftover
    files = [path / name for name in sorted(set(listed.values()))]
    _compare(path, listed, SafetensorsSource(str(path), files))
    return files


def _compare(path: Path, listed: dict, source: SafetensorsSource) -> None:
    spare = (*_IGNORED, names.UNEMBED.hf)  # an index of before the head was tied, or of older code
    for name in sorted(listed.keys() ^ source.shapes.keys()):
        if name.endswith(spare):
            continue
        there, where = ("the index", "no file") if name in listed else ("a file", "not the index")
        raise ValueError(f"{path}: tensor {name[:100]!r} is in {there}, but in {where}")


def _config(raw: dict, source, where: str) -> tuple[LlamaConfig, list[str]]:
    _refuse(raw, where)
    heads, width = whole(raw, "num_attention_heads", where), whole(raw, "hidden_size", where)
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ValueError(f"{where}: tie_word_embeddings must be true or false, got {tied!r}")
    config = LlamaConfig(
        vocab_size=whole(raw, "vocab_size", where),
        d_model=width,
        n_layers=whole(raw, "num_hidden_layers", where),
        n_heads=heads,
        n_kv_heads=whole(raw, "num_key_value_heads", where, heads),
        head_dim=whole(raw, "head_dim", where, width // heads),
        d_ff=whole(raw, "intermediate_size", where),
        norm_eps=number(raw, "rms_norm_eps", where, 1e-6),
        tie_embeddings=tied,
        rotary_layout="half",
        **families.parts(raw, where, whole(raw, "num_hidden_layers", where)),
    )
    notes = ["Hugging Face folder: queries and keys are in the half layout"]
    longest = raw.get("max_position_embeddings") or math.inf
    if not config.windows and (raw.get("sliding_window") or 0) >= longest:
        notes.append(f"sliding_window={raw['sliding_window']} cuts nothing within the context")
    if raw.get("auto_map"):
        notes.append("config.json names Python code (auto_map), which is never run")
    if tied and names.EMBED.hf not in source.shapes and names.UNEMBED.hf in source.shapes:
        source.rename(names.UNEMBED.hf, names.EMBED.hf)
        notes.append("the embeddings are tied and stored as lm_head.weight alone")
    if tied and names.UNEMBED.hf in source.shapes:
        _same_head(source, where)
        notes.append("the embeddings are tied: lm_head.weight is present and equal to them")
    return config, notes


def _refuse(raw: dict, where: str) -> None:
    """Refuses options that would give other numbers than this package's model computes.

    Raises:
        ValueError: the config has such an option.
    """
    for key, known in families.expected(raw).items():
        if raw.get(key) not in known:
            value = str(raw[key])[:60]
            raise ValueError(f"{where}: {key}={value} is not supported, only {known[0]!r} is")


def _dequantised(raw: dict, source: TensorSource, where: str, notes: list[str]) -> TensorSource:
    """Returns a source of floats, of weights in 8 bits too.

    Raises:
        ValueError: the weights are quantised in another way; the message says what to do.
    """
    quantised = raw.get("quantization_config")
    if quantised is None:
        return source
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method not in fp8.METHODS:
        python = f"AutoModelForCausalLM.from_pretrained({str(Path(where).parent)[-80:]!r})"
        hint = f"{python}.dequantize().save_pretrained(OUT) where transformers can (bitsandbytes), "
        raise ValueError(
            f"{where}: quantization_config with quant_method {method!r:.40} is not supported: take "
            f"the model that it was made from, a GGUF file of it, or {hint}then load OUT"
        )
    block = quantised.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    ):
        raise ValueError(
            f"{where}: weight_block_size must be two numbers above 0, got {block!r:.40}"
        )
    notes.append("weights in 8-bit floats are dequantised; activations are not quantised here")
    return fp8.ScaledSource(source, None if block is None else tuple(block))


def _same_head(source, where: str) -> None:
    """Checks that the output head of a tied model equals its embedding.

    Raises:
        ValueError: the two differ.
    """
    one, other = names.EMBED.hf, names.UNEMBED.hf
    shape = source.shapes[other]
    if source.shapes.get(one) != shape or len(shape) != 2:
        raise ValueError(f"{where}: tie_word_embeddings is true, but {other} has another shape")
    step = max(1, stream.SLICE_VALUES // max(shape[1], 1))
    for at in range(0, shape[0], step):
        rows = at, min(at + step, shape[0])
        if not np.array_equal(source.rows(one, *rows), source.rows(other, *rows)):
            raise ValueError(
                f"{where}: tie_word_embeddings is true, but {other} differs from {one}: "
                "remove the tensor or set tie_word_embeddings to false"
            )


# Writing


def save(
    path: Path, config, params, spec, tokenizer, dtype, context_length, special, family=None
) -> None:
    """Writes a Hugging Face folder.

    Raises:
        ValueError: the folder is in use, or transformers' Llama lacks the method or the tokenizer.
    """
    raw = plan(config, spec, tokenizer, dtype, context_length, special, family)
    check_free(path)
    path.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        hf_tokenizer.save(path, tokenizer, special)
    dtype = jnp.dtype(dtype)
    tensors = {name: [(leaf, layer)] for name, leaf, layer in names.tensors(config, "hf")}
    tensors = fused.joined(tensors) if raw["model_type"] == "phi3" else tensors
    sizes = {name: names.joined_shape(config, parts) for name, parts in tensors.items()}
    files = _shards(sizes, dtype)
    for file, wanted in files.items():
        safetensors_file.write(
            path / file,
            {name: (sizes[name], dtype) for name in wanted},
            lambda name: np.concatenate(
                [
                    stream.fetch(config, params, leaf, layer, dtype, "half")
                    for leaf, layer in tensors[name]
                ]
            ),
        )
    if len(files) > 1:
        total = sum(math.prod(shape) for shape in sizes.values())
        listed = {name: file for file, wanted in files.items() for name in wanted}
        index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": listed}
        _write_json(path / INDEX, index)
    _write_json(path / CONFIG, raw)  # last, because a folder without it counts as incomplete


def check_free(path: Path) -> None:
    """Checks that the folder is new or empty, because files of another model would be read, too.

    Raises:
        ValueError: the path is a file, or the folder holds something.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: delete it first, or save into another folder")
    if old := sorted(path.iterdir()) if path.is_dir() else []:
        raise ValueError(
            f"{path} already holds {old[0].name}: delete the folder first, or save into another"
        )


def plan(config, spec, tokenizer, dtype, context_length, special, family=None) -> dict[str, Any]:
    """Returns the content of config.json, once everything is known to fit the format.

    Raises:
        ValueError: transformers lacks the method or the architecture, or the format the tokenizer.
    """
    hf_tokenizer.check(tokenizer, special)
    return export_config(config, spec, dtype, context_length, special, family)


def export_config(
    config, spec, dtype, context_length, special: SpecialTokens, family: str | None = None
) -> dict[str, Any]:
    """Returns the content of config.json for transformers 5.

    Raises:
        ValueError: transformers lacks the rotary method or the architecture.
    """
    if any(isinstance(one, rotary.PartialRotary) for one in rotary.distinct(spec)):
        raise ValueError(
            f"transformers' Llama turns whole heads, so it cannot hold {rotary.name_of(spec)}: "
            "save with another method"
        )
    kind = export_families.model_type(config, spec, family)
    if isinstance(spec, rotary.DynamicNTK):
        context_length = spec.original_length  # transformers reads the original length there
    elif context_length is None:
        context_length = extended_length(spec)
    return {
        **export_families.keys(kind, config, spec),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": context_length,
        "dtype": str(jnp.dtype(dtype)),
        "bos_token_id": special.bos,
        "eos_token_id": list(special.stops) if special.more_eos else special.eos,
    }


def _shards(sizes: dict[str, tuple[int, ...]], dtype) -> dict[str, list[str]]:
    """Returns the tensor names of each file, up to SHARD_BYTES unless one tensor is larger."""
    groups, size = [[]], 0
    for name, shape in sizes.items():
        count = math.prod(shape) * dtype.itemsize
        if groups[-1] and size + count > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += count
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    of = len(groups)
    return {f"model-{i:05}-of-{of:05}.safetensors": g for i, g in enumerate(groups, start=1)}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
