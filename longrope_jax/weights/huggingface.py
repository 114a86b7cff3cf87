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
from longrope_jax.data import tokenizers
from longrope_jax.data.tokenizers import SpecialTokens
from longrope_jax.errors import unknown_name
from longrope_jax.llama import LlamaConfig
from longrope_jax.weights import gguf_vocabulary, names, safetensors_file, stream
from longrope_jax.weights.files import number, read_json, read_text, whole
from longrope_jax.weights.foreign import ForeignCheckpoint, extended_length
from longrope_jax.weights.safetensors_file import SafetensorsSource

TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"  # before transformers 5 it was a key of TOKENIZER_CONFIG
CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
SHARD_BYTES = 5 * 10**9
MODEL_TYPES = ("llama", "mistral")  # Mistral with a null sliding_window is the same network
_TOKENIZERS = tokenizers.SentencePieceTokenizer | tokenizers.HuggingFaceTokenizer
_IGNORED = ("rotary_emb.inv_freq",)  # the first conversions of Llama store what the config implies


def read(path: Path) -> ForeignCheckpoint:
    """Reads the config, headers and tokenizer of a folder and checks them; no tensor is read yet.

    Raises:
        ValueError: a file is missing or damaged, or the architecture is not supported.
    """
    where = str(path / CONFIG)
    raw = _defaults(read_json(path / CONFIG), where)
    source = SafetensorsSource(str(path), _files(path))
    config, notes = _config(raw, source, where)
    spec = _rotary(raw, config.head_dim, where)
    ignored = sum(name.endswith(_IGNORED) for name in source.shapes)
    if ignored:
        notes.append(f"{ignored} tensors rotary_emb.inv_freq are ignored: the config implies them")
    tokenizer = _tokenizer(path, notes)
    bos, stops = _special_ids(path, raw, config.vocab_size)
    return ForeignCheckpoint(
        form="hf",
        config=config,
        rotary=spec,
        source=source,
        tokenizer=tokenizer,
        context_length=whole(raw, "max_position_embeddings", where, None),
        special_tokens=SpecialTokens(
            bos=bos,
            eos=stops[0] if stops else None,
            adds_bos=_adds_bos(path, tokenizer, bos),
            more_eos=stops[1:],
            chat_template=_chat_template(path, notes),
        ),
        ignored=(*_IGNORED, names.UNEMBED.hf) if config.tie_embeddings else _IGNORED,
        notes=notes,
    )


def _defaults(raw: dict, where: str) -> dict:
    """Returns the config with the defaults of transformers' classes for keys that are left out.

    Raises:
        ValueError: the default would be a sliding window, which is not supported.
    """
    raw = {"bos_token_id": 1, "eos_token_id": 2} | raw
    if raw.get("model_type") == "mistral" and "sliding_window" not in raw:
        raise ValueError(
            f"{where} has no sliding_window, which means 4096 in transformers' Mistral and is not "
            "supported: write null if the model has none"
        )
    return {"num_key_value_heads": 8} | raw if raw.get("model_type") == "mistral" else raw


def _rotary(raw: dict, head_dim: int, where: str) -> rotary.Method:
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key), dict | None):
            raise ValueError(f"{where}: {key} must be an object, got {str(raw[key])[:60]!r}")
    try:
        spec = rotary.from_hf(raw)
        spec.frequencies(head_dim=head_dim, seq_len=1)  # refuses lists of another length
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{where}: rotary parameters: {error}") from error
    if isinstance(spec, rotary.PartialRotary):
        raise ValueError(
            f"{where}: partial_rotary_factor is {spec.fraction}, but model_type llama turns whole "
            "heads: remove the key, or is this another architecture?"
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
    for name in sorted(listed.keys() ^ source.shapes.keys()):
        there, where = ("the index", "no file") if name in listed else ("a file", "not the index")
        raise ValueError(f"{path}: tensor {name[:100]!r} is in {there}, but in {where}")


def _config(raw: dict, source, where: str) -> tuple[LlamaConfig, list[str]]:
    if raw.get("model_type") not in MODEL_TYPES:
        raise ValueError(unknown_name("model_type", str(raw.get("model_type")), MODEL_TYPES))
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
    )
    notes = ["Hugging Face folder: queries and keys are in the half layout"]
    if raw.get("auto_map"):
        notes.append("config.json names Python code (auto_map), which is never run")
    if tied and names.UNEMBED.hf in source.shapes:
        _same_head(source, where)
        notes.append("the embeddings are tied: lm_head.weight is present and equal to them")
    return config, notes


