"""Samples of tasks are scored by forced and by free answers."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from longrope_jax import generate, llama
from longrope_jax.errors import unknown_name
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.evaluation.scoring import RULES, rouge_l_scores
from longrope_jax.rotary import RotaryLike, as_rotary
from longrope_jax.tasks import Samples

_ROUND = 256  # tokens


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
    # Rounded, so that answers of a few tokens more or less do not compile another program.
    first = (samples.prompt_length - 1) // _ROUND * _ROUND
    mask = samples.answer[:, 1 + first :]
    right, losses = [], []
    for rows in _batches(len(mask), batch):
        found = score_tokens(config, params, rotary, samples.tokens[rows], first=first)
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


def cropped(samples: Samples, reads: int) -> Samples:
    """Returns the samples with their first token and the last tokens, `reads` in all.

    Raises:
        ValueError: `reads` does not reach back to an answer and the token before it.
    """
    found = samples.last(reads)
    tokens = found.tokens.copy()
    tokens[:, 0] = samples.tokens[:, 0]
    return dataclasses.replace(found, tokens=tokens)


def measured(
    config: llama.LlamaConfig,
    params,
    method: RotaryLike,
    samples: Samples,
    *,
    batch: int = 16,
    answered: int = 0,
    rule: str = "",
    decode: Callable[[np.ndarray], str] = str,
) -> dict[str, np.ndarray]:
    """Returns what is kept of samples that were asked, an array by name.

    Args:
        config: the architecture.
        params: the parameters.
        method: a rotary method or its text; or a Rotary.
        samples: what is asked.
        batch: samples per forward pass.
        answered: 0 scores the right answers in one pass; else so many first samples are answered by
            greedy text, which `rule` scores.
        rule: of `scoring.RULES`.
        decode: gives the text of ids.

    Returns:
        `exact`, `share` and `nll` [n] of `forced`; `scores`, `depths` and `documents`, of all
        samples or of those that were answered. Scores are `exact` where none was answered.

    Raises:
        ValueError: the rule is unknown, or the method does not fit.
    """
    # The last token of a sample predicts nothing, but belongs to its length.
    rot = as_rotary(method, head_dim=config.head_dim, seq_len=samples.tokens.shape[1])
    right = forced(config, params, rot, samples, batch=batch)
    scores = right.exact.astype(float)
    if answered:
        few, end = samples.first(answered), np.zeros(0, np.int32)
        scores = scores_of_answers(
            answers(config, params, rot, few, end=end, batch=batch), few, rule, decode
        )
    depths = np.zeros(0) if samples.depths is None else samples.depths
    about = {"depths": depths[: len(scores)], "documents": samples.documents[: len(scores)]}
    return {"scores": scores, **right._asdict(), **about}


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
