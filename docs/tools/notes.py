"""The numbers and figures of docs/notes are computed and written into the pages by

python -m docs.tools.notes [NAME ...]

A page has its tables between two comments; what stands around them is written by hand. The notes
in `QUICK` take seconds and a test holds them; `exact_phases` reads SmolLM2-135M and takes minutes.
"""

import csv
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from longrope_jax import rotary
from longrope_jax.analysis import base_bound, decay, granularity, interpolation

DOCS = Path(__file__).parents[1]
NOTES, RESULTS = DOCS / "notes", DOCS / "results"
_TABLE = re.compile(r"(<!-- numbers: .*? -->\n).*?(<!-- end -->)", re.S)

# Released models: method, head size, tokens that they are sold for. From their config.json.
RELEASED = (
    ("Llama 2", "rope", 128, 4_096),
    ("Llama 2 Long", "abf", 128, 32_768),
    ("Code Llama", "rope:base=1e6", 128, 16_384),
    ("Llama 3", "rope:base=5e5", 128, 8_192),
    ("Llama 3.1", "llama3:factor=8,base=5e5", 128, 131_072),
    ("Qwen2.5", "rope:base=1e6", 128, 32_768),
    ("Qwen2.5, YaRN 4", "yarn:factor=4,original_length=32768,base=1e6", 128, 131_072),
    ("gpt-oss", "yarn:factor=32,original_length=4096,base=150000,truncate=False", 64, 131_072),
    ("Gemma 3, global layers", "pi:factor=8,base=1e6", 256, 131_072),
    ("SmolLM2-135M", "rope:base=1e5", 64, 8_192),
    ("SmolLM3", "rope:base=5e6", 128, 65_536),
    ("DeepSeek-V3, its rotary part", "yarn:factor=40,original_length=4096", 64, 163_840),
    ("ProLong 512k", "rope:base=1.28e8", 128, 524_288),
)


