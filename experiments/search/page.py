"""Tables and report of the searches, computed from arrays."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.search import compare, draw, measure
from longrope_jax.evaluation.statistics import Interval

# Fields that decide the test's numbers besides those that decide a search's.
TEST_FIELDS = ("test_windows_per_document", "test_needles", "evolution")

_TITLE = "Searched and learned factors"
_LOSS = (
    "Mean loss in nats per token and its difference to the published methods, each with its own "
    "attention factor; negative: lower than theirs. 95 % intervals in brackets: bootstrap over "
    "test documents and, where a row has several, over seeds of the search. One pretrained model: "
    "the intervals say nothing of other models."
)
_ATTENTION = (
    "Searched factors use LongRoPE's attention factor sqrt(1 + ln s / ln L), as its code does; "
    "rows that say so give the same to published factors, which shows what the factors alone do."
)
_BUDGET = (
    "Every search gets the same number of forward passes over sequences of the same documents; a "
    "gradient (forward and backward) counts as three. The gradient begins at the best of PI, NTK "
    "and YaRN, whose three passes count too, and has no start tokens. It is not held to a range "
    "or to monotone factors; its monotone variant is projected onto LongRoPE's space after every "
    "step. Loss at start: the best of the first generation, or the gradient's first point."
)


def write_all(
    config: ConfigDict, workdir: Path, arrays: dict, command: str
) -> list[report.Section]:
    """results.json, CSV, figures and report.html; prints the tables, returns the report."""
    versions = json.loads(str(arrays["versions"]))
    claims, spent = compare.claims(config, arrays), compare.spent(config, workdir)
    specs = compare.specs(config, workdir)
    tables = {
        f"{'Loss of text' if kind == 'text' else 'Loss of answers to needles'} at {f:g}x": table(
            arrays, f, kind
        )
        for f in config.factors
        for kind in ("text", "needle")
    }
    results = {
        "command": command,
        "config": config,
        "versions": versions,
        "model at its own length": own_length(arrays),
        "tables": {name: _records(*content) for name, content in tables.items()},
        "claims": claims,
        "searches": spent,
        "specs": specs,
    }
    report.save_json(workdir / "results.json", results)
    lines = [[name, *row] for name, (_, rows) in tables.items() for row in rows]
    report.save_csv(workdir / "losses.csv", ["table", *next(iter(tables.values()))[0]], lines)
    draw.draw_factors(config, workdir, workdir / "factors.png")
    draw.draw_progress(config, workdir, workdir / "progress.png")
    sections = _sections(config, workdir, arrays, tables, claims, spent, specs)
    report.write_html(workdir / "report.html", _TITLE, command, sections, versions)
    for name, content in tables.items():
        report.print_table(name, *content)
    report.print_table("Claims", *_verdicts(claims))
    report.print_table("Searches at equal compute", *_spent(spent))
    print(summary(config, arrays))
    return sections


def table(arrays: dict, factor: float, kind: str) -> tuple[list[str], list[list]]:
    """Every row at one target: loss, differences to the published methods, right tokens."""
    header = ["row", "seeds", "loss", *(f"minus {b}" for b in measure.BASELINES), "tokens right"]
    lines = []
    for label in compare.rows(arrays, factor, kind):
        cells = [
            None if label == b else _interval(compare.difference(arrays, factor, kind, label, b))
            for b in measure.BASELINES
        ]
        right = f"x{factor:g}/right/{label}"
        share = f"{arrays[right].mean():.2f}" if kind == "needle" else None
        seeds = len(arrays[f"x{factor:g}/{kind}/{label}"])
        loss = f"{compare.mean(arrays, factor, kind, label):.3f}"
        lines.append([label, seeds, loss, *cells, share])
    return header, lines


def own_length(arrays: dict) -> dict:
    """The pretrained model at the trained length, the ceiling of every row."""
    return {
        "loss of text": compare.mean(arrays, 1, "text", "RoPE"),
        "loss of needles": compare.mean(arrays, 1, "needle", "RoPE"),
        "needle tokens right": compare.mean(arrays, 1, "right", "RoPE"),
    }


def summary(config: ConfigDict, arrays: dict) -> str:
    """One paragraph for each target and loss: the lowest row, and how far from YaRN it is."""
    lines = []
    for factor in config.factors:
        for kind in ("text", "needle"):
            labels = [x for x in compare.rows(arrays, factor, kind) if x != measure.CUT]
            best = min(labels, key=lambda x: compare.mean(arrays, factor, kind, x))
            loss = compare.mean(arrays, factor, kind, best)
            lines.append(f"Lowest loss of {kind} at {factor:g}x: {best}, {loss:.3f} nats.")
            if kind == "text":
                cut = compare.mean(arrays, factor, kind, measure.CUT)
                lines[-1] += f" Without any extension (context cut to L): {cut:.3f} nats."
    return "\n\n".join(lines)


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _records(header: list[str], rows: list[list]) -> list[dict]:
    return [dict(zip(header, row, strict=True)) for row in rows]


def _verdicts(claims: list[dict]) -> tuple[list[str], list[list]]:
    lines = [
        [c["claim"], _interval(Interval(c["difference"], c["low"], c["high"])), c["verdict"]]
        for c in claims
    ]
    return ["claim", "difference", "verdict"], lines


def _spent(spent: list[dict]) -> tuple[list[str], list[list]]:
    def shown(name: str, value):
        return f"{value:.4f}" if name.startswith("loss") else value

    return list(spent[0]), [[shown(k, v) for k, v in line.items()] for line in spent]


def _sections(
    config: ConfigDict, workdir: Path, arrays: dict, tables, claims, spent, specs
) -> list[report.Section]:
    own = own_length(arrays)
    documents = len(np.unique(arrays[f"x{config.factors[0]:g}/text/documents"]))
    setting = (
        f"Trained length L = {config.study.length} tokens of {config.study.tokenizer} of "
        f"{config.study.corpus}; searches on {config.search_documents} held-out documents "
        f"({config.windows} windows or needles), test on {documents} others. At its own length the "
        f"model has a loss of {own['loss of text']:.3f} nats on text and of "
        f"{own['loss of needles']:.3f} on answers ({own['needle tokens right']:.2f} of their "
        "tokens right)."
    )
    losses = [report.Table(*content, caption=name) for name, content in tables.items()]
    figures = [
        report.Figure(workdir / "factors.png", "Factors by pair; several lines: seeds."),
        report.Figure(workdir / "progress.png", "Progress of the searches at equal compute."),
    ]
    winners = [
        report.Text(f"{s['search']} to {s['target']}:\n\n{s['spec']}\n\n{json.dumps(s['hf'])}")
        for s in specs
    ]
    return [
        report.Section("Result", [report.Text(f"{setting}\n\n{summary(config, arrays)}")]),
        report.Section("Loss on test documents", [report.Text(_LOSS), *losses]),
        report.Section("Attention factor", [report.Text(_ATTENTION)]),
        report.Section("Claims", [report.Table(*_verdicts(claims))]),
        report.Section(
            "Searches at equal compute",
            [report.Text(_BUDGET), report.Table(*_spent(spent)), *figures],
        ),
        report.Section("Winners by fitness, as specs and Hugging Face JSON", winners),
    ]