def _refuse(raw: dict, where: str) -> None:
    """Refuses options that would give other numbers than this package's model computes.

    Raises:
        ValueError: the config has such an option.
    """
    expected = {
        "hidden_act": ("silu", "swish", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "sliding_window": (None,),
        "quantization_config": (None,),
    }
    for key, known in expected.items():
        if raw.get(key) not in known:
            value = str(raw[key])[:60]
            raise ValueError(f"{where}: {key}={value} is not supported, only {known[0]!r} is")


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


def _tokenizer(path: Path, notes: list[str]):
    for name, load in (
        ("tokenizer.json", tokenizers.HuggingFaceTokenizer),
        ("tokenizer.model", tokenizers.SentencePieceTokenizer),
    ):
        if (path / name).is_file():
            notes.append(f"tokenizer from {name}")
            return load(str(path / name))
    notes.append("no tokenizer in the folder")
    return None


def _special_ids(path: Path, raw: dict, size: int) -> tuple[int | None, tuple[int, ...]]:
    """Returns the id that begins a text and the ids at which transformers stops, "eos" first.

    transformers' generate stops at the ids of generation_config.json, or if there are none at those
    of config.json.

    Raises:
        ValueError: an id lies outside the vocabulary of `size` tokens.
    """
    bos, declared = (_ids(raw, f"{role}_token_id", path / CONFIG, size) for role in ("bos", "eos"))
    file = path / GENERATION
    stops = _ids(read_json(file), "eos_token_id", file, size) if file.is_file() else []
    stops = stops or declared
    eos = ([at for at in declared if at in stops] or stops)[:1]
    return bos[0] if bos else None, tuple(dict.fromkeys(eos + stops))


def _ids(raw: dict, key: str, where: Path, vocab_size: int) -> list[int]:
    """Returns the token ids under `key`, which may hold none, one, or a list of them.

    Raises:
        ValueError: an id lies outside the vocabulary.
    """
    value = raw.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if value == [] or not all(type(at) is int and 0 <= at < vocab_size for at in ids):
        raise ValueError(f"{where}: {key} must be ids below {vocab_size}, got {value!r:.60}")
    return ids


def _adds_bos(path: Path, tokenizer, first: int | None) -> bool:
    """Says whether transformers begins a text with the id `first`.

    tokenizer_config.json decides, or where it is silent the tokenizer itself.

    Raises:
        ValueError: add_bos_token is not a bool.
    """
    if tokenizer is None or first is None:
        return False
    file = path / TOKENIZER_CONFIG
    declared = read_json(file).get("add_bos_token") if file.is_file() else None
    if not isinstance(declared, bool | None):
        raise ValueError(f"{file}: add_bos_token must be true or false, got {declared!r:.40}")
    return tokenizer.begins_with(first) if declared is None else declared


def _chat_template(path: Path, notes: list[str]) -> str | None:
    """Returns the Jinja text that writes a conversation; among several, the one named "default".

    Raises:
        ValueError: the template is not a text.
    """
    if (path / CHAT_TEMPLATE).is_file():
        return read_text(path / CHAT_TEMPLATE)
    file = path / TOKENIZER_CONFIG
    declared = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(declared, list):
        named = [each for each in declared if isinstance(each, dict) and "template" in each]
        notes.append(f"the default one of {len(declared)} chat templates is kept, if there is one")
        declared = next((each["template"] for each in named if each.get("name") == "default"), None)
    if not isinstance(declared, str | None):
        raise ValueError(f"{file}: chat_template must be a text, got {declared!r:.40}")
    (declared or "").encode()  # a lone surrogate is refused here, not by an export after training
    return declared


# Writing


def save(path: Path, config, params, spec, tokenizer, dtype, context_length, special) -> None:
    """Writes a Hugging Face folder.

    Raises:
        ValueError: the folder is in use, or transformers' Llama lacks the method or the tokenizer.
    """
    raw = plan(config, spec, tokenizer, dtype, context_length, special)
    check_free(path)
    path.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        _save_tokenizer(path, tokenizer, special)
    dtype = jnp.dtype(dtype)
    tensors = {name: (leaf, layer) for name, leaf, layer in names.tensors(config, "hf")}
    files = _shards(tensors, config, dtype)
    for file, wanted in files.items():
        shapes = {name: (names.file_shape(config, tensors[name][0]), dtype) for name in wanted}
        safetensors_file.write(
            path / file,
            shapes,
            lambda name: stream.fetch(config, params, *tensors[name], dtype, "half"),
        )
    if len(files) > 1:
        total = sum(math.prod(names.file_shape(config, leaf)) for leaf, _ in tensors.values())
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


def plan(config, spec, tokenizer, dtype, context_length, special) -> dict[str, Any]:
    """Returns the content of config.json, once everything is known to fit the format.

    Raises:
        ValueError: transformers' Llama lacks the method, or the format the tokenizer.
    """
    if not isinstance(tokenizer, _TOKENIZERS | None):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has no Hugging Face form: pass tokenizer=None"
        )
    if isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
        tokenizer.check_plain()
    return export_config(config, spec, dtype, context_length, special)


