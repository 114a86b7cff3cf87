"""Scoring FIRST-SENTENCE-RETRIEVAL and passkey samples."""

from collections.abc import Callable, Iterator

import numpy as np

from longrope_jax import generate, llama
from longrope_jax.data.tasks import Samples
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.evaluation.scoring import rouge_l_scores
from longrope_jax.rotary import Method, Rotary


def teacher_forced(
    config: llama.LlamaConfig,
    params,
    rotary: Method | Rotary | str,
    samples: Samples,
    *,
    batch: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the samples with the right answers given.

    Greedy decoding gives the whole answer exactly when every token of it is the most likely one
    after the right tokens before it, so nothing need be generated to count exact matches.

    Returns:
        bool [n], every token of the answer right; float32 [n], share of its tokens right.
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
    rotary: Method | Rotary | str,
    samples: Samples,
    *,
    end: np.ndarray,
    batch: int = 16,
) -> list[np.ndarray]:
    """Greedy answers, int32, cut before the tokens `end` (empty: as long as the longest answer)."""
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
    """ROUGE-L (0 to 100) of each generated answer against its reference, float64 [n]."""
    references = [decode(reference) for reference in samples.references()]
    return rouge_l_scores([decode(answer) for answer in found], references)


def _batches(n: int, batch: int) -> Iterator[np.ndarray]:
    """Row numbers in groups of one size, the last filled up with the last row."""
    for start in range(0, n, batch):
        yield np.minimum(np.arange(start, start + batch), n - 1)
