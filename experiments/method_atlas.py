"""Every registered rotary method on one page: frequencies, wavelengths, decay.

    python -m experiments.method_atlas --config=configs/method_atlas.py:paper --workdir=DIR

All methods extend the same model: trained on 4,096 tokens with base 10,000 and head dimension 128,
to 32,768 tokens. An option without a default gets the value of the config, the others keep their
defaults. A method registered anywhere before the run appears too; what cannot be drawn as a curve
(of ours ALiBi alone, whose bias differs by head) is listed with the reason. In seconds on a CPU.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.errors import unknown_name

_COLUMNS = 6
_BLOCKS = 96  # into which the distances of a decay curve are gathered
_SEEN, _UNSEEN, _ROPE = "#0072B2", "#D55E00", "#B0B0B0"

_DEFINITIONS = (
    "Turning: pairs that rotate at all, of H/2. Beyond: those whose wavelength is longer than the "
    "trained length, so that training never shows a full turn. Longest: the longest wavelength of "
    "a turning pair over the trained length. Amplitude: factor on queries and on keys.\n\n"
    "Scores are those of all-ones queries and keys, divided by the square root of H. Where they "
    "depend on more than the distance (first tokens with frequencies of their own, log-n scaling, "
    "positions by chunks or groups, the mixtures of FoPE's head 0) the query is the last token of "
    "the extended length; such methods have a star. Remapped positions (ReRoPE, STRING ...) keep "
    "the inner method's frequencies and change the decay alone."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One method; scores [S] at distances 0..S-1, or a reason why it has none."""

    name: str
    spec: rotary.Method | None = None
    frequencies: rotary.Frequencies | None = None
    scores: np.ndarray | None = None
    reason: str = ""

    @property
    def starred(self) -> bool:
        """Whether the scores are those of one query, not a function of distance."""
        return not decay.depends_on_distance_alone(self.frequencies)

    @property
    def label(self) -> str:
        """The name as tables and figures show it."""
        return self.name + "*" * self.starred


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Evaluates every method, draws the atlas, writes the report into `folder`.

    Raises:
        ValueError: unknown name, odd head dimension, a trained length below 2, a factor below 1.
    """
    for name, least in (("trained", 2), ("factor", 1)):
        if config[name] < least:
            raise ValueError(f"--config.{name} must be at least {least}, got {config[name]}")
    entries = [entry(name, config) for name in config.methods or rotary.names()]
    drawn = [e for e in entries if not e.reason]
    if not drawn:
        raise ValueError(f"nothing to draw: {entries[0].name}: {entries[0].reason}")
    lab.save_csv(folder / "pairs.csv", ["method", "pair", "inv_freq", "log_decay"], _pairs(drawn))
    rows = [_row(e, config) for e in drawn]
    options = [{"method": e.name, "as evaluated": repr(e.spec)} for e in drawn]
    reasons = [{"method": e.name, "reason": e.reason} for e in entries if e.reason]
    wavelengths = lab.Figure("wavelengths", _draw_wavelengths(drawn, config), "A panel per method.")
    scores = lab.Figure("decay", _draw_decay(drawn, config), "A panel per method.")
    numbers = lab.table(rows, "Atlas of rotary methods", "methods")
    sections = [
        lab.Section("Wavelengths of every method", [wavelengths]),
        lab.Section("Decay of every method", [scores]),
        lab.Section("Numbers of every method", [numbers, lab.Paragraphs(_DEFINITIONS)]),
        lab.Section("Options of every method", [lab.table(options)]),
    ]
    if reasons:
        left = lab.table(reasons, "Not drawn", "not_drawn")
        sections.append(lab.Section("Methods not drawn", [left]))
    return lab.publish(
        folder,
        command,
        config,
        title="Atlas of rotary methods",
        claims=[f"{len(drawn)} of {len(entries)} methods are drawn as curves."],
        sections=sections,
        results={"methods": rows, "options": options, "not_drawn": reasons},
    )


def entry(name: str, config: ConfigDict) -> Entry:
    """A method with the config's values for what it lacks, evaluated at the extended length."""
    if name not in rotary.names():
        raise ValueError(unknown_name("rotary method", name, rotary.names()))
    extended = round(config.trained * config.factor)
    try:
        spec = _build(name, config)
        f = spec.frequencies(head_dim=config.head_dim, seq_len=extended)
    except (ValueError, NotImplementedError) as error:
        return Entry(name, reason=str(error))
    other = _other_parts(f)
    if other:
        return Entry(name, spec, reason=f"its scores depend on more than frequencies: {other}")
    try:
        return Entry(name, spec, f, _curve(f, extended, config.head_dim))
    except ValueError as error:
        return Entry(name, spec, reason=str(error))


def _curve(f: rotary.Frequencies, length: int, head_dim: int) -> np.ndarray:
    """[length] what the last of `length` tokens sees at each distance."""
    distances, last = np.arange(length), length - 1
    if decay.depends_on_distance_alone(f):
        return decay.score(f, distances, head_dim=head_dim, seq_len=length)
    return decay.heatmap(f, [last], last - distances, head_dim=head_dim)[0]


