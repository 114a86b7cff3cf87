"""The model types of Hugging Face that are this package's network, and how their configs differ.

Source: the configuration and modelling files of transformers 5.24.
"""

from typing import Any

from longrope_jax.errors import unknown_name
from longrope_jax.llama import LlamaConfig
from longrope_jax.weights.files import whole

# What a config means where it leaves a key out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "phi3": {"bos_token_id": 1, "eos_token_id": 32000, "rms_norm_eps": 1e-5},
}
MODEL_TYPES = tuple(DEFAULTS)
_FULL, _SLIDING = "full_attention", "sliding_attention"


def defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with what its model type means by the keys that it leaves out.

    Raises:
        ValueError: the model type is another network.
    """
    kind = raw.get("model_type")
    if kind not in DEFAULTS:
        raise ValueError(unknown_name("model_type", str(kind), MODEL_TYPES))
    return DEFAULTS[kind] | raw


def parts(raw: dict[str, Any], where: str, layers: int) -> dict[str, Any]:
    """Returns the fields of LlamaConfig in which a family differs from a Llama.

    Args:
        raw: config.json with `defaults`.
        where: its path, for messages.
        layers: the number of layers.

    Raises:
        ValueError: a key has a value of the wrong kind, or one that is not supported.
    """
    kind = raw["model_type"]
    bias = {"qwen2": True}.get(kind, _flag(raw, "attention_bias", where))
    return {
        "attention_bias": bias,
        # Qwen2 has no bias there.
        "output_bias": bias and kind != "qwen2",
        "mlp_bias": kind == "llama" and _flag(raw, "mlp_bias", where),
        "qk_norm": kind == "qwen3",
        "windows": _windows(raw, where, layers),
    }


def _flag(raw: dict[str, Any], key: str, where: str) -> bool:
    value = raw.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"{where}: {key} must be true or false, got {value!r:.40}")
    return bool(value)


def _windows(raw: dict[str, Any], where: str, layers: int) -> tuple[int, ...]:
    """Returns how many keys each layer sees; () where no window is shorter than the context."""
    kind = raw["model_type"]
    switched = _flag(raw, "use_sliding_window", where) if kind in ("qwen2", "qwen3") else True
    if kind == "llama" or raw.get("sliding_window") is None or not switched:
        return ()
    size = whole(raw, "sliding_window", where)
    declared = raw.get("layer_types") if kind in ("qwen2", "qwen3") else None
    if declared is None:
        first = whole(raw, "max_window_layers", where) if kind in ("qwen2", "qwen3") else 0
        declared = [_FULL if at < first else _SLIDING for at in range(layers)]
    if not isinstance(declared, list) or len(declared) != layers:
        raise ValueError(f"{where}: layer_types must name {layers} layers, got {declared!r:.60}")
    for name in declared:
        if name not in (_FULL, _SLIDING):
            raise ValueError(
                f"{where}: " + unknown_name("layer type", str(name), (_FULL, _SLIDING))
            )
    sizes = tuple(size if name == _SLIDING else 0 for name in declared)
    return sizes[:1] if len(set(sizes)) == 1 else sizes


def export(config: LlamaConfig) -> dict[str, Any]:
    """Returns the keys of config.json that say what a model has beside a plain Llama.

    The model type is the one whose code in transformers has these parts.

    Raises:
        ValueError: transformers has no model type with these parts together.
    """
    c = config
    bias = {"attention_bias": c.attention_bias}
    plain_bias = c.attention_bias == c.output_bias
    if c.qk_norm and plain_bias and not c.mlp_bias:
        return {**_named("qwen3", "Qwen3"), **bias, **_layer_types(c)}
    if c.attention_bias and not (c.output_bias or c.mlp_bias or c.qk_norm):
        return {**_named("qwen2", "Qwen2"), **_layer_types(c)}
    if plain_bias and not c.qk_norm and not any(c.windows):
        return {**_named("llama", "Llama"), **bias, "mlp_bias": c.mlp_bias}
    if len(set(c.windows)) == 1 and not (c.attention_bias or c.output_bias or c.mlp_bias):
        return {**_named("mistral", "Mistral"), "sliding_window": c.windows[0]}
    raise ValueError(
        "no model of transformers has these biases, norms and windows together: save as GGUF, or "
        "without the windows"
    )


def _named(kind: str, cls: str) -> dict[str, Any]:
    return {"architectures": [f"{cls}ForCausalLM"], "model_type": kind}


def _layer_types(c: LlamaConfig) -> dict[str, Any]:
    """Returns the keys of Qwen's windows.

    Raises:
        ValueError: windows of two sizes.
    """
    if not any(c.windows):
        return {"use_sliding_window": False, "sliding_window": None}
    sizes = [c.windows[at % len(c.windows)] for at in range(c.n_layers)]
    if len(set(sizes) - {0}) > 1:
        raise ValueError(f"transformers has one window for all layers, got {sorted(set(sizes))}")
    kinds = [_SLIDING if size else _FULL for size in sizes]
    return {"use_sliding_window": True, "sliding_window": max(sizes), "layer_types": kinds}
