"""Tables and report of zero-shot extension, from the finished cells alone."""

import numpy as np

from experiments import report
from experiments.zero_shot import draw
from experiments.zero_shot import plan as planning
from experiments.zero_shot.compare import (
    Answers,
    Curves,
    answers,
    claims,
    curves,
    loss_rows,
    ranges,
    retrieval_rows,
)
from experiments.zero_shot.measure import Study


def loss_table(study: Study, rows: list[dict]) -> tuple[list[str], list[list]]:
    """Header and cells of `loss_rows`."""
    length, first = rows[0]["length"], study.plan.reference
    columns = ranges(study, length)
    header = ["method", "documents", *(f"{a:,} to {b:,}" for a, b in columns), f"minus {first}"]
    cells = []
    for row in rows:
        label = row["method"]
        label += "" if label == row["same_as"] else f" (= {row['same_as']})"
        values = [shown(row[f"{a}-{b}"]) for a, b in columns]
        difference = shown(row["difference"]) if "difference" in row else None
        cells.append([label, row["documents"], *values, difference])
    return header, cells


def shown(value: dict) -> str:
    """Mean, and limits where there are several documents, with three decimals."""
    text, limits = f"{value['mean']:.3f}", value["interval"]
    return text if limits is None else f"{text} [{limits.low:.3f}, {limits.high:.3f}]"


def retrieval_table(found: list[Answers], task: str) -> tuple[list[str], list[list]]:
    """Rows are methods, columns lengths: exact answers with interval, share of tokens, loss."""
    of_task = [a for a in found if a.task == task]
    lengths = sorted({a.length for a in of_task})
    by = {(a.method, a.length): a for a in of_task}
    cells = []
    for method in dict.fromkeys(a.method for a in of_task):
        row = [_answer(by.get((method, length))) for length in lengths]
        cells.append([method, *row])
    return ["method", *(f"{length:,} tokens" for length in lengths)], cells


def _answer(a: Answers | None) -> str | None:
    if a is None:
        return None
    limits = a.exact_interval
    return (
        f"{int(a.exact.sum())}/{len(a.exact)} [{limits.low:.2f}, {limits.high:.2f}]; "
        f"{a.share.mean():.0%}; {a.nll.mean():.2f}" + f" (= {a.same_as})" * (a.same_as != a.method)
    )


def write(study: Study, command: str) -> dict:
    """Writes results.json, CSVs, figures and report.html from the cells there are."""
    found, asked = curves(study), answers(study)
    workdir, config = study.workdir, study.config
    result = {
        "command": command,
        "config": config,
        "versions": report.versions(),
        "model": {"method": repr(study.base.method), "notes": study.base.notes},
        "cells": {"planned": len(study.plan.work()), "done": len(_done(study))},
        "seconds": float(sum(a["seconds"] for a in _done(study))),
        "loss": [row for of_length in found.values() for row in loss_rows(study, of_length)],
        "retrieval": retrieval_rows(asked),
        "claims": claims(study, found, asked),
    }
    report.save_json(workdir / "results.json", result)
    report.save_csv(workdir / "loss.csv", *_loss_csv(study, found))
    report.save_csv(workdir / "retrieval.csv", *_retrieval_csv(asked))
    figures = draw.all_figures(study, found, asked)
    title = f"Zero-shot extension of {config.model}"
    parts = _sections(study, result, figures, tables(study, found, asked))
    report.write_html(workdir / "report.html", title, command, parts, result["versions"])
    return result


def show(study: Study) -> None:
    """Prints the tables and the claims."""
    found, asked = curves(study), answers(study)
    for table in tables(study, found, asked):
        report.print_table(*table)
    print("\n".join(claims(study, found, asked)))


