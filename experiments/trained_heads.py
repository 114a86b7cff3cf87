"""Score against distance of a trained model's heads, from its own queries and keys."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.ablation import plan, train
from experiments.ablation.study import Study
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation.attention_statistics import query_key_moments
from longrope_jax.training import checkpoints, step

_QUANTILES = (0.1, 0.5, 0.9)  # over heads
_BINS = 64  # of distances, their width growing with the distance

DEFINITIONS = (
    "Expected score: the mean over a query and an earlier key of the same window, both taken from "
    "the model before rotation, of their product after rotation by the method, divided by the "
    "square root of the head dimension, before softmax. Softmax sees only differences, so each "
    "head's score at distance 0 is subtracted; distances are averaged in bins.\n\n"
    "The queries and keys are those of the model under the method it was trained with; under "
    "another method its deeper layers would see other inputs. What a token says is taken to be "
    "independent of the distance."
)


@dataclasses.dataclass(frozen=True)
class Heads:
    """A checkpoint's queries and keys.

    Attributes:
        name: folder of the run.
        method: what it was trained with.
        length: tokens it was trained at.
        layout: how it pairs features.
        moments: [L, N, H, H], see `query_key_moments`.
        values: what method texts may name, see `plan.bases`.
    """

    name: str
    method: rotary.Method
    length: int
    layout: str
    moments: np.ndarray
    values: dict[str, float]

    @property
    def head_dim(self) -> int:
        """H."""
        return self.moments.shape[-1]


def load(folder: str | Path, *, windows: int) -> Heads:
    """Heads of a run of base_frequency_ablation, measured on its held-out text.

    Args:
        folder: WORKDIR/runs/NAME of a finished study, of a pretraining or a continuation.
        windows: how many windows of the trained length, at most.

    Raises:
        ValueError: no study around the folder, a run that is not in it, no checkpoint.
    """
    folder = Path(folder)
    results = folder.parent.parent / "results.json"
    if not results.is_file():
        raise ValueError(
            f"{results} is missing: --config.checkpoint is WORKDIR/runs/NAME of a finished "
            "base_frequency_ablation"
        )
    config = ConfigDict(json.loads(results.read_text())["config"])
    known = _methods(config)
    if folder.name not in known:
        raise ValueError(unknown_name(f"run of {results}", folder.name, known))
    method, length = known[folder.name]
    study = Study(config, folder.parent.parent)
    optimizer = train.optimizer_config(config.continuation, 1.0)
    abstract = step.abstract_state(study.model, optimizer, study.mesh).params
    params = checkpoints.restore_params(folder / "checkpoints", abstract)
    rot = rotary.make(method, head_dim=study.model.head_dim, seq_len=length)
    with jax.set_mesh(study.mesh):
        tokens = study.validation[0][:windows, :length]
        batch = study.batch(length)
        moments = query_key_moments(study.model, params, rot, tokens, batch_size=batch)
    layout = study.model.rotary_layout
    return Heads(folder.name, method, length, layout, moments, plan.bases(config))


def _methods(config: ConfigDict) -> dict[str, tuple[rotary.Method, int]]:
    """Method and length of every run of a study, by folder."""
    known = {}
    for run in plan.runs(config):
        known[run.pretrained] = plan.pretraining_method(config), config.length
        known[run.slug] = run.method, plan.continued_length(config)
    return known


def curves(heads: Heads, methods: tuple[str, ...], max_distance: int) -> list[dict]:
    """Expected scores minus those at distance 0, under each method.

    Returns:
        Per method its text, the middles of the bins of distances [S], and mean, low, median and
        high [S] over heads.

    Raises:
        ValueError: unknown method; one whose scores are no function of distance.
    """
    distances = np.arange(max_distance + 1)
    starts = np.unique(np.geomspace(1, max_distance + 1, _BINS + 1).astype(int) - 1)[:-1]
    counts = np.diff(starts, append=max_distance + 1)
    middles = starts + (counts - 1) / 2
    rows = []
    for text in methods:
        f = rotary.parse(text).frequencies(head_dim=heads.head_dim, seq_len=max_distance + 1)
        if not decay.depends_on_distance_alone(f):
            raise ValueError(
                f"scores under {text!r} depend on more than the distance: leave it out of methods"
            )
        scores = decay.expected_score(f, distances, heads.moments, layout=heads.layout)
        scores = scores.reshape(-1, len(distances))
        scores = np.add.reduceat(scores - scores[:, :1], starts, axis=1) / counts
        low, middle, high = np.quantile(scores, _QUANTILES, axis=0)
        row = {"method": text, "distances": middles, "mean": scores.mean(0)}
        rows.append(row | {"low": low, "median": middle, "high": high})
    return rows


def table(rows: list[dict], heads: Heads) -> tuple[list[str], list[list]]:
    """Mean over heads at the trained length and at the end, and the spread there."""
    distances = rows[0]["distances"]
    at = sorted({min(heads.length - 1, distances[-1]), distances[-1]})
    header = ["method", *(f"mean near {d:,.0f}" for d in at), "10% of heads below", "10% above"]
    cells = []
    for row in rows:
        numbers = [np.interp(d, distances, row["mean"]) for d in at]
        numbers += [row["low"][-1], row["high"][-1]]
        cells.append([row["method"], *(f"{x:.3f}" for x in numbers)])
    return header, cells


@report.style()
def draw(rows: list[dict], heads: Heads, path: Path) -> None:
    """A panel per method: mean, median and middle 80% of heads; the trained length marked."""
    cols = min(len(rows), 2)
    count = -(-len(rows) // cols)
    fig, axes = report.subplots(
        count, cols, size=(4.6 * cols, 3 * count), sharex=True, sharey=True, squeeze=False
    )
    shown = report.colours([row["method"] for row in rows])
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    for ax, row, colour in zip(axes.flat, rows, shown, strict=False):
        x = row["distances"] + 1
        ax.fill_between(x, row["low"], row["high"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, row["median"], "--", color=colour, linewidth=1)
        ax.plot(x, row["mean"], color=colour, linewidth=2)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.axvline(heads.length, color="black", linestyle=":", linewidth=1)
        ax.set(xscale="log")
        ax.set_title(row["method"], fontsize=11)
    fig.supxlabel("distance + 1, tokens (dotted: trained length)", fontsize=11)
    fig.supylabel("expected score, relative to distance 0", fontsize=11)
    layers, count = heads.moments.shape[:2]
    fig.suptitle(f"{layers * count} heads: mean (line), median (dashes), middle 80% (shade)")
    report.save_figure(fig, path)
