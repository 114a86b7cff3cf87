"""How good a page is: an n-gram model of clean text, and a linear model of cited pages."""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import optimize, sparse

from experiments.prepare.stages import normal
from longrope_jax.data.corpora import Document

_DISCOUNT = 0.75
_BYTES = 256


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """Counts of the runs of k bytes, each packed into one integer, first byte highest.

    Attributes:
        runs: sorted uint64 [n].
        counts: float64 [n]; below the longest runs, how many different bytes precede each.
        contexts: sorted uint64 [m], the runs without their last byte.
        totals: float64 [m], sum of counts behind each context.
        kinds: float64 [m], how many different bytes follow each context.
    """

    runs: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class NGrams:
    """An interpolated Kneser-Ney model of bytes with one discount of 0.75 (Ney and others, 1994).

    CCNet has 5-grams of sentencepiece tokens under kenlm; runs of bytes need neither a vocabulary
    nor a package without wheels for current Pythons, and count in numpy.
    """

    levels: tuple[_Level, ...]

    @classmethod
    def learn(cls, texts: Iterable[str], order: int = 6) -> "NGrams":
        """Counts runs of up to `order` bytes (1 to 8) in the normal forms of texts.

        Raises:
            ValueError: another order, or no text.
        """
        if not 1 <= order <= 8:
            raise ValueError(f"order={order}: runs of 1 to 8 bytes fit into one integer")
        runs = [_packed(normal(text), order) for text in texts]
        if not runs:
            raise ValueError("texts is empty: a model of clean text needs some to learn from")
        keys, counts = np.unique(np.concatenate(runs), return_counts=True)
        levels = []
        for k in range(order, 0, -1):
            levels.append(_level(keys, counts))
            below = keys & np.uint64((1 << 8 * (k - 1)) - 1)
            keys, counts = np.unique(below, return_counts=True)
        return cls(tuple(reversed(levels)))

    def probabilities(self, runs: np.ndarray) -> np.ndarray:
        """Probability of the last byte of each run after the bytes before it, float64 [n]."""
        order, found = len(self.levels), np.full(len(runs), 1 / _BYTES)
        for k, level in enumerate(self.levels, start=1):
            own = runs & np.uint64((1 << 8 * k) - 1) if k < order else runs
            count = _at(level.runs, level.counts, own)
            total = _at(level.contexts, level.totals, own >> np.uint64(8))
            kinds = _at(level.contexts, level.kinds, own >> np.uint64(8))
            known = np.maximum(count - _DISCOUNT, 0) + _DISCOUNT * kinds * found
            found = np.where(total > 0, known / np.maximum(total, 1), found)
        return found

    def bits(self, text: str) -> float:
        """Mean bits per byte of the normal form of a text; the lower, the more like clean text."""
        runs, times = np.unique(_packed(normal(text), len(self.levels)), return_counts=True)
        return float(-np.average(np.log2(self.probabilities(runs)), weights=times))


def _level(keys: np.ndarray, counts: np.ndarray) -> _Level:
    # Keys are sorted, so those of one context stand together.
    contexts, first, kinds = np.unique(keys >> np.uint64(8), return_index=True, return_counts=True)
    totals = np.add.reduceat(counts.astype(float), first)
    return _Level(keys, counts.astype(float), contexts, totals, kinds.astype(float))


def _packed(text: str, order: int) -> np.ndarray:
    """The run of `order` bytes that ends at each byte, and at the end of text; uint64."""
    data = np.frombuffer(b"\n" * (order - 1) + text.encode("utf-8", "replace") + b"\n", np.uint8)
    count, runs = len(data) - order + 1, np.uint64(0)
    for i in range(order):
        runs = runs << np.uint64(8) | data[i : i + count].astype(np.uint64)
    return np.asarray(runs)


def _at(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is unknown."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)


def thirds(model: NGrams, sample: Iterable[Document]) -> tuple[float, float]:
    """The bits per byte that part a sample into CCNet's head, middle and tail of equal size.

    Raises:
        ValueError: no documents.
    """
    bits = [model.bits(document.text) for document in sample]
    if not bits:
        raise ValueError("the sample is empty: thirds need documents")
    low, high = np.quantile(bits, (1 / 3, 2 / 3))
    return float(low), float(high)


_FEATURES = 1 << 14  # hashed words


@dataclasses.dataclass(frozen=True, eq=False)
class Citation:
    """A linear model that tells pages which references cite from random ones.

    Attributes:
        weights: of the hashed words, float64 [16384].
        bias: float.
    """

    weights: np.ndarray
    bias: float

    @classmethod
    def learn(cls, cited: Sequence[str], others: Sequence[str], penalty: float = 1.0) -> "Citation":
        """Logistic regression on the logarithms of counts of hashed words, of length 1 each.

        Both kinds weigh the same whatever their numbers.

        Args:
            cited: texts of pages that references cite.
            others: texts of pages taken at random.
            penalty: times half the squared weights.

        Raises:
            ValueError: one of both is empty.
        """
        if not cited or not others:
            raise ValueError(f"{len(cited)} cited and {len(others)} other pages: give both kinds")
        x = _features([*cited, *others])
        sign = np.r_[np.ones(len(cited)), -np.ones(len(others))]
        share = np.where(sign > 0, 0.5 / len(cited), 0.5 / len(others)) * len(sign)

        def loss(w):
            margin = sign * (x @ w[:-1] + w[-1])
            slope = -share * sign / (1 + np.exp(np.clip(margin, -500, 500)))
            value = share @ np.logaddexp(0, -margin) + penalty / 2 * w[:-1] @ w[:-1]
            return value, np.r_[x.T @ slope + penalty * w[:-1], slope.sum()]

        best = optimize.minimize(loss, np.zeros(_FEATURES + 1), jac=True, method="L-BFGS-B")
        return cls(best.x[:-1], float(best.x[-1]))

    def margins(self, texts: Sequence[str]) -> np.ndarray:
        """How far each text is on the side of cited pages, float64 [n]; 0 is the border."""
        return _features(texts) @ self.weights + self.bias


def _features(texts: Sequence[str]) -> sparse.csr_matrix:
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        words = [zlib.crc32(word.encode()) % _FEATURES for word in normal(text).split()]
        found, counts = np.unique(np.asarray(words, int), return_counts=True)
        value = np.log1p(counts)
        rows.append(np.full(len(found), row))
        columns.append(found)
        values.append(value / max(np.linalg.norm(value), 1e-9))
    parts = (np.concatenate(part) for part in (values, rows, columns))
    value, row, column = parts
    return sparse.csr_matrix((value, (row, column)), shape=(len(texts), _FEATURES))


def cited(model: Citation, documents: Iterable[Document]) -> Iterator[Document]:
    """The documents on the side of cited pages, as a stage."""
    for document in documents:
        if model.margins([document.text])[0] >= 0:
            yield document


def ranking(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive score exceeds a negative one, ties half: the area under the ROC."""
    pairs = positive[:, None] - negative[None, :]
    return float((np.sign(pairs) + 1).mean() / 2)
