"""Meta's original folders are read: params.json and pickles consolidated.NN.pth, weights only.

Mistral's native folders are read, too: consolidated.safetensors has the same names and layout.

Model parallelism cuts tensors along the output features of wq, wk, wv, w1, w3 and the head,
along the input features of wo and w2, and the embedding along D (LLaMA, Llama 2) or V (Llama 3).
Source: llama/model.py of facebookresearch/llama, models/llama3/model.py of meta-llama/llama-models.
"""

import re
import warnings
import zipfile
from pathlib import Path

import numpy as np

from longrope_jax import rotary
from longrope_jax.data import tokenizers
from longrope_jax.errors import unknown_name
from longrope_jax.llama import LlamaConfig, swiglu_width
from longrope_jax.weights import names
from longrope_jax.weights.files import TensorSource, file_size, number, read_json, whole
from longrope_jax.weights.foreign import ForeignCheckpoint
from longrope_jax.weights.safetensors_file import SafetensorsSource

PARAMS = "params.json"
_KNOWN = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps"}
_KNOWN |= {"ffn_dim_multiplier", "rope_theta", "use_scaled_rope", "rope_scaling_factor"}
_KNOWN |= {"max_seq_len", "max_batch_size", "model_parallel_size"}
_KNOWN |= {"hidden_dim", "head_dim", "sliding_window", "max_position_embeddings"}  # Mistral
MISTRAL = "consolidated.safetensors"
_IGNORED = ("rope.freqs",)


