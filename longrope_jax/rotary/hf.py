"""Reading and writing the rotary part of a Hugging Face config, v4 and v5 spelling."""

from typing import Any

from longrope_jax.rotary.methods import PositionInterpolation, RoPE
from longrope_jax.rotary.registry import Method, name_of, unknown

_BY_TYPE = {"default": RoPE, "linear": PositionInterpolation}
_DEFAULT_THETA = 10_000.0


def from_hf(config: dict[str, Any]) -> Method:
    """The method that a Hugging Face `config.json` describes.

    Reads `rope_parameters` (transformers 5) or `rope_scaling` with a top-level `rope_theta` (v4);
    `type` is the old spelling of `rope_type`.

    Raises:
        ValueError: a rope_type this package has no method for, an option the type does not have,
            a missing option, or two spellings that contradict each other.
    """
    parameters = _parameters(config)
    rope_type = parameters.pop("rope_type")
    if rope_type not in _BY_TYPE:
        raise ValueError(unknown("rope_type", rope_type, _BY_TYPE))
    method = _BY_TYPE[rope_type]
    known = {"rope_theta"} | ({"factor"} if rope_type == "linear" else set())
    for key in parameters.keys() - known:
        raise ValueError(unknown(f"key of rope_type {rope_type}", key, known))
    for key in known - parameters.keys():
        raise ValueError(f"rope_type {rope_type!r} needs {key!r}")
    return method.from_hf(parameters)


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
    for key in ("partial_rotary_factor", "rotary_pct"):
        if config.get(key) not in (None, 1, 1.0):
            raise ValueError(f"{key}={config[key]}: partial rotary has no method here yet")
    spellings = [dict(c) for k in ("rope_parameters", "rope_scaling") if (c := config.get(k))]
    found = [_one_type(parameters) for parameters in spellings]
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError("rope_parameters and rope_scaling contradict each other: keep one")
    parameters = found[0] if found else {"rope_type": "default"}
    thetas = {c["rope_theta"] for c in (parameters, config) if c.get("rope_theta") is not None}
    if len(thetas) > 1:
        raise ValueError(f"two values of rope_theta: {sorted(thetas)}")
    return parameters | {"rope_theta": thetas.pop() if thetas else _DEFAULT_THETA}


def _one_type(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with `rope_type` alone, whichever spelling they had."""
    types = {parameters.pop(k) for k in ("rope_type", "type") if k in parameters}
    if len(types) > 1:
        raise ValueError(f"rope_type and type contradict each other: {sorted(types)}")
    return parameters | {"rope_type": types.pop() if types else "default"}


def to_hf(spec: Method) -> dict[str, Any]:
    """`rope_parameters` for a Hugging Face config.

    Raises:
        ValueError: Hugging Face has no type for this method.
    """
    if not hasattr(spec, "to_hf"):
        raise ValueError(f"Hugging Face has no rope_type for {name_of(spec)}")
    return spec.to_hf()
