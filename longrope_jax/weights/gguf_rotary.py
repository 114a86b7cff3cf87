"""The rope.* metadata of GGUF become rotary methods, and back, with llama.cpp's meaning."""

from typing import Any

import numpy as np

from longrope_jax import rotary
from longrope_jax.errors import unknown_name
from longrope_jax.weights.files import TensorSource, check_shape, number, whole

FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # LongRoPE's, of phi3
TYPES = ("none", "linear", "yarn", "longrope")
_KEY = "llama.rope."
# llama.cpp reads these keys for other architectures only, and ignores them for a Llama.
_PASSED_OVER = ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")


def read(
    metadata: dict, source: TensorSource, head_dim: int, context_length: int, notes: list[str]
):
    """Returns the rotary method of a file and adds to `notes` what it assumes.

    Raises:
        ValueError: the type of scaling is unknown, or the metadata contradict each other.
    """
    where = source.where
    base = number(metadata, _KEY + "freq_base", where, 10_000.0)
    dim = whole(metadata, _KEY + "dimension_count", where, head_dim)
    if dim != head_dim:  # llama.cpp refuses such a file, too
        raise ValueError(
            f"{where}: rope.dimension_count must be the head dimension {head_dim}, got {dim}"
        )
    # In llama.cpp a factor without a type means linear.
    kind = metadata.get(_KEY + "scaling.type", "linear")
    if kind not in TYPES:
        raise ValueError(f"{where}: " + unknown_name("rope.scaling.type", str(kind), TYPES))
    old = number(metadata, _KEY + "scale_linear", where, 1.0)
    factor = number(metadata, _KEY + "scaling.factor", where, old)
    notes += [
        f"rope.scaling.{key} is applied here, but llama.cpp ignores it for a Llama"
        for key in _PASSED_OVER
        if f"{_KEY}scaling.{key}" in metadata
    ]
    kind = "longrope" if LONG in source.shapes else kind
    return _METHODS[kind](metadata, source, base, factor, dim, context_length, notes)


