"""FIRST-SENTENCE-RETRIEVAL and passkey samples are scored by forced and by free answers."""

from collections.abc import Callable, Iterator

import numpy as np

from longrope_jax import generate, llama
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.evaluation.scoring import rouge_l_scores
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
    """Scores the right answers in one pass over the samples, without generating.

    Greedy decoding gives the whole answer exactly when each of its tokens is the most likely one
    after the right tokens before it, so this pass counts exact matches.

    Returns:
        Whether every token of the answer is the most likely one, bool [n], and the share of its
        tokens that are, float32 [n].
    """
    mask = samples.answer[:, 1:]
    results = []
    for rows in _batches(len(mask), batch):
        correct = score_tokens(config, params, rotary, samples.tokens[rows]).correct
        results.append(np.asarray(correct) & mask[rows])
    share = np.concatenate(results)[: len(mask)].sum(1) / mask.sum(1)
    return share == 1, share.astype(np.float32)


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


def _batches(n: int, batch: int) -> Iterator[np.ndarray]:
    """Yields row numbers in groups of one size, the last group padded with the last row."""
    for start in range(0, n, batch):
        yield np.minimum(np.arange(start, start + batch), n - 1)
