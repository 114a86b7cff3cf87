"""The model that training continues from: a checkpoint of any format, our own, or a random one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from longrope_jax import llama, rotary
from longrope_jax import model as model_lib
from longrope_jax.data import tokenizers
from longrope_jax.errors import unknown_name
from longrope_jax.training import checkpoints, step

RANDOM = "random"
_RANDOM_MODEL = llama.LlamaConfig(
    vocab_size=260, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32
)


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """Shape, parameters, method and tokenizer; what was recognised in words, ids to export."""

    model: llama.LlamaConfig
    params: Any
    method: rotary.Method
    tokenizer: tokenizers.Tokenizer
    notes: tuple[str, ...] = ()
    special_tokens: tokenizers.SpecialTokens = dataclasses.field(
        default_factory=tokenizers.SpecialTokens
    )


def load(config: ConfigDict, mesh: Mesh) -> Base:
    """What `config.model` names: "random", a folder of our own checkpoints, or what weights reads.

    Our own checkpoints hold parameters alone, so `config.shape` (or its preset), `tokenizer` and
    `base_method` must say the rest.

    Raises:
        ValueError: nothing named, something missing, or a checkpoint that cannot be read.
    """
    if not config.model:
        raise ValueError("this preset needs your checkpoint: --config.model=PATH")
    if config.model == RANDOM:
        base = _random_model(config)
    elif config.shape.preset or config.shape.d_model:
        base = _own(config, mesh)
    else:
        base = _external(config, mesh)
    given = {"dtype": config.dtype, "param_dtype": config.param_dtype, "remat": config.remat}
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **given))


def method(text: str, base: Base, trained_length: int) -> rotary.Method:
    """Reads a method, e.g. "yarn:factor=4,base={base},original_length={trained}".

    Args:
        text: as rotary.parse reads it, "" for the checkpoint's own; `{base}` is the checkpoint's
            base, `{trained}` its trained length.

    Raises:
        ValueError: unknown placeholder, method or option, or a checkpoint without a base.
    """
    if not text:
        return base.method
    values = {"trained": trained_length}
    if hasattr(base.method, "base"):
        values["base"] = repr(base.method.base)
    try:
        return rotary.parse(text.format(**values))
    except KeyError as error:
        raise ValueError(unknown_name("placeholder", str(error).strip("'"), values)) from error


def beginning(config: ConfigDict, base: Base) -> str:
    """Name of the token that begins every document: `config.bos`, or "" for the checkpoint's.

    Raises:
        ValueError: "", and a checkpoint whose own software begins no text with a token.
    """
    tokenizer = base.tokenizer
    if config.bos:
        tokenizer.special(config.bos)
        return config.bos
    special = base.special_tokens
    named = [name for name in tokenizer.specials if tokenizer.special(name) == special.bos]
    if not (special.adds_bos and named):
        raise ValueError(
            f"{config.model} begins no text with a token of its own: name one, e.g. "
            f"--config.bos={next(iter(tokenizer.specials), 'TOKEN')!r}"
        )
    return named[0]


def _random_model(config: ConfigDict) -> Base:
    """A random model, drawn by numpy: nothing is compiled for it."""
    rng = np.random.default_rng(config.seed)
    shapes = jax.eval_shape(lambda: llama.init_params(_RANDOM_MODEL, jax.random.key(0)))

    def draw(path, x):
        if path[-1].key == "scale":
            return jnp.ones(x.shape, x.dtype)
        return jnp.asarray(rng.normal(0.0, _RANDOM_MODEL.d_model**-0.5, x.shape), x.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return Base(_RANDOM_MODEL, params, rotary.RoPE(), tokenizers.ByteTokenizer())


def _own(config: ConfigDict, mesh: Mesh) -> Base:
    if not (config.tokenizer and config.base_method):
        raise ValueError(
            "a checkpoint of our own holds parameters alone: give --config.tokenizer and "
            "--config.base_method, e.g. rope:base=10000"
        )
    tokenizer = tokenizers.load(config.tokenizer)
    fields = {k: v for k, v in config.shape.items() if k != "preset" and v}
    if config.shape.preset:
        model = llama.preset(config.shape.preset, **fields)
    else:
        model = llama.LlamaConfig(vocab_size=tokenizer.vocab_size, **fields)
    folder = Path(config.model)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    params = checkpoints.restore_params(folder, step.abstract_params(model, mesh))
    return Base(model, params, rotary.parse(config.base_method), tokenizer)


def _external(config: ConfigDict, mesh: Mesh) -> Base:
    found = model_lib.load(
        config.model, mesh=mesh, dtype=config.dtype, param_dtype=config.param_dtype
    )
    tokenizer = tokenizers.load(config.tokenizer) if config.tokenizer else found.tokenizer
    _check_trained_length(config, found)
    if tokenizer is None:
        raise ValueError(f"{config.model} brings no tokenizer: --config.tokenizer=tokenizer.json")
    spec = rotary.parse(config.base_method) if config.base_method else found.method
    ids = tokenizers.SpecialTokens() if config.tokenizer else found.special_tokens
    return Base(found.config, found.params, spec, tokenizer, tuple(found.notes), ids)


def _check_trained_length(config: ConfigDict, found: model_lib.Model) -> None:
    """Raises ValueError where the checkpoint declares another one, its method's before its own."""
    declared = getattr(found.method, "original_length", None) or found.trained_length
    if declared is not None and declared != config.trained_length:
        raise ValueError(
            f"{config.model} declares a trained length of {declared:g} tokens, the config says "
            f"{config.trained_length}: --config.trained_length={declared:g}"
        )
