"""The model types of Hugging Face that are this package's network, and how their configs differ.

Source: the configuration and modelling files of transformers 5.24.
"""

from typing import Any

from longrope_jax.errors import unknown_name
from longrope_jax.rotary.families import FULL, SLIDING, order
from longrope_jax.weights.files import number, whole

# What a config means where it leaves a key out.
_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_OLMO = {"eos_token_id": 50279, "rms_norm_eps": 1e-5}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "phi3": {"bos_token_id": 1, "eos_token_id": 32000, "rms_norm_eps": 1e-5},
    "smollm3": {
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "olmo2": _OLMO,
    "olmo3": _OLMO | {"sliding_window": 4096},
    "gemma3_text": {
        "bos_token_id": 2,
        "eos_token_id": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
}
MODEL_TYPES = tuple(DEFAULTS)
_SWITCHED = ("qwen2", "qwen3", "smollm3")  # use_sliding_window, false where it is left out
_BY_TYPE = (*_SWITCHED, "olmo3", "gemma3_text")  # layer_types say which layers have the window
GELU = "gelu_pytorch_tanh"
# Values that mean what this package's network does; others are refused.
_EXPECTED: dict[str, dict[str, tuple]] = {
    "gemma3_text": {
        "hidden_activation": (GELU, None),
        "final_logit_softcapping": (None,),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    }
}


def defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with what its model type means by the keys that it leaves out.

    Raises:
        ValueError: the model type is another network.
    """
    kind = raw.get("model_type")
    if kind not in DEFAULTS:
        raise ValueError(unknown_name("model_type", str(kind), MODEL_TYPES))
    return DEFAULTS[kind] | raw


def expected(raw: dict[str, Any]) -> dict[str, tuple]:
    """Returns the values that keys may have; any other would give other numbers than ours."""
    return _EXPECTED.get(raw["model_type"], {"hidden_act": ("silu", "swish", None)})


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
    found = {
        "attention_bias": bias,
        # Qwen2 has no bias there.
        "output_bias": bias and kind != "qwen2",
        "mlp_bias": kind in ("llama", "smollm3") and _flag(raw, "mlp_bias", where),
        "qk_norm": kind in ("qwen3", "gemma3_text"),
        "windows": _windows(raw, where, layers),
    }
    if kind in ("olmo2", "olmo3"):
        found |= {"norms": "after", "qk_norm_joint": True}
    if kind == "gemma3_text":
        scalar = number(raw, "query_pre_attn_scalar", where)
        found |= {"norms": "both", "norm_offset": True, "activation": "gelu_tanh"}
        found |= {"embed_scale": whole(raw, "hidden_size", where) ** 0.5}
        found |= {"score_scale": 0.0 if scalar == raw["head_dim"] else scalar**-0.5}
    return found


def _flag(raw: dict[str, Any], key: str, where: str) -> bool:
    value = raw.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"{where}: {key} must be true or false, got {value!r:.40}")
    return bool(value)


def _windows(raw: dict[str, Any], where: str, layers: int) -> tuple[int, ...]:
    """Returns how many keys each layer sees; () where no window is shorter than the context."""
    kind = raw["model_type"]
    switched = _flag(raw, "use_sliding_window", where) if kind in _SWITCHED else True
    if raw.get("sliding_window") is None or not switched:
        return ()
    size = whole(raw, "sliding_window", where)
    # The layer types of these two decide the method, too.
    if kind not in ("olmo3", "gemma3_text") and size >= raw.get("max_position_embeddings", 2**31):
        return ()
    if kind in ("llama", "olmo2"):
        raise ValueError(
            f"{where}: sliding_window={size} is shorter than the context, but transformers has "
            f"no window for {kind}: another model's config?"
        )
    declared = raw.get("layer_types") if kind in _BY_TYPE else None
    declared = _default_types(raw, where, layers) if declared is None else declared
    if not isinstance(declared, list) or len(declared) != layers:
        raise ValueError(f"{where}: layer_types must name {layers} layers, got {declared!r:.60}")
    for name in declared:
        if name not in (FULL, SLIDING):
            raise ValueError(f"{where}: " + unknown_name("layer type", str(name), (FULL, SLIDING)))
    sizes = tuple(size if name == SLIDING else 0 for name in declared)
    return sizes[:1] if len(set(sizes)) == 1 else sizes


def _default_types(raw: dict[str, Any], where: str, layers: int) -> list[str]:
    """Returns the type of each layer of a family whose config does not name them."""
    kind = raw["model_type"]
    if kind == "smollm3":
        return [SLIDING if name == "no_rope" else FULL for name in order(raw)]
    if kind in ("olmo3", "gemma3_text"):
        return order(raw)
    first = whole(raw, "max_window_layers", where) if kind in ("qwen2", "qwen3") else 0
    return [FULL if at < first else SLIDING for at in range(layers)]
