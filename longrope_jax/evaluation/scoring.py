"""ROUGE-L scores FIRST-SENTENCE-RETRIEVAL (Llama 2 Long, section 4.1 and Figure 5b)."""

from collections.abc import Sequence
from functools import cache

import numpy as np


def rouge_l(prediction: str, reference: str) -> float:
    """Returns the ROUGE-L F-measure of a prediction, 0 to 100 (Lin 2004, with equal weights).

    Google's `rouge-score` computes it: text is lower-cased, every run of characters outside
    [a-z0-9] separates words, and nothing is stemmed. A text without such words scores 0. The paper
    does not say which implementation it used.

    Raises:
        ValueError: the extra `longrope_jax[tasks]` is not installed.
    """
    return 100.0 * _scorer().score(reference, prediction)["rougeL"].fmeasure


def rouge_l_scores(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns `rouge_l` of each prediction and reference, float64 [n] from 0 to 100.

    Raises:
        ValueError: the numbers of predictions and references differ, or the extra
            `longrope_jax[tasks]` is not installed.
    """
    if len(predictions) != len(references):
        counts = f"{len(predictions)} predictions and {len(references)} references"
        raise ValueError(f"each prediction needs one reference, got {counts}")
    return np.array([rouge_l(*pair) for pair in zip(predictions, references, strict=True)], float)


def chance_rouge_l(
    references: Sequence[str], documents: Sequence, *, draws: int = 32, seed: int = 0
) -> np.ndarray:
    """Returns the score of a fluent answer from the wrong document, float64 [n] from 0 to 100.

    Each reference is scored against references of other documents, and averaged over `draws` draws.
    Every draw pairs documents by a random cycle, so that no document meets itself. Compare a
    failing model with this score and not with 0: plain RoPE in Figure 5b settles near 7.

    Args:
        references: the right answers [n].
        documents: the document [n] of each reference.
        draws: number of draws.
        seed: seed of the draws.

    Raises:
        ValueError: there are fewer than 2 documents, the numbers of references and documents
            differ, or the extra `longrope_jax[tasks]` is not installed.
    """
    if len(references) != len(documents):
        counts = f"{len(references)} references and {len(documents)} documents"
        raise ValueError(f"each reference needs its document, got {counts}")
    names, index = np.unique(np.asarray(documents), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"documents must name at least 2 documents to swap, got {len(names)}")
    rng = np.random.default_rng(seed)
    cycles = [_other_samples(index, len(names), rng) for _ in range(draws)]
    scores = [rouge_l_scores([references[i] for i in cycle], references) for cycle in cycles]
    return np.mean(scores, axis=0)


def _other_samples(index: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Draws for each sample a sample of the document that follows its own in a random cycle."""
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
