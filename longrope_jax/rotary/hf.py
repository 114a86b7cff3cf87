"""Reading and writing the rotary part of a Hugging Face config, v4 and v5 spelling."""

import warnings
from typing import Any

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
from longrope_jax.rotary.registry import Method, name_of, unknown

# Each class tells its keys (required, optional) in HF_KEYS and reads them in `from_hf`.
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


def from_hf(config: dict[str, Any], *, layer_type: str | None = None) -> Method:
    """The method that a Hugging Face `config.json` describes.

    Reads `rope_parameters` (transformers 5) or `rope_scaling` with top-level `rope_theta`,
    `partial_rotary_factor` and `original_max_position_embeddings` (v4); `type` is the old spelling
    of `rope_type`. A value of None counts as absent.

    Warns where the config gives two values and one wins, and says which. As in transformers 5, an
    explicit factor wins over max_position_embeddings / original_max_position_embeddings, which
    stands in for a missing one (yarn, longrope); "dynamic" takes its trained length from
    max_position_embeddings.

    Args:
        config: as `json.load` gives it; not changed.
        layer_type: which entry of `rope_parameters` to read where it has one per layer type.

    Raises:
        ValueError: a rope_type this package has no method for, an option the type does not have,
            a missing option, or two spellings that contradict each other.
    """
    parameters = _parameters(config, layer_type)
    rope_type = parameters.pop("rope_type")
    rope_type = _OLD_TYPES.get(rope_type, rope_type)
    if rope_type not in _BY_TYPE:
        raise ValueError(unknown("rope_type", str(rope_type), _BY_TYPE))
    method = _BY_TYPE[rope_type]
    required, optional = method.HF_KEYS
    _lengths(rope_type, parameters, config, required | optional)
    known = required | optional | _COMMON
    for key in sorted(parameters.keys() - known):
        raise ValueError(unknown(f"key of rope_type {rope_type}", key, known))
    for key in sorted(required - parameters.keys()):
        raise ValueError(f"rope_type {rope_type!r} needs {key!r}")
    fraction = parameters.get("partial_rotary_factor", 1.0)
    spec = method.from_hf(parameters)
    if method is Proportional or fraction == 1:
        return spec
    return PartialRotary(spec, fraction)


def _parameters(config: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """The rotary parameters with `rope_type`, from wherever the config has them."""
    spellings = [dict(c) for k in ("rope_parameters", "rope_scaling") if (c := config.get(k))]
    found = [_one_type(_one_layer(parameters, layer_type)) for parameters in spellings]
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError("rope_parameters and rope_scaling contradict each other: keep one")
    parameters = found[0] if found else {"rope_type": "default"}
    outside = {
        "rope_theta": ("rope_theta",),
        "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    }
    for key, spelled in outside.items():
        values = {config.get(name) for name in spelled} | {parameters.get(key)}
        values.discard(None)
        if len(values) > 1:
            raise ValueError(f"two values of {key}: {sorted(values)}")
        if values:
            parameters[key] = values.pop()
    return {"rope_theta": _DEFAULT_THETA} | parameters


def _one_layer(parameters: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    layers = [k for k, v in parameters.items() if isinstance(v, dict)]
    if not layers:
        return parameters
    if layer_type is None:
        raise ValueError(f"rope_parameters differ by layer: pass layer_type, one of {layers}")
    if layer_type not in layers:
        raise ValueError(unknown("layer_type", layer_type, layers))
    return dict(parameters[layer_type])


def _one_type(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that are given, with `rope_type` alone, whichever spelling they had."""
    parameters = {key: value for key, value in parameters.items() if value is not None}
    types = {parameters.pop(k) for k in ("rope_type", "type") if k in parameters}
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
            _warn(rope_type, f"max_position_embeddings={longest} won over {_ORIGINAL}={original}")
        parameters[_ORIGINAL] = longest if longest is not None else original
    elif rope_type in ("yarn", "longrope") and is_finite(longest) and is_finite(original):
        ratio = longest / original if original > 0 else 1.0
        factor = parameters.setdefault("factor", ratio)
        if factor != ratio and ratio != 1:
            _warn(
                rope_type,
                f"factor={factor} won over max_position_embeddings / {_ORIGINAL} = {ratio:g}",
            )


def _warn(rope_type: str, text: str) -> None:
    warnings.warn(f"rope_type {rope_type}: {text}", stacklevel=4)


def to_hf(spec: Method, *, head_dim: int | None = None) -> dict[str, Any]:
    """`rope_parameters` for a Hugging Face config (transformers 5); `from_hf` reads them back.

    Args:
        spec: a rotary method.
        head_dim: H; for the few methods that need it to be written: NTKAware, whose base depends on
            it, and LongRoPE with one number in place of a list.

    Raises:
        ValueError: Hugging Face has no type, or not this option, for this method.
    """
    if isinstance(spec, PartialRotary):
        if isinstance(spec.inner, PartialRotary | Proportional):
            raise ValueError("Hugging Face has one partial_rotary_factor, this spec has two")
        rotary_dim = None if head_dim is None else spec.rotary_dim(head_dim)
        inner = to_hf(spec.inner, head_dim=rotary_dim)
        return inner | {"partial_rotary_factor": spec.fraction}
    if not hasattr(spec, "to_hf"):
        raise ValueError(f"Hugging Face has no rope_type for {name_of(spec)}")
    return spec.to_hf(head_dim)
