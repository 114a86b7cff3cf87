"""Perplexity of whole documents is token-weighted over one-pass or sliding windows.

Memory is bounded by the batch of windows. The sums take any scoring function; only `score_tokens`
runs the model, compiled once per (config, shape). Dimensions: B batch, T predictions per window,
V vocabulary.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from longrope_jax import llama, rotary
from longrope_jax.evaluation.windowing import Windowing, check_scorable, score_windows
from longrope_jax.shapes import AnyArray
from longrope_jax.sharding import constrain
from longrope_jax.training.loss import TokenScores, chunk_of, token_scores


def score_tokens(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.RotaryLike,
    tokens: Int[AnyArray, "B T1"],
    *,
    first: int = 0,
) -> TokenScores:
    """Scores tokens[:, 1 + first:], each given all tokens before it.

    Other parameters or another rotary do not recompile, and no [T, V] array is ever held.

    Args:
        config: the architecture.
        params: the parameters.
        method: a rotary method or its text, made for T tokens; or a Rotary.
        tokens: int32 [B, T+1].
        first: predictions at the beginning that are left out, which saves their logits; each value
            is a program of its own.

    Returns:
        The loss of each token in nats, float32 [B, T - first], and whether the greedy choice was
        right, bool [B, T - first].

    Raises:
        ValueError: the text of a method cannot be read, or the method or Rotary does not fit the
            head or T tokens.
    """
    length = np.shape(tokens)[1] - 1
    rot = rotary.as_rotary(method, head_dim=config.head_dim, seq_len=length)
    return _score_tokens(config, first, params, rot, tokens)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_tokens(config, first, params, rot, tokens):
    hidden, _ = llama.Llama(config).apply({"params": params}, tokens[:, :-1], rotary=rot)
    chunk = chunk_of(len(tokens))
    scores = token_scores(config, params, hidden[:, first:], tokens[:, first + 1 :], chunk=chunk)
    # Replicated on a mesh, so that every host of several can read its copy.
    return jax.tree.map(lambda x: constrain(x, None, None), scores)


@dataclass(frozen=True)
class PerplexityResult:
    """A PerplexityResult holds a perplexity and the sums that it was computed from.

    For an interval, give `statistics.cluster_bootstrap` the values
    `document_nll / document_tokens` with the weights `document_tokens`.

    Attributes:
        windowing: name of the windowing; perplexities of different windowings are not comparable.
        nll: mean loss of all scored tokens in nats.
        perplexity: exp(nll).
        window_mean_perplexity: exp of the unweighted mean of the windows' means, which YaRN's and
            LongRoPE's scripts print: a full first window weighs as much as a short last one.
        tokens: number of scored tokens.
        windows: number of scored windows.
        document_nll: float64 [n_docs], summed loss of each document in nats.
        document_tokens: int64 [n_docs], number of scored tokens of each document.
    """

    windowing: str
    nll: float
    perplexity: float
    window_mean_perplexity: float
    tokens: int
    windows: int
    document_nll: np.ndarray
    document_tokens: np.ndarray


def perplexity(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.RotaryLike,
    documents: Sequence[ArrayLike],
    windowing: Windowing,
    *,
    bos: int | None = None,
    batch_size: int = 8,
) -> PerplexityResult:
    """Returns the perplexity of documents.

    Args:
        config: the architecture.
        params: the parameters.
        method: a rotary method or its text, made for windowing.length tokens; or a Rotary.
        documents: 1-D arrays of token ids of any length, memory-mapped or not; without BOS if `bos`
            is given.
        windowing: `windowing.OnePass` or `windowing.Sliding`; its length fixes the compiled shape.
        bos: id of a token put before every window, or None.
        batch_size: windows per step, which with the length fixes the memory.

    Raises:
        ValueError: there is no document, one has no token to score, an id lies outside the
            vocabulary, or the method does not fit.
    """
    rot = rotary.as_rotary(method, head_dim=config.head_dim, seq_len=windowing.length)
    documents = [np.asarray(document) for document in documents]
    for i, document in enumerate(documents):
        llama.check_vocabulary(config, f"document {i}", document)
    llama.check_vocabulary(config, "bos", [] if bos is None else [bos])

    def score(tokens):
        return score_tokens(config, params, rot, tokens).nll

    return perplexity_from(score, documents, windowing, bos=bos, batch_size=batch_size)


def perplexity_from(
    score: Callable[[np.ndarray], ArrayLike],
    documents: Sequence[ArrayLike],
    windowing: Windowing,
    *,
    bos: int | None = None,
    batch_size: int = 8,
) -> PerplexityResult:
    """Returns the perplexity of documents under any scoring function.

    Args:
        score: returns the loss in nats [batch_size, length] of tokens[:, 1:] for int32 tokens
            [batch_size, length + 1]; short windows are padded on the right with zeros.
        documents: 1-D arrays of token ids; without BOS if `bos` is given.
        windowing: `windowing.OnePass` or `windowing.Sliding`.
        bos: id of a token put before every window, or None.
        batch_size: windows per call of `score`.

    Raises:
        ValueError: there is no document, one has no token to score or is not a 1-D array of ids, or
            `batch_size` is below 1.
    """
    documents = [np.asarray(document) for document in documents]
    _check_documents(documents, bos, batch_size)
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    means, n_windows = 0.0, 0
    for i, nll in _scored(score, documents, windowing, bos, batch_size):
        sums[i] += nll.sum()
        counts[i] += nll.size
        means += nll.mean()
        n_windows += 1
    mean = float(sums.sum() / counts.sum())
    return PerplexityResult(
        windowing=windowing.name,
        nll=mean,
        perplexity=_exp(mean),
        window_mean_perplexity=_exp(float(means) / n_windows),
        tokens=int(counts.sum()),
        windows=n_windows,
        document_nll=sums,
        document_tokens=counts,
    )


def _scored(score, documents, windowing, bos, batch_size) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the document's index and the float64 nll of the scored tokens, for each window."""
    prefix = [] if bos is None else [bos]
    layout = (
        (i, window)
        for i, document in enumerate(documents)
        for window in score_windows(len(document), windowing, bos=bos is not None)
    )
    while batch := list(itertools.islice(layout, batch_size)):
        # Causal models never see padding on the right, and the scores of padding are not read.
        tokens = np.zeros((batch_size, windowing.length + 1), np.int32)
        for row, (i, (start, end, _)) in zip(tokens, batch, strict=False):
            row[: len(prefix) + end - start] = np.concatenate([prefix, documents[i][start:end]])
        nll = np.asarray(score(tokens), np.float64)
        for row, (i, (start, end, first)) in zip(nll, batch, strict=False):
            origin = start + 1 - len(prefix)  # index of the token that the first output predicts
            yield i, row[first - origin : end - origin]


def _check_documents(documents: list[np.ndarray], bos: int | None, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not documents:
        raise ValueError("documents must hold at least 1 document, got none")
    for i, document in enumerate(documents):
        check_scorable(f"document {i}", document.size, bos is not None)
        if document.ndim != 1 or not np.issubdtype(document.dtype, np.integer):
            kind = f"{document.dtype} {document.shape}"
            raise ValueError(f"document {i} must be a 1-D array of token ids, got {kind}")


def _exp(nll: float) -> float:
    with np.errstate(over="ignore"):  # an untrained or broken model has infinite perplexity
        return float(np.exp(nll))