def tables(study: Study, found: dict[int, list[Curves]], asked: list[Answers]) -> list[tuple]:
    """(title, header, rows) of each table."""
    losses = [
        (
            f"Loss in nats per token, windows of {n:,} tokens",
            *loss_table(study, loss_rows(study, c)),
        )
        for n, c in found.items()
    ]
    tasks = [task for task in planning.TASKS if any(a.task == task for a in asked)]
    title = "exact answers (with interval), share of tokens, loss in nats"
    asked_tables = [(f"{t.capitalize()}: {title}", *retrieval_table(asked, t)) for t in tasks]
    return losses + asked_tables


def _done(study: Study) -> list[dict]:
    return [arrays for cell in study.plan.work() if (arrays := study.read(cell))]


def _loss_csv(study: Study, found: dict[int, list[Curves]]):
    rows, block = [], study.config.block
    for length, of_length in found.items():
        for c in of_length:
            mean = np.mean(list(c.documents.values()), axis=0)
            at = np.arange(len(mean)) * block
            rows += [
                (c.method, length, len(c.documents), start, f"{x:.4f}")
                for start, x in zip(at, mean, strict=True)
            ]
    return ["method", "length", "documents", "first_position", "nll"], rows


def _retrieval_csv(asked: list[Answers]):
    rows = [
        (a.task, a.method, a.length, d, int(e), f"{s:.4f}", f"{x:.4f}")
        for a in asked
        for d, e, s, x in zip(a.documents, a.exact, a.share, a.nll, strict=True)
    ]
    return ["task", "method", "length", "document", "exact", "share", "nll"], rows


def _sections(study: Study, result: dict, figures: dict, tables: list) -> list[report.Section]:
    config, cells = study.config, result["cells"]
    intro = "\n\n".join(result["claims"]) + (
        f"\n\nNothing is trained. Cells measured: {cells['done']} of {cells['planned']}, in "
        f"{result['seconds'] / 3600:.2f} hours of measuring. Documents: "
        f"{', '.join(config.documents)}. Model: {result['model']['method']}, trained on "
        f"{config.trained_length:,} tokens. {' '.join(result['model']['notes'])}"
    )
    blocks = [report.Text(intro)]
    for title, header, rows in tables:
        blocks.append(report.Table(header, rows, title))
    shown_figures = [report.Figure(path, caption) for path, caption in figures.values()]
    specs = {(r["method"], r["length"]): r["spec"] for r in result["loss"]}
    used = report.Table(["method", "length", "spec"], [[*k, v] for k, v in specs.items()])
    return [
        report.Section("Result", blocks),
        report.Section("Figures", shown_figures),
        report.Section("How it was measured", [report.Text(_explained(study)), used]),
    ]


def _explained(study: Study) -> str:
    r, trained = study.config.retrieval, study.config.trained_length
    return (
        "Loss: nats per token, one pass over the beginning of each document, from its first "
        f"sentence on, after {study.bos}; every token sees all tokens before it. Intervals: "
        "95%, documents resampled whole; differences are paired on the documents that both have. "
        "One document gives none.\n\n"
        f"A method's factor is the length of the window over {trained:,}. For methods that depend "
        "on the length, the length of the whole window is meant, so that one set of frequencies "
        "serves all its tokens; a dynamic method then is the fixed one with that factor. (Hugging "
        "Face takes the length so far at each step of decoding, with keys cached under older ones: "
        "that is not measured here.) (= name) marks methods whose frequencies are the same number "
        "by number; they are measured once.\n\n"
        f"Retrieval: pass keys and first sentences ({r.fact!r} {r.passkey_prompt!r} "
        f"{r.first_sentence_prompt!r}) in plain text, no chat template. The right answer is given: "
        "exact counts answers of which every token is the most likely one, which is when greedy "
        "decoding would give it; then the share of tokens right, then their loss in nats. An exact "
        "count has Clopper and Pearson's 95% interval, samples taken as independent. Removed: the "
        "sentence asked for is not in the context, so that its share of tokens is what guessing "
        "and copying within the answer give.\n\n"
        "The texts are old and public: the model may have read them. All methods have that alike."
    )
