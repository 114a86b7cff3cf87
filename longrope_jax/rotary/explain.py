"""A method in words and numbers."""

import dataclasses
import inspect
import math

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies
from longrope_jax.rotary.registry import Method, name_of


def explain(spec: Method, *, head_dim: int, seq_len: int = 4096) -> str:
    """Which method, which options, and a table per pair of dimensions.

    The table gives radians per token, wavelength in tokens, turns over `seq_len` tokens and the
    factor on a score at the distance of `seq_len` (xPos).
    """
    f = spec.frequencies(head_dim=head_dim, seq_len=seq_len)
    options = [_option(spec, field) for field in dataclasses.fields(spec)]
    formula = (inspect.getdoc(type(spec)) or "").partition("\n")[0]
    return "\n".join(
        [f"{name_of(spec)} ({type(spec).__name__}): {formula}", *options, *_notes(f, head_dim)]
        + [f"{'pair':>4} {'rad/token':>13} {'wavelength':>14} {'turns':>12} {'decay':>9}"]
        + [_row(f, j, seq_len) for j in range(len(f.inv_freq))]
    )


def _option(spec: Method, field: dataclasses.Field) -> str:
    value = getattr(spec, field.name)
    origin = "default" if value == field.default else "chosen"
    return f"  {field.name} = {value!r} ({origin})"


def _notes(f: Frequencies, head_dim: int) -> list[str]:
    notes = [
        f"  amplitude {f.amplitude:.6g} on queries and keys, scores times {f.amplitude**2:.6g}"
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


def _row(f: Frequencies, j: int, seq_len: int) -> str:
    w = f.inv_freq[j]
    wavelength = 2 * np.pi / w if w else math.inf
    turns, decay = seq_len * w / (2 * np.pi), math.exp(f.log_decay[j] * seq_len)
    return f"{j:>4} {w:>13.6e} {wavelength:>14.2f} {turns:>12.4f} {decay:>9.4f}"
