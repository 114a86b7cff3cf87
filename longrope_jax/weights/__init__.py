"""Checkpoints of other software, read and written: Hugging Face, GGUF, and Meta's folders.

`longrope_jax.load` and `Model.save` are the door; this is what stands behind it.
"""

import dataclasses
import os
import re
import warnings
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from longrope_jax import llama
from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer
from longrope_jax.errors import unknown_name
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
    """Headers, config and tokenizer of a checkpoint; no tensor is read and nothing is executed.

    Args:
        path: a Hugging Face folder, a .gguf file, Meta's folder, or a name of `pretrained.MODELS`.

    Raises:
        ValueError: There is no such checkpoint, it is damaged, it is of another architecture, or a
            package is missing that reads it.
    """
    if str(path) in pretrained.MODELS and not Path(path).exists():
        path = pretrained.fetch(str(path))
    path = Path(path).expanduser()
    if not os.path.exists(path):
        raise ValueError(_nothing_at(path))
    try:
        return _read(path)
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        text = text if len(text) < 500 else f"{text[:400]} ..."  # names in it may be of any length
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def _nothing_at(path: Path) -> str:
    """The message for a path that does not exist; a hub id says how to download it."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)):
        name = path.name
        return (
            f"no checkpoint at {path}: to take it from the Hugging Face hub, run "
            f"`hf download {path} --local-dir {name}` (pip install huggingface_hub), then load "
            f"{name}"
        )
    known = ", ".join(pretrained.MODELS)
    return f"no checkpoint at {path}: expected a folder, a .gguf file or {known}"


def _read(path: Path) -> ForeignCheckpoint:
    if path.is_file():
        return gguf_file.read(path)
    if (path / huggingface.CONFIG).exists():
        return huggingface.read(path)
    if (path / meta.PARAMS).exists():
        return meta.read(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return gguf_file.read(files[0])
    raise ValueError(
        f"{path} has no config.json (Hugging Face) and no params.json (Meta), and "
        f"{len(files)} GGUF files, not one: name the file"
    )


def read_params(
    found: ForeignCheckpoint,
    *,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    rotary_layout: str = "auto",
) -> tuple[llama.LlamaConfig, dict[str, Any], tuple[str, ...]]:
    """The configuration, the parameters, and what was recognised in words.

    Tensors go to their devices in slices of rows: beside what the devices hold, the host has a few
    slices of 4 MiB. If embeddings are tied, no separate output head is loaded.

    Args:
        found: from `open_checkpoint`.
        mesh: where the parameters go; None is the default device.
        dtype: dtype of activations, `config.dtype`.
        param_dtype: dtype of the parameters, whatever the file's is.
        rotary_layout: "auto" is the format's own: "half" for Hugging Face, "interleaved" for GGUF
            and Meta. Loading warns where the weights look like the other layout; "half" or
            "interleaved" then overrules.

    Raises:
        ValueError: Tensors are missing, damaged or of another shape, a value does not fit
            `param_dtype`, or the mesh does not divide an axis.
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
        text = f"{found.source.where}: {verdict}: see rotary_layout of longrope_jax.load"
        warnings.warn(text, stacklevel=3)
    return config, params, (*notes, verdict)


def _layout_verdict(found: ForeignCheckpoint, config, params) -> tuple[str, bool]:
    """The probe's word, and where it doubts the format, the tokenizer's text decides."""
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
) -> None:
    """Writes a checkpoint that transformers ("hf", a folder) or llama.cpp ("gguf", a file) reads.

    Args:
        path: a new or empty folder, or a file that does not exist.
        config: the architecture.
        params: the parameters, on the devices of one host.
        method: the rotary method to declare.
        tokenizer: written along; None writes none.
        special_tokens: the ids that begin and end a text, and the chat template.
        format: "hf" or "gguf".
        dtype: dtype of the tensors in the file; None is `config.param_dtype`.
        context_length: tokens to declare; None is the method's extended length, else 2048.

    Raises:
        ValueError: The format lacks the method, the tokenizer or the dtype, something is at the
            path already, or the parameters do not fit the config.
    """
    if format not in _WRITERS:
        raise ValueError(unknown_name("format", str(format), FORMATS))
    dtype = config.param_dtype if dtype is None else dtype
    if dtype not in gguf_export.DTYPES:
        raise ValueError(unknown_name("dtype", str(dtype), gguf_export.DTYPES))
    path, writer = Path(path).expanduser(), _WRITERS[format]
    try:
        writer.save(path, config, params, method, tokenizer, dtype, context_length, special_tokens)
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
) -> None:
    """Finds before hours of training what `save` would refuse after them.

    Args:
        config, method, tokenizer, special_tokens, format: as in `save`.
        path: where it will be saved; None leaves that unchecked.

    Raises:
        ValueError: The format lacks the method or the tokenizer, or something is at the path.
    """
    if format not in _WRITERS:
        raise ValueError(unknown_name("format", str(format), FORMATS))
    if path is not None:
        _WRITERS[format].check_free(Path(path).expanduser())
    _WRITERS[format].plan(config, method, tokenizer, "float32", None, special_tokens)
