"""What the scores say: tables with intervals, and the verdict on each hypothesis."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.ablation import plan
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation import power_law
from longrope_jax.evaluation.statistics import (
    Interval,
    PowerNeeded,
    cluster_bootstrap,
    paired_difference,
    power_needed,
    two_way_bootstrap,
    verdict,
)

PAPER_GAP = 0.003  # nats between PI and ABF in Llama 2 Long's Table 5 (Books: log 6.341/6.323)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of every finished run; arrays get a leading axis over the seeds of a row."""

    config: ConfigDict
    runs: dict[str, list[dict[str, np.ndarray]]]
    pretrained: dict[str, dict[str, np.ndarray]]

    def rows(self) -> list[str]:
        """Labels of the rows that have at least one finished seed, in the config's order."""
        return [row for row in self.config.rows if self.runs.get(row)]

    def get(self, row: str, name: str, seeds: int | None = None) -> np.ndarray:
        """Array `name` of a row, [seeds, ...]."""
        return np.stack([run[name] for run in self.runs[row][:seeds]])

    def has(self, row: str, name: str) -> bool:
        """Whether the row's runs hold this array."""
        return all(name in run for run in self.runs[row])

    def seeds(self, *rows: str) -> int:
        """How many seeds all these rows have."""
        return min(len(self.runs[row]) for row in rows)


def load(config: ConfigDict, workdir: Path) -> Scores:
    """Reads the scores of all finished runs of this config.

    Seeds of a row count up to the first that is missing or diverged, so that pairs stay pairs.
    """
    found: dict[str, list] = {}
    pretrained = {}
    for run in plan.runs(config):
        arrays = _read(workdir / "scores" / f"{run.slug}.npz")
        if arrays and len(found.get(run.row, [])) == run.seed and _finite(arrays):
            found.setdefault(run.row, []).append(arrays)
        if start := _read(workdir / "scores" / f"{run.pretrained}.npz"):
            pretrained[run.pretrained] = start
    return Scores(config, found, pretrained)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path) as saved:
        return {k: saved[k] for k in saved.files}


def _finite(arrays: dict[str, np.ndarray]) -> bool:
    return all(np.isfinite(v).all() for v in arrays.values() if v.dtype.kind == "f")


@dataclass(frozen=True, eq=False)
class Quantity:
    """One number per seed and sample [seeds, n], and the document of each sample [n]."""

    values: np.ndarray
    documents: np.ndarray

    def interval(self) -> Interval:
        """Mean with a bootstrap over seeds and documents."""
        return two_way_bootstrap(self.values, self.documents)


def _loss(stage: str, low: float, high: float):
    """Mean loss over a part of the continued length, which is half of the blocks."""

    def of(scores: Scores, row: str, seeds: int | None = None) -> Quantity:
        blocks = scores.get(row, f"{stage}/blocks", seeds)
        full = blocks.shape[-1] // 2
        part = blocks[..., round(low * full) : round(high * full)]
        return Quantity(part.mean(-1), scores.get(row, "documents", 1)[0])

    return of


def _last_length(name: str):
    """The test samples at the continued length."""

    def of(scores: Scores, row: str, seeds: int | None = None) -> Quantity:
        values = scores.get(row, name, seeds)[:, -1].astype(float)
        documents = scores.get(row, "retrieval/documents", 1)[0]
        return Quantity(values, documents[: values.shape[1]])

    return of


def _control(control: str):
    """Generated answers where the sentence asked for is not in the context."""

    def of(scores: Scores, row: str, seeds: int | None = None) -> Quantity:
        values = scores.get(row, f"control/{control}/rouge", seeds)
        documents = scores.get(row, "retrieval/documents", 1)[0]
        return Quantity(values, documents[: values.shape[1]])

    return of


