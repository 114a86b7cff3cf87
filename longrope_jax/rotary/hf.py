"""The rotary part of a Hugging Face config is read and written here, in v4 and v5 spelling."""

from typing import Any

from longrope_jax.errors import unknown_name, warn
from longrope_jax.rotary.frequencies import is_finite
from longrope_jax.rotary.methods import (
    DynamicNTK,
    Llama3,
    LongRoPE,
    PartialRotary,
    PositionInterpolation,
    Proportional,
    RoPE,
    YaRN,
)
from longrope_jax.rotary.registry import Method, name_of, names_of

# Each class declares its keys (required, optional) in HF_KEYS and reads them in `from_hf`.
_BY_TYPE = {
    "default": RoPE,
    "linear": PositionInterpolation,
    "dynamic": DynamicNTK,
    "yarn": YaRN,
    "longrope": LongRoPE,
    "llama3": Llama3,
    "proportional": Proportional,
}
_OLD_TYPES = {"su": "longrope"}  # Phi-3's first configs
_DEFAULT_THETA = 10_000.0
_COMMON = frozenset({"rope_theta", "partial_rotary_factor"})
_ORIGINAL = "original_max_position_embeddings"
BLOCKS = ("rope_parameters", "rope_scaling")
# Parameters that may stand outside the block, and how the config spells them there.
OUTSIDE = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
}
# Keys about rotary position that do not decide the method: which features pair up, the head's size.
NOT_THE_METHOD = {
    "rope_interleave": "the layout, an argument of rotary.rotate",
    "qk_rope_head_dim": "head_dim of the rotated part",
}


def from_hf(config: dict[str, Any], *, layer_type: str | None = None) -> Method:
    """Returns the method that a Hugging Face `config.json` describes.

    It reads `rope_parameters` (transformers 5) or `rope_scaling` with top-level `rope_theta`,
    `partial_rotary_factor` and `original_max_position_embeddings` (v4); `type` is the old spelling
    of `rope_type`. A value of None counts as absent.

    It warns where the config gives two values of which one wins, and says which, and where a key
    about rotary position is not read. As in transformers 5, an explicit factor wins over
    max_position_embeddings / original_max_position_embeddings, which stands in for a missing one
    (yarn, longrope); "dynamic" takes its trained length from max_position_embeddings.
    `rotary.audit` lists what became of every key.

    Args:
        config: the config as `json.load` gives it; it is not changed.
        layer_type: which entry of `rope_parameters` to read where it has one per layer type.

    Raises:
        ValueError: this package has no method for the rope_type, the type lacks an option or does
            not have it, a value has the wrong kind, two spellings contradict each other, or the
            rotary keys are in the config's text_config.
    """
    rope_type, parameters = read_parameters(config, layer_type)
    for key in unread(config):
        known = [*BLOCKS, *(name for names in OUTSIDE.values() for name in names)]
        warn(unknown_name("rotary key of the config", key, known) + ": it was not read")
    method = _BY_TYPE[rope_type]
    required, optional = method.HF_KEYS
    _lengths(rope_type, parameters, config, required | optional)
    known = required | optional | _COMMON
    for key in sorted(parameters.keys() - known):
        raise ValueError(unknown_name(f"key of rope_type {rope_type}", key, known))
    for key in sorted(required - parameters.keys()):
        raise ValueError(f"rope_type {rope_type!r} needs {key!r}")
    fraction = parameters.get("partial_rotary_factor", 1.0)
    try:
        spec = method.from_hf(parameters)
    except TypeError as error:  # a number for a list, a list for a number
        raise ValueError(f"rope_type {rope_type!r}: a value of the wrong kind ({error})") from error
    if method is Proportional or fraction == 1:
        return spec
    return PartialRotary(spec, fraction)


def read_parameters(config: dict[str, Any], layer_type: str | None) -> tuple[str, dict[str, Any]]:
    """Returns the rope_type by its newest name, and all parameters, outside the block too."""
    parameters = _parameters(config, layer_type)
    rope_type = parameters.pop("rope_type")
    if rope_type in _OLD_TYPES:
        rope_type = _OLD_TYPES[rope_type]
    if rope_type not in _BY_TYPE:
        raise ValueError(unknown_name("rope_type", rope_type, _BY_TYPE))
    return rope_type, parameters


