"""Numbers from cells, their intervals, and verdicts on what was claimed before the run."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.lab.cells import Cell, read
from experiments.lab.fail import naming
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    paired_difference,
    two_way_bootstrap,
    verdict,
)

NOT_RUN = "not run"
NOT_TESTABLE = "not testable here"


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """One quantity of every row.

    Attributes:
        values: by row, float64 [seeds, samples] or [seeds, samples, columns].
        documents: by row, the document of each sample [samples].
        once: rows that no seed enters; see `repeated`.
    """

    values: dict[str, np.ndarray]
    documents: dict[str, np.ndarray]
    once: frozenset[str] = frozenset()

    @property
    def rows(self) -> list[str]:
        """Rows that have at least one finished seed, in the order of the cells."""
        return list(self.values)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Scores":
        """The scores with `function` applied to each row's array, e.g. a mean over columns."""
        values = {row: np.asarray(function(v)) for row, v in self.values.items()}
        return dataclasses.replace(self, values=values)

    def minus(self, other: "Scores") -> "Scores":
        """Difference sample by sample, e.g. loss at long range minus loss within; common rows."""
        rows = [row for row in self.rows if row in other.values]
        values = {}
        for row in rows:
            seeds = min(len(self.values[row]), len(other.values[row]))
            values[row] = self.values[row][:seeds] - other.values[row][:seeds]
        return Scores(values, {row: self.documents[row] for row in rows}, self.once)

    def repeated(self, rows: Iterable[str]) -> "Scores":
        """The scores with `rows`, measured once since no seed enters them, for every seed.

        Such a row is a model before training: each seed of a trained row is compared with it.
        """
        return dataclasses.replace(self, once=self.once | set(rows))

    def only(self, rows: Iterable[str]) -> "Scores":
        """The scores of these rows, in this order; rows that are not there are left out."""
        kept = [row for row in rows if row in self.values]
        return Scores(
            {row: self.values[row] for row in kept},
            {row: self.documents[row] for row in kept},
            self.once,
        )

    def mean(self, row: str) -> np.ndarray:
        """Mean over seeds and samples, float64 [columns] or a scalar."""
        return self.values[row].mean((0, 1))

    def interval(self, row: str) -> Interval | None:
        """Mean with a 95 % bootstrap over seeds and documents; None for a single document."""
        values, documents = self.values[row], self.documents[row]
        if len(set(documents)) < 2:
            return None
        if len(values) == 1:
            return cluster_bootstrap(values[0], documents)
        return two_way_bootstrap(values, documents)


