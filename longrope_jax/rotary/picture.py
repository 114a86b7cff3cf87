"""Pictures show one method against RoPE, or two methods against each other."""

from pathlib import Path

import numpy as np

from longrope_jax.rotary import compare
from longrope_jax.rotary.explanation import option, slowdown, wavelengths
from longrope_jax.rotary.frequencies import rope_inv_freq
from longrope_jax.rotary.registry import Method, name_of

_A, _B, _GREY = "#0072B2", "#D55E00", "#7F7F7F"


def explain_picture(
    spec: Method, path: Path, *, head_dim: int, seq_len: int, trained_length: float | None = None
) -> None:
    """Draws each pair's wavelength beside RoPE's of the same base, and how much slower it turns."""
    f = spec.frequencies(head_dim=head_dim, seq_len=seq_len)
    trained = trained_length or option(spec, "original_length")
    base = option(spec, "base")
    curves = [(f.inv_freq, name_of(spec), _A, "o")]
    if base is not None and len(f.inv_freq):
        rope = rope_inv_freq(base, 2 * len(f.inv_freq))
        curves.insert(0, (rope, f"RoPE, base {base:,.0f}", _GREY, "."))
    title = f"{name_of(spec)}, head_dim {head_dim}, attention factor {f.amplitude:.4g}"
    figure, (top, bottom) = _figure(title)
    _wavelengths(top, curves, trained, seq_len)
    slowed = slowdown(spec, f)
    _points(bottom, slowed, _A)
    bottom.set_ylabel("times slower than RoPE")
    if np.isfinite(slowed).any():
        bottom.set_ylim(bottom=0)
    _save(figure, path)


def diff_picture(
    a: Method, b: Method, path: Path, *, head_dim: int, seq_len: int, labels: tuple[str, str]
) -> None:
    """Draws each pair's wavelength in both methods, and the relative difference of frequencies."""
    frequencies = [s.frequencies(head_dim=head_dim, seq_len=seq_len) for s in (a, b)]
    wa, wb = compare.padded(*frequencies)
    factors = " and ".join(f"{f.amplitude:.4g}" for f in frequencies)
    figure, (top, bottom) = _figure(f"head_dim {head_dim}, attention factors {factors}")
    trained = {option(s, "original_length") for s in (a, b)} - {None}
    curves = [(wa, f"A: {labels[0]}", _A, "o"), (wb, f"B: {labels[1]}", _B, "x")]
    _wavelengths(top, curves, trained.pop() if len(trained) == 1 else None, seq_len)
    percent = 100 * compare.relative(wa, wb)
    _points(bottom, percent, _B)
    bottom.axhline(0, color="black", linewidth=0.8)
    bottom.set_ylabel("frequency, (B - A) / A in %")
    if np.nanmax(np.where(np.isfinite(percent), abs(percent), np.nan), initial=0) > 300:
        bottom.set_yscale("symlog", linthresh=100)
    j = compare.worst_pair(wa, wb)
    if np.isfinite(percent[j]) and percent[j]:
        _mark(bottom, j, percent[j], len(wa))
    _save(figure, path)


def _figure(title: str):
    """Returns a figure of two panels over the pair's index, without the state of pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install 'longrope_jax[plot]'") from error
    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for panel in panels:
        panel.grid(color="#DDDDDD", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, fontsize=12)
    panels[1].set_xlabel("pair of dimensions")
    return figure, panels


def _wavelengths(panel, curves, trained: float | None, seq_len: int) -> None:
    finite = [w[w > 0] for w, *_ in curves]
    highest = max((float(wavelengths(w).max()) for w in finite if len(w)), default=1.0)
    for inv_freq, label, colour, marker in curves:
        turning = inv_freq > 0
        still = np.count_nonzero(~turning)
        label += f" ({still} pairs of zero frequency)" if still else ""
        tokens = np.where(turning, wavelengths(inv_freq), np.nan)
        panel.plot(tokens, marker=marker, markersize=4, linewidth=1, color=colour, label=label)
    if trained:
        panel.axhline(trained, color="black", linewidth=1, linestyle="--")
        panel.annotate(
            f"trained length {trained:,.0f}: above it no full turn was seen",
            (0, trained), xytext=(0, 3), textcoords="offset points", fontsize=9,
        )  # fmt: skip
    if seq_len != trained and seq_len < 10 * highest:
        panel.axhline(seq_len, color="black", linewidth=1, linestyle=":")
        panel.annotate(
            f"{seq_len:,} tokens", (0, seq_len), xytext=(0, 3), textcoords="offset points",
            fontsize=9,
        )  # fmt: skip
    panel.set_yscale("log")
    panel.set_ylabel("wavelength in tokens")
    panel.legend(frameon=False, loc="lower right")


def _points(panel, values: np.ndarray, colour: str) -> None:
    values = np.where(np.isfinite(values), values, np.nan)
    panel.plot(values, marker="o", markersize=4, linewidth=1, color=colour)


def _mark(panel, pair: int, percent: float, pairs: int) -> None:
    """Writes a label beside a point, towards zero, where the curve leaves room."""
    side = "left" if pair < pairs / 4 else "right" if pair > pairs * 3 / 4 else "center"
    panel.annotate(
        f"pair {pair}: {percent:+.1f} %",
        (pair, percent), xytext=(0, -26 if percent > 0 else 26), textcoords="offset points",
        ha=side, va="center", fontsize=9,
    )  # fmt: skip


def _save(figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the picture {path}: {error}") from error
