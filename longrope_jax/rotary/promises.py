"""What a rotary method promises, measured: what to look at first in a method of your own."""

import dataclasses

import numpy as np

from longrope_jax.rotary import arrays, hf, registry, rotation
from longrope_jax.rotary.frequencies import MAX_POSITION, Frequencies
from longrope_jax.rotary.registry import Method

_EXACT, _RELATIVE = 1e-6, 5e-5  # absolute, of a cosine and of a score of two normal vectors
_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Property:
    """One property of a method.

    Attributes:
        says: the property as a sentence.
        holds: whether the method has it; None where it cannot be measured this way.
        found: the number or the reason behind `holds`.
    """

    says: str
    holds: bool | None
    found: str

    def __str__(self) -> str:
        word = {True: "yes", False: "no", None: "-"}[self.holds]
        return f"{word:3}  {self.says}: {self.found}"


def properties(spec: Method | str, *, head_dim: int, seq_len: int) -> tuple[Property, ...]:
    """Measures what a method promises, for heads of `head_dim` features.

    A "no" is no error: it says what the method is. Its scores may depend on the position by
    intention, or its program may be another one than RoPE's.

    Args:
        spec: a rotary method or its text.
        head_dim: H, even.
        seq_len: tokens of the sequence, at least 128.

    Raises:
        ValueError: the method does not fit the head or the length, or `seq_len` is below 128.
    """
    spec = registry.parse(spec) if isinstance(spec, str) else spec
    if seq_len < 2 * _TOKENS:
        raise ValueError(f"seq_len must be at least {2 * _TOKENS} tokens, got {seq_len}")
    f = spec.frequencies(head_dim=head_dim, seq_len=seq_len)
    return (
        *_measured(spec, f, head_dim, seq_len),
        _one_program(spec, head_dim),
        _fixed(spec, f, head_dim),
        _named(spec),
        _exported(spec, f, head_dim, seq_len),
    )


def _measured(spec: Method, f: Frequencies, head_dim: int, seq_len: int) -> tuple[Property, ...]:
    exact = "cos and sin are exact up to the last token"
    relative = "scores depend on the distance alone"
    if f.score_rule is not None or f.mixing is not None:
        reason = "its scores follow a rule of their own"
        return Property(exact, None, reason), Property(relative, None, reason)
    rot = arrays.make(spec, head_dim=head_dim, seq_len=seq_len)
    shifts = np.asarray([0, seq_len - _TOKENS])
    at = shifts[:, None] + np.arange(_TOKENS)
    ph = arrays.phases(rot, at)
    angles = at[..., None] * f.inv_freq
    # Gains of xPos and the amplitude have no part in the angle.
    size = np.hypot(*(np.asarray(x, np.float64) for x in ph.query))
    wrong = max(
        np.abs(np.asarray(x, np.float64) / size - true).max(initial=0)
        for x, true in zip(ph.query, (np.cos(angles), np.sin(angles)), strict=True)
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1, _TOKENS, 1, head_dim)).astype(np.float32).repeat(2, axis=1)
    q, k = (np.asarray(rotation.rotate(*pair))[:, :, 0] for pair in ((x, ph.query), (y, ph.key)))
    first, last = np.tril(np.einsum("bth,bsh->bts", q.astype(np.float64), k))
    apart = np.abs(first - last).max()
    return (
        Property(exact, bool(wrong < _EXACT), f"error {wrong:.1e} at {seq_len:,} tokens"),
        Property(relative, bool(apart < _RELATIVE), f"a shift changes them by {apart:.1e}"),
    )


def _one_program(spec: Method, head_dim: int) -> Property:
    structural = arrays.is_structural(spec, head_dim=head_dim)
    found = "another program is compiled" if structural else "swapping methods compiles nothing"
    return Property("it shares RoPE's compiled program", not structural, found)


def _fixed(spec: Method, f: Frequencies, head_dim: int) -> Property:
    says = "its frequencies are those of every length"
    try:
        fixed = f.equals(spec.frequencies(head_dim=head_dim, seq_len=MAX_POSITION))
    except ValueError as error:
        return Property(says, False, str(error))
    return Property(says, fixed, "cached keys stay valid" if fixed else "they follow the length")


def _named(spec: Method) -> Property:
    says = "it comes back from its text"
    try:
        text = registry.notation(spec)
    except ValueError as error:
        return Property(says, False, str(error))
    return Property(says, registry.parse(text) == spec, text)


def _exported(spec: Method, f: Frequencies, head_dim: int, seq_len: int) -> Property:
    says = "a Hugging Face config can say it"
    try:
        exported = hf.to_hf(spec, head_dim=head_dim)
    except ValueError as error:
        return Property(says, False, str(error))
    rope_type = exported.get("rope_type", "default")
    read = hf.from_hf({"rope_parameters": exported}).frequencies(head_dim=head_dim, seq_len=seq_len)
    same = len(read.inv_freq) == len(f.inv_freq) and np.allclose(
        read.inv_freq, f.inv_freq, rtol=1e-12, atol=0
    )
    return Property(says, same, f"as rope_type {rope_type!r}")