def scores(
    folder: Path, cells: Iterable[Cell], key: str, *, documents: str = "documents"
) -> Scores:
    """The array `key` of all finished cells, by row; several cells of a seed are joined.

    Seeds count from the least one up to the first that is missing or not finite (a run that
    diverged), so that the seeds of two rows stay pairs.

    Args:
        folder: of the study.
        cells: those that measure the quantity; the order of rows is theirs.
        key: name of the array [samples] or [samples, columns] in each cell.
        documents: name of the array [samples] of the samples' documents.
    """
    found: dict[str, dict[int, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for cell in dict.fromkeys(cells):
        arrays = read(folder, cell)
        if arrays is not None and key in arrays:
            pair = np.asarray(arrays[key], np.float64), arrays[documents]
            found.setdefault(cell.row, {}).setdefault(cell.seed, []).append(pair)
    values, names = {}, {}
    for row, seeds in found.items():
        kept: list[np.ndarray] = []
        for seed in range(min(seeds), min(seeds) + len(seeds)):
            if seed not in seeds:
                break
            array = np.concatenate([pair[0] for pair in seeds[seed]])
            if not np.isfinite(array).all() or (kept and array.shape != kept[0].shape):
                break
            kept.append(array)
        if kept:
            values[row] = np.stack(kept)
            names[row] = np.concatenate([pair[1] for pair in seeds[min(seeds)]])
    return Scores(values, names)


def difference(
    found: Scores, row: str, reference: str, confidence: float = 0.95
) -> Interval | None:
    """Mean of `row` minus `reference`, paired over seeds and the documents that both have.

    None where they share fewer than two documents: there is no interval from one.
    """
    a, b, documents = _paired(found, row, reference)
    if len(set(documents)) < 2:
        return None
    return paired_difference(a, b, documents, confidence=confidence)


def gap(found: Scores, row: str, reference: str) -> Interval | float | np.ndarray | None:
    """`difference`, or where the two share a single document the mean difference alone.

    None for the reference itself, and where a row is not measured or no document is shared.
    """
    if row == reference or not {row, reference} <= found.values.keys():
        return None
    a, b, documents = _paired(found, row, reference)
    if len(set(documents)) > 1:
        return paired_difference(a, b, documents)
    return (a - b).mean((0, 1)) if len(documents) else None


def mean_gap(found: Scores, row: str, reference: str) -> np.ndarray:
    """`gap` for a figure, without its interval; NaN where the two are not compared."""
    if row == reference:
        return np.zeros_like(found.mean(row))
    between = gap(found, row, reference)
    if between is None:
        return np.full_like(found.mean(row), np.nan)
    return np.asarray(between.estimate if isinstance(between, Interval) else between)


def counted(found: Scores, rows: Iterable[str], reference: str) -> str:
    """Says how many rows lie below and above a reference row by their paired 95 % intervals."""
    gaps = {row: x for row in rows if (x := gap(found, row, reference)) is not None}
    whole = {row: x for row, x in gaps.items() if isinstance(x, Interval)}
    if not whole:
        below = sum(x < 0 for x in gaps.values())
        return f"{below} of {len(gaps)} are below {reference} on one document: no interval"
    words = {row: verdict(x, "difference < -margin") for row, x in whole.items()}
    lower = [row for row, word in words.items() if word == "holds"]
    higher = list(words.values()).count("reversed")
    named = f" ({', '.join(lower)})" if lower else ""
    return (
        f"{len(lower)} of {len(whole)} are below {reference}{named}, {higher} above, "
        f"{len(whole) - len(lower) - higher} cannot be told from it"
    )


def against(found: Scores, reference: str) -> dict[str, Interval | None]:
    """`difference` of every other row to the row `reference`; empty where that is not there."""
    rows = [row for row in found.rows if row != reference] if reference in found.values else []
    return {row: difference(found, row, reference) for row in rows}


def _paired(found: Scores, a: str, b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both rows on the seeds and samples that they share, and the samples' documents."""
    first, second = _numbered(found.documents[a]), _numbered(found.documents[b])
    both, seeds = [key for key in first if key in second], _seeds(found, a, b)

    def taken(row: str, places: dict) -> np.ndarray:
        chosen = found.values[row][:seeds, [places[key] for key in both]]
        return np.repeat(chosen[:1], seeds, 0) if row in found.once else chosen

    return taken(a, first), taken(b, second), np.asarray([name for name, _ in both])


def _numbered(documents: Sequence) -> dict[tuple[str, int], int]:
    """Place of each sample, by its document and its number in that document."""
    places: dict[tuple[str, int], int] = {}
    counts: dict[str, int] = {}
    for place, name in enumerate(np.asarray(documents).tolist()):
        counts[name] = counts.get(name, -1) + 1
        places[name, counts[name]] = place
    return places


def _seeds(found: Scores, *rows: str) -> int:
    """Seeds that all rows have; those that no seed enters have one, and as many as wanted."""
    return min((len(found.values[row]) for row in rows if row not in found.once), default=1)


# Claims.

_DIFFERENCE = re.compile(r"^(.+?): (.+) - (.+) ([<>]) (-?\d+(?:\.\d+)?)$")
_EQUIVALENCE = re.compile(r"^(.+?): \|(.+) - (.+)\| <= (\d+(?:\.\d+)?)$")


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: its text, the difference found, what follows, and how many seeds it had."""

    text: str
    difference: Interval | None
    verdict: str
    seeds: int


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A claim, the gates that say whether it could have been seen, and the checks it stands on."""

    name: str
    claim: str
    gates: tuple[Check, ...]
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """What follows: a gate that fails makes the claim untestable, whatever its checks say.

        Without gates that fail: "holds" if every check does, else the first of "reversed",
        "not run" and "indistinguishable" that any check came to.
        """
        if any(gate.verdict == NOT_RUN for gate in self.gates):
            return NOT_RUN
        if any(gate.verdict != "holds" for gate in self.gates):
            return NOT_TESTABLE
        verdicts = [check.verdict for check in self.checks]
        for outcome in ("reversed", NOT_RUN, "indistinguishable"):
            if outcome in verdicts:
                return outcome
        return "holds"


def check_text(text: str, quantities: Iterable[str], rows: Iterable[str]) -> None:
    """Refuses the text of a check before any work.

    Raises:
        ValueError: text of another form, an unknown quantity or row, a negative bound.
    """
    quantity, a, b, _, margin = _parse(text)
    known, rows = list(quantities), list(rows)
    if quantity not in known:
        raise ValueError(unknown_name("quantity", quantity, known))
    for row in (a, b):
        if row not in rows and not (row is b and _is_number(row)):
            raise ValueError(unknown_name("row", row, rows))
    if margin < 0:
        raise ValueError(f"the bound of the check {text!r} must not be negative")


def check_hypotheses(
    hypotheses: Mapping[str, Mapping], quantities: Iterable[str], rows: Iterable[str]
) -> None:
    """Refuses the texts of all gates and checks of a config's `hypotheses` before any work.

    Raises:
        ValueError: as `check_text`, with the hypothesis.
    """
    rows = list(dict.fromkeys(rows))
    for name, hypothesis in hypotheses.items():
        for text in (*hypothesis.get("gates", ()), *hypothesis["checks"]):
            with naming(f"hypotheses.{name}"):
                check_text(text, quantities, rows)


def check(quantities: Mapping[str, Scores], text: str, confidence: float = 0.95) -> Check:
    """Computes one check, such as "loss: RoPE - RoPE ABF > 0" or "loss: |A - B| <= 0.01".

    A second operand that is a number is compared with. A row that has not been measured makes the
    verdict "not run"; a single document makes it "indistinguishable".

    Raises:
        ValueError: text of another form, or an unknown quantity.
    """
    quantity, a, b, claim, margin = _parse(text)
    if quantity not in quantities:
        raise ValueError(unknown_name("quantity", quantity, quantities))
    found = quantities[quantity]
    if a not in found.values or not (b in found.values or _is_number(b)):
        return Check(text, None, NOT_RUN, 0)
    if b not in found.values:
        constant = np.full_like(found.values[a], float(b))
        documents = found.documents | {b: found.documents[a]}
        found = dataclasses.replace(found, values=found.values | {b: constant}, documents=documents)
    between = difference(found, a, b, confidence)
    word = "indistinguishable" if between is None else verdict(between, claim, margin)
    return Check(text, between, word, _seeds(found, a, b))


def judged(hypotheses: Mapping[str, Mapping], quantities: Mapping[str, Scores]) -> list[Hypothesis]:
    """Every hypothesis of a config, `{name: {claim, gates (optional), checks}}`, computed."""
    return [
        Hypothesis(
            name,
            h["claim"],
            tuple(check(quantities, text) for text in h.get("gates", ())),
            tuple(holm(quantities, h["checks"])),
        )
        for name, h in hypotheses.items()
    ]


def holm(quantities: Mapping[str, Scores], texts: Sequence[str]) -> list[Check]:
    """The checks of one hypothesis, of which by chance one in 20 hypotheses decides any wrongly.

    Holm's step-down rule (1979, Scand. J. Stat. 6:65): the clearest of m checks is decided at
    confidence 1 - 0.05/m, the next at 1 - 0.05/(m-1) and so on; after the first that stays
    undecided no other is decided. Each check has the interval of its own confidence.
    """
    first = [check(quantities, text) for text in texts]
    measured = [i for i, one in enumerate(first) if one.difference is not None]
    found, undecided = list(first), False
    for rank, i in enumerate(sorted(measured, key=lambda i: -_clearness(first[i]))):
        one = check(quantities, texts[i], 1 - 0.05 / (len(measured) - rank))
        undecided = undecided or one.verdict == "indistinguishable"
        found[i] = dataclasses.replace(one, verdict="indistinguishable") if undecided else one
    return found


def _clearness(one: Check) -> float:
    """Distance of the difference from the nearest bound of its claim, in half widths."""
    *_, claim, margin = _parse(one.text)
    bounds = {"difference > margin": [margin], "difference < -margin": [-margin]}
    estimate = one.difference.estimate
    distance = min(abs(estimate - b) for b in bounds.get(claim, [margin, -margin]))
    return distance / max((one.difference.high - one.difference.low) / 2, 1e-300)


def verdict_lines(hypotheses: Sequence[Hypothesis]) -> list[list]:
    """Rows of the table of verdicts: each hypothesis, then its gates and checks."""
    lines = []
    for h in hypotheses:
        lines.append([f"{h.name}: {h.claim}", "", h.verdict.upper()])
        for kind, checks in (("gate", h.gates), ("check", h.checks)):
            for c in checks:
                lines.append([f"    {kind}: {c.text}", show(c.difference, 3), c.verdict])
    return lines


VERDICT_HEADER = ("hypothesis", "difference", "verdict")


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


def show(value: Interval | float | None, digits: int = 3) -> str | None:
    """A number, or an estimate with its limits, as tables show it: "1.234 [1.200, 1.270]"."""
    if value is None:
        return None
    if isinstance(value, Interval):
        parts = (float(x) for x in (value.estimate, value.low, value.high))
        estimate, low, high = (f"{x:.{digits}f}" for x in parts)
        return f"{estimate} [{low}, {high}]"
    return f"{float(value):.{digits}f}"
