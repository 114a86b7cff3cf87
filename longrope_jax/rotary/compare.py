"""Two methods are compared by their options and by the frequency of every pair."""

import dataclasses
import math

import numpy as np

from longrope_jax.rotary.explanation import shown, wavelengths
from longrope_jax.rotary.frequencies import Frequencies, check_tokens
from longrope_jax.rotary.registry import Method, name_of

_SAME = 1e-12


def diff(a: Method, b: Method, *, head_dim: int, seq_len: int = 4096) -> str:
    """Returns, as text, what differs between two methods at one head size and length.

    The text has the options that differ; amplitude, decay, start tokens and log-n scaling where
    they differ; the pair that differs most; and a table with a row per pair: radians per token,
    wavelength in tokens, the relative difference of frequency (B - A) / A, and by how many turns
    the two are apart after `seq_len` tokens. A pair that only one method has counts as zero
    frequency in the other.

    Raises:
        ValueError: `seq_len` is out of range, or a method does not fit the head.
    """
    check_tokens(seq_len=seq_len)
    fa, fb = (s.frequencies(head_dim=head_dim, seq_len=seq_len) for s in (a, b))
    wa, wb = padded(fa, fb)
    lines = [f"A  {name_of(a)}", f"B  {name_of(b)}"]
    lines += [f"at {seq_len} tokens, head_dim {head_dim}", "", *_options(a, b), *_others(fa, fb)]
    lines += [worst(wa, wb), ""]
    if not _equal(wa, wb):
        lines += _table(wa, wb, seq_len)
    return "\n".join(lines).rstrip()


def padded(a: Frequencies, b: Frequencies) -> tuple[np.ndarray, np.ndarray]:
    """Returns both methods' radians per token, the shorter array filled with zeros."""
    size = max(len(a.inv_freq), len(b.inv_freq))
    wa, wb = (np.pad(f.inv_freq, (0, size - len(f.inv_freq))) for f in (a, b))
    return wa, wb


def relative(wa: np.ndarray, wb: np.ndarray) -> np.ndarray:
    """Returns (B - A) / A per pair: 0 where both are zero, infinite where A alone is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(wa == wb, 0.0, (wb - wa) / wa)


def worst(wa: np.ndarray, wb: np.ndarray) -> str:
    """Returns one line on the pair with the largest ratio of frequencies, either way round."""
    if _equal(wa, wb):
        return "frequencies: the same for every pair"
    differing = int((abs(relative(wa, wb)) > _SAME).sum())
    j = worst_pair(wa, wb)
    return (
        f"frequencies: {differing} of {len(wa)} pairs differ, most pair {j}: wavelength "
        f"{wavelengths(wa)[j]:.6g} tokens in A, {wavelengths(wb)[j]:.6g} in B "
        f"({relative(wa, wb)[j]:+.2%} in frequency)"
    )


def worst_pair(wa: np.ndarray, wb: np.ndarray) -> int:
    """Returns the index of the pair whose frequencies have the largest ratio."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(wa == wb, 0.0, abs(np.log(wb) - np.log(wa)))
    return int(np.argmax(ratio))


def _equal(wa: np.ndarray, wb: np.ndarray) -> bool:
    return bool(np.all(abs(relative(wa, wb)) <= _SAME))


def _options(a: Method, b: Method) -> list[str]:
    mine, other = _flat(a), _flat(b)
    names = [n for n in mine | other if mine.get(n) != other.get(n)]
    if not names:
        return ["options: the same"]
    rows = [[n, *(shown(x[n]) if n in x else "-" for x in (mine, other))] for n in names]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"  {n:<{widths[0]}}  {x:<{widths[1]}}  {y}" for n, x, y in [("", "A", "B"), *rows]]
    return ["options that differ:", *lines]


def _flat(spec: Method, prefix: str = "") -> dict:
    """Returns the value of each option, with options of an inner method as inner.option."""
    found = {f"{prefix}method": name_of(spec)}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if hasattr(value, "frequencies"):
            found |= _flat(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def _others(a: Frequencies, b: Frequencies) -> list[str]:
    """Returns lines on the amplitude, always, and on what else differs beside frequencies."""
    lines = [f"amplitude on queries and keys: A {a.amplitude:.6g}, B {b.amplitude:.6g}"]
    if [x.start_count for x in (a, b)] != [0, 0]:
        lines.append(f"positions with other frequencies: A {a.start_count}, B {b.start_count}")
    if math.isfinite(a.logn_length) or math.isfinite(b.logn_length):
        lines.append(f"log-n scaling beyond: A {a.logn_length:g}, B {b.logn_length:g} tokens")
    steepest = [x.log_decay.min(initial=0) for x in (a, b)]
    if any(steepest):
        lines.append(f"steepest decay per token: A {steepest[0]:.6g}, B {steepest[1]:.6g}")
    return lines


def _table(wa: np.ndarray, wb: np.ndarray, seq_len: int) -> list[str]:
    apart = seq_len * (wb - wa) / (2 * np.pi)
    rows = zip(wa, wb, wavelengths(wa), wavelengths(wb), relative(wa, wb), apart, strict=True)
    return [
        f"{'pair':>4} {'rad/token A':>13} {'rad/token B':>13} {'wavelength A':>14} "
        f"{'wavelength B':>14} {'B/A - 1':>10} {'turns apart':>12}",
        *(
            f"{j:>4} {a:>13.6e} {b:>13.6e} {x:>14.2f} {y:>14.2f} {r:>+10.2%} {t:>+12.4f}"
            for j, (a, b, x, y, r, t) in enumerate(rows)
        ),
    ]
