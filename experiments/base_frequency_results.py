"""What the base-frequency ablation found: the quantities that hypotheses name, and curves.

Everything is computed from cells alone, which experiments/base_frequency_ablation.py makes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import rotary
from longrope_jax.evaluation import power_law
from longrope_jax.evaluation.statistics import (
    Interval,
    PowerNeeded,
    power_needed,
)

PAPER_GAP = 0.003  # nats between PI and ABF in Llama 2 Long's Table 5 (Books: log 6.341/6.323)
PAPER = {"base": 1e4, "abf": 5e5, "length": 4096, "factor": 8}  # sizes of Llama 2 Long
PAPER_HEAD_DIM = 128
PAPER_PERPLEXITY = {  # Table 5 of Llama 2 Long: Books, CC, Wikipedia at 32,768 tokens
    "RoPE": (6.548, 6.816, 3.802),
    "RoPE PI": (6.341, 6.786, 3.775),
    "RoPE ABF": (6.323, 6.780, 3.771),
    "xPos ABF": (6.331, 6.780, 3.771),
}
PAPER_STEPS = 19_073  # 80 billion tokens at 4M a step
REPAIRED = 0.01  # nats between PI and ABF from which on PI counts as repaired
CONTROLS = ("removed", "other")  # of `tasks.CONTROLS`, at the continued length
WITHIN, BEYOND = "loss within the pretraining length", "loss at long range"
GAIN, UNTRAINED = "gain from long context", "loss untrained"
EXCESS = "excess at long range, less half of RoPE's"
START, UNTAUGHT = "pretraining", "pretraining, not taught"
CROPPED = "RoPE, cropped"  # the pretrained model, which reads the last tokens alone
REACH = 0.8  # share of a row's own value at the pretraining length down to which it reaches


def start_row(settings: ConfigDict) -> str:
    """The row of the pretrained model that a row of the config starts from."""
    return START if settings.taught else UNTAUGHT


def full(config: ConfigDict) -> int:
    """Tokens of the continuation's windows."""
    return config.length * config.factor


def lengths(config: ConfigDict) -> list[int]:
    """Tokens of the samples that retrieval is tested with, the two trained lengths among them."""
    shares = {1 / config.factor, *config.evaluation.lengths, 1.0}
    return [round(share * full(config)) for share in sorted(shares)]