def two_theorems(folder: Path) -> list[str]:
    """Llama 2 Long's Theorem 1 and Position Interpolation's Theorem 2.1."""
    shapes = {"RoPE": ("rope", 1e4, 1.0), "PI 1/4": ("pi:factor=4", 1e4, 0.25)}
    shapes |= {"PI 1/8": ("pi:factor=8", 1e4, 0.125), "ABF": ("abf", 5e5, 1.0)}
    rows = []
    for name, (text, base, alpha) in shapes.items():
        method = rotary.parse(text)
        sine = granularity.mean_sine(method, head_dim=128)
        chord = granularity.granularity(method, np.ones(128), positions=2)
        limits = [f(base, alpha=alpha) for f in (granularity.limit, granularity.chord_limit)]
        printed = granularity.printed_limit(base, alpha=alpha)
        numbers = (sine / 2, sine, limits[0], printed, chord, limits[1])
        rows.append([name, *(f"{x:.4f}" for x in numbers)])
    header = ["method", "printed bound, d = 128", "sine, d = 128", "limit of the sine"]
    header += ["printed limit", "distance, d = 128", "limit of the distance"]
    sizes = np.arange(4, 2000, 2)
    # With all h equal it is largest beside the middle, which decides where the bound fails last.
    equal = np.array([_largest(int(d)) if d <= 300 else _midway(d, np.ones(d // 2)) for d in sizes])
    worst = np.array([_midway(d) for d in sizes])
    printed = np.array([interpolation.printed_bound(int(d)) for d in sizes])
    fails = [sizes[x > printed] for x in (equal, worst)]
    bounds = [
        ["all h equal", f"{fails[0][0]} to {fails[0][-1]}", f"{(equal / printed).max():.3f}"],
        ["worst h", f"{fails[1][0]} to {fails[1][-1]}", f"{(worst / printed).max():.3f}"],
    ]
    at = [int(np.flatnonzero(sizes == 128)[0])]
    for line, x in zip(bounds, (equal, worst), strict=True):
        line += [f"{x[at[0]]:.4f}", f"{printed[at[0]]:.4f}"]
        line += [f"{interpolation.corrected_bound(128):.4f}"]
    figure, axes = _figure()
    corrected = np.array([interpolation.corrected_bound(int(d)) for d in sizes])
    for label, x in {"worst h": worst, "all h equal": equal, "corrected bound": corrected}.items():
        axes.plot(sizes, x / printed, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="head size d", ylabel="over the printed bound")
    axes.legend()
    figure.savefig(folder / "two_theorems.png")
    words = ["h", "fails for d", "most, over printed", "d = 128", "printed", "corrected"]
    return [_table(header, rows), _table(words, bounds)]


def _largest(head_dim: int) -> float:
    return interpolation.worst_deviation(head_dim, h=np.ones(head_dim // 2)).value


def _midway(head_dim: int, h: np.ndarray | None = None) -> float:
    """The deviation from the straight line half way between two positions."""
    theta = rotary.rope_inv_freq(1e4, head_dim)
    gap = np.exp(0.5j * theta) - (1 + np.exp(1j * theta)) / 2
    return float(np.abs(gap).sum() if h is None else abs((gap @ h).real))


def smallest_bases(folder: Path) -> list[str]:
    """Intervals of bases by length and head size, and the criterion on released models."""
    lines, pictured = [], {}
    for head_dim in (64, 96, 128, 256):
        for length in (1_024, 2_048, 4_096, 8_192):
            found = base_bound.intervals(length, head_dim=head_dim)
            pictured[head_dim, length] = found
            # Rounded inwards: what is printed lies in the interval.
            first = f"{math.ceil(found[0].low):,} to {math.floor(found[0].high):,}"
            enough = base_bound.sufficient_base(length, head_dim=head_dim)
            lines.append(
                [head_dim, f"{length:,}", first, len(found), f"{math.ceil(found[-1].low):,}"]
            )
            lines[-1].append(f"{math.ceil(enough):,}")
    figure, axes = _figure()
    for place, found in enumerate(pictured.values()):
        for one in found:
            axes.plot([one.low, min(one.high, 1e7)], [place, place], "C0", linewidth=5)
    labels = [f"d {d}, {length // 1024}k" for d, length in pictured]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xscale="log", xlim=(1e3, 1e7), xlabel="bases that meet the criterion")
    figure.savefig(folder / "smallest_bases.png")
    header = [
        "d",
        "tokens",
        "first interval",
        "intervals",
        "all bases from",
        "simple sufficient base",
    ]
    return [_table(header, lines), released()]


def released() -> str:
    """Returns the table of where the sum of cosines first turns negative in released models."""
    lines = []
    for name, text, head_dim, window in RELEASED:
        scores = decay.score(
            rotary.parse(text), np.arange(window), head_dim=head_dim, seq_len=window
        )
        first = decay.first_negative(scores)
        where = ("never", "-") if first is None else (f"{first:,}", f"{first / window:.2f}")
        lines.append([name, f"`{text}`", head_dim, f"{window:,}", *where])
    header = ["model", "method", "d", "window", "first negative at", "share of the window"]
    return _table(header, lines)


def trained_heads(folder: Path) -> list[str]:
    """Scores of all-ones vectors and of a trained model's heads at one distance."""
    del folder
    with (RESULTS / "trained_heads/heads.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    lines = []
    for row in found:
        far = np.arange(3_600, 4_096)
        scores = decay.score(rotary.parse(row["method"]), [0, *far], head_dim=64, seq_len=4_096)
        ones = scores[1:].mean() - scores[0]
        heads = (row["mean near 3,845"], row["10% of heads below"], row["10% above"])
        lines.append([f"`{row['method']}`", *(f"{float(x):.1f}" for x in (ones, *heads))])
    header = ["method", "all-ones", "heads, mean", "10 % of heads below", "10 % above"]
    return [_table(header, lines)]


def factors(folder: Path) -> list[str]:
    """Losses of LongRoPE's and other factors on text and on needles."""
    del folder
    found = json.loads((RESULTS / "longrope_search/results.json").read_text(encoding="utf-8"))
    parts = [f"{kind} at {times}" for times in ("2x", "4x") for kind in ("text", "needle")]
    rows = ("YaRN", "LongRoPE", "gradient", "gradient, monotone", "gradient, needle", "LongRoPE2")
    lines = [[row, *(f"{found['loss'][part][row]:.3f}" for part in parts)] for row in rows]
    return [_table(["factors", *parts], lines)]


def exact_phases(folder: Path) -> list[str]:
    """Does a shift of all positions change what a real model says? And what do phases cost?"""
    import jax

    import longrope_jax as lr
    from longrope_jax.data import corpora

    model = lr.load("smollm2-135m")
    hamlet = next(d for d in corpora.load("plays") if d.name == "hamlet")
    ids = np.asarray(model.encode(hamlet.text)[None, :128])
    offsets = [0, *(1 << n for n in range(10, 21, 2))]
    ways, lines, curves = _precisions(), [], {}
    for name, phases in ways.items():
        found = [_log_probabilities(model, ids, offset, phases) for offset in offsets]
        shift = [_divergence(found[0], one) for one in found]
        flips = [float((one.argmax(-1) != found[0].argmax(-1)).mean()) for one in found]
        curves[name] = shift
        lines.append(
            [name, *(f"{x:.1e}, {y:.0%}" for x, y in zip(shift[1:], flips[1:], strict=True))]
        )
    figure, axes = _figure()
    for name, shift in curves.items():
        axes.plot(offsets[1:], np.maximum(shift[1:], 1e-12), "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="shift of all positions, tokens")
    axes.set_ylabel("KL divergence, nats per token")
    axes.legend()
    figure.savefig(folder / "exact_phases.png")
    rot = rotary.make("rope", head_dim=64, seq_len=8_192)
    runs, at = {name: jax.jit(phases) for name, phases in ways.items()}, np.arange(8_192)
    for run in runs.values():
        jax.block_until_ready(run(rot, at))
    # In turn, so that other work on the machine disturbs all of them alike.
    timed = [[_seconds(lambda run=run: run(rot, at)) for run in runs.values()] for _ in range(150)]
    best = np.min(timed, axis=0) / 8_192
    costs = [[name, f"{1e9 * x:.0f}"] for name, x in zip(runs, best, strict=True)]
    header = ["phases", *(f"shift {offset:,}" for offset in offsets[1:])]
    return [_table(header, lines), _table(["phases", "ns per token, 32 pairs"], costs)]


def _precisions() -> dict[str, Callable]:
    import jax
    import jax.numpy as jnp

    original = rotary.phases

    def float32(rot, positions):
        return original(rot, positions, precision="float32")

    def rounded(rot, positions):
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), float32(rot, positions)
        )

    names = ("exact", "float32 product", "float32 product, tables in bfloat16")
    return dict(zip(names, (original, float32, rounded), strict=True))


def _log_probabilities(model, ids: np.ndarray, offset: int, phases: Callable) -> np.ndarray:
    """[T, V] of the model with its positions moved, in float64."""
    import jax
    from scipy.special import log_softmax

    from longrope_jax import llama

    rot = rotary.make(model.method, head_dim=model.config.head_dim, seq_len=1 << 21)
    positions = offset + np.arange(ids.shape[1])[None]

    def run(params, ids, positions):
        hidden, _ = llama.Llama(model.config).apply(
            {"params": params}, ids, rotary=rot, positions=positions
        )
        return llama.unembed(model.config, params, hidden)

    with mock.patch.object(rotary, "phases", phases):
        logits = jax.jit(run)(model.params, ids, positions)
    return log_softmax(np.asarray(logits[0], np.float64), axis=-1)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _seconds(call: Callable) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=80, layout="constrained")
    return figure, figure.subplots()


def _table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


QUICK = {"two_theorems": two_theorems, "trained_heads": trained_heads, "factors": factors}
EVERY = QUICK | {"smallest_bases": smallest_bases, "exact_phases": exact_phases}


def tables(page: str) -> list[str]:
    """Returns the tables that stand in the text of a page."""
    return [
        match[0].split("-->\n", 1)[1].removesuffix("<!-- end -->")
        for match in _TABLE.finditer(page)
    ]


def filled(page: str, found: Sequence[str]) -> str:
    """Returns the page with other tables.

    Raises:
        ValueError: the page has room for another number of them.
    """
    if len(_TABLE.findall(page)) != len(found):
        raise ValueError(f"the page has {len(_TABLE.findall(page))} tables, {len(found)} were made")
    left = iter(found)
    return _TABLE.sub(lambda match: match[1] + next(left) + match[2], page)


def main(names: Sequence[str]) -> None:
    """Computes the named notes, all by default, and writes tables and figures."""
    for name in names or EVERY:
        page = NOTES / f"{name}.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), EVERY[name](NOTES)), "utf-8")
        print(page.relative_to(DOCS.parent), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
