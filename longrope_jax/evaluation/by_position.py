"""Loss is measured by position in the context, as curves, blocks, and bins for the power law.

Column t of `nll` [n, T] is the loss of a token that sees t + 1 tokens before it (BOS included).
Means are host float64, one row per sample, ready for `statistics` and `power_law.bootstrap_fit`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import ArrayLike

from longrope_jax import llama, rotary
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.evaluation.windowing import Sliding, score_windows


class ContextBins(NamedTuple):
    """ContextBins hold mean losses over bins of context length.

    Attributes:
        lengths: geometric mean context of each bin in tokens, float64 [bins].
        nll: mean loss of each sample and bin in nats, float64 [n, bins].
    """

    lengths: np.ndarray
    nll: np.ndarray


def whole_windows(
    documents: Sequence[ArrayLike], length: int, *, bos: int | None = None
) -> np.ndarray:
    """Cuts documents into windows int [n, length + 1] that predict `length` tokens each.

    They are the full windows of `windowing.OnePass`: each token except the last few of a document
    is predicted once.

    Args:
        documents: token ids [T] of each document, without BOS if `bos` is given.
        length: tokens that a window predicts.
        bos: id of a token put before every window, or None.

    Raises:
        ValueError: `length` is below 1, or no document fills a window.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    size = length + (bos is None)
    found = np.array(
        [
            document[start : start + size]
            for document in map(np.asarray, documents)
            for start in range(0, len(document) - size + 1, length)
        ]
    )
    if not len(found):
        longest = max((np.size(document) for document in documents), default=0)
        raise ValueError(
            f"no document fills a window of {size} tokens, the longest has {longest}: take a "
            "smaller length"
        )
    return found if bos is None else np.insert(found, 0, bos, axis=1)