def _plain(metadata, source, base, factor, dim, context_length, notes):
    kind = metadata.get(_KEY + "scaling.type", "linear")
    factor = factor if kind == "linear" else 1
    gain, factors = _attention_factor(metadata, source.where), _factors(source, dim)
    if factors is not None:
        if factor != 1:
            raise ValueError(f"{source.where} has both {FREQS} and a linear factor {factor}")
        return _by_factors(factors, gain, base, dim, context_length, notes)
    if gain != 1:
        return _by_factors([float(factor)] * (dim // 2), gain, base, dim, context_length, notes)
    return rotary.PositionInterpolation(factor, base) if factor != 1 else rotary.RoPE(base)


def _yarn(metadata, source, base, factor, dim, context_length, notes):
    where, scaling = source.where, _KEY + "scaling."
    for key, neutral in (("yarn_log_multiplier", 0), ("yarn_ext_factor", 1)):
        if metadata.get(scaling + key, neutral) != neutral:
            raise ValueError(f"{where}: {scaling}{key} other than {neutral} is not supported")
    if FREQS in source.shapes:
        raise ValueError(f"{where}: {FREQS} contradicts rope.scaling.type yarn")
    return rotary.YaRN(
        factor=factor,
        original_length=whole(metadata, scaling + "original_context_length", where, context_length),
        base=base,
        beta_fast=number(metadata, scaling + "yarn_beta_fast", where, 32.0),
        beta_slow=number(metadata, scaling + "yarn_beta_slow", where, 1.0),
        attn_factor=_attention_factor(metadata, where),
    )


def _longrope(metadata, source, base, factor, dim, context_length, notes):
    where, key = source.where, _KEY + "scaling.original_context_length"
    original = whole(metadata, key, where, context_length)
    long, short = (_factors(source, dim, name) for name in (LONG, SHORT))
    if long is None or short is None:
        raise ValueError(f"{where} has one of {LONG} and {SHORT}, LongRoPE needs both")
    return rotary.LongRoPE(
        long_factor=tuple(long),
        short_factor=tuple(short),
        original_length=original,
        factor=max(context_length / original, 1.0),
        base=base,
        attention_factor=_attention_factor(metadata, where),
    )


_METHODS = {"none": _plain, "linear": _plain, "yarn": _yarn, "longrope": _longrope}


def _attention_factor(metadata: dict, where: str) -> float:
    keys = ("attn_factor", "yarn_attn_factor")
    one, other = (number(metadata, f"{_KEY}scaling.{key}", where, 1.0) for key in keys)
    return one * other


def _factors(source: TensorSource, dim: int, name: str = FREQS) -> list[float] | None:
    """Returns the factors that divide the frequencies, one per pair, or None if there are none."""
    if name not in source.shapes:
        return None
    check_shape(source, name, (dim // 2,))
    # The shortest decimals give back the factors that an export of ours was made from.
    return [float(str(np.float32(x))) for x in source.rows(name, 0, dim // 2)]


def _by_factors(factors, gain, base, dim, context_length, notes):
    """Returns Llama 3's method if its formula gives these factors, else one factor per pair."""
    theta = rotary.rope_inv_freq(base, dim)
    for exponent in range(6, 21):
        if max(factors) < 1 or gain != 1:
            break
        spec = rotary.Llama3(factor=max(factors), original_length=2**exponent, base=base)
        got = theta / spec.frequencies(head_dim=dim, seq_len=1).inv_freq
        if np.allclose(got, factors, rtol=1e-6):
            notes.append(f"{FREQS} is Llama 3's rule with original length {2**exponent}")
            return spec
    notes.append(
        "the frequencies and the attention factor follow no known rule: they are kept as one "
        "factor per pair"
    )
    return rotary.LongRoPE(
        long_factor=tuple(factors),
        short_factor=tuple(factors),
        original_length=context_length,
        factor=1,
        base=base,
        attention_factor=None if gain == 1 else gain,
    )


# Writing

_NO_FLOATS = ("scaling.type", "scaling.original_context_length")


def write(spec, head_dim: int, arch: str = "llama") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the metadata, by the keys of a Llama, and tensors that describe a rotary method.

    Raises:
        ValueError: GGUF cannot describe the method for this architecture of llama.cpp.
    """
    writer = _WRITERS.get(type(spec), _write_factors)
    if arch == "phi3" and isinstance(spec, rotary.LongRoPE):
        writer = _write_longrope
    metadata, tensors = writer(spec, head_dim)
    if FREQS in tensors and arch != "llama":
        raise ValueError(
            f"llama.cpp takes a factor per pair, which {rotary.name_of(spec)} needs, for llama "
            f"alone, and this is {arch}: save as Hugging Face or take another method"
        )
    # The writer stores an int as an integer, and llama.cpp then refuses the file.
    as_float = {k: float(v) for k, v in metadata.items() if k not in _NO_FLOATS}
    metadata = {_KEY + key: value for key, value in (metadata | as_float).items()}
    return metadata | {_KEY + "dimension_count": head_dim}, tensors


def _write_rope(spec, dim):
    return {"freq_base": spec.base}, {}


def _write_ntk(spec, dim):
    return {"freq_base": spec.new_base(dim)}, {}


def _write_pi(spec, dim):
    scaling = {"scaling.type": "linear", "scaling.factor": spec.factor}
    return {"freq_base": spec.base} | scaling, {}


def _write_yarn(spec, dim):
    own = rotary.YaRN(spec.factor, spec.original_length, spec.base)
    one, other = (each.frequencies(head_dim=dim, seq_len=1).inv_freq for each in (spec, own))
    if not np.array_equal(one, other):
        return _write_factors(spec, dim)
    options = {
        "scaling.type": "yarn",
        "scaling.factor": spec.factor,
        "scaling.original_context_length": _whole_length(spec),
        # llama.cpp multiplies its own 0.1 ln s + 1 by this factor.
        "scaling.attn_factor": spec.amplitude / own.amplitude,
    }
    return {"freq_base": spec.base} | options, {}


def _write_factors(spec, dim):
    """Returns the amplitude and the factors by which llama.cpp divides the frequencies of RoPE.

    This describes any method whose frequencies do not depend on length.

    Raises:
        ValueError: the frequencies depend on length, or some features of the head do not rotate.
    """
    base = getattr(spec, "base", 10_000.0)
    theta = rotary.rope_inv_freq(base, dim)
    found, far = (spec.frequencies(head_dim=dim, seq_len=n) for n in (1, rotary.MAX_POSITION))
    plain = rotary.Frequencies(found.inv_freq, found.amplitude)
    whole_head = found.pairs == len(theta) and found.inv_freq.all()
    if not (whole_head and found.equals(plain) and found.equals(far)):
        raise ValueError(
            f"GGUF cannot describe {rotary.name_of(spec)}: llama.cpp turns every pair of a Llama's "
            "head by one frequency at all lengths; save as Hugging Face or take another method"
        )
    gain = {} if found.amplitude == 1 else {"scaling.attn_factor": found.amplitude}
    return {"freq_base": base} | gain, {FREQS: (theta / found.inv_freq).astype(np.float32)}


def _write_longrope(spec, dim):
    if spec.start_count:
        raise ValueError("llama.cpp's longrope has no start tokens: start_count must be 0")
    plain = rotary.rope_inv_freq(spec.base, dim)
    short, long = (
        (plain / spec.frequencies(head_dim=dim, seq_len=n).inv_freq).astype(np.float32)
        for n in (1, rotary.MAX_POSITION)
    )
    scaling = {"scaling.type": "longrope", "scaling.attn_factor": spec.amplitude}
    scaling |= {"scaling.original_context_length": _whole_length(spec)}
    return {"freq_base": spec.base} | scaling, {LONG: long, SHORT: short}


def _whole_length(spec) -> int:
    if spec.original_length != int(spec.original_length):
        raise ValueError(f"GGUF needs a whole original_length, got {spec.original_length}")
    return int(spec.original_length)


_WRITERS = {
    rotary.RoPE: _write_rope,
    rotary.NTKAware: _write_ntk,
    rotary.PositionInterpolation: _write_pi,
    rotary.YaRN: _write_yarn,
}