# By the names that hypotheses use.
QUANTITIES = {
    "loss": _loss("trained", 0, 1),
    "loss at long range": _loss("trained", 0.75, 1),
    "loss untrained": _loss("untrained", 0, 1),
    "ROUGE-L": _last_length("retrieval/rouge"),
    "answer tokens": _last_length("first_sentence/answer_tokens"),
    "passkey": _last_length("passkey/exact"),
    "ROUGE-L, sentence removed": _control("removed"),
    "ROUGE-L, other sentence": _control("other"),
}

_DIFFERENCE = re.compile(r"^(.+?): (.+) - (.+) ([<>]) (-?\d+(?:\.\d+)?)$")
_EQUIVALENCE = re.compile(r"^(.+?): \|(.+) - (.+)\| <= (\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Check:
    """One comparison of a hypothesis: its text, the difference found, and what follows."""

    text: str
    difference: Interval | None
    verdict: str
    seeds: int


def check(scores: Scores, text: str) -> Check:
    """Computes one check, e.g. "loss: RoPE - RoPE PI > 0"; "not run" where a row is missing.

    A second operand that is a number is compared with; "chance" is a random other document's
    first sentence, scored by ROUGE-L.

    Raises:
        ValueError: text of another form, an unknown quantity or row.
    """
    quantity, a, b, claim, margin = _parse(text)
    if quantity not in QUANTITIES:
        raise ValueError(unknown_name("quantity", quantity, QUANTITIES))
    for row in (a, b):
        special = row is b and (_is_number(row) or (row == "chance" and "ROUGE" in quantity))
        if not special and row not in scores.config.rows:
            raise ValueError(unknown_name("row", row, scores.config.rows))
    if margin < 0:
        raise ValueError(f"the bound of the check {text!r} must not be negative")
    rows = [row for row in (a, b) if row in scores.config.rows]
    if not all(scores.runs.get(row) for row in rows):
        return Check(text, None, "not run", 0)
    seeds = scores.seeds(*rows)
    left = QUANTITIES[quantity](scores, a, seeds)
    right = _operand(scores, quantity, a, b, seeds, left.values.shape)
    difference = paired_difference(left.values, right, left.documents)
    return Check(text, difference, verdict(difference, claim, margin), seeds)


def _parse(text: str) -> tuple[str, str, str, str, float]:
    if found := _EQUIVALENCE.match(text):
        quantity, a, b, margin = found.groups()
        return quantity, a, b, "|difference| <= margin", float(margin)
    if found := _DIFFERENCE.match(text):
        quantity, a, b, sign, margin = found.groups()
        if sign == ">":
            return quantity, a, b, "difference > margin", float(margin)
        return quantity, a, b, "difference < -margin", -float(margin)
    raise ValueError(
        f"cannot read the check {text!r}: write 'quantity: A - B > 0' or 'quantity: |A - B| <= x'"
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _operand(scores: Scores, quantity, a, b, seeds, shape) -> np.ndarray:
    if b == "chance":
        return scores.get(a, "chance/rouge", seeds)
    if _is_number(b):
        return np.full(shape, float(b))
    return QUANTITIES[quantity](scores, b, seeds).values


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis with the verdicts of its checks and the one that follows from them."""

    name: str
    claim: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """Holds if every check does, reversed if any is; otherwise what is left open."""
        verdicts = [c.verdict for c in self.checks]
        for outcome in ("reversed", "not run", "indistinguishable"):
            if outcome in verdicts:
                return outcome
        return "holds"


def hypotheses(scores: Scores) -> list[Hypothesis]:
    """All hypotheses of the config, computed."""
    return [
        Hypothesis(name, h.claim, tuple(check(scores, text) for text in h.checks))
        for name, h in scores.config.hypotheses.items()
    ]


def controls(scores: Scores) -> list[Check]:
    """Whether both controls of every row sit at chance, within the margin of H3."""
    kinds = ("ROUGE-L, sentence removed", "ROUGE-L, other sentence")
    return [check(scores, f"{k}: |{row} - chance| <= 5") for row in scores.rows() for k in kinds]


def power_for_paper_gap(scores: Scores, a: str, b: str) -> PowerNeeded | None:
    """Documents and seeds that would resolve the paper's gap in loss between two rows."""
    if not (scores.runs.get(a) and scores.runs.get(b)):
        return None
    seeds = scores.seeds(a, b)
    left, right = (QUANTITIES["loss"](scores, row, seeds) for row in (a, b))
    return power_needed(left.values, right.values, left.documents, gap=PAPER_GAP)


def eval_lengths(config: ConfigDict) -> list[int]:
    """Lengths of the perplexity table: doublings from the pretraining to twice the long length."""
    lengths, last = [config.length], 2 * plan.continued_length(config)
    while lengths[-1] * 2 <= last:
        lengths.append(lengths[-1] * 2)
    return lengths


def perplexities(scores: Scores, row: str, stage: str) -> list[float]:
    """Perplexity at each length: over the first c tokens of each window, weighted by token."""
    blocks = scores.get(row, f"{stage}/blocks")
    width = 2 * plan.continued_length(scores.config) // blocks.shape[-1]
    counts = [n // width for n in eval_lengths(scores.config)]
    return [float(np.exp(blocks[..., :n].mean())) for n in counts]


def position_curve(scores: Scores, row: str, stage: str) -> tuple[np.ndarray, Interval]:
    """(position of each block [blocks], loss averaged over seeds with a band over documents)."""
    blocks = scores.get(row, f"{stage}/blocks")
    width = 2 * plan.continued_length(scores.config) / blocks.shape[-1]
    documents = scores.get(row, "documents", 1)[0]
    at = (np.arange(blocks.shape[-1]) + 0.5) * width
    return at, cluster_bootstrap(blocks.mean(0), documents)


@functools.cache
def fit(scores: Scores, row: str) -> power_law.PowerLawIntervals | None:
    """L(c) = (alpha/c)^beta + gamma of the trained row, seeds averaged; None if none fits."""
    lengths, losses = contexts(scores, row)
    try:
        documents = scores.get(row, "documents", 1)[0]
        return power_law.bootstrap_fit(lengths, losses, documents, n_resamples=200)
    except ValueError:
        return None  # losses that do not fall with length, as in an untrained model


def contexts(scores: Scores, row: str) -> tuple[np.ndarray, np.ndarray]:
    """(context lengths [bins], loss [windows, bins]) of the trained row, seeds averaged.

    Every window begins with a short sentence, whose shape and not the context decides the loss of
    its tokens, so only contexts beyond the longest such sentence count.
    """
    lengths = scores.get(row, "trained/bin_lengths", 1)[0]
    beyond = lengths > max(scores.config.retrieval.sentence_tokens)
    return lengths[beyond], scores.get(row, "trained/bins").mean(0)[:, beyond]


def turns_table(config: ConfigDict) -> list[list]:
    """What the scaling of the bases keeps: turns of the slowest pair, share of negative scores.

    One row per case, this study beside the paper (head dimension 128, 4,096 to 32,768 tokens).
    """
    ours = plan.bases(config) | {"head_dim": config.model.get("head_dim", 128)}
    paper = {"base": 1e4, "abf": 5e5, "length": 4096, "factor": 8, "head_dim": 128}
    table = []
    for name, base, extended in (
        ("stock at L", "base", False),
        ("stock at 8L", "base", True),
        ("ABF at 8L", "abf", True),
    ):
        table.append([name, *_turns(ours, base, extended), *_turns(paper, base, extended)])
    return table


def _turns(sizes: dict, base: str, extended: bool) -> list[float]:
    length = sizes["length"] * (sizes["factor"] if extended else 1)
    spec = rotary.RoPE(base=sizes[base])
    slowest = spec.frequencies(head_dim=sizes["head_dim"], seq_len=length).inv_freq[-1]
    score = decay.score(spec, np.arange(length), head_dim=sizes["head_dim"])
    return [float(length * slowest / (2 * np.pi)), float((score < 0).mean())]
