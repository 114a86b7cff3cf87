"""Numbers and claims of zero-shot extension, from the finished cells alone."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments.zero_shot import plan as planning
from experiments.zero_shot.measure import Study
from longrope_jax.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    paired_difference,
    verdict,
)

_LOWER = "difference < -margin"


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Loss of one method in windows of `length` tokens, by document: mean nll of each block."""

    method: str
    length: int
    same_as: str
    documents: dict[int, np.ndarray]

    def mean(self, low: int, high: int, block: int, of: Sequence[int] | None = None) -> np.ndarray:
        """Of positions low..high-1, one number per document."""
        chosen = self.documents if of is None else of
        part = slice(low // block, high // block)
        return np.asarray([self.documents[d][part].mean() for d in chosen], np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Retrieval by one method at one length: arrays per sample, and their documents."""

    task: str
    method: str
    length: int
    same_as: str
    exact: np.ndarray
    share: np.ndarray
    nll: np.ndarray
    documents: np.ndarray

    @property
    def exact_interval(self) -> Interval:
        """Whole answers right, with Clopper and Pearson's interval: samples as independent."""
        n, right = len(self.exact), int(self.exact.sum())
        low, high = stats.binomtest(right, n).proportion_ci(method="exact")
        return Interval(right / n, float(low), float(high))


def curves(study: Study) -> dict[int, list[Curves]]:
    """Every method with a finished document, by length of the windows, longest first."""
    found: dict[tuple[int, str], Curves] = {}
    for cell in study.plan.cells:
        arrays = study.read(cell) if cell.task == planning.LOSS else None
        if arrays:
            new = Curves(cell.method, cell.length, cell.same_as, {})
            at = found.setdefault((cell.length, cell.method), new)
            at.documents[cell.document] = arrays["blocks"].astype(np.float64)
    lengths = sorted({length for length, _ in found}, reverse=True)
    return {n: [c for (length, _), c in found.items() if length == n] for n in lengths}


def answers(study: Study) -> list[Answers]:
    """Every task, method and length with a finished document."""
    found: dict[tuple, list] = {}
    for cell in study.plan.cells:
        arrays = study.read(cell) if cell.task != planning.LOSS else None
        if arrays:
            found.setdefault((cell.task, cell.method, cell.length), []).append((cell, arrays))
    joined = []
    for (task, method, length), parts in found.items():
        arrays = {k: np.concatenate([a[k] for _, a in parts]) for k in ("exact", "share", "nll")}
        documents = np.concatenate([[c.document] * len(a["exact"]) for c, a in parts])
        same_as = parts[0][0].same_as
        joined.append(Answers(task, method, length, same_as, documents=documents, **arrays))
    return joined


def interval(values: np.ndarray) -> Interval | None:
    """Over documents, one value each; None for one document."""
    return None if len(values) < 2 else cluster_bootstrap(values, np.arange(len(values)))


def against(study: Study, curve: Curves, reference: Curves) -> tuple[float, Interval | None]:
    """Loss beyond the trained length minus the reference's, on the documents that both have."""
    both = sorted(set(curve.documents) & set(reference.documents))
    part = (study.config.trained_length, curve.length, study.config.block, both)
    a, b = curve.mean(*part), reference.mean(*part)
    estimate = float((a - b).mean()) if both else float("nan")
    return estimate, None if len(both) < 2 else paired_difference(a[None], b[None], both)


def ranges(study: Study, length: int) -> list[tuple[int, int]]:
    """Columns of the table of windows of `length` tokens: between edges, then all beyond."""
    edges = [edge for edge in study.config.edges if edge <= length]
    columns = [*itertools.pairwise(edges), (study.config.trained_length, length)]
    return list(dict.fromkeys(columns))


def reference(study: Study, found: list[Curves]) -> Curves | None:
    """The curve of the config's first method."""
    first = study.plan.reference
    return next((c for c in found if c.method == first), None)


def loss_rows(study: Study, found: list[Curves]) -> list[dict]:
    """One row per method of a length, lowest loss beyond the trained length first."""
    length, block, compared = found[0].length, study.config.block, reference(study, found)
    rows = []
    for curve in found:
        row = {"method": curve.method, "same_as": curve.same_as, "length": length}
        row["spec"] = repr(study.plan.spec(curve.method, length))
        row["documents"] = len(curve.documents)
        for low, high in ranges(study, length):
            values = curve.mean(low, high, block)
            row[f"{low}-{high}"] = {"mean": values.mean(), "interval": interval(values)}
        beyond = f"{study.config.trained_length}-{length}"
        row["beyond"] = row[beyond]["mean"]
        if compared and compared is not curve:
            estimate, found_interval = against(study, curve, compared)
            row["difference"] = {"mean": estimate, "interval": found_interval}
        rows.append(row)
    return sorted(rows, key=lambda row: row["beyond"])


def retrieval_rows(found: list[Answers]) -> list[dict]:
    """One row per task, method and length."""
    return [
        {
            "task": a.task,
            "method": a.method,
            "same_as": a.same_as,
            "length": a.length,
            "samples": len(a.exact),
            "documents": len(set(a.documents)),
            "exact": int(a.exact.sum()),
            "exact_interval": a.exact_interval,
            "share": float(a.share.mean()),
            "nll": float(a.nll.mean()),
        }
        for a in found
    ]


def claims(study: Study, found: dict[int, list[Curves]], asked: list[Answers]) -> list[str]:
    """Sentences that the numbers bear out, each computed."""
    losses = [_claim(study, found[length]) for length in found]
    keys = [a for a in asked if a.task == planning.PASSKEY]
    beyond = sorted({a.length for a in keys if a.length > study.config.trained_length})
    return losses + [_passkey_claim([a for a in keys if a.length == n]) for n in beyond]


def _passkey_claim(found: list[Answers]) -> str:
    where, count = f"Pass keys at {found[0].length:,} tokens", max(len(a.exact) for a in found)
    most = max(a.exact.mean() for a in found)
    if most == 0:
        return f"{where}: none of {count} found by any of {len(found)} methods."
    best = [a.method for a in found if a.exact.mean() == most]
    return f"{where}: most are found by {', '.join(best)} ({most:.0%} of {count})."


def _claim(study: Study, found: list[Curves]) -> str:
    rows, compared = loss_rows(study, found), reference(study, found)
    length, trained, block = found[0].length, study.config.trained_length, study.config.block
    text = (
        f"At positions {trained:,} to {length:,} the lowest loss is {rows[0]['beyond']:.3f} nats "
        f"per token, by {rows[0]['method']}"
    )
    if compared is None:
        return text + "."
    beyond, within = (
        compared.mean(*part, block).mean() for part in ((trained, length), (0, trained))
    )
    text += (
        f"; {compared.method} has {beyond:.3f} there and {within:.3f} within the trained length. "
    )
    return text + _verdicts(compared.method, [r for r in rows if r["method"] == r["same_as"]])


def _verdicts(compared: str, rows: list[dict]) -> str:
    """How many methods are below and above the one compared with, beyond the trained length."""
    differences = {r["method"]: r["difference"]["interval"] for r in rows if "difference" in r}
    words = {m: verdict(d, _LOWER) for m, d in differences.items() if d is not None}
    if not words:
        return "With one document there is no interval: other documents may differ."
    lower = [method for method, word in words.items() if word == "holds"]
    named = f" ({', '.join(lower)})" if lower else ""
    higher = list(words.values()).count("reversed")
    return (
        f"Of {len(words)} other methods with frequencies of their own {len(lower)} have a lower "
        f"loss there than {compared}{named}, {higher} a higher one, and "
        f"{len(words) - len(lower) - higher} cannot be told from it (95% paired intervals over "
        "documents, each method on its own)."
    )
