"""ROUGE-L, the metric of FIRST-SENTENCE-RETRIEVAL (Llama 2 Long, section 4.1 and Figure 5b)."""

from collections.abc import Sequence
from functools import cache

import numpy as np


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F-measure of a prediction, 0 to 100 (Lin 2004; F with equal weight on both sides).

    Computed by Google's `rouge-score`: text is lower-cased, every run of characters outside
    [a-z0-9] separates words, nothing is stemmed. A text without such words scores 0. The paper
    does not say which implementation it used. ValueError without the extra
    `longrope_jax[tasks]`.
    """
    return 100.0 * _scorer().score(reference, prediction)["rougeL"].fmeasure


def rouge_l_scores(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """`rouge_l` of each pair: float64 [n], 0 to 100. ValueError where the counts differ."""
    if len(predictions) != len(references):
        counts = f"{len(predictions)} predictions and {len(references)} references"
        raise ValueError(f"each prediction needs one reference, got {counts}")
    return np.array([rouge_l(*pair) for pair in zip(predictions, references, strict=True)], float)


def chance_rouge_l(
    references: Sequence[str], documents: Sequence, *, draws: int = 32, seed: int = 0
) -> np.ndarray:
    """Score of a model that answers fluently from the wrong document: float64 [n], 0 to 100.

    Reference i is scored against references drawn from other documents, and averaged over `draws`
    of them; `documents` [n] names the document of each. In a draw documents are paired by a random
    cycle, so none meets itself. A failing
    model is to be read against this and not against 0 (plain RoPE of Figure 5b settles near 7).
    Words as in `rouge_l`.
    ValueError: fewer than 2 documents, counts that differ.
    """
    if len(references) != len(documents):
        counts = f"{len(references)} references and {len(documents)} documents"
        raise ValueError(f"each reference needs its document, got {counts}")
    names, index = np.unique(np.asarray(documents), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"chance needs at least 2 documents to swap, got {len(names)}")
    rng = np.random.default_rng(seed)
    cycles = [_other_samples(index, len(names), rng) for _ in range(draws)]
    scores = [rouge_l_scores([references[i] for i in cycle], references) for cycle in cycles]
    return np.mean(scores, axis=0)


def _other_samples(index: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """For each sample a random sample of the document next to its own in one random cycle."""
    cycle = rng.permutation(count)
    following = np.empty(count, int)
    following[cycle] = np.roll(cycle, 1)
    members = [np.flatnonzero(index == document) for document in range(count)]
    return [int(rng.choice(members[following[document]])) for document in index]


@cache
def _scorer():
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ValueError(
            "ROUGE-L needs the package rouge-score: pip install 'longrope_jax[tasks]'"
        ) from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
