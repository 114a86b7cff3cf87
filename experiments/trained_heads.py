r"""Attention score against distance of a trained model's heads, from its own queries and keys.

    python -m experiments.trained_heads --workdir=DIR --config.model=CKPT

CKPT is whatever `longrope_jax.load` reads, such as WORKDIR/runs/NAME of a study. Where Figure 4 of
Llama 2 Long (2309.16039; experiments/attention_decay.py) takes all-ones vectors, this takes the
expectation of its footnote 3 over the queries and keys of a model. They are measured once; methods
are then drawn without the model. They are written as `rotary.parse` reads them; a base that a text
leaves open is the model's, {abf} is 50 times that and {length} the trained length. The committed
results are of a model of bytes, 4 layers of width 128, that an earlier protocol of
base_frequency_ablation pretrained at 256 tokens with base 625; they are redrawn without it:

    python -m experiments.trained_heads --workdir=docs/results/trained_heads \
        --config.model=CKPT --config.trained_length=256 --config.bos='<bos>'

Expected: 8 heads; mean score near 3,845 tokens, against distance 0: RoPE -1.9, PI -1.6, ABF -4.1,
xPos ABF -2.4. Another training of the same recipe, on another machine, gave -3.0, -2.7, -4.5 and
-3.3: the order of the methods is the same, the values are not.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.evaluation.attention_statistics import query_key_moments

_ABF_FACTOR = 50  # adjusted base over base, as in Llama 2 Long
_QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}  # over heads
_BINS = 64  # of distances, their width growing with the distance

_DEFINITIONS = (
    "Expected score: the mean over a query and an earlier key of the same window, both taken from "
    "the model before rotation, of their product after rotation by the method, divided by the "
    "square root of the head dimension, before softmax. Softmax sees only differences, so each "
    "head's score at distance 0 is subtracted; distances are averaged in bins.\n\n"
    "The queries and keys are those of the model under the method it was trained with; under "
    "another method its deeper layers would see other inputs. What a token says is taken to be "
    "independent of the distance."
)


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The one cell: mean products of queries and keys, per head."""
    return [_cell(lab.filled(config, folder)[0])]


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Measures the heads, draws their scores under every method, writes the report.

    Raises:
        ValueError: a checkpoint or text that cannot be used, an unknown method or placeholder, a
            method whose scores are no function of distance.
    """
    machine = lab.Machine(**config.machine)
    config, facts = lab.filled(config, folder)
    methods, cell = _methods(config, facts), _cell(config)
    lab.complete(folder, [cell], {"moments": functools.partial(_measure, config, machine)}, machine)
    moments = lab.needed(folder, cell)["moments"].astype(np.float64)
    layout = facts.config.rotary_layout
    rows = [curve(method, moments, config.max_distance, layout=layout) for method in methods]
    heads, length = moments.shape[0] * moments.shape[1], config.trained_length
    figure = _draw(rows, f"{heads} heads", length)
    text = f"Trained under {rotary.notation(facts.method)} at {length:,} tokens."
    blocks = [lab.Figure("heads", figure, text), _table(rows, length)]
    return lab.publish(
        folder,
        command,
        config,
        title=f"Expected score of the heads of {Path(config.model).name}",
        claims=(),
        sections=[lab.Section("Score by distance", [*blocks, lab.Paragraphs(_DEFINITIONS)])],
        results={"heads": heads, "curves": rows},
        cells=[cell],
    )


def _methods(config: ConfigDict, facts: lab.Facts) -> list[rotary.Method]:
    base = facts.base
    values = {"base": base, "abf": base and base * _ABF_FACTOR, "length": config.trained_length}
    with lab.naming("methods"):
        return [lab.read_method(text, **values) for text in config.methods]


def _cell(config: ConfigDict) -> lab.Cell:
    text = (config.corpus, config.held_out, config.sentence_tokens, config.bos)
    what = (config.model, text, config.windows, config.trained_length)
    return lab.Cell("moments", Path(config.model).name, what=what)


def _measure(config: ConfigDict, machine: lab.Machine, cell: lab.Cell) -> dict[str, np.ndarray]:
    """Moments [L, N, H, H] of the model on held-out windows of its trained length."""
    source, _, windows, length = cell.what
    model = lab.model(source, machine)
    text = lab.text(config, model.tokenizer, length=length, windows=windows)
    tokens, _ = text.windows(length, windows)
    rot = rotary.make(model.method, head_dim=model.config.head_dim, seq_len=length)
    rows = machine.rows(length)
    with jax.set_mesh(machine.mesh()):
        found = query_key_moments(
            model.config, model.params, rot, tokens[:, :length], batch_size=rows
        )
    return {"moments": found}


def curve(method: rotary.Method, moments: np.ndarray, max_distance: int, *, layout: str) -> dict:
    """Expected scores minus those at distance 0, under one method.

    Returns:
        The method's text, the middles of the bins of distances [S], and mean, low, median and
        high [S] over heads.

    Raises:
        ValueError: the method's scores are no function of distance.
    """
    distances = np.arange(max_distance + 1)
    starts = np.unique(np.geomspace(1, max_distance + 1, _BINS + 1).astype(int) - 1)[:-1]
    counts = np.diff(starts, append=max_distance + 1)
    text = rotary.notation(method)
    f = method.frequencies(head_dim=moments.shape[-1], seq_len=max_distance + 1)
    if not decay.depends_on_distance_alone(f):
        raise ValueError(
            f"scores under {text} depend on more than the distance: leave it out of "
            "--config.methods"
        )
    scores = decay.expected_score(f, distances, moments, layout=layout)
    scores = scores.reshape(-1, len(distances))
    scores = np.add.reduceat(scores - scores[:, :1], starts, axis=1) / counts
    row = {"method": text, "distances": starts + (counts - 1) / 2, "mean": scores.mean(0)}
    return row | {name: np.quantile(scores, q, axis=0) for name, q in _QUANTILES.items()}


def _table(rows: list[dict], length: int) -> lab.Table:
    """Mean over heads at the trained length and at the end, and the spread there."""
    distances = rows[0]["distances"]
    at = sorted({min(length - 1, distances[-1]), distances[-1]})
    lines = [
        {"method": row["method"]}
        | {f"mean near {d:,.0f}": np.interp(d, distances, row["mean"]) for d in at}
        | {"10% of heads below": row["low"][-1], "10% above": row["high"][-1]}
        for row in rows
    ]
    return lab.table(lines, "Expected score, relative to distance 0", "heads", "{:.3f}".format)


@lab.style()
def _draw(rows: list[dict], heads: str, length: int):
    """A panel per method: mean, median and middle 80% of heads; the trained length marked."""
    fig, axes = lab.panels(len(rows), 2, each=(4.6, 3))
    for ax, row, colour in zip(axes, rows, lab.colours([r["method"] for r in rows]), strict=True):
        x = row["distances"] + 1
        ax.fill_between(x, row["low"], row["high"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, row["median"], "--", color=colour, linewidth=1)
        ax.plot(x, row["mean"], color=colour, linewidth=2)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.axvline(length, color="black", linestyle=":", linewidth=1)
        ax.set(xscale="log")
        ax.set_title(row["method"], fontsize=11)
    fig.supxlabel("distance + 1, tokens (dotted: trained length)", fontsize=11)
    fig.supylabel("expected score, relative to distance 0", fontsize=11)
    fig.suptitle(f"{heads}: mean (line), median (dashes), middle 80% (shade)")
    return fig


if __name__ == "__main__":
    lab.run(main, "experiments.trained_heads")
