"""A model is written under the model type of transformers that has all its parts."""

from collections.abc import Callable, Sequence
from typing import Any

from longrope_jax import rotary
from longrope_jax.llama import LlamaConfig
from longrope_jax.rotary import ByLayer, Method, NoPE
from longrope_jax.rotary.families import FULL, SLIDING
from longrope_jax.weights.families import GELU

_CLASSES = {"gemma3_text": "Gemma3", "smollm3": "SmolLM3"}
# What a plain Llama has; `_OWN` says which of it a family has otherwise.
_PLAIN = {"attention_bias", "output_bias", "mlp_bias", "qk_norm", "qk_norm_joint", "norm_offset"}


def model_type(config: LlamaConfig, method: Method, family: str | None = None) -> str:
    """Returns the model type to write: `family`, if it has the model's parts, else one that has.

    Raises:
        ValueError: transformers has no model type with these parts together.
    """
    fitting = [kind for kind, fits in _FITS.items() if fits(config, method)]
    if not fitting:
        raise ValueError(
            "no model of transformers has these biases, norms, windows and methods by layer "
            "together: save as GGUF, or without some of them"
        )
    return family if family in fitting else fitting[0]


def keys(kind: str, config: LlamaConfig, method: Method) -> dict[str, Any]:
    """Returns the keys of config.json that a model type has its own way with.

    Raises:
        ValueError: transformers has no type for the method, or one window for all layers alone.
    """
    c, cls = config, _CLASSES.get(kind, kind.capitalize())
    found = {"architectures": [f"{cls}ForCausalLM"], "model_type": kind, "hidden_act": "silu"}
    if kind in ("llama", "qwen3", "smollm3", "olmo2", "olmo3", "gemma3_text"):
        found["attention_bias"] = c.attention_bias
    if kind in ("llama", "smollm3"):
        found["mlp_bias"] = c.mlp_bias
    if kind in ("mistral", "phi3"):
        found["sliding_window"] = c.windows[0] if c.windows else None
    if kind in ("qwen2", "qwen3", "smollm3"):
        found |= {"use_sliding_window": any(c.windows), "sliding_window": None}
    if kind in ("olmo3", "gemma3_text") or (any(c.windows) and kind not in ("mistral", "phi3")):
        found |= _layer_types(c)
    if kind == "smollm3":
        found["no_rope_layers"] = [int(one != NoPE()) for one in _methods(c, method)]
    if kind in ("smollm3", "phi3"):
        found["pad_token_id"] = None  # its default lies beyond smaller vocabularies
    if kind == "gemma3_text":
        scalar = c.head_dim if not c.score_scale else round(c.score_scale**-2)
        found |= {"hidden_activation": GELU, "query_pre_attn_scalar": scalar}
        del found["hidden_act"]
    original = getattr(method, "original_length", None)
    if kind == "phi3" and original is not None:
        # Its class has a default of its own, which wins over the block.
        found["original_max_position_embeddings"] = int(original)
    types: Any = found.get("layer_types", ())
    return found | {"rope_parameters": _rope_parameters(kind, c, method, types)}


def _rope_parameters(
    kind: str, c: LlamaConfig, method: Method, types: Sequence[str]
) -> dict[str, Any]:
    if kind in ("olmo3", "gemma3_text"):
        own = method if isinstance(method, ByLayer) else ByLayer((0,), (method,))
        return rotary.to_hf(own, head_dim=c.head_dim, layer_types=types)
    if isinstance(method, ByLayer):
        (method,) = [one for one in method.methods if one != NoPE()]
    return rotary.to_hf(method, head_dim=c.head_dim)


def _layer_types(c: LlamaConfig) -> dict[str, Any]:
    """Returns the keys of windows by layer.

    Raises:
        ValueError: windows of two sizes.
    """
    sizes = [c.windows[at % len(c.windows)] if c.windows else 0 for at in range(c.n_layers)]
    if len(set(sizes) - {0}) > 1:
        raise ValueError(f"transformers has one window for all layers, got {sorted(set(sizes))}")
    kinds = [SLIDING if size else FULL for size in sizes]
    return {"sliding_window": max(sizes) or None, "layer_types": kinds}


def _methods(c: LlamaConfig, method: Method) -> list[Method]:
    """Returns the method of each layer."""
    if not isinstance(method, ByLayer):
        return [method] * c.n_layers
    return [method.methods[method.pattern[at % len(method.pattern)]] for at in range(c.n_layers)]


def has(c: LlamaConfig, *own: str, **others: Any) -> bool:
    """Says whether a model is a plain Llama in all but the fields `own`, with these values."""
    plain = dict.fromkeys(_PLAIN - {*own}, False)
    plain |= {"norms": "before", "activation": "silu", "embed_scale": 1.0, "score_scale": 0.0}
    return all(getattr(c, name) == value for name, value in (plain | others).items())


def _biases(c: LlamaConfig) -> bool:
    return c.attention_bias == c.output_bias


def _one(method: Method) -> bool:
    return not isinstance(method, ByLayer)


def _smollm3(c: LlamaConfig, method: Method) -> bool:
    turning = {one for one in _methods(c, method) if one != NoPE()}
    biases = ("attention_bias", "output_bias", "mlp_bias")
    return _biases(c) and len(turning) == 1 and has(c, *biases)


def _gemma3(c: LlamaConfig, method: Method) -> bool:
    shape = {"qk_norm": True, "norm_offset": True, "norms": "both", "activation": "gelu_tanh"}
    shape |= {"embed_scale": c.d_model**0.5, "score_scale": c.score_scale}
    return _biases(c) and has(c, "attention_bias", "output_bias", **shape)


def _olmo(c: LlamaConfig, method: Method) -> bool:
    shape = {"qk_norm_joint": True, "norms": "after"}
    return _biases(c) and has(c, "attention_bias", "output_bias", **shape)


_FITS: dict[str, Callable[[LlamaConfig, Method], bool]] = {
    "llama": lambda c, m: (
        _one(m)
        and _biases(c)
        and not any(c.windows)
        and has(c, "attention_bias", "output_bias", "mlp_bias")
    ),
    "mistral": lambda c, m: _one(m) and len(set(c.windows)) < 2 and has(c),
    "qwen3": lambda c, m: (
        _one(m) and _biases(c) and has(c, "attention_bias", "output_bias", qk_norm=True)
    ),
    "qwen2": lambda c, m: _one(m) and has(c, attention_bias=True),
    "smollm3": _smollm3,
    "olmo2": lambda c, m: _one(m) and not any(c.windows) and _olmo(c, m),
    "olmo3": _olmo,
    "gemma3_text": _gemma3,
    "phi3": lambda c, m: _one(m) and len(set(c.windows)) < 2 and has(c),
}
