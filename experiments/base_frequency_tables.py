"""The tables of the base-frequency ablation's report. Every row of the config stands in each."""

import itertools
from collections.abc import Sequence

import numpy as np

from experiments import base_frequency_results as results
from experiments import lab
from experiments.base_frequency_results import Found
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.evaluation.statistics import Interval

_SUMMARY = (
    results.UNTRAINED,
    "loss",
    results.WITHIN,
    results.BEYOND,
    results.GAIN,
    "ROUGE-L",
    "first sentence area",
    "passkey",
    "passkey area",
)
_TOPS = {"ROUGE-L": 100.0} | dict.fromkeys(("passkey", "passkey area", "first sentence area"), 1.0)


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
        "context is what the same row loses on that quarter where it reads only as many tokens as "
        "in pretraining. ROUGE-L from 0 to 100; areas and shares of whole answers right from 0 to "
        "1. 95 % intervals in brackets: bootstrap over seeds and documents, wide where seeds are "
        "few."
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
    for start, row in {results.start_row(found.config.rows[row]): row for row in by_seeds}.items():
        for seed in range(found.rows[row]):
            means = [float(values[row][seed].mean()) for values in every]
            lines.append([f"{start}, seed {seed}", *means])
    caption = f"The pretrained models at {found.config.length:,} tokens."
    return _table(["pretrained model", *names], lines, caption, "pretrained")


def controls_table(found: Found) -> lab.Table:
    """Retrieval beside its two controls and chance, on the same samples."""
    shares = [found.shares(control=control) for control in ("none", *results.CONTROLS)]
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
        "ROUGE-L": results.by_length(found, "answers", "rouge"),
        "answer tokens": results.by_length(found, "first_sentence", "answer_tokens"),
        "exact": results.by_length(found, "first_sentence", "exact"),
        "passkey": results.by_length(found, "passkey", "exact"),
    }
    lines = [[row, name, *scores[name][row][1]] for row in found.rows for name in scores]
    header = ["row", "score", *(f"{n} tokens" for n in results.lengths(found.config))]
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
    every = {name: results.by_scale(found, name) for name in ("loss", "answer tokens")}
    lines = [[row, name, *every[name][row][1]] for row in found.rows for name in every]
    header = ["row", "score", *(f"{scale:g}" for scale in found.config.evaluation.scales)]
    return _table(header, lines, "By scale, times the method's own", "by_scale")


def turns_table(found: Found) -> lab.Table:
    """Turns of the slowest pair and share of negative scores, beside those of the paper's sizes.

    A row whose text names no size has no counterpart in the paper.
    """
    short, extended = results.PAPER["length"], results.PAPER["length"] * results.PAPER["factor"]
    ours = _turns(found.plain, found.head_dim, found.config.length)
    theirs = _turns(rotary.RoPE(base=results.PAPER["base"]), results.PAPER_HEAD_DIM, short)
    lines = [["stock at L", *ours, *theirs]]
    for row, method in found.methods.items():
        settings, theirs = found.config.rows[row], (None, None)
        if "{" in settings.method:
            swept = results.PAPER["base"] * settings.times
            paper = lab.read_method(settings.method, **results.PAPER, swept=swept)
            theirs = _turns(paper, results.PAPER_HEAD_DIM, extended)
        ours = _turns(method, found.head_dim, found.full)
        lines.append([f"{row} at {found.config.factor}L", *ours, *theirs])
    header = ["case", "turns here", "negative scores here", "turns in paper", "negative in paper"]
    caption = "Turns of the slowest pair in a window, and share of distances with a score below 0"
    return _table(header, lines, caption, "turns")


def _turns(method: rotary.Method, head_dim: int, length: int) -> tuple[float, float | None]:
    if isinstance(method, rotary.ByLayer):  # the layer that turns least
        return min(_turns(one, head_dim, length)[0] for one in method.methods), None
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


