"""Every key of a Hugging Face config is used, ignored or overridden; here is which, and why."""

from typing import Any, NamedTuple

from longrope_jax.rotary import families, hf
from longrope_jax.rotary.frequencies import is_finite

_ORIGINAL = "original_max_position_embeddings"
_LONGEST = "max_position_embeddings"
_QUOTIENT = ("hidden_size", "num_attention_heads")
_TYPE_KEYS = ("rope_type", "type")
_NOT_ROTARY = "not about positions"
_NULL = "null counts as absent"
_NO_ROTATION = "layers of this type do not rotate"
_WINDOW = "how far a layer looks, which is the model's and not the method's"
_LAYERS = "which layers have which method"
_OTHERS = "other layers than"
_STATUS = ("used", "overridden", "ignored")


class Key(NamedTuple):
    """A key of a config has a dotted name, a value, a status as in `audit`, and the rule behind."""

    name: str
    value: Any
    status: str
    rule: str


def audit(config: dict[str, Any], *, layer_type: str | None = None) -> list[Key]:
    """Returns every key of the config, in its order, with what `from_hf` does with it.

    A key is "used" if another value would give another method or an error, "overridden" if another
    key won over it, and "ignored" if no value of it changes the method.

    Raises:
        ValueError: `from_hf` refuses the config.
    """
    path, inner = hf.located(config)
    if path:
        return _audit_nested(config, path, inner, layer_type)
    if layer_type is None and (order := hf.layer_order(config)):
        return _all_layers([audit(config, layer_type=one) for one in dict.fromkeys(order)])
    if not hf.turns(config, layer_type):
        return [Key(name, value, "ignored", _NO_ROTATION) for name, value in config.items()]
    rope_type, parameters = hf.read_parameters(config, layer_type)
    found = []
    for name, value in config.items():
        if name in hf.BLOCKS and value and not hf.block_counts(config, layer_type):
            found.append(Key(name, value, "ignored", f"{_OTHERS} {layer_type} have it"))
        elif name in hf.BLOCKS and value:
            found += _block(name, value, rope_type, parameters, config, layer_type)
        else:
            found.append(Key(name, value, *_outside(name, value, rope_type, parameters, config)))
    return found


def _all_layers(audits: list[list[Key]]) -> list[Key]:
    """Returns the keys of a config for all its layer types: used where one of them uses it."""
    best: dict[str, Key] = {}
    for key in (key for found in audits for key in found if not key.rule.startswith(_OTHERS)):
        if key.name not in best or _STATUS.index(key.status) < _STATUS.index(best[key.name].status):
            best[key.name] = key
    return list(best.values())


def _audit_nested(config, path, inner, layer_type) -> list[Key]:
    """Returns the keys of a config whose rotary keys are in one of its parts."""
    found = audit(inner, layer_type=layer_type)
    own = config
    for name in path:
        own = own[name]
    dotted = ".".join(path)
    placed = [
        key._replace(name=f"{dotted}.{key.name}") if key.name.partition(".")[0] in own else key
        for key in found
    ]
    rule = f"the one of {dotted} is read"
    hidden = [Key(k, v, "ignored", rule) for k, v in config.items() if k in own and k != path[0]]
    return placed + hidden


def declared_head_dim(config: dict[str, Any]) -> int | None:
    """Returns the size of a head's rotated part that the config declares, None if it does not.

    It is qk_rope_head_dim (multi-head latent attention), head_dim, or hidden_size /
    num_attention_heads.
    """
    values = [config[name] for name in _head_dim_from(config)]
    return values[0] // values[1] if len(values) == 2 else next(iter(values), None)


