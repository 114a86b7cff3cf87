"""What the base-frequency ablation found: quantities, hypotheses, tables.

Everything is computed from cells alone, which experiments/base_frequency_ablation.py makes. Every
row of the config stands in every table.
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
from longrope_jax.analysis import decay
from longrope_jax.evaluation import power_law
from longrope_jax.evaluation.statistics import (
    Interval,
    PowerNeeded,
    power_needed,
)

PAPER_GAP = 0.003  # nats between PI and ABF in Llama 2 Long's Table 5 (Books: log 6.341/6.323)
PAPER = {"base": 1e4, "abf": 5e5, "length": 4096, "factor": 8}  # sizes of Llama 2 Long
PAPER_HEAD_DIM = 128
CONTROLS = ("removed", "other")  # of `tasks.CONTROLS`, at the continued length
WITHIN, BEYOND = "loss within the pretraining length", "loss at long range"
GAIN, UNTRAINED = "gain from long context", "loss untrained"
_SUMMARY = (UNTRAINED, "loss", WITHIN, BEYOND, GAIN, "ROUGE-L", "answer tokens", "passkey")
_TOPS = {"ROUGE-L": 100.0, "answer tokens": 1.0, "passkey": 1.0}


def start_row(settings: ConfigDict) -> str:
    """The row of the pretrained model that a row of the config starts from."""
    return "pretraining" if settings.taught else "pretraining, not taught"


def lengths(config: ConfigDict) -> list[int]:
    """Tokens of the samples that retrieval is tested with; the last is the continued length."""
    return [round(share * config.length * config.factor) for share in config.evaluation.lengths]


def steps_between(config: ConfigDict) -> tuple[int, ...]:
    """Steps of the continuation at which a row is measured, its beginning and end aside."""
    last = config.continuation.steps
    steps = {max(1, round(share * last)) for share in config.evaluation.at}
    return tuple(sorted(step for step in steps if step < last))


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The finished cells of a study.

    Attributes:
        config: the study's config.
        folder: the study's folder.
        cells: all cells of the study, finished or not.
        head_dim: H of the model.
    """

    config: ConfigDict
    folder: Path
    cells: Sequence[lab.Cell]
    head_dim: int

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """How many seeds of each row are finished, up to the first that is not or that diverged.

        All quantities of a row are of these seeds, so that the seeds of two rows stay pairs.
        """
        counts = {}
        for row, settings in self.config.rows.items():
            whole = (self._is_whole(row, seed) for seed in range(settings.seeds))
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
        return self.config.length * self.config.factor

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
        cells = [c for c in self.cells if c.kind == kind and c.seed < self.rows.get(c.row, 0)]
        cells = [c for c in cells if c.what[0].step == step]
        if column is None:
            return lab.scores(self.folder, cells, key)
        cells = [c for c in cells if column in c.what[0].columns]
        at = cells[0].what[0].columns.index(column)
        return lab.scores(self.folder, cells, key).map(lambda v: v[..., at])

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
            full = blocks.shape[-1] // 2
            return blocks[..., round(low * full) : round(high * full)].mean(-1)

        return self.scores("loss", "blocks", step).map(part)

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
# within the pretraining length its second half counts, at long range the window's last quarter.
QUANTITIES: dict[str, Callable[[Found], lab.Scores]] = {
    "loss": lambda f: f.loss(0, 1),
    WITHIN: lambda f: f.loss(0.5 / f.config.factor, 1 / f.config.factor),
    BEYOND: lambda f: f.loss(0.75, 1),
    GAIN: lambda f: QUANTITIES[WITHIN](f).minus(QUANTITIES[BEYOND](f)),
    UNTRAINED: lambda f: f.loss(0, 1, step=0),
    "ROUGE-L": lambda f: f.rouge(),
    "answer tokens": lambda f: f.at("first_sentence", "answer_tokens"),
    "passkey": lambda f: f.at("passkey", "exact"),
    "ROUGE-L, sentence removed": lambda f: f.rouge(control="removed"),
    "ROUGE-L, other sentence": lambda f: f.rouge(control="other"),
    "gain from the sentence": lambda f: f.rouge().minus(f.rouge(control="removed")),
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
                lab.check_text(text, QUANTITIES, [*config.rows, *chance])


def power(found: Found) -> PowerNeeded | None:
    """Documents and seeds that would resolve the paper's gap in loss between PI and ABF."""
    loss, pair = found.quantities["loss"], ("RoPE PI", "RoPE ABF")
    if not set(pair) <= set(loss.rows):
        return None
    seeds = min(found.rows[row] for row in pair)
    values = [loss.values[row][:seeds] for row in pair]
    return power_needed(*values, loss.documents["RoPE PI"], gap=PAPER_GAP)


def power_sentences(needed: PowerNeeded | None) -> list[str]:
    """What `power` found, in words."""
    if needed is None:
        return []
    ways = [f"{needed.documents} documents with these seeds"] if needed.documents else []
    ways += [f"{needed.seeds} seeds with these documents"] if needed.seeds else []
    if needed.balanced:
        ways.append("{} documents and {} seeds together".format(*needed.balanced))
    gap = f"To resolve the paper's gap of {PAPER_GAP} nats between PI and ABF"
    if not ways:
        return [f"{gap}: not to be said from one seed, or out of reach."]
    return [f"{gap}, with power 0.8, it would take {', or '.join(ways)}."]


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


def by_step(found: Found, name: str) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, means of "loss" or "answer tokens") of every row during the continuation."""
    between, loss = steps_between(found.config), found.quantities["loss"]
    steps = [0, *between, found.config.continuation.steps]
    if name == "loss":
        losses = [found.at("mean_loss", "loss", step=step) for step in between]
        return _curves(found, steps, [found.quantities[UNTRAINED], *losses, loss])
    return _curves(found, steps, [found.shares(step=step) for step in steps])


def by_length(found: Found, kind: str, key: str) -> dict[str, tuple[list[int], list[float]]]:
    """(lengths, means of an array) of every row."""
    at = lengths(found.config)
    return _curves(found, at, [found.at(kind, key, length=n) for n in at])


def _curves(found: Found, at: list, scores: Sequence[lab.Scores]) -> dict[str, tuple[list, list]]:
    return {row: (at, [float(one.mean(row)) for one in scores]) for row in found.rows}


# Tables.


def _table(header: Sequence[str], lines: Sequence, caption: str, name: str) -> lab.Table:
    """A table whose numbers are shown with three decimals, whole ones as they are."""
    formats = dict.fromkeys(header, lambda v: str(v) if isinstance(v, int) else f"{v:.3f}")
    return lab.Table(header, lines, caption, name, formats)


def perplexity_table(found: Found) -> lab.Table:
    """Perplexity of every row at every length, before and after the continuation."""
    ends = [found.config.length << k for k in range(found.config.factor.bit_length() + 1)]
    stages = {"before": found.scores("loss", "blocks", 0), "after": found.scores("loss", "blocks")}
    lines = []
    for row, seeds in found.rows.items():
        every = [(scores.values[row], end) for scores in stages.values() for end in ends]
        parts = [blocks[..., : end * blocks.shape[-1] // ends[-1]] for blocks, end in every]
        lines.append([row, seeds, *(float(np.exp(part.mean())) for part in parts)])
    header = ["row", "seeds", *(f"{stage} {end}" for stage in stages for end in ends)]
    caption = (
        "Perplexity over the first tokens of held-out windows, weighted by token, in one pass over "
        "twice the continued length, before and after the continuation."
    )
    return _table(header, lines, caption, "perplexity")


def summary_table(found: Found) -> lab.Table:
    """Every row at the continued length, with intervals."""
    lines = [[row, *(_interval(found, name, row) for name in _SUMMARY)] for row in found.rows]
    caption = (
        f"At {found.full:,} tokens. Loss in nats per token: within the pretraining length that of "
        "its second half, at long range that of the window's last quarter; the gain from long "
        "context is their difference. ROUGE-L from 0 to 100; shares of answer tokens and of keys "
        "that are right. 95 % intervals in brackets: bootstrap over seeds and documents, wide "
        "where seeds are few."
    )
    return _table(["row", *_SUMMARY], lines, caption, "summary")


def _interval(found: Found, name: str, row: str) -> str | None:
    """Estimate [low, high]; limits of a bounded quantity are cut to 0 and its top."""
    interval = found.quantities[name].interval(row)
    if interval and name in _TOPS:
        low, high = max(interval.low, 0.0), min(interval.high, _TOPS[name])
        interval = Interval(interval.estimate, low, high)
    return lab.show(interval)


def pretrained_table(found: Found) -> lab.Table:
    """What the pretrained models can do at their own length, before any continuation."""
    names, lines = ("first sentence", "answer tokens", "passkey"), []
    every = [found.quantities[f"{name} at its own length"].values for name in names]
    by_seeds = sorted(found.rows, key=found.rows.get)
    for start, row in {start_row(found.config.rows[row]): row for row in by_seeds}.items():
        for seed in range(found.rows[row]):
            means = [float(values[row][seed].mean()) for values in every]
            lines.append([f"{start}, seed {seed}", *means])
    caption = f"The pretrained models at {found.config.length:,} tokens."
    return _table(["pretrained model", *names], lines, caption, "pretrained")


def controls_table(found: Found) -> lab.Table:
    """Retrieval beside its two controls and chance, on the same samples."""
    shares = [found.shares(control=control) for control in ("none", *CONTROLS)]
    rouge, lines = found.quantities["ROUGE-L"], []
    for row in found.rows:
        line = [row, float(rouge.mean(row))]
        for name in ("ROUGE-L, sentence removed", "ROUGE-L, other sentence"):
            verdict = lab.check(found.quantities, f"{name}: |{row} - chance| <= 5").verdict
            line += [float(found.quantities[name].mean(row)), verdict]
        line += [float(rouge.mean("chance")), *(float(share.mean(row)) for share in shares)]
        lines.append(line)
    header = ["row", "ROUGE-L", "sentence removed", "removed at chance?", "other sentence"]
    header += ["other at chance?", "chance", "answer tokens", "removed", "other"]
    caption = (
        "At the continued length, on the samples that answers are generated for. Both controls ask "
        "for a sentence that is not there; chance scores random other documents' first sentences, "
        "and a control is at chance within 5 points of it. Shares of answer tokens count guesses "
        "from the answer's own beginning, so compare them with the controls."
    )
    return _table(header, lines, caption, "controls")


def length_table(found: Found) -> lab.Table:
    """Retrieval at every length, means over seeds and samples."""
    scores = {
        "ROUGE-L": by_length(found, "answers", "rouge"),
        "answer tokens": by_length(found, "first_sentence", "answer_tokens"),
        "exact": by_length(found, "first_sentence", "exact"),
        "passkey": by_length(found, "passkey", "exact"),
    }
    lines = [[row, name, *scores[name][row][1]] for row in found.rows for name in scores]
    header = ["row", "score", *(f"{n} tokens" for n in lengths(found.config))]
    return _table(header, lines, "Retrieval by length", "by_length")


def laws_table(found: Found) -> lab.Table:
    """The power law of every row."""
    names, shown = ("alpha", "beta", "gamma"), "{0.estimate:.3g} [{0.low:.3g}, {0.high:.3g}]".format
    lines = [
        [row, *(shown(getattr(law, name)) if law else "no fit" for name in names)]
        for row, law in found.laws.items()
    ]
    caption = (
        "Power law of the context. No fit: the losses do not fall with the context, or the 95 % "
        "interval of beta spans more than a factor of 10."
    )
    return _table(["row", *names], lines, caption, "power_laws")


def scales_table(found: Found) -> lab.Table:
    """Each trained row evaluated at other scales than its own."""
    every = {name: by_scale(found, name) for name in ("loss", "answer tokens")}
    lines = [[row, name, *every[name][row][1]] for row in found.rows for name in every]
    header = ["row", "score", *(f"{scale:g}" for scale in found.config.evaluation.scales)]
    return _table(header, lines, "By scale, times the method's own", "by_scale")


def turns_table(found: Found) -> lab.Table:
    """Turns of the slowest pair and share of negative scores, beside those of the paper's sizes.

    A row whose text names no size has no counterpart in the paper.
    """
    short, extended = PAPER["length"], PAPER["length"] * PAPER["factor"]
    ours = _turns(found.plain, found.head_dim, found.config.length)
    theirs = _turns(rotary.RoPE(base=PAPER["base"]), PAPER_HEAD_DIM, short)
    lines = [["stock at L", *ours, *theirs]]
    for row, method in found.methods.items():
        settings, theirs = found.config.rows[row], (None, None)
        if "{" in settings.method:
            swept = PAPER["base"] * settings.times
            paper = lab.read_method(settings.method, **PAPER, swept=swept)
            theirs = _turns(paper, PAPER_HEAD_DIM, extended)
        ours = _turns(method, found.head_dim, found.full)
        lines.append([f"{row} at {found.config.factor}L", *ours, *theirs])
    header = ["case", "turns here", "negative scores here", "turns in paper", "negative in paper"]
    caption = "Turns of the slowest pair in a window, and share of distances with a score below 0"
    return _table(header, lines, caption, "turns")


def _turns(method: rotary.Method, head_dim: int, length: int) -> tuple[float, float | None]:
    f = method.frequencies(head_dim=head_dim, seq_len=length)
    turns = float(length * f.inv_freq.min() / (2 * np.pi))
    try:
        score = decay.score(f, np.arange(length), head_dim=head_dim)
    except ValueError:  # the method's scores are no function of distance
        return turns, None
    return turns, float((score < 0).mean())


def save_documents(found: Found) -> None:
    """Writes per_document.csv: means of every row, seed and held-out document."""
    scores = [found.quantities[name] for name in _SUMMARY]
    lines = []
    for row, seeds in found.rows.items():
        documents = scores[0].documents[row]
        for seed, document in itertools.product(range(seeds), np.unique(documents)):
            parts = [s.values[row][seed][s.documents[row] == document] for s in scores]
            means = [f"{part.mean():.5f}" if part.size else None for part in parts]
            lines.append([row, seed, document, *means])
    header = ["row", "seed", "document", *_SUMMARY]
    lab.save_csv(found.folder / "per_document.csv", header, lines)


RETRIEVAL_TABLES = (pretrained_table, controls_table, length_table)


def taught(found: Found) -> dict[str, dict[str, float]]:
    """Measured shares of taught answers in the training windows, by phase."""
    cells = [cell for cell in found.cells if cell.kind == "taught"]
    shares = {cell.row: lab.needed(found.folder, cell) for cell in cells}
    return {phase: {name: float(v) for name, v in share.items()} for phase, share in shares.items()}


def text_notes(found: Found) -> list[str]:
    """What was said of the text when it was read, such as documents left out."""
    (cell,) = (cell for cell in found.cells if cell.kind == "chance")
    return [str(note) for note in lab.needed(found.folder, cell)["notes"]]
