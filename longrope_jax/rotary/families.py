"""What the model_type of a config implies about rotary position where the config is silent.

Source: the configuration classes of transformers 5.24, each built without arguments.
"""

from typing import Any

from longrope_jax.errors import unknown_name

BASE = 10_000.0
_PLAIN = (
    "afmoe arcee aria_text axk1 bamba chameleon cohere2 cohere2_moe dbrx deepseek_v2 deepseek_v3 "
    "deepseek_v32 diffllama doge dots1 esmc eurobert exaone4 exaone_moe falcon falcon_h1 gemma "
    "gemma2 glm glm4 glm4_moe glm4_moe_lite glm4v_moe_text glm4v_text glm_moe_dsa gpt_neox "
    "gpt_neox_japanese granite granitemoe granitemoehybrid granitemoeshared hunyuan_v1_dense "
    "hunyuan_v1_moe internlm3 jais2 jetmoe llama minicpm3 ministral mistral moonshine moshi "
    "nanochat nemotron olmo olmo2 olmo_hybrid olmoe persimmon phi phi3 phi4_multimodal qwen2 "
    "qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma seed_oss "
    "stablelm starcoder2 vaultgemma youtu zamba2"
)
_BY_BASE = {
    10_000.0: _PLAIN,
    100_000.0: "helium",
    500_000.0: (
        "bitnet blt cohere csm ernie4_5 ernie4_5_moe exaone flex_olmo llama4_text "
        "mllama_text_model olmo3 qwen3_vl_moe_text qwen3_vl_text"
    ),
    1_000_000.0: (
        "emu3_text_model gemma3_text gemma3n_text lfm2 lfm2_moe minimax mixtral phimoe "
        "qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text qwen3_omni_moe_text solar_open"
    ),
    2_000_000.0: "smollm3",
    5_000_000.0: "minimax_m2",
    10_000_000.0: "longcat_flash",
}
BASES = {name: base for base, names in _BY_BASE.items() for name in names.split()}
_BY_FRACTION = {
    0.5: "bamba glm glm4 glm4_moe glm4v_moe_text nemotron persimmon phi recurrent_gemma",
    0.25: "gpt_neox qwen3_5_moe_text qwen3_5_text qwen3_next stablelm",
    0.9: "moonshine",
}
FRACTIONS = {name: share for share, names in _BY_FRACTION.items() for name in names.split()}
FULL, SLIDING = "full_attention", "sliding_attention"
_LOCAL_BASE = "rope_local_base_freq"
# A config with one of these under another value has other positions than rotary ones.
NOT_ROTARY = {
    "position_embedding_type": ("rope", "rotary", "default", None),
    "use_alibi": (False, None),
    "use_dynamic_ntk": (False, None),
    "use_logn_attn": (False, None),
}
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "attn_config")


def check_positions(config: dict[str, Any]) -> None:
    """Checks that a config asks for rotary position and for nothing beside it.

    Raises:
        ValueError: a key asks for other positions; the message names it.
    """
    for key, known in NOT_ROTARY.items():
        value = config.get(key)
        if not any(value is one or (isinstance(value, str) and value == one) for one in known):
            raise ValueError(
                f"{key}={value!r:.40} asks for more than this config's rotary keys say: build the "
                "method itself, such as rotary.ALiBi, NoPE, DynamicNTK or LogN"
            )


def base_of(config: dict[str, Any]) -> float:
    """Returns the base of a config that has none, which its model_type decides.

    Raises:
        ValueError: the default of that model_type is not known here.
    """
    kind = config.get("model_type")
    if kind is None:
        return BASE
    if not isinstance(kind, str) or kind not in BASES:
        raise ValueError(f"the config has no rope_theta, and the one of model_type {kind!r:.40} is "
                         "not known: write rope_theta into it")  # fmt: skip
    return BASES[kind]


def fraction_of(config: dict[str, Any]) -> float | None:
    """Returns partial_rotary_factor of a config that has none; None is the whole head."""
    kind = config.get("model_type")
    return FRACTIONS.get(kind) if isinstance(kind, str) else None


def layers(config: dict[str, Any], block: dict[str, Any]) -> dict[str, dict | None]:
    """Returns the rotary parameters by layer type, where a family mixes methods in a flat config.

    Args:
        config: the config, or the part of it about text.
        block: its rope_parameters or rope_scaling, or {}.

    Returns:
        Parameters by layer type, None for layers without rotation; {} where all layers are alike.
    """
    kind = config.get("model_type")
    if kind in ("smollm3", "llama4_text"):
        turned = config.get("no_rope_layers")  # 1 for layers that rotate
        kinds = {bool(one) for one in turned} if isinstance(turned, list) and turned else set()
        if len(kinds) != 1:  # every fourth layer does not rotate where the config is silent
            return {"rope": block, "no_rope": None}
        return {} if kinds == {True} else {"no_rope": None}
    declared = config.get("layer_types")
    given = {str(one) for one in declared} if isinstance(declared, list) else {FULL, SLIDING}
    found: dict[str, dict | None] = {}
    if kind == "olmo3":
        found = {FULL: block, SLIDING: {"rope_type": "default"}}
    elif kind in ("gemma3_text", "gemma3n_text") or _LOCAL_BASE in config:
        local = config.get(_LOCAL_BASE)
        found = {FULL: block, SLIDING: {"rope_theta": BASE if local is None else local}}
    elif kind == "cohere2" or (kind == "exaone4" and config.get("sliding_window") is not None):
        found = {FULL: None, SLIDING: block}
    return {name: one for name, one in found.items() if name in given}


# Of so many layers the last has the other type, where the config is silent.
_PERIODS = {"gemma3_text": 6, "gemma3n_text": 5, "olmo3": 4, "cohere2": 4, "exaone4": 4}
_PERIODS |= {"smollm3": 4, "llama4_text": 4}


def order(config: dict[str, Any]) -> list[str]:
    """Returns the type of each layer, or of a period of them; [] where the config does not say.

    Args:
        config: the config, or the part of it about text, whose `layers` differ.
    """
    turned = config.get("model_type") in ("smollm3", "llama4_text")
    declared = config.get("no_rope_layers" if turned else "layer_types")
    count = config.get("num_hidden_layers")
    if isinstance(declared, list) and declared:
        names = [("rope" if one else "no_rope") if turned else str(one) for one in declared]
        return names[:count] if isinstance(count, int) else names
    default = _PERIODS.get(str(config.get("model_type")))
    period = config.get("no_rope_layer_interval" if turned else "sliding_window_pattern", default)
    if type(period) is not int or period < 1:
        return []
    usual, last = ("rope", "no_rope") if turned else (SLIDING, FULL)
    count = count if type(count) is int else period
    return [usual if (at + 1) % period else last for at in range(count)]


def check_layer_type(config: dict[str, Any], layer_type: str | None) -> None:
    """Checks a layer type that is asked of a config whose layers all have one method.

    Raises:
        ValueError: the config has no such layers.
    """
    known = config.get("layer_types")
    if layer_type is None:
        return
    if not isinstance(known, list) or not known:
        raise ValueError(f"layer_type={layer_type!r}: all layers have one method, leave it out")
    if layer_type not in known:
        raise ValueError(unknown_name("layer_type", layer_type, sorted({str(x) for x in known})))
