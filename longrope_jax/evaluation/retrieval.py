"""Samples of tasks are scored by forced and by free answers."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from longrope_jax import generate, llama
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.evaluation.scoring import RULES, rouge_l_scores
from longrope_jax.rotary import RotaryLike
from longrope_jax.tasks import Samples


def teacher_forced(
    config: llama.LlamaConfig,
    params,
    rotary: RotaryLike,
    samples: Samples,
    *,
    batch: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `exact` and `share` of `forced`."""
    found = forced(config, params, rotary, samples, batch=batch)
    return found.exact, found.share


class Forced(NamedTuple):
    """Forced is what a model says of the right answers, each token given those before it.

    Attributes:
        exact: bool [n], whether every token of the answer is the most likely one.
        share: float32 [n], the share of its tokens that are.
        nll: float32 [n], the mean loss of its tokens in nats.
    """

    exact: np.ndarray
    share: np.ndarray
    nll: np.ndarray


def forced(
    config: llama.LlamaConfig,
    params,
    rotary: RotaryLike,
    samples: Samples,
    *,
    batch: int = 16,
) -> Forced:
    """Scores the right answers in one pass over the samples, without generating.

    Greedy decoding gives the whole answer exactly when each of its tokens is the most likely one
    after the right tokens before it, so this pass counts exact matches.
    """
    mask = samples.answer[:, 1:]
    right, losses = [], []
    for rows in _batches(len(mask), batch):
        found = score_tokens(config, params, rotary, samples.tokens[rows])
        right.append((np.asarray(found.correct) & mask[rows]).sum(1))
        losses.append(np.where(mask[rows], np.asarray(found.nll), 0).sum(1))
    share, nll = (np.concatenate(x)[: len(mask)] / mask.sum(1) for x in (right, losses))
    return Forced(share == 1, share.astype(np.float32), nll.astype(np.float32))


def answers(
    config: llama.LlamaConfig,
    params,
    rotary: RotaryLike,
    samples: Samples,
    *,
    end: np.ndarray,
    batch: int = 16,
) -> list[np.ndarray]:
    """Generates greedy answers, one int32 array per sample, cut before the tokens `end`.

    An empty `end` gives answers as long as the longest reference.
    """
    prompts = samples.tokens[:, : samples.prompt_length]
    longest = samples.tokens.shape[1] - samples.prompt_length
    stop = [end.tolist()] if len(end) else []
    results = []
    for rows in _batches(len(prompts), batch):
        results += generate.generate(
            config, params, rotary, prompts[rows], longest, stop=stop
        ).tokens
    return results[: len(prompts)]


def rouge_l_of_answers(
    found: list[np.ndarray], samples: Samples, decode: Callable[[np.ndarray], str]
) -> np.ndarray:
    """Returns ROUGE-L from 0 to 100 of each generated answer and its reference, float64 [n]."""
    references = [decode(reference) for reference in samples.references()]
    return rouge_l_scores([decode(answer) for answer in found], references)


def scores_of_answers(
    found: list[np.ndarray], samples: Samples, rule: str, decode: Callable[[np.ndarray], str]
) -> np.ndarray:
    """Returns the score from 0 to 1 of each generated answer by a rule, float64 [n].

    Raises:
        ValueError: the rule is not one of `scoring.RULES`.
    """
    if rule not in RULES:
        raise ValueError(unknown_name("scoring rule", rule, RULES))
    pairs = zip(found, samples.wanted, strict=True)
    return np.array([RULES[rule](decode(answer), wanted) for answer, wanted in pairs], float)


def _batches(n: int, batch: int) -> Iterator[np.ndarray]:
    """Yields row numbers in groups of one size, the last group padded with the last row."""
    for start in range(0, n, batch):
        yield np.minimum(np.arange(start, start + batch), n - 1)
