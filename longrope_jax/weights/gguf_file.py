"""GGUF files, whole or split, are read in any type that the package gguf dequantises.

Which architectures, and how their queries and keys lie, see `gguf_families`.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SpecialTokens
from longrope_jax.llama import LlamaConfig
from longrope_jax.weights import gguf_families, gguf_rotary, gguf_vocabulary, names
from longrope_jax.weights.files import TensorSource, number, read_at, whole
from longrope_jax.weights.foreign import ForeignCheckpoint
from longrope_jax.weights.gguf_header import Header, block_size, read_header

_PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}


class GGUFSource:
    """A GGUFSource reads tensors of GGUF files and dequantises quantised ones to float32."""

    def __init__(self, path: Path, *headers: Header, files: Sequence[Path] = ()):
        """Takes the header of a file, or those of all `files` of a split model.

        Raises:
            ValueError: two files have a tensor of one name.
        """
        import gguf

        self.where, self._info, self._path = str(path), {}, {}
        for file, header in zip(files or [path], headers, strict=True):
            for name, info in header.tensors.items():
                if name in self._info:
                    raise ValueError(f"{file}: tensor {name[:100]!r} is in another part, too")
                self._info[name], self._path[name] = info, file
        self.shapes = {name: info.shape for name, info in self._info.items()}
        self.kinds = {
            name: gguf.GGMLQuantizationType(info.kind).name for name, info in self._info.items()
        }

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop` of a tensor.

        Raises:
            ValueError: the tensor is damaged, or of a type that the package gguf cannot read.
        """
        info = self._info[name]
        block, size = block_size(self._path[name], name, info.kind)
        columns = int(np.prod(info.shape[1:], dtype=np.int64))
        if columns % block:
            raise ValueError(f"{self.where} is damaged: {name} is quantised across its rows")
        row = columns // block * size
        data = read_at(self._path[name], info.offset + start * row, (stop - start) * row)
        if info.kind in _PLAIN:
            return np.frombuffer(data, _PLAIN[info.kind]).reshape(stop - start, *info.shape[1:])
        values = _dequantize(np.frombuffer(data, np.uint8).reshape(stop - start, row), info.kind)
        if values is None:
            raise ValueError(
                f"{self.where}: {name} is of type {self.kinds[name]}, which the package gguf "
                "cannot read: convert the file to another type"
            )
        return values.reshape(stop - start, *info.shape[1:])


def _dequantize(data: np.ndarray, kind: int) -> np.ndarray | None:
    import gguf

    try:
        with np.errstate(all="ignore"):  # `stream.cast` refuses values that are not finite
            return gguf.dequantize(data, gguf.GGMLQuantizationType(kind))
    except NotImplementedError:
        return None


def require_package(what: str | Path) -> None:
    """Checks that the package gguf is installed.

    Raises:
        ValueError: the package is missing; the message says how to install it.
    """
    if not importlib.util.find_spec("gguf"):
        raise ValueError(f"{what} needs the package gguf: pip install 'longrope_jax[weights]'")


def read(path: Path) -> ForeignCheckpoint:
    """Reads the header of a file and checks it; no tensor is read yet.

    Raises:
        ValueError: the file is damaged, a part of a split file is missing, or the architecture is
            another one.
    """
    require_package(path)
    files = _parts(path, read_header(path).metadata.get("split.count", 1))
    headers = [read_header(file) for file in files]
    where = str(path)
    arch, metadata = gguf_families.plain_metadata(headers[0].metadata, where)
    stored: TensorSource = GGUFSource(path, *headers, files=files)
    config = _config(arch, metadata, stored, where)
    source = gguf_families.split(stored, config) if arch == gguf_families.FUSED else stored
    config = dataclasses.replace(config, **gguf_families.parts(metadata, source, where))
    notes = [f"GGUF file of {arch}: queries and keys are in the {config.rotary_layout} layout"]
    if len(files) > 1:
        notes.append(f"the file has {len(files)} parts")
    if any(config.windows):
        notes.append(f"a window of {config.windows[0]} keys is applied, which llama.cpp may not do")
    if config.tie_embeddings:
        notes.append("the embeddings are tied: there is no output.weight")
    context = whole(metadata, "llama.context_length", where)
    spec = gguf_rotary.read(metadata, source, config.head_dim, context, notes)
    spec = gguf_families.by_layer(arch, spec, config.n_layers)
    return ForeignCheckpoint(
        form="gguf",
        family=arch,
        config=config,
        rotary=spec,
        source=source,
        tokenizer=_tokenizer(where, metadata, config, notes),
        context_length=context,
        special_tokens=_special_tokens(metadata, where, config.vocab_size),
        ignored=(gguf_rotary.FREQS, gguf_rotary.LONG, gguf_rotary.SHORT),
        notes=notes,
    )