def _build(name: str, config: ConfigDict) -> rotary.Method:
    values = {"trained": config.trained, "factor": config.factor}
    values |= {f"trained_{n}": config.trained // n for n in (2, 4, 32)}
    if name in config.specs:
        return rotary.parse(config.specs[name].format(**values))
    options = {"factor": config.factor, **config.options}
    if "inner" in options:
        options["inner"] = rotary.parse(options["inner"].format(**values))
    options["original_length"] = config.trained
    return _with_needed(name, options)


def _with_needed(name: str, options: dict) -> rotary.Method:
    """The method with those options that it lacks, and its trained length where it has one."""
    missing = dataclasses.MISSING
    chosen = {}
    for f in dataclasses.fields(rotary.method_class(name)):
        lacks = f.default is f.default_factory is missing
        if f.name in options and (lacks or (f.name == "original_length" and f.default is not None)):
            chosen[f.name] = options[f.name]
    return rotary.build(name, **chosen)


def _other_parts(f: object) -> str:
    """What `f` holds beyond the parts that the decay curve takes into account."""
    if not isinstance(f, rotary.Frequencies):
        return type(f).__name__
    plain = rotary.Frequencies(f.inv_freq)
    known = {field.name for field in dataclasses.fields(rotary.Frequencies)}
    return ", ".join(
        field.name
        for field in dataclasses.fields(f)
        if field.name not in known
        and not np.array_equal(getattr(f, field.name), getattr(plain, field.name, field.default))
    )


def _row(e: Entry, config: ConfigDict) -> dict:
    inv_freq, scores = e.frequencies.inv_freq, e.scores
    turning = inv_freq[inv_freq > 0]
    wavelengths = 2 * np.pi / turning / config.trained
    return {
        "method": e.label,
        "turning": turning.size,
        "beyond": int(np.sum(wavelengths > 1)),
        "longest": float(wavelengths.max()) if turning.size else None,
        "amplitude": float(e.frequencies.amplitude),
        "score at 0": float(scores[0]),
        "at trained": float(scores[min(config.trained, len(scores) - 1)]),
        "at end": float(scores[-1]),
        "first negative": decay.first_negative(scores),
        "oscillation": decay.oscillation(scores),
    }


def _pairs(drawn: list[Entry]) -> Iterator[list]:
    """Lines of the CSV file of all frequencies."""
    for e in drawn:
        values = zip(e.frequencies.inv_freq, e.frequencies.log_decay, strict=True)
        yield from ([e.name, j, *pair] for j, pair in enumerate(values))


# Figures


def _panels(drawn: list[Entry]):
    fig, axes = lab.panels(len(drawn), _COLUMNS, each=(2.5, 1.9), margin=(0, 1))
    for ax, e in zip(axes, drawn, strict=True):
        ax.set_title(e.label, fontsize=11, pad=3)
        ax.tick_params(labelsize=9)
    return fig, axes


@lab.style()
def _draw_wavelengths(drawn: list[Entry], config: ConfigDict):
    """A panel per method: wavelength of each pair over the trained length, RoPE in grey."""
    fig, axes = _panels(drawn)
    reference = 2 * np.pi / rotary.rope_inv_freq(10_000.0, config.head_dim) / config.trained
    top = 30 * max(reference.max(), config.factor)
    for ax, e in zip(axes, drawn, strict=True):
        ax.plot(reference, color=_ROPE, linewidth=3)
        _draw_pairs(ax, e.frequencies.inv_freq, config, top)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.axhline(config.factor, color="black", linewidth=0.8, linestyle=":")
        ax.set(yscale="log", ylim=(0.5 * reference.min(), 2 * top))
    fig.supxlabel("pair")
    fig.supylabel("wavelength / trained length")
    fig.suptitle(
        "Blue: a full turn fits into the trained length (line). Orange: it does not. Triangles: "
        "of zero frequency.\n"
        f"Dotted: extended length. Grey: RoPE, base 10,000, {config.trained:,} tokens."
    )
    return fig


def _draw_pairs(ax, inv_freq: np.ndarray, config: ConfigDict, top: float) -> None:
    j = np.arange(len(inv_freq))
    rest = inv_freq == 0
    wavelengths = 2 * np.pi / np.where(rest, 1.0, inv_freq) / config.trained
    for chosen, colour in ((wavelengths <= 1, _SEEN), (wavelengths > 1, _UNSEEN)):
        shown = chosen & ~rest
        ax.plot(j[shown], wavelengths[shown], ".", markersize=3.5, color=colour)
    ax.plot(j[rest], np.full(rest.sum(), top), "^", markersize=3, color="black")


@lab.style()
def _draw_decay(drawn: list[Entry], config: ConfigDict):
    """A panel per method: mean and range of blocks of distances, RoPE in grey."""
    fig, axes = _panels(drawn)
    distances = np.arange(len(drawn[0].scores))
    rope = decay.score(rotary.RoPE(), distances, head_dim=config.head_dim)
    starts = np.unique(np.linspace(0, len(distances), _BLOCKS, endpoint=False).astype(int))
    for ax, e in zip(axes, drawn, strict=True):
        lab.draw_band(ax, rope, starts, color=_ROPE, shade=0, linewidth=2)
        lab.draw_band(ax, e.scores, starts, color=_SEEN, linewidth=1.5)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.axvline(config.trained, color="black", linewidth=0.8)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:.0f}k" if x >= 1024 else f"{x:.0f}")
        ax.set(xlim=(0, len(distances)))
        ax.set_xticks(np.linspace(0, len(distances), 3))
    limit = np.sqrt(config.head_dim)
    axes[0].set_ylim(-0.4 * limit, 1.15 * limit)
    fig.supxlabel("distance, tokens (line: trained length)")
    fig.supylabel("score of all-ones vectors")
    stars = any(e.starred for e in drawn)
    note = "\n* depends on the position too: the query is the last token" if stars else ""
    block = len(distances) // len(starts)
    fig.suptitle(f"Mean (line) and range (shade) of every {block} distances; grey: RoPE{note}")
    return fig


if __name__ == "__main__":
    lab.run(main, "experiments.method_atlas")