def branches(config: ConfigDict, row: str) -> tuple[int, ...]:
    """Steps of the annealed branches of a row's continuation, its whole length aside."""
    if not config.rows[row].branched:
        return ()
    phase = config.continuation
    least = int(phase.warmup_steps / (1 - phase.decay)) + 2  # to warm up and to come down
    steps = {max(least, round(share * phase.steps)) for share in config.branches}
    last = phase.steps
    return tuple(sorted(step for step in steps if step < last))


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The finished cells of a study.

    Attributes:
        config: the study's config.
        folder: the study's folder.
        cells: all cells of the study, finished or not.
        head_dim: H of the model.
        left_out: rows and seeds that the time budget had no room for.
    """

    config: ConfigDict
    folder: Path
    cells: Sequence[lab.Cell]
    head_dim: int
    left_out: tuple[str, ...] = ()

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """How many seeds of each row are finished, up to the first that is not or that diverged.

        All quantities of a row are of these seeds, so that the seeds of two rows stay pairs.
        """
        counts = {}
        for row, settings in self.config.rows.items():
            first = settings.first_seed
            whole = (self._is_whole(row, first + i) for i in range(settings.seeds))
            counts[row] = sum(itertools.takewhile(bool, whole))
        return {row: count for row, count in counts.items() if count}

    def _is_whole(self, row: str, seed: int) -> bool:
        names = row, start_row(self.config.rows[row])
        cells = [cell for cell in self.cells if cell.seed == seed and cell.row in names]
        every = [lab.read(self.folder, cell) for cell in cells]
        floats = (
            v for arrays in filter(None, every) for v in arrays.values() if v.dtype.kind == "f"
        )
        return all(every) and all(np.isfinite(v).all() for v in floats)

    @property
    def full(self) -> int:
        """Tokens of the continuation's windows."""
        return full(self.config)

    @property
    def plain(self) -> rotary.RoPE:
        """The method of pretraining."""
        return rotary.RoPE(base=self.config.base_per_token * self.config.length)

    @functools.cached_property
    def methods(self) -> dict[str, rotary.Method]:
        """The rotary method of every row."""
        every = {cell.row: cell.what[0].method for cell in self.cells if cell.kind == "loss"}
        return {row: every[row] for row in self.rows}

    @functools.cached_property
    def drawn(self) -> dict[str, str]:
        """The colour of every row that stands in figures; RoPE with another base is ABF."""
        known = {"xpos": "xpos_abf", "rope": "abf"}
        names = {row: rotary.notation(m).partition(":")[0] for row, m in self.methods.items()}
        names = {row: name for row, name in names.items() if self.config.rows[row].drawn}
        keys = [
            "rope" if self.methods[row] == self.plain else known.get(name, name)
            for row, name in names.items()
        ]
        return dict(zip(names, lab.colours(keys), strict=True))

    @functools.cached_property
    def quantities(self) -> dict[str, lab.Scores]:
        """Every quantity that hypotheses can name."""
        return {name: quantity(self) for name, quantity in QUANTITIES.items()}

    @functools.cached_property
    def laws(self) -> dict[str, power_law.PowerLawIntervals | None]:
        """L(c) = (alpha/c)^beta + gamma of every trained row; None where the data tell none."""
        return {row: _law(*points) for row, points in contexts(self).items()}

    @functools.cache  # noqa: B019  (it lives as long as its report)
    def scores(self, kind: str, key: str, step: int | None = None, column=None) -> lab.Scores:
        """An array, or one column of it, of every row at a step; the last step by default."""
        step = self.config.continuation.steps if step is None else step
        cells = [c for c in self.cells if c.kind == kind and self._counts(c)]
        cells = [c for c in cells if c.what[0].step == step]
        if column is None:
            return lab.scores(self.folder, cells, key)
        cells = [c for c in cells if column in c.what[0].columns]
        at = cells[0].what[0].columns.index(column)
        return lab.scores(self.folder, cells, key).map(lambda v: v[..., at])

    def _counts(self, cell: lab.Cell) -> bool:
        """Whether a cell is of a row and of a seed that is finished."""
        seeds = self.rows.get(cell.row, 0)
        return seeds and 0 <= cell.seed - self.config.rows[cell.row].first_seed < seeds

    def cropped(self, kind: str, key: str, column=None) -> lab.Scores:
        """As `scores`, of the pretrained models that read their last tokens alone."""
        cells = [c for c in self.cells if c.kind == kind and c.row == CROPPED]
        found = lab.scores(self.folder, cells, key)
        if column is None or not found.rows:
            return found
        at = cells[0].what[0].columns.index(column)
        return found.map(lambda v: v[..., at])

    def at(self, kind: str, key: str, length=0, scale=1.0, control="none", step=None) -> lab.Scores:
        """One column: by default the continued length, the method itself, no control."""
        return self.scores(kind, key, step, (length or self.full, scale, control))

    def shares(self, **column) -> lab.Scores:
        """Share of answer tokens right, on the samples that all side measurements use."""
        found = self.at("first_sentence", "answer_tokens", **column)
        count = self.config.evaluation.generated
        documents = {row: names[:count] for row, names in found.documents.items()}
        return lab.Scores({row: v[:, :count] for row, v in found.values.items()}, documents)

    def loss(self, low: float, high: float, step: int | None = None) -> lab.Scores:
        """Mean loss from `low` to `high` of the continued length, which is half of the blocks."""

        def part(blocks: np.ndarray) -> np.ndarray:
            end = blocks.shape[-1] // 2
            return blocks[..., round(low * end) : round(high * end)].mean(-1)

        return self.scores("loss", "blocks", step).map(part)

    def at_end(self, key: str) -> lab.Scores:
        """Loss of the window's last quarter: "long" under all of it, "short" under L tokens."""
        return self.scores("context_gain", key)

    def beyond(self) -> lab.Scores:
        """Loss at long range, beside it that of the pretrained model that reads L tokens alone."""
        own, cropped = self.at_end("long"), self.cropped("context_gain", "short")
        return lab.Scores(own.values | cropped.values, own.documents | cropped.documents)

    def area(self, kind: str) -> lab.Scores:
        """Area under whole answers right over the logarithm of the length, as a share.

        Lengths from the pretraining length on count; the curve is joined by straight lines. Beside
        the rows stand the pretrained models that read their last tokens alone.
        """
        own = self._area(lambda n: self.at(kind, "exact", length=n))
        cropped = self._area(lambda n: self.cropped(kind, "exact", (n, 1.0, "none")))
        return lab.Scores(own.values | cropped.values, own.documents | cropped.documents)

    def _area(self, at_length: Callable[[int], lab.Scores]) -> lab.Scores:
        at = [n for n in lengths(self.config) if n >= self.config.length]
        every = [at_length(n).map(lambda v: v.astype(float)) for n in at]
        if len(at) < 2:
            return every[0]
        steps = np.diff(np.log(at)) / np.log(at[-1] / at[0])
        weights = (np.append(steps, 0) + np.append(0, steps)) / 2
        values = {
            row: sum(w * one.values[row] for w, one in zip(weights, every, strict=True))
            for row in every[0].rows
        }
        return lab.Scores(values, every[0].documents)

    def of_ceiling(self, kind: str, share: float) -> lab.Scores:
        """Whole answers at the continued length, less `share` of those at the pretraining length.

        Samples are paired by their number, since a sample's document is the same at all lengths.
        """
        own = self.at(kind, "exact", length=self.config.length)
        return self.at(kind, "exact").minus(own.map(lambda v: share * v))

    def excess(self) -> lab.Scores:
        """What a row gains less from long context than ABF, less half of what RoPE gains less.

        Below 0 a row loses less than half as much at long range as plain RoPE: rho, the ratio of
        the two, is below 1/2. Empty without those two rows.
        """
        gain = QUANTITIES[GAIN](self)
        if not {"RoPE", "RoPE ABF"} <= set(gain.rows):
            return lab.Scores({}, {})
        seeds = min(len(gain.values[row]) for row in ("RoPE", "RoPE ABF"))
        abf = gain.values["RoPE ABF"][:seeds]
        rope = abf - gain.values["RoPE"][:seeds]
        values = {
            row: abf[: len(v)] - v[:seeds] - 0.5 * rope[: len(v)] for row, v in gain.values.items()
        }
        return lab.Scores(values, gain.documents)

    def reach(self, kind: str) -> dict[str, list[int]]:
        """The longest length at which each seed keeps 80 % of its own value at its own length.

        0 where even that is 0. A length counts only if all shorter ones do.
        """
        at = [n for n in lengths(self.config) if n >= self.config.length]
        every = [self.at(kind, "exact", length=n) for n in at]
        found = {}
        for row in every[0].rows:
            means = np.stack([one.values[row].mean(1) for one in every], -1)  # [seeds, lengths]
            kept = (means >= REACH * means[:, :1]) & (means[:, :1] > 0)
            counts = np.cumprod(kept, -1).sum(-1)
            found[row] = [at[count - 1] if count else 0 for count in counts]
        return found

    def rouge(self, **column) -> lab.Scores:
        """ROUGE-L beside a row "chance": a random other document's first sentence."""
        own = self.at("answers", "rouge", **column)
        chance = lab.scores(self.folder, [c for c in self.cells if c.kind == "chance"], "rouge")
        both = lab.Scores(own.values | chance.values, own.documents | chance.documents)
        return both.repeated(["chance"])

    def at_start(self, kind: str, key: str) -> lab.Scores:
        """Every row's pretrained model at the pretraining length."""
        start = {row: start_row(self.config.rows[row]) for row in self.rows}
        cells = [c for c in self.cells if c.kind == kind and c.row in start.values()]
        found = lab.scores(self.folder, cells, key).map(lambda v: v[..., 0])
        values = {row: found.values[name][: self.rows[row]] for row, name in start.items()}
        return lab.Scores(values, {row: found.documents[name] for row, name in start.items()})