def _parts(path: Path, count: Any) -> list[Path]:
    """Returns all files of a split model in order, or the file alone if it is whole.

    Raises:
        ValueError: the name does not say which part the file is, or a part is missing.
    """
    if count == 1:
        return [path]
    named = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if type(count) is not int or not 1 < count < 1000 or not named or int(named[3]) != count:
        raise ValueError(
            f"{path} is one of {count!s:.40} parts, whose names must end in -00001-of-0000N.gguf: "
            "name them so, or join them with llama-gguf-split --merge"
        )
    files = [path.with_name(f"{named[1]}-{at:05}-of-{count:05}.gguf") for at in range(1, count + 1)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{path} is one of {count} parts, but {file.name} is not beside it")
    return files


def _config(arch: str, metadata: dict, source: TensorSource, where: str) -> LlamaConfig:
    if metadata.get("llama.expert_count", 0) != 0:
        raise ValueError(f"{where}: a mixture of experts is not supported")

    def of(key: str, default: Any = ...) -> int:
        return whole(metadata, f"llama.{key}", where, default)

    heads, width = of("attention.head_count"), of("embedding_length")
    head_dim = of("attention.key_length", width // heads)
    if of("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"{where}: key_length and value_length differ, which is not supported")
    rows = source.shapes.get(names.EMBED.gguf, (None,))[0]
    return LlamaConfig(
        vocab_size=of("vocab_size", rows),
        d_model=width,
        n_layers=of("block_count"),
        n_heads=heads,
        n_kv_heads=of("attention.head_count_kv", heads),
        head_dim=head_dim,
        d_ff=of("feed_forward_length"),
        norm_eps=number(metadata, "llama.attention.layer_norm_rms_epsilon", where),
        tie_embeddings=names.UNEMBED.gguf not in source.shapes,
        rotary_layout=gguf_families.LAYOUTS[arch],
    )


def _tokenizer(where, metadata, config, notes):
    try:
        text = gguf_vocabulary.read(metadata, config.vocab_size)
    except gguf_vocabulary.UnknownTokenizer as error:
        notes.append(f"no tokenizer: {error}")
        return None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    kind = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre", "-")
    notes.append(f"tokenizer from the file: model {kind[0]}, pre {kind[1]}")
    return HuggingFaceTokenizer(f"{where} (its vocabulary)", text)


def _special_tokens(metadata, where: str, vocab_size: int) -> SpecialTokens:
    """Returns the ids that begin a text and end a text, turn or message, and the chat template."""
    found = {}
    # llama.cpp assumes these ids where a sentencepiece vocabulary declares none.
    kind = metadata.get("tokenizer.ggml.model")
    unsaid = {"bos": 1, "eos": 2} if kind == "llama" else {}
    for role in ("bos", *gguf_vocabulary.ENDS):
        value = metadata.get(f"tokenizer.ggml.{role}_token_id", unsaid.get(role))
        if value is not None:
            if type(value) is not int or not 0 <= value < vocab_size:
                raise ValueError(
                    f"{where}: {role}_token_id must lie in 0..{vocab_size - 1}, got "
                    f"{str(value)[:40]}"
                )
            found[role] = value
    stops = dict.fromkeys(found[role] for role in gguf_vocabulary.ENDS if role in found)
    return SpecialTokens(
        bos=found.get("bos"),
        eos=found.get("eos"),
        adds_bos="bos" in found and gguf_vocabulary.adds_bos(metadata, where),
        more_eos=tuple(at for at in stops if at != found.get("eos")),
        chat_template=gguf_vocabulary.chat_template(metadata, where),
    )