def _parameters(config: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """Returns the rotary parameters with `rope_type`, from wherever the config has them.

    GPT-NeoX spells partial_rotary_factor and rope_theta as rotary_pct and rotary_emb_base.
    """
    if not isinstance(config, dict):
        raise ValueError(f"a config is an object of keys and values, got {type(config).__name__}")
    if isinstance(config.get("text_config"), dict) and not _has_rotary_keys(config):
        raise ValueError("the config has no rotary keys, its text_config may: pass that part")
    spellings = [_block(k, c) for k in BLOCKS if (c := config.get(k)) not in (None, {})]
    found = [_one_type(_one_layer(parameters, layer_type)) for parameters in spellings]
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError("rope_parameters and rope_scaling contradict each other: keep one")
    parameters = found[0] if found else {"rope_type": "default"}
    for key, spelled in OUTSIDE.items():
        values = [config.get(name) for name in spelled] + [parameters.get(key)]
        values = [value for value in values if value is not None]
        if not all(is_finite(value) for value in values):
            shown = ", ".join(repr(value)[:40] for value in values)
            raise ValueError(f"{key} must be a finite number, got {shown}")
        if len(set(values)) > 1:
            raise ValueError(f"two values of {key}: {sorted(set(values))}")
        if values:
            parameters[key] = values[0]
    return {"rope_theta": _DEFAULT_THETA} | parameters


def _has_rotary_keys(config: dict[str, Any]) -> bool:
    names = [*BLOCKS, *(name for names in OUTSIDE.values() for name in names)]
    return any(config.get(name) is not None for name in names)


def _block(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object of keys and values, got {value!r}")
    return dict(value)


def _one_layer(parameters: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    layers = [k for k, v in parameters.items() if isinstance(v, dict)]
    if not layers:
        return parameters
    beside = sorted(k for k, v in parameters.items() if k not in layers and v is not None)
    if beside:
        raise ValueError(f"{beside} beside the layer types {layers}: move them into each of these")
    if layer_type is None:
        raise ValueError(f"rope_parameters differ by layer: pass layer_type, one of {layers}")
    if layer_type not in layers:
        raise ValueError(unknown_name("layer_type", layer_type, layers))
    return dict(parameters[layer_type])


def _one_type(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters that are not None, with `type` spelled `rope_type`."""
    parameters = {key: value for key, value in parameters.items() if value is not None}
    types = {str(parameters.pop(k)) for k in ("rope_type", "type") if k in parameters}
    if len(types) > 1:
        raise ValueError(f"rope_type and type contradict each other: {sorted(types)}")
    return parameters | {"rope_type": types.pop() if types else "default"}


def _lengths(rope_type: str, parameters: dict, config: dict, keys: frozenset[str]) -> None:
    """Fills in the original length and a missing factor from the config around the parameters."""
    if _ORIGINAL not in keys:
        return
    longest, outside = config.get("max_position_embeddings"), config.get(_ORIGINAL)
    if outside is not None and parameters.setdefault(_ORIGINAL, outside) != outside:
        raise ValueError(f"two values of {_ORIGINAL}: {parameters[_ORIGINAL]} and {outside}")
    original = parameters.get(_ORIGINAL)
    if rope_type == "dynamic":
        if longest is None and original is None:
            raise ValueError("rope_type 'dynamic' needs 'max_position_embeddings' of the config")
        if longest is not None and original not in (None, longest):
            values = f"max_position_embeddings={longest} won over {_ORIGINAL}={original}"
            warn(f"rope_type dynamic: {values}")
        parameters[_ORIGINAL] = longest if longest is not None else original
    elif rope_type in ("yarn", "longrope") and is_finite(longest) and is_finite(original):
        ratio = longest / original if original > 0 else 1.0
        factor = parameters.setdefault("factor", ratio)
        if factor != ratio and ratio != 1:
            values = f"factor={factor} won over max_position_embeddings / {_ORIGINAL} = {ratio:g}"
            warn(f"rope_type {rope_type}: {values}")


def unread(config: dict[str, Any]) -> list[str]:
    """Returns the keys of the config that look like rotary position and are not read."""
    read = {*BLOCKS, *NOT_THE_METHOD, *(name for names in OUTSIDE.values() for name in names)}
    given = {key for key, value in config.items() if value is not None}
    about = {key for key in given if {"rope", "nope", "rotary"} & set(key.lower().split("_"))}
    if config.get("alibi"):  # Falcon and MPT have true here in place of rotation
        about.add("alibi")
    return sorted(about - read)


def to_hf(spec: Method, *, head_dim: int | None = None) -> dict[str, Any]:
    """Returns `rope_parameters` for a Hugging Face config (transformers 5), as `from_hf` reads.

    Args:
        spec: a rotary method.
        head_dim: H, which two methods need: NTKAware, whose base depends on it, and LongRoPE with
            one number in place of a list.

    Raises:
        ValueError: Hugging Face has no type for this method, or cannot express one of its options.
    """
    if isinstance(spec, PartialRotary):
        if isinstance(spec.inner, PartialRotary | Proportional):
            raise ValueError("Hugging Face has one partial_rotary_factor, this spec has two")
        rotary_dim = None if head_dim is None else spec.rotary_dim(head_dim)
        inner = to_hf(spec.inner, head_dim=rotary_dim)
        return inner | {"partial_rotary_factor": spec.fraction}
    write = getattr(spec, "to_hf", None)
    if write is None:
        raise ValueError(f"Hugging Face has no rope_type for {name_of(spec)}")
    return write(head_dim)


def method_of(rope_type: str) -> str:
    """Returns the registered name of the method that a rope_type stands for."""
    return names_of(_BY_TYPE[rope_type])[0]


def takes(rope_type: str, key: str) -> bool:
    """Says whether a rope_type has a key."""
    return any(key in keys for keys in _BY_TYPE[rope_type].HF_KEYS)


def rope_type_of(cls: type) -> str | None:
    """Returns the rope_type of a method's class; None where Hugging Face has none."""
    return next((name for name, known in _BY_TYPE.items() if known is cls), None)
