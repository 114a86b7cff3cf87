"""A method is explained in words and numbers."""

import dataclasses
import itertools
import math

import numpy as np

from longrope_jax.rotary import docstrings
from longrope_jax.rotary.frequencies import Frequencies, check_tokens, rope_inv_freq
from longrope_jax.rotary.methods.by_layer import ByLayer
from longrope_jax.rotary.registry import Method, name_of

_SAME = 1e-12  # relative; frequencies closer than this differ by rounding alone
_LONGEST_LIST = 4


def explain(
    spec: Method, *, head_dim: int, seq_len: int = 4096, trained_length: float | None = None
) -> str:
    """Returns, as text, which method it is, its options and what they mean, and a table of pairs.

    The table has a row per pair of features: radians per token, wavelength in tokens, turns over
    `seq_len` tokens, the factor on a score at a distance of `seq_len` tokens (xPos), turns within
    the trained length, and how many times slower the pair turns than in RoPE of the same base.

    Args:
        spec: a rotary method.
        head_dim: H.
        seq_len: tokens of the sequence that the method is evaluated for.
        trained_length: the trained length in tokens; default the method's original_length, if it
            has one.

    Raises:
        ValueError: `seq_len` is out of range, or the method does not fit the head.
    """
    check_tokens(seq_len=seq_len)
    if isinstance(spec, ByLayer):
        size = {"head_dim": head_dim, "seq_len": seq_len, "trained_length": trained_length}
        parts = [explain(one, **size) for one in spec.methods]
        heads = [f"layers of methods[{at}]: {_places(spec, at)}" for at in range(len(parts))]
        title = f"{name_of(spec)} ({type(spec).__name__}): {docstrings.formula(type(spec))}"
        return "\n\n".join([title, *(f"{h}\n{p}" for h, p in zip(heads, parts, strict=True))])
    f = spec.frequencies(head_dim=head_dim, seq_len=seq_len)
    trained = trained_length or option(spec, "original_length")
    header = f"{'pair':>4} {'rad/token':>13} {'wavelength':>14} {'turns':>12} {'decay':>9}"
    slowed = slowdown(spec, f)
    return "\n".join(
        [f"{name_of(spec)} ({type(spec).__name__}): {docstrings.formula(type(spec))}"]
        + [*_options(spec), *_notes(f, head_dim, seq_len), *_lengths(f, slowed, trained)]
        + [f"{header} {'trained':>12} {'slowed':>9}"]
        + [_row(f, j, seq_len, trained, slowed[j]) for j in range(len(f.inv_freq))]
    )


def _places(spec: ByLayer, at: int) -> str:
    """Returns in words which layers have methods[at]."""
    found = [str(i) for i, method in enumerate(spec.pattern) if method == at]
    return f"{', '.join(found)} of every {len(spec.pattern)}, counted from 0"


def option(spec: Method, name: str):
    """Returns an option of the method, or of the method inside it; None where neither has it."""
    inner: Method | None = spec
    while inner is not None:
        value = getattr(inner, name, None)
        if value is not None:
            return value
        inner = getattr(inner, "inner", None)
    return None


def wavelengths(inv_freq: np.ndarray) -> np.ndarray:
    """Returns tokens per turn of each pair, infinite for a frequency of zero."""
    with np.errstate(divide="ignore"):
        return 2 * np.pi / inv_freq


def slowdown(spec: Method, f: Frequencies) -> np.ndarray:
    """Returns RoPE's frequency over the method's, per pair; NaN for a method without a base."""
    base = option(spec, "base")
    if base is None or not len(f.inv_freq):
        return np.full(len(f.inv_freq), np.nan)
    with np.errstate(divide="ignore"):
        ratio = rope_inv_freq(base, 2 * len(f.inv_freq)) / f.inv_freq
    return np.where(abs(ratio - 1) < _SAME, 1.0, ratio)


def shown(value) -> str:
    """Returns an option's value as text; a long list is shown by its ends."""
    if isinstance(value, tuple) and len(value) > _LONGEST_LIST:
        return f"({value[0]!r}, {value[1]!r}, ..., {value[-1]!r}) of {len(value)}"
    return repr(value)


def _options(spec: Method) -> list[str]:
    """Returns each option's value and what the docstring says of it, once for shared texts."""
    described = docstrings.attributes(type(spec))
    lines, fields = [], dataclasses.fields(spec)
    for field, after in itertools.zip_longest(fields, fields[1:]):
        value = getattr(spec, field.name)
        origin = "default" if value == field.default else "chosen"
        lines.append(f"  {field.name} = {shown(value)} ({origin})")
        text = described.get(field.name)
        if text and (after is None or described.get(after.name) != text):
            lines.append(f"      {text}")
    return lines


def _notes(f: Frequencies, head_dim: int, seq_len: int) -> list[str]:
    notes = [
        f"  evaluated for sequences of {seq_len} tokens, head_dim {head_dim}",
        f"  amplitude {f.amplitude:.6g} on queries and keys, scores times {f.amplitude**2:.6g}",
    ]
    if 2 * f.pairs < head_dim:
        notes.append(f"  rotates {2 * f.pairs} of {head_dim} features")
    if f.mixing is not None:
        notes.append(f"  each of {f.pairs} pairs turns with a mixture of the frequencies below")
    if f.score_rule is not None:
        notes.append(f"  attention scores by {f.score_rule}")
    if f.start_count:
        notes.append(f"  the first {f.start_count} positions keep other frequencies")
    if math.isfinite(f.logn_length):
        notes.append(f"  queries grow with log n beyond {f.logn_length:g} tokens")
    return notes


def _lengths(f: Frequencies, slowed: np.ndarray, trained: float | None) -> list[str]:
    """Returns notes on wavelengths beyond the trained length, and on changes against RoPE."""
    notes, pairs = [], len(f.inv_freq)
    if trained:
        longer = int((wavelengths(f.inv_freq) > trained).sum())
        notes.append(
            f"  {longer} of {pairs} pairs make no full turn within the trained {trained:g} tokens"
        )
    if pairs and not np.isnan(slowed).any():
        same, most = int((slowed == 1).sum()), slowed.max()
        notes.append(f"  {same} of {pairs} pairs turn as in RoPE of this base")
        if same < pairs:
            notes[-1] += f", the others slower, by up to {most:.6g} times"
    return notes


def _row(f: Frequencies, j: int, seq_len: int, trained: float | None, slowed: float) -> str:
    w = f.inv_freq[j]
    wavelength = 2 * np.pi / w if w else math.inf
    turns, decay = seq_len * w / (2 * np.pi), math.exp(f.log_decay[j] * seq_len)
    within = f"{trained * w / (2 * np.pi):.4f}" if trained else "-"
    slow = "-" if math.isnan(slowed) else f"{slowed:.4f}"
    numbers = f"{j:>4} {w:>13.6e} {wavelength:>14.2f} {turns:>12.4f} {decay:>9.4f}"
    return f"{numbers} {within:>12} {slow:>9}"