def export_config(config, spec, dtype, context_length, special: SpecialTokens) -> dict[str, Any]:
    """Returns the content of config.json for transformers 5.

    Raises:
        ValueError: transformers' Llama lacks the rotary method.
    """
    if isinstance(spec, rotary.PartialRotary):
        raise ValueError(
            f"transformers' Llama turns whole heads, so it cannot hold {rotary.name_of(spec)}: "
            "save with another method"
        )
    parameters = rotary.to_hf(spec, head_dim=config.head_dim)
    if isinstance(spec, rotary.DynamicNTK):
        context_length = spec.original_length  # transformers reads the original length there
    elif context_length is None:
        context_length = extended_length(spec)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": context_length,
        "rope_parameters": parameters,
        "dtype": str(jnp.dtype(dtype)),
        "bos_token_id": special.bos,
        "eos_token_id": list(special.stops) if special.more_eos else special.eos,
    }


def _shards(plan, config, dtype) -> dict[str, list[str]]:
    """Returns the tensor names of each file, up to SHARD_BYTES unless one tensor is larger."""
    groups, size = [[]], 0
    for name, (leaf, _) in plan.items():
        count = math.prod(names.file_shape(config, leaf)) * dtype.itemsize
        if groups[-1] and size + count > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += count
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    of = len(groups)
    return {f"model-{i:05}-of-{of:05}.safetensors": g for i, g in enumerate(groups, start=1)}


def _save_tokenizer(path: Path, tokenizer, special: SpecialTokens) -> None:
    if isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
        (path / "tokenizer.model").write_bytes(Path(tokenizer.path).read_bytes())
        # transformers' LlamaTokenizer, built from the .model, drops a blank before a blank, so the
        # folder gets a tokenizer.json of its own.
        size = tokenizer.vocab_size
        text = gguf_vocabulary.read(gguf_vocabulary.write(tokenizer, size), size)
        tokenizer = tokenizers.HuggingFaceTokenizer(tokenizer.path, text)
    (path / "tokenizer.json").write_text(_tokenizer_json(tokenizer, special), encoding="utf-8")
    raw = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if special.adds_bos is not None:
        raw["add_bos_token"] = special.adds_bos
    if special.chat_template is not None:
        (path / CHAT_TEMPLATE).write_text(special.chat_template, encoding="utf-8")
    named = {tokenizer.special(name): name for name in tokenizer.specials}
    raw |= {f"{role}_token": named[at] for role, at in special.ids().items() if at in named}
    _write_json(path / TOKENIZER_CONFIG, raw)


def _tokenizer_json(tokenizer: tokenizers.HuggingFaceTokenizer, declared: SpecialTokens) -> str:
    """Returns the text of a tokenizer.json that begins a text with `bos` where that is declared."""
    first, parts = declared.bos, json.loads(tokenizer.text())
    names = {tokenizer.special(name): name for name in tokenizer.specials}
    if not declared.adds_bos or first not in names or tokenizer.begins_with(first):
        return tokenizer.text()
    special = {"id": names[first], "ids": [first], "tokens": [names[first]]}
    begin, text, more = (
        {"SpecialToken": {"id": names[first], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, more],
        "special_tokens": {names[first]: special},
    }
    before = parts.get("post_processor")
    both = {"type": "Sequence", "processors": [before, template]}
    parts["post_processor"] = both if before else template
    return json.dumps(parts, ensure_ascii=False)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