class MetaSource:
    """A MetaSource merges the tensors of the shards, which are memory-mapped and not loaded.

    Raises:
        ValueError: a shard is damaged or holds more than tensors, or the shards do not fit.
    """

    def __init__(self, where: str, files: list[Path]):
        self.where = where
        self._shards = [_load(file) for file in files]
        first = self._shards[0]
        for file, shard in zip(files, self._shards, strict=True):
            if shard.keys() != first.keys():
                name = sorted(shard.keys() ^ first.keys())[0]
                raise ValueError(f"{file}: tensor {name[:100]!r} is not in every shard")
        self.kinds = {name: str(tensor.dtype).split(".")[-1] for name, tensor in first.items()}
        self._axis = {name: self._cut(name) for name in first}
        self.shapes = {name: self._shape(name) for name in first}

    def _cut(self, name: str) -> int | None:
        """Returns the axis along which a tensor is sharded, or None if each shard has all of it."""
        plain = re.sub(r"^layers\.\d+\.", "layers.{l}.", name)
        merge = next((leaf.merge for leaf in names.LEAVES if leaf.meta == plain), "")
        if len(self._shards) == 1 or not merge:
            return None
        if merge == "either":
            # Shards as wide as a norm have whole rows, so the embedding is cut along V.
            norm = self._shards[0].get("norm.weight")
            whole_rows = norm is not None and self._shards[0][name].shape[-1:] == norm.shape
            return 0 if whole_rows else 1
        return 0 if merge == "rows" else 1

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = [list(shard[name].shape) for shard in self._shards]
        axis, merged = self._axis[name], list(shapes[0])
        if axis is not None and axis < len(merged):
            merged[axis] = sum(shape[axis] for shape in shapes if len(shape) == len(merged))
        for shape in shapes:
            rest = [n for i, n in enumerate(shape) if i != axis]
            if rest != [n for i, n in enumerate(merged) if i != axis]:
                raise ValueError(
                    f"{self.where}: the shards of {name[:100]!r} do not fit together, their shapes "
                    f"are {shapes}"
                )
        return tuple(merged)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop` of a merged tensor.

        Raises:
            ValueError: the tensor has no plain float type.
        """
        shards = [shard[name] for shard in self._shards]
        axis = self._axis[name]
        if axis is None:
            return _numpy(shards[0][start:stop])
        if axis == 1:
            return np.concatenate([_numpy(shard[start:stop]) for shard in shards], axis=1)
        parts, at = [], 0
        for shard in shards:
            first, last = max(start - at, 0), min(stop - at, len(shard))
            if first < last:
                parts.append(_numpy(shard[first:last]))
            at += len(shard)
        return np.concatenate(parts)


def _load(file: Path) -> dict:
    """Maps the tensors of a pickle into memory.

    Raises:
        ValueError: the file is damaged, holds code or other things than tensors, or the package
            torch is missing.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        extra = "pip install 'longrope_jax[meta]'"
        raise ValueError(f"{file} is a pickle, which needs the package torch: {extra}") from error
    _check_zip(file)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zipfile and torch raise errors of many types
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{file} is damaged, or holds more than tensors: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{file}: expected a dict from names to tensors")
    for name, tensor in found.items():
        if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
            raise ValueError(f"{file}: {name[:100]!r} is not a plain tensor")
        # A stride of 0 turns a few bytes into a tensor of any size.
        if not tensor.is_contiguous() or 0 in tensor.shape:
            raise ValueError(f"{file}: {name[:100]!r} is empty or not contiguous")
    return found


def _check_zip(file: Path) -> None:
    """Checks that the file is a zip archive whose members are not compressed.

    Raises:
        ValueError: it is anything else.
    """
    size = file_size(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{file} is truncated or not a torch file: {error}") from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
            raise ValueError(
                f"{file}: {member.filename[:100]!r} is compressed, which torch never does"
            )


def _numpy(tensor) -> np.ndarray:
    import ml_dtypes
    import torch  # pyright: ignore[reportMissingImports]

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype not in (torch.float16, torch.float32, torch.float64) or tensor.is_neg():
        raise ValueError(f"a tensor has dtype {tensor.dtype}, expected a plain float type")
    return tensor.numpy()


def read(path: Path) -> ForeignCheckpoint:
    """Reads params.json, the tokenizer and the shapes of all tensors of a folder.

    Raises:
        ValueError: a file is missing or damaged, or params.json has an unknown key.
    """
    where = str(path / PARAMS)
    raw = read_json(path / PARAMS)
    for key in sorted(raw.keys() - _KNOWN):
        raise ValueError(f"{where}: " + unknown_name("key", key, _KNOWN))
    if (path / MISTRAL).is_file():
        source: TensorSource = SafetensorsSource(str(path), [path / MISTRAL])
        kind = "Mistral's native folder"
    else:
        source = MetaSource(str(path), files := _files(path))
        kind = f"Meta's folder of {len(files)} shards"
    notes = [f"{kind}: queries and keys are in the interleaved layout"]
    tokenizer = _tokenizer(path, notes)
    ids = tokenizer.special_ids if tokenizer else {}
    # Meta's generation.py begins every prompt with the beginning token.
    special = tokenizers.SpecialTokens(ids.get("bos"), ids.get("eos"), tokenizer is not None)
    return ForeignCheckpoint(
        form="meta",
        config=_config(raw, source, where),
        rotary=_rotary(raw, where, notes),
        source=source,
        tokenizer=tokenizer,
        context_length=whole(raw, "max_position_embeddings", where, None),
        special_tokens=special,
        ignored=_IGNORED,
        notes=notes,
    )


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("consolidated.*.pth"))
    expected = [path / f"consolidated.{at:02}.pth" for at in range(len(files))]
    if not files or files != expected:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"{path}: expected consolidated.00.pth, 01, ... without a gap, found {found}"
        )
    return files


def _config(raw: dict, source: TensorSource, where: str) -> LlamaConfig:
    width, heads = whole(raw, "dim", where), whole(raw, "n_heads", where)
    rows = source.shapes.get(names.EMBED.meta, (0,))[0]
    # LLaMA and Llama 2 write -1 for the size of the tokenizer, which the embedding has, too.
    vocab = rows if raw.get("vocab_size", -1) == -1 else whole(raw, "vocab_size", where)
    multiple = whole(raw, "multiple_of", where, 256)
    multiplier = number(raw, "ffn_dim_multiplier", where, 1.0)
    window = raw.get("sliding_window")
    return LlamaConfig(
        vocab_size=vocab,
        d_model=width,
        n_layers=whole(raw, "n_layers", where),
        n_heads=heads,
        n_kv_heads=whole(raw, "n_kv_heads", where, heads),
        head_dim=whole(raw, "head_dim", where, width // heads),
        d_ff=whole(
            raw,
            "hidden_dim",
            where,
            swiglu_width(width, multiple_of=multiple, multiplier=multiplier),
        ),
        windows=() if window is None else (whole(raw, "sliding_window", where),),
        norm_eps=number(raw, "norm_eps", where, 1e-5),
        tie_embeddings=names.UNEMBED.meta not in source.shapes,
        rotary_layout="interleaved",
    )


def _rotary(raw: dict, where: str, notes: list[str]):
    # mistral-inference takes 1e6 for a model without a window, those after Mistral 0.1.
    later = "hidden_dim" in raw and raw.get("sliding_window") is None
    base = number(raw, "rope_theta", where, 1e6 if later else 10_000.0)
    if "rope_theta" not in raw:
        whose = "Mistral without a window" if later else "LLaMA and Llama 2"
        notes.append(f"params.json has no rope_theta: {base:,.0f} is assumed, as in {whose}")
    scaled = raw.get("use_scaled_rope", False)
    if not isinstance(scaled, bool):
        raise ValueError(f"{where}: use_scaled_rope must be true or false, got {scaled!r:.40}")
    if not scaled:
        return rotary.RoPE(base=base)
    # The 1B and 3B of Llama 3.2, whose params.json is silent, too, were extended further.
    small = whole(raw, "dim", where) <= 3072
    factor = number(raw, "rope_scaling_factor", where, 32.0 if small else 8.0)
    if "rope_scaling_factor" not in raw:
        notes.append(
            f"use_scaled_rope has no rope_scaling_factor: {factor:g} is assumed, as in Llama "
            f"{'3.2 of this size' if small else '3.1'}"
        )
    return rotary.Llama3(factor=factor, base=base)


def _tokenizer(path: Path, notes: list[str]):
    file = path / "tokenizer.model"
    if not file.is_file():
        notes.append("the folder has no tokenizer.model")
        return None
    if file.read_bytes()[:1] != b"\n":  # sentencepiece's protobuf begins with field 1
        notes.append(
            "tokenizer.model is in tiktoken's format (Llama 3), which is not supported: use "
            "tokenizer.json"
        )
        return None
    notes.append("the tokenizer is tokenizer.model")
    return tokenizers.SentencePieceTokenizer(str(file))
