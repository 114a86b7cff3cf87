"""Suites are scored as their authors score them: by likelihoods of choices, or by generated text.

Of several choices the likeliest wins: by log-likelihood, per character or token of the
continuation, or less the log-likelihood without the question (GPT-3, 2005.14165 section 2.4). Of
one continuation it counts whether greedy decoding gives it (LAMBADA), and its bits per byte.
Generated answers are normalised and compared as in SQuAD (1606.05250); GSM8K takes the last number.
"""

import collections
import math
import re
import string
from collections.abc import Sequence

import numpy as np

from longrope_jax.data.suites import Suite
from longrope_jax.evaluation.requests import Scores

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
            if item.unconditional:
                ways["acc_uncond"] = sums - found.log_likelihood[at + n : at + 2 * n]
            for name, values in ways.items():
                metrics[name].append(float(np.argmax(values) == item.label))
        at += n + len(item.unconditional)
    return {name: np.array(values) for name, values in metrics.items()}


def answered(suite: Suite, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Exact match and F1 of a generated text for each item, float64 [n] by name, 0 to 1."""
    if "gsm8k" in suite.name:
        right = [
            last_number(text) == last_number(item.answers[0])
            for item, text in zip(suite.items, texts, strict=True)
        ]
        return {"exact_match": np.array(right, float)}
    return {
        name: np.array(
            [
                max((score(text, answer) for answer in item.answers), default=0.0)
                for item, text in zip(suite.items, texts, strict=True)
            ],
            float,
        )
        for name, score in (("exact_match", exact_match), ("f1", f1))
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