def criterion_table(found: Found) -> lab.Table | None:
    """Whether each pretraining met its criterion, at once or after it was prolonged."""
    lines = []
    for cell in dict.fromkeys(c for own in found.cells for c in own.after):
        kind = cell.after[0] if cell.kind == "train" and cell.after else cell
        arrays = lab.read(found.folder, kind) if kind.kind == "prolonged" else None
        if arrays is not None:
            names = ("passkey", "first_sentence")
            shares = [float(arrays[name].mean()) if name in arrays else None for name in names]
            lines.append([f"{kind.row}, seed {kind.seed}", bool(arrays["prolonged"]), *shares])
    if not lines:
        return None
    unique = list({line[0]: line for line in lines}.values())
    caption = (
        f"Pretraining to its criterion: shares of answer tokens right at {found.config.length:,} "
        f"tokens of training documents, at least {found.config.criterion.share:g} each."
    )
    header = ["pretrained model", "prolonged", "passkey", "first sentence"]
    return _table(header, unique, caption, "criterion")


def paper_table(found: Found) -> lab.Table | None:
    """Loss over that of ABF beside Llama 2 Long's Table 5; None without ABF."""
    pairs = lab.against(found.quantities["loss"], "RoPE ABF")
    if not pairs:
        return None
    lines = []
    for row, perplexities in results.PAPER_PERPLEXITY.items():
        if row in pairs or row == "RoPE ABF":
            abf = results.PAPER_PERPLEXITY["RoPE ABF"]
            theirs = [float(np.log(x / y)) for x, y in zip(perplexities, abf, strict=True)]
            ours = "0" if row == "RoPE ABF" else lab.show(pairs[row], 4)
            gap = found.quantities[results.GAIN]
            own = lab.gap(gap, row, "RoPE ABF") if row in gap.values else None
            shown = lab.show(own, 4) if own is not None else "0" if row == "RoPE ABF" else None
            lines.append([row, ours, shown, *theirs])
    header = ["row", "loss - ABF here", "context gain - ABF here", "Books", "CC", "Wikipedia"]
    caption = (
        "Loss at the continued length over that of ABF in nats per token, here and in Table 5 of "
        "Llama 2 Long (logarithms of its perplexities); beside it what each row gains less from "
        "context beyond the pretraining length."
    )
    return _table(header, lines, caption, "table5")


def reach_table(found: Found) -> lab.Table:
    """How far each seed reaches, and the areas."""
    lines = []
    for kind, name in (("passkey", "passkey"), ("first_sentence", "first sentence")):
        for row, reached in found.reach(kind).items():
            shown = ", ".join(f"{n:,}" for n in reached)
            lines.append([name, row, _interval(found, f"{name} area", row), shown])
        area = f"{name} area"
        if results.CROPPED in found.quantities[area].values:
            shown = _interval(found, area, results.CROPPED)
            lines.append([name, results.CROPPED, shown, None])
    header = ["task", "row", "area", "reach of each seed, tokens"]
    caption = (
        "Area under whole answers right over the logarithm of the length, from the pretraining "
        "length on, as a share; reach: the longest length up to which a seed keeps 80 % of its own "
        "value at the pretraining length. Cropped: the pretrained model, which reads its last "
        f"{found.config.length:,} tokens alone."
    )
    return _table(header, lines, caption, "reach")


def repair_table(found: Found) -> lab.Table | None:
    """PI's excess over ABF after each number of steps."""
    law = results.repair(found)
    if law is None:
        return None
    lines = [[n, lab.show(e, 4)] for n, e in zip(law.steps, law.excess, strict=True)]
    caption = (
        "Loss of PI over that of ABF at the continued length, each after an annealed run of so "
        "many steps of its own, in nats per token."
    )
    return _table(["steps", "RoPE PI - RoPE ABF"], lines, caption, "repair")


RETRIEVAL_TABLES = (reach_table, pretrained_table, controls_table, length_table)
