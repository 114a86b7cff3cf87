"""The rotary part of a Hugging Face config is read and written here, in v4 and v5 spelling."""

from collections.abc import Sequence
from typing import Any

from longrope_jax.errors import unknown_name, warn
from longrope_jax.rotary import families
from longrope_jax.rotary.frequencies import is_finite
from longrope_jax.rotary.methods import (
    ByLayer,
    DynamicNTK,
    Llama3,
    LongRoPE,
    NoPE,
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
_COMMON = frozenset({"rope_theta", "partial_rotary_factor"})
_ORIGINAL = "original_max_position_embeddings"
_LONGEST = "max_position_embeddings"
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
    (yarn, longrope); "dynamic" takes its trained length from max_position_embeddings, and so do
    yarn, longrope and llama3 without an original length. A base or a rotary share that the config
    leaves out is that of its model_type (`families`). Where the config has no rotary keys, those
    of its part about text are read. `rotary.audit` lists what became of every key.

    Args:
        config: the config as `json.load` gives it; it is not changed.
        layer_type: which layers are meant, where the method differs by layer; None gives a
            `ByLayer` there.

    Raises:
        ValueError: this package has no method for the rope_type, the type lacks an option or does
            not have it, a value has the wrong kind, two spellings contradict each other, the
            method differs by layer and neither `layer_type` nor the config says where, or a key
            asks for positions that are not rotary.
    """
    config = located(config)[1]
    if layer_type is None and (order := layer_order(config)):
        return _by_layer(order, {one: from_hf(config, layer_type=one) for one in {*order}})
    if not turns(config, layer_type):
        return NoPE()
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


def layer_order(config: dict[str, Any]) -> list[str]:
    """Returns the layer type of each layer where the method may differ by layer, else [].

    Raises:
        ValueError: the config gives a layer type no method.
    """
    block = _raw_block(config)
    known = _nested(block, config) or families.layers(config, block)
    if len(known) < 2:
        return []
    order = families.order(config)
    for name in order:
        if name not in known:
            raise ValueError(unknown_name("layer type without a method", name, known))
    return order


def _by_layer(order: list[str], methods: dict[str, Method]) -> Method:
    found = list(dict.fromkeys(methods[name] for name in order))
    if len(found) == 1:
        return found[0]
    pattern = tuple(found.index(methods[name]) for name in order)
    lengths = range(1, len(pattern) + 1)
    shortest = next(n for n in lengths if pattern == (pattern[:n] * len(pattern))[: len(pattern)])
    return ByLayer(pattern[:shortest], tuple(found))


def _nested(block: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a block by layer type, None for layers that do not rotate."""
    declared = config.get("layer_types")
    names = declared if isinstance(declared, list) else []
    return {k: v for k, v in block.items() if isinstance(v, dict) or (v is None and k in names)}


def read_parameters(config: dict[str, Any], layer_type: str | None) -> tuple[str, dict[str, Any]]:
    """Returns the rope_type by its newest name, and all parameters, outside the block too."""
    parameters = _parameters(config, layer_type)
    rope_type = parameters.pop("rope_type")
    if rope_type not in _BY_TYPE:
        raise ValueError(unknown_name("rope_type", rope_type, _BY_TYPE))
    return rope_type, parameters


def located(config: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns where the rotary keys are, () or the names of nested parts, and config and part."""
    if not isinstance(config, dict):
        raise ValueError(f"a config is an object of keys and values, got {type(config).__name__}")
    if _has_rotary_keys(config):
        return (), config
    parts = [(key, config[key]) for key in families.NESTED if isinstance(config.get(key), dict)]
    for key, part in parts:
        below, found = located(part)
        if below or _has_rotary_keys(part) or part.get("model_type") in families.BASES:
            return (key, *below), {k: v for k, v in config.items() if k != key} | found
    return (), config


def turns(config: dict[str, Any], layer_type: str | None) -> bool:
    """Says whether layers of this type rotate; the config is as `located` returns it."""
    mixed = _nested(_raw_block(config), config) or families.layers(config, {})
    return not (mixed and _chosen(mixed, layer_type) is None)


def block_counts(config: dict[str, Any], layer_type: str | None) -> bool:
    """Says whether layers of this type have the method of the config's block."""
    block = _raw_block(config)
    if _nested(block, config):
        return True  # the block itself has one entry per layer type
    mixed = families.layers(config, block)
    return not mixed or _chosen(mixed, layer_type) is block


def _raw_block(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the block of a config; of two, rope_scaling wins, as in transformers 5."""
    found = [_block(key, c) for key in BLOCKS if (c := config.get(key)) not in (None, {})]
    if len(found) == 2 and _one_type(found[0]) != _one_type(found[1]):
        warn("rope_scaling won over rope_parameters, as in transformers 5: remove one of them")
    return found[-1] if found else {}


def _parameters(config: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """Returns the rotary parameters with `rope_type`, from wherever the config has them.

    GPT-NeoX spells partial_rotary_factor and rope_theta as rotary_pct and rotary_emb_base.
    """
    config = located(config)[1]
    families.check_positions(config)
    block = _raw_block(config)
    nested = _nested(block, config)
    mixed = {} if nested else families.layers(config, block)
    if nested:
        shared = {key: value for key, value in block.items() if key not in nested}
        block = shared | (_chosen(nested, layer_type) or {})
    elif mixed:
        block = _chosen(mixed, layer_type) or {}
    else:
        families.check_layer_type(config, layer_type)
    parameters = _one_type(block)
    for key, spelled in OUTSIDE.items():
        values = [parameters.get(key)] + [config.get(name) for name in spelled]
        values = [value for value in values if value is not None]
        if not all(is_finite(value) for value in values):
            shown = ", ".join(repr(value)[:40] for value in values)
            raise ValueError(f"{key} must be a finite number, got {shown}")
        if len(set(values)) > 1 and (key != "rope_theta" or parameters.get(key) is None):
            raise ValueError(f"two values of {key}: {sorted(set(values))}")
        if len(set(values)) > 1 and not (nested or mixed):
            warn(f"{key}={values[0]:g} of the block won over {values[1]:g} outside of it")
        if values:
            parameters[key] = values[0]
    if "rope_theta" not in parameters:
        parameters["rope_theta"] = families.base_of(config)
    share = families.fraction_of(config)
    return parameters if share is None else {"partial_rotary_factor": share} | parameters


def _has_rotary_keys(config: dict[str, Any]) -> bool:
    names = [*BLOCKS, *(name for names in OUTSIDE.values() for name in names)]
    return any(config.get(name) is not None for name in names)


def _chosen(mixed: dict[str, Any], layer_type: str | None) -> Any:
    """Returns the entry of a layer type."""
    if layer_type is None and len(mixed) == 1:
        return next(iter(mixed.values()))
    if layer_type is None:
        raise ValueError(f"the method differs by layer: pass layer_type, one of {list(mixed)}")
    if layer_type not in mixed:
        raise ValueError(unknown_name("layer_type", layer_type, mixed))
    return mixed[layer_type]


def _block(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object of keys and values, got {value!r}")
    return dict(value)


def _one_type(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters that are not None, with `type` spelled `rope_type`."""
    parameters = {key: value for key, value in parameters.items() if value is not None}
    types = {str(parameters.pop(k)) for k in ("rope_type", "type") if k in parameters}
    types = {_OLD_TYPES.get(one, one) for one in types}
    if len(types) > 1:
        raise ValueError(f"rope_type and type contradict each other: {sorted(types)}")
    return parameters | {"rope_type": types.pop() if types else "default"}


def _lengths(rope_type: str, parameters: dict, config: dict, keys: frozenset[str]) -> None:
    """Fills in the original length and a missing factor from the config around the parameters."""
    if _ORIGINAL not in keys:
        return
    longest, outside = config.get("max_position_embeddings"), config.get(_ORIGINAL)
    if config.get("model_type") == "phi3" and outside is None and _ORIGINAL not in parameters:
        outside = 4096  # the default of its class
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
    elif original is None and longest is not None:
        warn(f"rope_type {rope_type}: {_ORIGINAL} is taken to be {_LONGEST}={longest}")
        parameters[_ORIGINAL] = longest
        if rope_type != "llama3":
            parameters.setdefault("factor", 1.0)
    elif rope_type in ("yarn", "longrope") and is_finite(longest) and is_finite(original):
        # Below 1 it is a shortened copy of a config, which transformers gives amplitude 1.
        ratio = max(longest / original, 1.0) if original > 0 else 1.0
        factor = parameters.setdefault("factor", ratio)
        if factor != ratio and ratio != 1:
            values = f"factor={factor} won over max_position_embeddings / {_ORIGINAL} = {ratio:g}"
            warn(f"rope_type {rope_type}: {values}")


def unread(config: dict[str, Any]) -> list[str]:
    """Returns the keys of the config that look like rotary position and are not read."""
    read = {
        *BLOCKS,
        *NOT_THE_METHOD,
        *_by_family(config),
        *(name for names in OUTSIDE.values() for name in names),
    }
    given = {key for key, value in config.items() if value is not None}
    about = {key for key in given if {"rope", "nope", "rotary"} & set(key.lower().split("_"))}
    if config.get("alibi"):  # Falcon and MPT have true here in place of rotation
        about.add("alibi")
    return sorted(about - read)


def _by_family(config: dict[str, Any]) -> set[str]:
    """Returns the keys that are read for some families alone."""
    mixed = families.layers(config, {})
    turned = "no_rope" in mixed or config.get("model_type") in ("smollm3", "llama4_text")
    found = {"no_rope_layers", "no_rope_layer_interval"} if turned else set()
    return found | ({"rope_local_base_freq"} if mixed else set())


def to_hf(
    spec: Method, *, head_dim: int | None = None, layer_types: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns `rope_parameters` for a Hugging Face config (transformers 5), as `from_hf` reads.

    Args:
        spec: a rotary method.
        head_dim: H, which two methods need: NTKAware, whose base depends on it, and LongRoPE with
            one number in place of a list.
        layer_types: for `ByLayer`, the type of each layer as the config's `layer_types` name it;
            the parameters are then nested by layer type, None for layers that do not rotate.

    Raises:
        ValueError: Hugging Face has no type for this method, cannot express one of its options, or
            layers of one type have several methods.
    """
    if isinstance(spec, ByLayer):
        if not layer_types:
            raise ValueError("by_layer needs layer_types, the type of each layer, such as "
                             "('sliding_attention', 'full_attention')")  # fmt: skip
        methods = methods_by_type(spec, layer_types)
        return {
            name: None if one == NoPE() else to_hf(one, head_dim=head_dim)
            for name, one in methods.items()
        }
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


def methods_by_type(spec: ByLayer, layer_types: Sequence[str]) -> dict[str, Method]:
    """Returns the method of each layer type.

    Raises:
        ValueError: layers of one type have several methods.
    """
    found: dict[str, Method] = {}
    for at, name in enumerate(layer_types):
        method = spec.methods[spec.pattern[at % len(spec.pattern)]]
        if found.setdefault(name, method) != method:
            raise ValueError(
                f"Hugging Face has one method for all layers of type {name!r}, this by_layer has "
                f"{name_of(found[name])} and {name_of(method)} there"
            )
    return found


def method_of(rope_type: str) -> str:
    """Returns the registered name of the method that a rope_type stands for."""
    return names_of(_BY_TYPE[rope_type])[0]


def takes(rope_type: str, key: str) -> bool:
    """Says whether a rope_type has a key."""
    return any(key in keys for keys in _BY_TYPE[rope_type].HF_KEYS)


def rope_type_of(cls: type) -> str | None:
    """Returns the rope_type of a method's class; None where Hugging Face has none."""
    return next((name for name, known in _BY_TYPE.items() if known is cls), None)
