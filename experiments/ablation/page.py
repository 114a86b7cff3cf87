"""Tables and report of the ablation, computed from scores."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.ablation import compare, draw, plan
from experiments.ablation.compare import Hypothesis, Scores
from longrope_jax.evaluation.statistics import Interval

_PERPLEXITY = (
    "Perplexity over the first tokens of held-out windows, weighted by token, in one pass over "
    "twice the continued length, before and after the continuation."
)
_CONTROLS = (
    "At the continued length, on the samples that answers are generated for. Both controls ask for "
    "a sentence that is not there; chance scores random other documents' first sentences. Shares "
    "of answer tokens count guesses from the answer's own beginning, so compare them with the "
    "controls."
)
_SUMMARY = (
    "At the continued length. Loss in nats per token, at long range that of the last quarter; "
    "ROUGE-L from 0 to 100; shares of answer tokens and of keys that are right. 95 % intervals in "
    "brackets: bootstrap over seeds and documents, wide where seeds are few."
)


def write_all(
    scores: Scores, workdir: Path, command: str, taught: dict | None
) -> list[report.Section]:
    """results.json, CSV files, figures and report.html; prints the tables, returns the report."""
    versions = _versions(scores)
    hypotheses = compare.hypotheses(scores)
    header, rows = summary(scores)
    report.save_csv(workdir / "summary.csv", header, rows)
    report.save_csv(workdir / "perplexity.csv", *perplexity_table(scores))
    report.save_csv(workdir / "per_document.csv", *per_document(scores))
    results = {
        "command": command,
        "config": scores.config,
        "versions": versions,
        "taught": taught,
        "seeds": {row: len(runs) for row, runs in scores.runs.items()},
        "perplexity": _records(*perplexity_table(scores)),
        "summary": _records(header, rows),
        "hypotheses": {h.name: h.verdict for h in hypotheses},
        "checks": [c for h in hypotheses for c in h.checks],
        "turns": compare.turns_table(scores.config),
        "power_laws": {row: compare.fit(scores, row) for row in scores.rows()},
        "power": compare.power_for_paper_gap(scores, "RoPE PI", "RoPE ABF"),
        "controls": _records(*controls(scores)),
        "pretrained": _records(*pretrained(scores)),
    }
    report.save_json(workdir / "results.json", results)
    figures = draw.all_figures(scores, workdir)
    sections = _sections(scores, hypotheses, figures, taught)
    report.write_html(
        workdir / "report.html", "Base-frequency ablation", command, sections, versions
    )
    report.print_table("Base frequencies: turns of the slowest pair", *turns(scores.config))
    report.print_table("Perplexity", *perplexity_table(scores))
    report.print_table("At the continued length", header, rows)
    report.print_table("Retrieval and its controls", *controls(scores))
    report.print_table("Pretrained models at their own length", *pretrained(scores))
    report.print_table("Hypotheses", *verdicts(hypotheses))
    print(_power(scores).text)
    return sections


def _versions(scores: Scores) -> dict:
    """Versions that made the scores; where runs differ, all values."""
    made = [json.loads(str(run["versions"])) for runs in scores.runs.values() for run in runs]
    keys = {key: None for versions in made for key in versions}
    return {k: ", ".join(sorted({str(versions.get(k)) for versions in made})) for k in keys}


def _records(header: list[str], rows: list[list]) -> list[dict]:
    return [dict(zip(header, row, strict=True)) for row in rows]


def perplexity_table(scores: Scores) -> tuple[list[str], list[list]]:
    """Perplexity of every row at every length, before and after the continuation."""
    lengths = compare.eval_lengths(scores.config)
    header = ["row", "seeds", *(f"{stage} {n}" for stage in ("before", "after") for n in lengths)]
    lines = []
    for row in scores.rows():
        stages = [compare.perplexities(scores, row, s) for s in ("untrained", "trained")]
        lines.append([row, scores.seeds(row), *(f"{v:.3f}" for stage in stages for v in stage)])
    return header, lines


def summary(scores: Scores) -> tuple[list[str], list[list]]:
    """Every row at the continued length, with intervals."""
    names = ("loss untrained", "loss", "loss at long range", "ROUGE-L", "answer tokens", "passkey")
    tops = {"ROUGE-L": 100.0, "answer tokens": 1.0, "passkey": 1.0}
    lines = []
    for row in scores.rows():
        found = [compare.QUANTITIES[n](scores, row).interval() for n in names]
        cells = [_interval(f, top=tops.get(n, np.inf)) for n, f in zip(names, found, strict=True)]
        lines.append([row, *cells])
    return ["row", *names], lines


def _interval(interval: Interval, digits: int = 3, top: float = np.inf) -> str:
    """Estimate [low, high]; limits of a bounded quantity are cut to 0..top."""
    low, high = float(interval.low), float(interval.high)
    if np.isfinite(top):
        low, high = max(low, 0.0), min(high, top)
    return f"{float(interval.estimate):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def pretrained(scores: Scores) -> tuple[list[str], list[list]]:
    """What the pretrained models can do at their own length, the ceiling of every row."""
    header = ["pretrained model", "first sentence", "its answer tokens", "passkey"]
    names = ("first_sentence/exact", "first_sentence/answer_tokens", "passkey/exact")
    lines = [
        [slug.rpartition("-")[0], *(f"{float(arrays[n].mean()):.3f}" for n in names)]
        for slug, arrays in sorted(scores.pretrained.items())
    ]
    return header, lines


def per_document(scores: Scores) -> tuple[list[str], Iterable[list]]:
    """Every row, seed and held-out document: loss, ROUGE-L, answer tokens, passkey."""
    names = ("loss untrained", "loss", "loss at long range", "ROUGE-L", "answer tokens", "passkey")
    lines = []
    for row in scores.rows():
        found = [compare.QUANTITIES[name](scores, row) for name in names]
        for seed in range(scores.seeds(row)):
            for document in np.unique(found[0].documents):
                means = [q.values[seed][q.documents == document].mean() for q in found]
                lines.append([row, seed, document, *(f"{m:.5f}" for m in means)])
    return ["row", "seed", "document", *names], lines


def controls(scores: Scores) -> tuple[list[str], list[list]]:
    """Retrieval at the continued length beside its two controls and chance, on one set of samples.

    A control is at chance if its distance from it is within 5 points of ROUGE-L.
    """
    header = ["row", "ROUGE-L", "sentence removed", "at chance?", "other sentence", "at chance?"]
    header += ["chance", "answer tokens", "removed", "other"]
    verdicts = iter(compare.controls(scores))
    n = scores.config.evaluation.generated
    lines = []
    for row in scores.rows():
        line = [row, f"{scores.get(row, 'retrieval/rouge')[:, -1].mean():.1f}"]
        for control in ("removed", "other"):
            line.append(f"{scores.get(row, f'control/{control}/rouge').mean():.1f}")
            line.append(next(verdicts).verdict)
        line.append(f"{scores.get(row, 'chance/rouge').mean():.1f}")
        share = [scores.get(row, "first_sentence/answer_tokens")[:, -1, :n]]
        names = ("control/removed/answer_tokens", "control/other/answer_tokens")
        share += [scores.get(row, name)[:, :n] for name in names]
        lines.append([*line, *(f"{v.mean():.3f}" for v in share)])
    return header, lines


def turns(config: ConfigDict) -> tuple[list[str], list[list]]:
    """The table of `compare.turns_table`."""
    header = ["case", "turns here", "negative scores here", "turns in paper", "negative in paper"]
    return header, [[r[0], *(f"{v:.3f}" for v in r[1:])] for r in compare.turns_table(config)]


def verdicts(hypotheses: list[Hypothesis]) -> tuple[list[str], list[list]]:
    """Each hypothesis, then its checks."""
    lines = []
    for h in hypotheses:
        lines.append([f"{h.name}: {h.claim}", "", h.verdict.upper()])
        for c in h.checks:
            found = _interval(c.difference, 4) if c.difference else ""
            lines.append([f"    {c.text}", found, c.verdict])
    return ["hypothesis", "difference", "verdict"], lines


def _sections(scores: Scores, hypotheses, figures, taught) -> list[report.Section]:
    config = scores.config
    captions = {
        "loss by position": "Mean over seeds; shade: 95 % band over documents. Dotted: pretraining "
        "and continued length.",
        "retrieval by length": "Figure 5b of Llama 2 Long in miniature.",
        "loss against steps": "Figure 5a of Llama 2 Long in miniature; step 0 is untrained.",
        "power law": "Fit of L(c) = (alpha/c)^beta + gamma, as in Figure 1 of Llama 2 Long, to the "
        "loss of tokens that see about c tokens, from the end of the windows' first sentence on.",
        "bases": "Taught RoPE rows; the pretraining base is the smallest.",
        "scale matrix": "Frequencies divided by the scale, as in Giraffe's evaluation.",
    }
    drawn = {n: report.Figure(p, captions[n]) for n, p in figures.items()}
    main = [
        report.Table(*perplexity_table(scores), caption=_PERPLEXITY),
        report.Table(*summary(scores), caption=_SUMMARY),
    ]
    return [
        report.Section("Verdicts", [report.Table(*verdicts(hypotheses)), _power(scores)]),
        report.Section("Table 5 in miniature", [*main, drawn["loss by position"]]),
        report.Section(
            "Retrieval",
            [
                drawn["retrieval by length"],
                report.Table(*pretrained(scores), caption="At the pretraining length."),
                report.Table(*controls(scores), caption=_CONTROLS),
                _by_length(scores),
            ],
        ),
        report.Section("During the continuation", [drawn["loss against steps"]]),
        report.Section("Power law of the context", [drawn["power law"], _laws(scores)]),
        report.Section("Other scales than its own", [drawn["scale matrix"], _matrix(scores)]),
        report.Section("Bases", [drawn["bases"], report.Table(*turns(config))]),
        report.Section("Departures from the paper", [report.Text(departures(config, taught))]),
    ]


def _power(scores: Scores) -> report.Text:
    needed = compare.power_for_paper_gap(scores, "RoPE PI", "RoPE ABF")
    if needed is None:
        return report.Text("")
    gap = f"To resolve the paper's gap of {compare.PAPER_GAP} nats between PI and ABF"
    if needed.documents is None and needed.seeds is None and needed.balanced is None:
        return report.Text(f"{gap}: not to be said from one seed, or out of reach.")
    parts = []
    if needed.documents:
        parts.append(f"{needed.documents} documents with these seeds")
    if needed.seeds:
        parts.append(f"{needed.seeds} seeds with these documents")
    if needed.balanced:
        parts.append(f"{needed.balanced[0]} documents and {needed.balanced[1]} seeds together")
    return report.Text(f"{gap}, with power 0.8, it would take " + ", or ".join(parts) + ".")


def _by_length(scores: Scores) -> report.Table:
    lengths = scores.get(scores.rows()[0], "retrieval/lengths", 1)[0]
    names = {
        "ROUGE-L": "retrieval/rouge",
        "answer tokens": "first_sentence/answer_tokens",
        "exact": "first_sentence/exact",
        "passkey": "passkey/exact",
    }
    lines = []
    for row in scores.rows():
        for name, key in names.items():
            means = scores.get(row, key).astype(float).mean((0, 2))
            lines.append([row, name, *(f"{m:.3f}" for m in means)])
    return report.Table(["row", "score", *(f"{n} tokens" for n in lengths)], lines)


def _laws(scores: Scores) -> report.Table:
    lines = []
    for row in scores.rows():
        fitted = compare.fit(scores, row)
        if fitted:
            triple = (fitted.alpha, fitted.beta, fitted.gamma)
            lines.append([row, *(_interval(i) for i in triple)])
    return report.Table(["row", "alpha", "beta", "gamma"], lines)


def _matrix(scores: Scores) -> report.Table:
    scales = [f"{s:g}" for s in scores.config.evaluation.scales]
    lines = []
    for row in scores.rows():
        for name, key in (("loss", "matrix/loss"), ("answer tokens", "matrix/answer_tokens")):
            lines.append([row, name, *(f"{v:.3f}" for v in scores.get(row, key).mean((0, 2)))])
    return report.Table(["row", "score", *scales], lines)


def departures(config: ConfigDict, taught: dict | None) -> str:
    """How this run differs from the paper's, with its numbers."""
    first, then = (plan.phase_tokens(config, name) for name in ("pretraining", "continuation"))
    lines = [
        f"Size: {dict(config.model)}; the paper's model has 7 billion parameters.",
        f"Lengths: {config.length:,} continued at {plan.continued_length(config):,} tokens; the "
        "paper has 4,096 and 32,768.",
        f"Budget: {first:,} tokens of pretraining and {then:,} of continuation per row; the paper "
        "has 2 trillion and 80 billion.",
        f"Tokens: {config.tokenizer}; text: {config.corpus}, {config.held_out} documents held out.",
    ]
    if taught and config.retrieval.taught_first_sentence + config.retrieval.taught_passkey:
        lines.append(
            "Retrieval is taught, to all rows but those marked 'not taught' alike; answers have "
            f"loss weight {config.retrieval.answer_weight:g} per token: "
            + "; ".join(
                f"in {phase} they are {share['answer_tokens']:.1%} of the tokens and carry "
                f"{share['answer_loss_weight']:.1%} of the weight"
                for phase, share in taught.items()
            )
            + ". The paper's 7B model needed no task_mixture."
        )
    lines.append(
        "A document is a passage that begins at a sentence of a held-out text; a test passage's "
        "first sentence occurs nowhere in the training text."
    )
    return "\n\n".join(lines)