def _head_dim_from(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns the keys that `declared_head_dim` comes from."""
    for name in ("qk_rope_head_dim", "head_dim"):
        if isinstance(config.get(name), int):
            return (name,)
    size, heads = (config.get(name) for name in _QUOTIENT)
    whole = isinstance(size, int) and isinstance(heads, int) and heads > 0 and size % heads == 0
    return _QUOTIENT if whole else ()


def _block(block, values, rope_type, parameters, config, layer_type) -> list[Key]:
    """Returns the keys inside rope_parameters or rope_scaling, and inside one layer type of it."""
    found = []
    for name, value in values.items():
        dotted = f"{block}.{name}"
        if isinstance(value, dict) and name == layer_type:
            found += _block(dotted, value, rope_type, parameters, config, None)
        elif isinstance(value, dict):
            found.append(Key(dotted, value, "ignored", f"{_OTHERS} {layer_type} have it"))
        else:
            found.append(Key(dotted, value, *_inside(name, value, rope_type, parameters, config)))
    return found


def _inside(name, value, rope_type, parameters, config) -> tuple[str, str]:
    if value is None:
        return "ignored", _NULL
    if name in _TYPE_KEYS:
        return "used", f"names the method: {hf.method_of(rope_type)}"
    if name == "finetuned":
        return "ignored", "changes nothing in the yarn repo's code"
    if name == _ORIGINAL:
        return _original(rope_type, config)
    if rope_type == "yarn" and name in ("mscale", "mscale_all_dim", "attn_factor"):
        return _mscale(name, parameters)
    return "used", "an option of this rope_type"


def _mscale(name, parameters) -> tuple[str, str]:
    if "attention_factor" in parameters:
        return "overridden", "attention_factor wins, as in Hugging Face"
    if name == "attn_factor":
        return "used", "multiplies the attention factor (yarn repo, vLLM); Hugging Face ignores it"
    if all(parameters.get(k) for k in ("mscale", "mscale_all_dim")):
        return "used", "quotient of mscale and mscale_all_dim"
    return "ignored", "counts only beside the other mscale key, both above 0, as in Hugging Face"


def _original(rope_type, config) -> tuple[str, str]:
    if rope_type == "dynamic" and config.get(_LONGEST) is not None:
        return "overridden", f"{_LONGEST} wins, as in Hugging Face"
    return "used", "the trained length"


def _outside(name, value, rope_type, parameters, config) -> tuple[str, str]:
    if value is None:
        return "ignored", _NULL
    for key, spelled in hf.OUTSIDE.items():
        if name in spelled:
            return "used", "the base" if key == "rope_theta" else "share of the head that turns"
    if name == _ORIGINAL:
        if hf.takes(rope_type, _ORIGINAL):
            return _original(rope_type, config)
        return "ignored", f"rope_type {rope_type} has no trained length"
    if name in families.NOT_ROTARY:
        return "used", "this value asks for rotary position alone, others are refused"
    by_layer = families.layers(config, {}) or hf.layer_order(config)
    deciding = ("layer_types", "no_rope_layers", "no_rope_layer_interval", "rope_local_base_freq")
    if name in deciding and by_layer:
        return "used", _LAYERS
    if name in ("sliding_window", "layer_types", "attention_chunk_size"):
        return "ignored", _WINDOW
    if name == "model_type" and name in config:
        return _family(value, config)
    if name == _LONGEST:
        return _longest(value, rope_type, parameters, config)
    if name in hf.NOT_THE_METHOD:
        return "ignored", f"does not belong to the method: {hf.NOT_THE_METHOD[name]}"
    if name in hf.unread(config):
        return "ignored", "about rotary position, but not read: check what it asks for"
    if name in ("head_dim", *_QUOTIENT):
        used = _head_dim_from(config)
        if name in used:
            how = f" = {' / '.join(used)}" if len(used) > 1 else ""
            return "ignored", f"ignored by the method, but used for head_dim{how}"
        return "ignored", f"head_dim comes from {' / '.join(used) or 'no key'}"
    return "ignored", _NOT_ROTARY


def _family(value, config) -> tuple[str, str]:
    outside = [*hf.OUTSIDE["rope_theta"], *hf.BLOCKS]
    silent = not any(config.get(key) for key in outside)
    if silent or families.fraction_of(config) or families.layers(config, {}):
        return "used", "its defaults stand where the config is silent"
    return "ignored", _NOT_ROTARY


def _longest(value, rope_type, parameters, config) -> tuple[str, str]:
    if rope_type == "dynamic":
        return "used", "the trained length, as in Hugging Face"
    original = parameters.get(_ORIGINAL, config.get(_ORIGINAL))
    if rope_type not in ("yarn", "longrope") or not (is_finite(original) and original > 0):
        return "ignored", "the method is the same at every declared length"
    if config.get(_ORIGINAL) is None and parameters.get(_ORIGINAL) is None:
        return "used", f"stands in for the missing {_ORIGINAL}"
    if "factor" not in parameters:
        return "used", f"divided by {_ORIGINAL} it stands in for the missing factor"
    if value / original in (1, parameters["factor"]):
        return "ignored", "agrees with factor, or declares the trained length"
    return "overridden", f"factor wins over {_LONGEST} / {_ORIGINAL} = {value / original:g}"


def audit_lines(keys: list[Key]) -> list[str]:
    """Returns the audit as lines of text; keys that are not about positions share the last one."""
    about = [key for key in keys if key.rule != _NOT_ROTARY]
    width = max((len(key.name) for key in about), default=0)
    rows = [f"  {k.name:<{width}}  {k.status:<10}  {_short(k.value)}: {k.rule}" for k in about]
    others = [key.name for key in keys if key.rule == _NOT_ROTARY]
    return [*rows, f"  ignored, {_NOT_ROTARY}: {', '.join(others)}"] if others else rows


def _short(value: Any) -> str:
    text = f"list of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