# By the names that hypotheses use. Losses are nats per token, ROUGE-L goes from 0 to 100, the
# others are shares. All are of the trained rows at the continued length unless they say otherwise;
# within the pretraining length its second half counts, at long range the window's last quarter. The
# gain from long context is what the same row loses on those same tokens where it reads only as many
# as in pretraining.
QUANTITIES: dict[str, Callable[[Found], lab.Scores]] = {
    "loss": lambda f: f.loss(0, 1),
    WITHIN: lambda f: f.loss(0.5 / f.config.factor, 1 / f.config.factor),
    BEYOND: lambda f: f.beyond(),
    GAIN: lambda f: f.at_end("short").minus(f.at_end("long")),
    UNTRAINED: lambda f: f.loss(0, 1, step=0),
    EXCESS: lambda f: f.excess(),
    "ROUGE-L": lambda f: f.rouge(),
    "first sentence": lambda f: f.at("first_sentence", "exact"),
    "answer tokens": lambda f: f.at("first_sentence", "answer_tokens"),
    "passkey": lambda f: f.at("passkey", "exact"),
    "first sentence area": lambda f: f.area("first_sentence"),
    "passkey area": lambda f: f.area("passkey"),
    "passkey, less 0.9 of its own ceiling": lambda f: f.of_ceiling("passkey", 0.9),
    "passkey, less half of its own ceiling": lambda f: f.of_ceiling("passkey", 0.5),
    "first sentence, less half of its own ceiling": lambda f: f.of_ceiling("first_sentence", 0.5),
    "ROUGE-L, sentence removed": lambda f: f.rouge(control="removed"),
    "ROUGE-L, other sentence": lambda f: f.rouge(control="other"),
    "gain from the sentence": lambda f: f.rouge().minus(f.rouge(control="removed")),
    "first sentence, sentence removed": lambda f: f.at(
        "first_sentence", "exact", control="removed"
    ),
    "passkey, key removed": lambda f: f.at("passkey", "exact", control="removed"),
    "first sentence at its own length": lambda f: f.at_start("first_sentence", "exact"),
    "answer tokens at its own length": lambda f: f.at_start("first_sentence", "answer_tokens"),
    "passkey at its own length": lambda f: f.at_start("passkey", "exact"),
}