def nll_by_position(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.RotaryLike,
    tokens: ArrayLike,
    *,
    batch_size: int = 8,
) -> Float32[np.ndarray, "n T"]:
    """Returns the loss of each token in nats, float32 [n, T] on the host.

    Args:
        config: the architecture.
        params: the parameters.
        method: a rotary method or its text, made for T tokens; or a Rotary.
        tokens: samples of token ids [n, T+1], memory-mapped or not.
        batch_size: samples per batch; all batches have one shape.

    Raises:
        ValueError: `tokens` is not [n, T+1] integers with n and T at least 1, an id lies outside
            the vocabulary, or `batch_size` is below 1.
    """
    tokens = np.asarray(tokens)
    integers = np.issubdtype(tokens.dtype, np.integer)
    if tokens.ndim != 2 or not integers or len(tokens) < 1 or tokens.shape[1] < 2:
        kind = f"{tokens.dtype} {tokens.shape}"
        raise ValueError(f"tokens must be token ids [n, T+1] with n, T at least 1, got {kind}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    llama.check_vocabulary(config, "a sample", tokens)
    rot = rotary.as_rotary(method, head_dim=config.head_dim, seq_len=tokens.shape[1] - 1)
    nll = np.empty((len(tokens), tokens.shape[1] - 1), np.float32)
    for start in range(0, len(tokens), batch_size):
        rows = nll[start : start + batch_size]
        batch = np.zeros((batch_size, tokens.shape[1]), np.int32)  # the last one is padded
        batch[: len(rows)] = tokens[start : start + batch_size]
        rows[:] = np.asarray(score_tokens(config, params, rot, batch).nll)[: len(rows)]
    return nll


def cropped_nll(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.Method | str,
    tokens: ArrayLike,
    *,
    length: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> np.ndarray:
    """Returns the loss of a model that reads at most the last `length` tokens.

    An extension of the context is compared with this loss, which needs no extension. A window of
    `length` tokens begins every `stride` tokens and scores the tokens that no earlier window has
    scored, so a prediction sees at least `length - stride` tokens unless fewer precede it.

    Args:
        config: the architecture.
        params: the parameters.
        method: the rotary method or its text, made for `length` tokens.
        tokens: samples of token ids [n, T+1]; the first token of a sample begins each of its
            windows.
        length: tokens that the model reads.
        stride: tokens between the starts of two windows; None is an eighth of `length`.
        batch_size: windows per step.

    Returns:
        The loss of each token in nats, float32 [n, T].

    Raises:
        ValueError: `length` or `stride` is below 1, `stride` is above `length`, or
            `nll_by_position` refuses the samples.
    """
    tokens = np.asarray(tokens)
    layout = score_windows(
        tokens.shape[1] - 1, Sliding(length, stride or max(length // 8, 1)), bos=True
    )
    nll = np.empty((len(tokens), tokens.shape[1] - 1), np.float32)
    for start, end, first in layout:
        # The last window may be short; no prediction sees the padding on its right.
        rows = np.zeros((len(tokens), length + 1), tokens.dtype)
        rows[:, 0], rows[:, 1 : end - start + 1] = tokens[:, 0], tokens[:, start + 1 : end + 1]
        found = nll_by_position(config, params, method, rows, batch_size=batch_size)
        nll[:, first:end] = found[:, first - start : end - start]
    return nll


def nll_under_context(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.RotaryLike,
    tokens: ArrayLike,
    *,
    context: int,
    targets: int,
    batch_size: int = 8,
) -> ContextBins:
    """Returns the loss of the last `targets` tokens of each sample when `context` tokens are read.

    The same targets under other contexts differ by nothing but what was cut from the left, so their
    differences carry no variance of the targets. Up to an eighth of `context` targets share a pass:
    the last of them sees `context` tokens, BOS included, the others a few less.

    Args:
        config: the architecture.
        params: the parameters.
        method: the rotary method or its text, or a Rotary; it is made for `context` tokens.
        tokens: samples of token ids [n, T+1]; the first token of a sample, its BOS, begins each of
            its windows.
        context: tokens that a prediction sees.
        targets: tokens whose loss is measured, the last ones of each sample.
        batch_size: windows per step.

    Returns:
        One length, the geometric mean of what the predictions saw, and their losses float64
        [n, targets] in nats.

    Raises:
        ValueError: `context` or `targets` is below 1, a sample is too short for them, or
            `nll_by_position` refuses the samples.
    """
    tokens = np.asarray(tokens)
    if context < 1 or targets < 1 or context + targets > tokens.shape[1]:
        raise ValueError(
            f"context={context} and targets={targets} must be at least 1, and together at most "
            f"the {tokens.shape[1]} tokens of a sample"
        )
    rot = rotary.as_rotary(method, head_dim=config.head_dim, seq_len=context)
    group = int(np.clip(context // 8, 1, targets))
    nll, seen = np.empty((len(tokens), targets)), np.empty(targets)
    for first in range(0, targets, group):
        count = min(group, targets - first)
        end = tokens.shape[1] - targets + first + count
        rows = np.concatenate([tokens[:, :1], tokens[:, end - context : end]], axis=1)
        found = nll_by_position(config, params, rot, rows, batch_size=batch_size)
        nll[:, first : first + count] = found[:, -count:]
        seen[first : first + count] = np.arange(context - count + 1, context + 1)
    return ContextBins(np.exp(np.log(seen).mean(keepdims=True)), nll)


def position_blocks(nll: ArrayLike, block: int) -> Float64[np.ndarray, "n blocks"]:
    """Returns means over blocks of `block` positions, [n, ceil(T/block)].

    The last block may be shorter. Figure 9a of Llama 2 Long has 66 points, 32,768 positions in
    blocks of 500.

    Raises:
        ValueError: `block` lies outside 1..T.
    """
    nll = _curves(nll)
    T = nll.shape[1]
    if not 1 <= block <= T:
        raise ValueError(f"block must lie in 1..{T} positions, got {block}")
    return _segment_means(nll, np.arange(0, T, block))


def context_bins(nll: ArrayLike, edges: Sequence[int]) -> ContextBins:
    """Returns means over bins of context length, the points of the power law.

    Bin i holds the positions with edges[i] <= c < edges[i+1]. Figure 1 of Llama 2 Long does not say
    what c is; here it is the number of tokens that a prediction sees, from 1 to T. Log-spaced edges
    are np.unique(np.geomspace(1, T + 1, k).astype(int)).

    Raises:
        ValueError: there are fewer than 2 edges, or they do not rise within 1..T+1.
    """
    nll, ends = _curves(nll), np.asarray(edges)
    T = nll.shape[1]
    whole = ends.ndim == 1 and np.issubdtype(ends.dtype, np.integer)
    rising = whole and len(ends) > 1 and (np.diff(ends) > 0).all()
    if not (rising and ends[0] >= 1 and ends[-1] <= T + 1):
        raise ValueError(f"edges must be 2 or more rising integers in 1..{T + 1}, got {ends}")
    starts, stop = ends[:-1] - 1, ends[-1] - 1
    log_context = np.log(np.arange(1, stop + 1))[None]
    lengths = np.exp(_segment_means(log_context, starts)[0])
    return ContextBins(lengths, _segment_means(nll[:, :stop], starts))


def _segment_means(nll: np.ndarray, starts: np.ndarray) -> np.ndarray:
    sums = np.add.reduceat(nll, starts, axis=1, dtype=np.float64)
    return sums / np.diff([*starts, nll.shape[1]])


def _curves(nll: ArrayLike) -> np.ndarray:
    nll = np.asarray(nll)
    if nll.ndim != 2 or not nll.size:
        raise ValueError(f"nll by position must be [n, T], got shape {nll.shape}")
    return nll
