"""Suites are scored as their authors score them: by likelihoods of choices, or by generated text.

Of several choices the likeliest wins: by log-likelihood, per character or token of the
continuation, or less the log-likelihood without the question (GPT-3, 2005.14165 section 2.4). Of
one continuation it counts whether greedy decoding gives it (LAMBADA), and its bits per byte.
Generated answers are normalised and compared as in SQuAD (1606.05250); GSM8K takes the last number,
MATH what stands in the box. TruthfulQA's MC2 is the share of likelihood that true answers have.
"""

import collections
import math
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from longrope_jax.data.suite_items import Item, Suite
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation.requests import Scores

_SAID = re.compile(r"[Ff]inal answer is:?\s*(.+?)\.?(?:\s*I hope it is correct.*)?$", re.M)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def pairs(suite: Suite) -> list[tuple[str, str]]:
    """All (context, continuation) pairs of a suite; `scored` takes their scores in this order."""
    return [pair for item in suite.items for pair in (*item.choices, *item.unconditional)]


def scored(suite: Suite, found: Scores) -> dict[str, np.ndarray]:
    """Each metric of each item, float64 [n] by name; shares are 0 or 1, or bits per byte.

    Args:
        suite: the suite.
        found: scores of `pairs(suite)`.
    """
    metrics: dict[str, list[float]] = collections.defaultdict(list)
    at = 0
    for item in suite.items:
        n, texts = len(item.choices), [text for _, text in item.choices]
        here = slice(at, at + n)
        sums = found.log_likelihood[here]
        if n == 1:
            metrics["greedy"].append(float(found.greedy[at]))
            size = len(texts[0].encode())
            metrics["bits_per_byte"].append(-float(sums[0]) / size / math.log(2))
        else:
            ways = {"acc_raw": sums, "acc_per_char": sums / [len(text) for text in texts]}
            ways["acc_per_token"] = sums / found.tokens[here]
            if item.true:
                share = np.exp(sums - sums.max())
                metrics["mc2"].append(float(share[list(item.true)].sum() / share.sum()))
            if item.unconditional:
                ways["acc_uncond"] = sums - found.log_likelihood[at + n : at + 2 * n]
            for name, values in ways.items():
                metrics[name].append(float(np.argmax(values) == item.label))
        at += n + len(item.unconditional)
    return {name: np.array(values) for name, values in metrics.items()}


def answered(suite: Suite, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Exact match of a generated text by the suite's rule, and F1, float64 [n] by name, 0 to 1.

    Args:
        suite: a suite with a rule.
        texts: what was generated for each item.

    Raises:
        ValueError: The suite is not answered by text.
    """
    if suite.rule not in RULES:
        raise ValueError(unknown_name(f"rule of {suite.name}", suite.rule, RULES))
    rules = {"exact_match": RULES[suite.rule]}
    if suite.rule == "exact_match":
        rules["f1"] = f1

    def best(score: Callable[[str, str], float], text: str, item: Item) -> float:
        return max((score(text, answer) for answer in item.answers), default=0.0)

    pairs = list(zip(texts, suite.items, strict=True))
    return {
        name: np.array([best(score, *pair) for pair in pairs], float)
        for name, score in rules.items()
    }


def normalised(text: str) -> str:
    """A text as SQuAD compares it: lower case, without punctuation, articles and extra blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(text: str, answer: str) -> float:
    """1 if both are the same when normalised, else 0."""
    return float(normalised(text) == normalised(answer))


def f1(text: str, answer: str) -> float:
    """The F1 of words in common, as SQuAD counts it, 0 to 1."""
    ours, theirs = normalised(text).split(), normalised(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def last_number(text: str) -> str | None:
    """The last number of a text without separators of thousands, as GSM8K's answers are read."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def same_number(text: str, answer: str) -> float:
    """1 if the last number of a text is that of the answer, else 0."""
    return float(last_number(text) == last_number(answer))


def final_answer(text: str) -> str:
    """What a solution of MATH ends with: its last \\boxed{...}, or what "the final answer is" says.

    Minerva's normalisation (2206.14858, appendix D.1) is done in part: blanks, \\left and \\right,
    dollar signs, units in \\text, separators of thousands, and \\dfrac and \\tfrac as \\frac.
    """
    said = _SAID.findall(text)
    found = said[-1] if said else _boxed(text)
    found = re.sub(r"\\text\s*\{[^{}]*\}|\\left|\\right|\\[,;!: ]|[\s$]|\\%|%", "", found)
    found = re.sub(r"(?<=\d),(?=\d{3})", "", found)
    return re.sub(r"\\[dt]frac", r"\\frac", found).rstrip(".")


def _boxed(text: str) -> str:
    _, is_there, rest = text.rpartition("\\boxed{")
    depth = 1
    for at, c in enumerate(rest):
        depth += (c == "{") - (c == "}")
        if not depth:
            return rest[:at]
    return "" if is_there else text


def same_answer(text: str, answer: str) -> float:
    """1 if the final answer of a text is the answer of MATH, else 0."""
    return float(final_answer(text) == final_answer(answer) != "")


RULES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "last_number": same_number,
    "final_answer": same_answer,
}
"""How a generated text is compared with a right answer, by the names that suites give."""