def check_hypotheses(config: ConfigDict) -> None:
    """Refuses gates and checks of the config that cannot be read, before any work.

    Raises:
        ValueError: text of another form, an unknown quantity or row.
    """
    for name, hypothesis in config.hypotheses.items():
        for text in (*hypothesis.get("gates", ()), *hypothesis.checks):
            chance = ["chance"] if "ROUGE" in text.partition(":")[0] else []
            with lab.naming(f"hypotheses.{name}"):
                lab.check_text(text, QUANTITIES, [*config.rows, CROPPED, *chance])


def power(found: Found) -> PowerNeeded | None:
    """Documents and seeds that would resolve the paper's gap in loss between PI and ABF."""
    loss, pair = found.quantities["loss"], ("RoPE PI", "RoPE ABF")
    if not set(pair) <= set(loss.rows):
        return None
    seeds = min(found.rows[row] for row in pair)
    values = [loss.values[row][:seeds] for row in pair]
    return power_needed(*values, loss.documents["RoPE PI"], gap=PAPER_GAP)


def contexts(found: Found) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(context lengths [bins], loss [windows, bins], documents) of every row, seeds averaged.

    Every window begins with a short sentence, whose shape and not the context decides the loss of
    its tokens, so only contexts beyond the longest such sentence count.
    """
    bins = found.scores("loss", "bins")
    cell = next(cell for cell in found.cells if cell.kind == "loss" and cell.row in found.rows)
    at = lab.needed(found.folder, cell)["bin_lengths"]
    kept = at > max(found.config.sentence_tokens)
    means = {row: values.mean(0)[:, kept] for row, values in bins.values.items()}
    return {row: (at[kept], mean, bins.documents[row]) for row, mean in means.items()}


def _law(at, losses, documents) -> power_law.PowerLawIntervals | None:
    try:
        law = power_law.bootstrap_fit(at, losses, documents, n_resamples=200)
    except ValueError:  # losses that do not fall with length, as in an untrained model
        return None
    return law if law.is_identified else None


def by_scale(found: Found, name: str) -> dict[str, tuple[list[float], list[float]]]:
    """(scales, means of "loss" or "answer tokens") of every row: Giraffe's matrix."""
    scales = list(found.config.evaluation.scales)
    if name == "loss":
        own = found.quantities["loss"]
        every = [own if s == 1 else found.at("mean_loss", "loss", scale=s) for s in scales]
    else:
        every = [found.shares(scale=float(s)) for s in scales]
    return _curves(found, scales, every)


def at_steps(found: Found, name: str) -> tuple[list[int], list[lab.Scores]]:
    """Steps of the annealed branches and of the end, and "loss" or "passkey" of every row there.

    Only rows that are branched stand in the first ones.
    """
    branched = [row for row in found.rows if found.config.rows[row].branched]
    between = branches(found.config, branched[0]) if branched else ()
    key = ("mean_loss", "loss") if name == "loss" else (name, "exact")
    every = [found.at(*key, step=step) for step in between]
    return [*between, found.config.continuation.steps], [*every, found.quantities[name]]


