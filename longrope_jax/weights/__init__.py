"""Checkpoints of Hugging Face, GGUF and Meta are read here, and the first two are written.

`longrope_jax.load` and `Model.save` are the public interface to this package.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from longrope_jax import llama
from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer
from longrope_jax.errors import unknown_name, warn
from longrope_jax.folders import fetched, whole
from longrope_jax.rotary import LAYOUTS, Method
from longrope_jax.weights import (
    gguf_export,
    gguf_file,
    huggingface,
    layout,
    meta,
    pretrained,
    stream,
)
from longrope_jax.weights.foreign import ForeignCheckpoint

__all__ = ["FORMATS", "check_save", "open_checkpoint", "read_params", "save"]

_WRITERS = {"hf": huggingface, "gguf": gguf_export}
FORMATS = tuple(_WRITERS)
_UNDECLARED = SpecialTokens()


def open_checkpoint(path: str | Path) -> ForeignCheckpoint:
    """Opens a checkpoint and reads its headers, config and tokenizer, but no tensor.

    Nothing from the checkpoint is executed.

    Args:
        path: a Hugging Face folder, a .gguf file, Meta's folder, or a name of `pretrained.MODELS`;
            what a URL names is copied into the cache, see `folders.fetched`.

    Raises:
        ValueError: there is no such checkpoint, it is damaged or of another architecture, or the
            package that reads it is missing.
    """
    if str(path) in pretrained.MODELS and not Path(path).exists():
        path = pretrained.fetch(str(path))
    path = fetched(path)
    if not os.path.exists(path):
        raise ValueError(_nothing_at(path))
    try:
        return _read(path)
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        # A file can put names of any length into a message.
        text = text if len(text) < 500 else f"{text[:400]} ..."
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def _nothing_at(path: Path) -> str:
    """Returns the message for a missing path; a hub id says how to download the model."""
    known = ", ".join(pretrained.MODELS)
    text = f"no checkpoint at {path}: expected a folder, a .gguf file or {known}"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)) and path.suffix != ".gguf":
        fetch = f"hf download {path} --local-dir {path.name}"
        text += f"; a model of the Hugging Face hub is downloaded first, `{fetch}`, then load that"
    return text


def _read(path: Path) -> ForeignCheckpoint:
    if path.is_file():
        return gguf_file.read(path)
    if (path / huggingface.CONFIG).exists():
        return huggingface.read(path)
    if (path / meta.PARAMS).exists():
        return meta.read(path)
    if (path / "adapter_config.json").exists():
        merge = "PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(OUT)"
        raise ValueError(f"{path} is a PEFT adapter without its base: merge the two first, {merge}")
    files = sorted(path.glob("*.gguf"))
    split = {re.sub(r"-\d{5}-of-", "-of-", file.name) for file in files}
    if len(files) == 1 or (len(split) == 1 and "-00001-of-" in files[0].name):
        return gguf_file.read(files[0])
    raise ValueError(
        f"{path} has no config.json (Hugging Face), no params.json (Meta) and {len(files)} GGUF "
        "files: give a folder with one of them, or the path of one .gguf file"
    )


def read_params(
    found: ForeignCheckpoint,
    *,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    rotary_layout: str = "auto",
) -> tuple[llama.LlamaConfig, dict[str, Any], tuple[str, ...]]:
    """Returns the configuration, the parameters, and notes on what was recognised.

    Tensors go to their devices in slices of rows, so that the host holds only a few slices of
    4 MiB at a time. If embeddings are tied, no separate output head is loaded.

    Args:
        found: the checkpoint, from `open_checkpoint`.
        mesh: where the parameters go; None is the default device.
        dtype: dtype of activations, `config.dtype`.
        param_dtype: dtype of the parameters, whatever dtype the file has.
        rotary_layout: "auto" is the layout of the format: "half" for Hugging Face, "interleaved"
            for GGUF and Meta. Loading warns when the weights look like the other layout; "half" or
            "interleaved" then overrules the format.

    Raises:
        ValueError: tensors are missing, damaged or of another shape, a value does not fit
            `param_dtype`, the layout is unknown, or the mesh does not divide an axis.
    """
    config = dataclasses.replace(found.config, dtype=dtype, param_dtype=param_dtype)
    notes = tuple(found.notes)
    if rotary_layout != "auto":
        if rotary_layout not in LAYOUTS:
            raise ValueError(unknown_name("rotary_layout", str(rotary_layout), ("auto", *LAYOUTS)))
        notes += (f"layout {rotary_layout}, as asked for",)
        config = dataclasses.replace(config, rotary_layout=rotary_layout)
    stream.check(config, found.source, found.form, ignored=found.ignored)
    params = stream.place(config, found.source, found.form, mesh)
    verdict, doubt = _layout_verdict(found, config, params)
    if doubt and rotary_layout == "auto":
        text = f"{found.source.where}: {verdict}: set rotary_layout of longrope_jax.load"
        warn(text)
    return config, params, (*notes, verdict)


def _layout_verdict(found: ForeignCheckpoint, config, params) -> tuple[str, bool]:
    """Returns a note on the layout, and whether the layout is in doubt.

    When the weights contradict the format, the loss of a text under both layouts decides.
    """
    verdict, doubt = layout.probe(config, params)
    if not doubt or found.tokenizer is None:
        return verdict, doubt
    losses = layout.score(config, params, found.rotary, found.tokenizer)
    listed = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    best = min(losses, key=losses.__getitem__)
    return f"{verdict}; loss of a text in nats: {listed}", best != config.rotary_layout


def save(
    path: str | Path,
    config: llama.LlamaConfig,
    params: dict,
    method: Method,
    tokenizer: Tokenizer | None = None,
    *,
    special_tokens: SpecialTokens = _UNDECLARED,
    format: str = "hf",
    dtype: str | None = None,
    context_length: int | None = None,
    family: str | None = None,
) -> None:
    """Writes a checkpoint that transformers ("hf", a folder) or llama.cpp ("gguf", a file) reads.

    It is written beside `path` and takes the name when it is complete.

    Args:
        path: a new or empty folder, or a file that does not exist.
        config: the architecture.
        params: the parameters, on the devices of one host.
        method: the rotary method to declare.
        tokenizer: the tokenizer to write into the checkpoint; None writes no tokenizer.
        special_tokens: the ids that begin and end a text, and the chat template.
        format: "hf" or "gguf".
        dtype: dtype of the tensors in the file; None is `config.param_dtype`.
        context_length: context in tokens to declare; None is the method's extended length, or 2048
            for a method without one.
        family: the model type to write, such as "phi3", if it has all parts of the model; else,
            and for None, the plainest that has.

    Raises:
        ValueError: the format lacks the method, the tokenizer or the dtype, something is at the
            path already, or the parameters lie on several hosts or do not fit the config.
    """
    if format not in _WRITERS:
        raise ValueError(unknown_name("format", str(format), FORMATS))
    dtype = config.param_dtype if dtype is None else dtype
    if dtype not in gguf_export.DTYPES:
        raise ValueError(unknown_name("dtype", str(dtype), gguf_export.DTYPES))
    if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(params)):
        raise ValueError(
            f"the parameters for {path} lie on several hosts, none of which holds all that it "
            "would write: load the run or checkpoint on a single host, and save it there"
        )
    path, writer = Path(path).expanduser(), _WRITERS[format]
    try:
        writer.check_free(path)
        told = tokenizer, dtype, context_length, special_tokens, family
        with whole(path) as part:
            writer.save(part, config, params, method, *told)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error


def check_save(
    config: llama.LlamaConfig,
    method: Method,
    tokenizer: Tokenizer | None = None,
    *,
    special_tokens: SpecialTokens = _UNDECLARED,
    format: str,
    path: str | Path | None = None,
    family: str | None = None,
) -> None:
    """Checks before a long training run that `save` will accept its result.

    Args:
        config, method, tokenizer, special_tokens, format, family: see `save`.
        path: where the checkpoint will be saved; None leaves the path unchecked.

    Raises:
        ValueError: the format lacks the method or the tokenizer, or something is at the path.
    """
    if format not in _WRITERS:
        raise ValueError(unknown_name("format", str(format), FORMATS))
    if path is not None:
        _WRITERS[format].check_free(Path(path).expanduser())
    _WRITERS[format].plan(config, method, tokenizer, "float32", None, special_tokens, family)
