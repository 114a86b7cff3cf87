"""Rules that score generated answers, each as its benchmark scores them.

A rule takes a prediction and the strings that are wanted, and gives a score from 0 to 1. ROUGE-L
scores FIRST-SENTENCE-RETRIEVAL (Llama 2 Long, section 4.1 and Figure 5b) from 0 to 100.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from longrope_jax.errors import unknown_name

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def first_integer(prediction: str, wanted: Sequence[str]) -> float:
    """Returns 1 if the first run of digits of the prediction is the number wanted (Giraffe)."""
    found = re.findall(r"\d+", prediction)
    return float(bool(found) and _same_number(found[0], wanted[0]))


def last_integer(prediction: str, wanted: Sequence[str]) -> float:
    """Returns 1 if the last run of digits of the prediction is the number wanted (LongChat)."""
    found = re.findall(r"\d+", prediction)
    return float(bool(found) and _same_number(found[-1], wanted[0]))


def _same_number(a: str, b: str) -> bool:
    return a.lstrip("0") == b.lstrip("0")  # Python reads no number of 5,000 digits


def presence(prediction: str, wanted: Sequence[str]) -> float:
    """Returns 1 if the prediction holds a wanted string as it is written (Giraffe's accuracy).

    A number counts within a longer one too: "1066" is present in "110663".
    """
    return float(any(one.strip() in prediction for one in wanted))


def match_all(prediction: str, wanted: Sequence[str]) -> float:
    """Returns the share of wanted strings that the prediction holds in any case (RULER)."""
    return float(np.mean(_held(prediction, wanted)))


def match_part(prediction: str, wanted: Sequence[str]) -> float:
    """Returns 1 if the prediction holds any wanted string in any case (RULER's QA).

    Peers: lm-evaluation-harness averages over the wanted strings instead.
    """
    return float(any(_held(prediction, wanted)))


def _held(prediction: str, wanted: Sequence[str]) -> list[bool]:
    # RULER turns control characters into newlines first.
    text = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip().lower()
    return [one.lower() in text for one in wanted]


def rouge(prediction: str, reference: str, kinds: Sequence[str]) -> float:
    """Returns the geometric mean of F-measures of `rouge-score`, 0 to 100, without stemming.

    ("rougeL",) is ROUGE-L; ("rouge1", "rouge2", "rougeL") is ROUGE-geo of SCROLLS and ZeroSCROLLS
    (Llama 2 Long, Table 3), whose ROUGE-L is "rougeLsum" where texts have several lines.

    Raises:
        ValueError: a kind is unknown, or the extra `longrope_jax[tasks]` is not installed.
    """
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise ValueError(unknown_name("kind of ROUGE", unknown[0], _KINDS))
    found = _scorer().score(reference, prediction)
    return 100.0 * float(np.prod([found[kind].fmeasure for kind in kinds]) ** (1 / len(kinds)))


def rouge_l(prediction: str, reference: str) -> float:
    """Returns the ROUGE-L F-measure of a prediction, 0 to 100 (Lin 2004, with equal weights).

    Google's `rouge-score` computes it: text is lower-cased, every run of characters outside
    [a-z0-9] separates words, and nothing is stemmed. A text without such words scores 0. The paper
    does not say which implementation it used.

    Raises:
        ValueError: the extra `longrope_jax[tasks]` is not installed.
    """
    return rouge(prediction, reference, ("rougeL",))


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
    return rouge_scorer.RougeScorer(list(_KINDS), use_stemmer=False)


def _rouge_l_share(prediction: str, wanted: Sequence[str]) -> float:
    """Returns ROUGE-L from 0 to 1 of the prediction and the best wanted string."""
    return max(rouge_l(prediction, one) for one in wanted) / 100


RULES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "first_integer": first_integer,
    "last_integer": last_integer,
    "presence": presence,
    "match_all": match_all,
    "match_part": match_part,
    "rouge_l": _rouge_l_share,
}