def by_step(found: Found, name: str) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, means of "loss" or "passkey") of every row; of one that is not branched, the end."""
    steps, every = at_steps(found, name)
    curves = {}
    for row in found.rows:
        there = [(n, one) for n, one in zip(steps, every, strict=True) if row in one.rows]
        curves[row] = [n for n, _ in there], [float(one.mean(row)) for _, one in there]
    return curves


@dataclasses.dataclass(frozen=True)
class Repair:
    """How the excess of PI over ABF in loss falls with the steps: a power of the steps.

    Attributes:
        steps: of the annealed branches and the end.
        excess: at each, nats per token.
        exponent: of the steps, with a 95 % bootstrap over seeds and documents.
        at_paper: the excess that the power has at the paper's steps, nats.
        reaches: steps at which it passes `REPAIRED`.
        expected: what the power of the earlier points says of the last one, nats.
        stalls: whether the last excess surely lies above that, so that nothing can be carried on.
    """

    steps: tuple[int, ...]
    excess: tuple[Interval, ...]
    exponent: Interval
    at_paper: Interval
    reaches: Interval
    expected: Interval
    stalls: bool


def repair(found: Found) -> Repair | None:
    """The power law of PI's excess; None without both rows, or where an excess is not above 0."""
    pair = ("RoPE PI", "RoPE ABF")
    steps, every = at_steps(found, "loss")
    if len(steps) < 3 or not all(set(pair) <= set(one.rows) for one in every):
        return None
    seeds = min(found.rows[row] for row in pair)
    values = np.stack([one.values[pair[0]][:seeds] - one.values[pair[1]][:seeds] for one in every])
    documents = values.mean((0, 1)).size
    rng = np.random.default_rng(0)
    draws = [values.mean((1, 2))]
    for _ in range(2000):
        chosen = rng.integers(seeds, size=seeds), rng.integers(documents, size=documents)
        draws.append(values[:, chosen[0]][:, :, chosen[1]].mean((1, 2)))
    means = np.stack(draws)
    if not (means[0] > 0).all():
        return None
    means = means[(means > 0).all(1)]
    slope, height = np.polyfit(np.log(steps), np.log(means).T, 1)
    at_paper = np.exp(height + slope * np.log(PAPER_STEPS))
    reaches = np.exp((np.log(REPAIRED) - height) / slope)
    before, start = np.polyfit(np.log(steps[:-1]), np.log(means[:, :-1]).T, 1)
    expected = np.exp(start + before * np.log(steps[-1]))
    intervals = [_percentiles(v) for v in (-slope, at_paper, reaches, expected)]
    stalls = _percentiles(means[:, -1] / expected).low > 1 + 1e-9  # beyond rounding
    excess = tuple(lab.difference(one, *pair) for one in every)
    return Repair(tuple(steps), excess, *intervals, stalls)


def ratio(found: Found) -> Interval | None:
    """rho: what PI gains less from long context than ABF, over what RoPE gains less.

    None unless RoPE surely gains less, since a ratio to a difference that may be 0 says nothing.
    """
    gain = QUANTITIES[GAIN](found)
    rows = ("RoPE", "RoPE PI", "RoPE ABF")
    if not set(rows) <= set(gain.rows):
        return None
    between = lab.difference(gain, "RoPE", "RoPE ABF")
    if between is None or between.high >= 0:
        return None
    seeds = min(found.rows[row] for row in rows)
    rope, pi, abf = (gain.values[row][:seeds] for row in rows)
    rng, draws = np.random.default_rng(0), [(abf - pi).mean() / (abf - rope).mean()]
    for _ in range(2000):
        s, d = rng.integers(seeds, size=seeds), rng.integers(pi.shape[1], size=pi.shape[1])
        part = np.ix_(s, d)
        draws.append((abf - pi)[part].mean() / (abf - rope)[part].mean())
    return _percentiles(np.asarray(draws))


def _percentiles(draws: np.ndarray) -> Interval:
    """The first value, with the 95 % percentiles of the others."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Interval(float(draws[0]), float(low), float(high))


def by_length(found: Found, kind: str, key: str) -> dict[str, tuple[list[int], list[float]]]:
    """(lengths, means of an array) of every row."""
    at = lengths(found.config)
    return _curves(found, at, [found.at(kind, key, length=n) for n in at])


def _curves(found: Found, at: list, scores: Sequence[lab.Scores]) -> dict[str, tuple[list, list]]:
    return {row: (at, [float(one.mean(row)) for one in scores]) for row in found.rows}


def taught(found: Found) -> dict[str, dict[str, float]]:
    """Measured shares of taught answers in the training windows, by phase."""
    cells = [cell for cell in found.cells if cell.kind == "taught"]
    shares = {cell.row: lab.needed(found.folder, cell) for cell in cells}
    return {phase: {name: float(v) for name, v in share.items()} for phase, share in shares.items()}


def text_notes(found: Found) -> list[str]:
    """What was said of the text when it was read, such as documents left out."""
    (cell,) = (cell for cell in found.cells if cell.kind == "chance")
    return [str(note) for note in lab.needed(found.folder, cell)["notes"]]
