"""Requests are scored by the log-likelihood of a continuation given a context.

Multiple-choice benchmarks ask this: the answer is the continuation that the model finds likeliest.
What many requests begin with, the examples of a few-shot prompt or the question of an item, is
computed once and its keys and values are copied. Lengths come from a short list, so that few
programs are compiled, and a rotary method is data of these programs.

B rows, T tokens fed, C tokens scored.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from longrope_jax import llama, rotary
from longrope_jax.sharding import axis_size, constrain
from longrope_jax.training.loss import chunk_of, token_scores

# Tokens that requests must have in common for their keys and values to be computed once.
_PREFIX, _CONTEXT = 32, 8
_SHORTEST = 16  # tokens of the shortest program


class Request(NamedTuple):
    """A Request asks how likely a continuation is; both parts are token ids.

    Attributes:
        context: int32 [T], at least one id, of which the beginning token may be the only one.
        continuation: int32 [C], at least one id.
    """

    context: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores hold what the model says of each request.

    Attributes:
        log_likelihood: float64 [n], log-probability of the whole continuation in nats.
        greedy: bool [n], whether greedy decoding gives the continuation.
        tokens: int64 [n], tokens of the continuation.
    """

    log_likelihood: np.ndarray
    greedy: np.ndarray
    tokens: np.ndarray


def encode(
    to_ids: Callable[[str], np.ndarray],
    texts: Sequence[tuple[str, str]],
    *,
    first: int | None = None,
    alone: int | None = None,
) -> list[Request]:
    """Turns pairs of a context and a continuation into ids, as lm-evaluation-harness does.

    Both are encoded as one text and cut where the ids of the context end; blanks at the end of a
    context belong to the continuation, since tokenizers join a blank to the word after it.

    Args:
        to_ids: encodes a text without special tokens.
        texts: (context, continuation) pairs.
        first: id that begins every text, or None.
        alone: id that stands for an empty context where `first` is None.

    Raises:
        ValueError: A continuation has no tokens, or a context is empty and nothing begins a text.
    """
    lead = [] if first is None else [first]

    @functools.lru_cache(maxsize=64)  # the choices of an item follow each other
    def ids(text: str) -> np.ndarray:
        return np.asarray([*lead, *to_ids(text)], np.int32)

    return [_encoded(ids, lead, alone, i, *pair) for i, pair in enumerate(texts)]


def _encoded(ids, lead, alone, i: int, context: str, continuation: str) -> Request:
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    before = ids(context) if context else np.asarray(lead or [alone])
    if before[0] is None:
        raise ValueError(
            f"request {i} has an empty context and this checkpoint no token that begins or ends a "
            "text: give a context"
        )
    whole = ids(context + continuation)
    after = whole[len(before) if context else len(lead) :]
    if not len(after):
        raise ValueError(f"request {i}: the continuation {continuation!r:.40} has no tokens")
    return Request(np.asarray(before, np.int32), after)


def score(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.RotaryLike,
    requests: Sequence[Request],
    *,
    length: int | None = None,
    batch_tokens: int = 2048,
) -> Scores:
    """Scores every request; the order and number of requests do not change a score.

    All requests are scored under one Rotary, so a method that depends on the length has the
    frequencies of `length` for all of them.

    Args:
        config: the architecture.
        params: the parameters, on a device or a mesh that is set.
        method: a rotary method or its text; or a Rotary from `rotary.make`.
        requests: what to score, such as `encode` returns.
        length: tokens that the method is made for; None is the longest request's, rounded up to
            the next of the programs' lengths.
        batch_tokens: tokens of one forward pass, which with the longest request fix the memory.

    Raises:
        ValueError: A request is empty, longer than `length` or outside the vocabulary, or the
            method does not fit.
    """
    _check(config, requests, batch_tokens)
    fed = [len(r.context) + len(r.continuation) - 1 for r in requests]
    longest = max(fed, default=1)
    length = program_length(longest) if length is None else length
    if longest > length:
        raise ValueError(
            f"request {int(np.argmax(fed))} has {longest} tokens, which exceed length={length}: "
            "shorten its context or give a larger length"
        )
    rot = rotary.as_rotary(method, head_dim=config.head_dim, seq_len=length)
    run = _Run(config, params, rot, requests, length, batch_tokens)
    for root, members in _families(requests):
        run.family(root, members)
    return Scores(run.log_likelihood, run.greedy, np.array([len(r.continuation) for r in requests]))


def program_length(tokens: int) -> int:
    """The next length that programs are compiled for: 16, 32, 48, 64, 96, 128, 192, 256, ..."""
    power = max(_SHORTEST, 1 << max(tokens - 1, 0).bit_length())
    three_quarters = 3 * power // 4
    return three_quarters if tokens <= three_quarters and power > 32 else power


def _check(config, requests, batch_tokens: int) -> None:
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    for i, request in enumerate(requests):
        for part, ids in zip(Request._fields, request, strict=True):
            if np.ndim(ids) != 1 or not len(ids):
                raise ValueError(
                    f"request {i}: the {part} must be at least one id, got {ids!r:.50}"
                )
            llama.check_vocabulary(config, f"the {part} of request {i}", cast(ArrayLike, ids))


def _families(requests: Sequence[Request]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yields (what their contexts begin with, the indices of the requests)."""
    begun: dict[bytes, list[int]] = {}
    for i, request in enumerate(requests):
        head = request.context[:-1][:_PREFIX]  # the last token must be fed to predict the next
        begun.setdefault(head.tobytes() if len(head) == _PREFIX else b"", []).append(i)
    alone = begun.pop(b"", [])
    for members in begun.values():
        contexts = {requests[i].context.tobytes(): requests[i].context[:-1] for i in members}
        if len(contexts) == 1:
            alone += members
        else:
            yield _common([*contexts.values()]), members
    if alone:
        yield np.zeros(0, np.int32), sorted(alone)


def _common(rows: list[np.ndarray]) -> np.ndarray:
    """What all rows begin with."""
    shortest = min(map(len, rows))
    same = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return rows[0][: shortest if same.all() else int(same.argmin())]


class _Run:
    """A _Run scores requests family by family and keeps the results."""

    def __init__(self, config, params, rot, requests, length: int, batch_tokens: int):
        self._config, self._params, self._rot = config, params, rot
        self._requests, self._length, self._batch_tokens = requests, length, batch_tokens
        self._unit = axis_size("data", "fsdp")
        self.log_likelihood = np.zeros(len(requests))
        self.greedy = np.zeros(len(requests), bool)

    def family(self, root: np.ndarray, members: list[int]) -> None:
        """Scores requests whose contexts all begin with `root`."""
        if axis_size("sequence") > 1:  # over which no cache can be divided
            root = root[:0]
        base = self._fill(None, [root] * self._unit, len(root)) if len(root) else None
        items: dict[bytes, list[int]] = {}
        for i in members:
            items.setdefault(self._requests[i].context.tobytes(), []).append(i)
        alone, together = [], []
        for item in items.values():
            rest = len(self._requests[item[0]].context) - 1 - len(root)
            shared = len(item) > 1 and rest >= _CONTEXT and axis_size("sequence") == 1
            together.append(item) if shared else alone.extend([one] for one in item)
        self._alone(base, len(root), alone)
        self._together(base, len(root), together)

    def _alone(self, base, start: int, items: list[list[int]]) -> None:
        """Scores requests with a context of their own: one forward pass for each batch."""
        sizes = [len(c) + len(x) - 1 - start for [i] in items for c, x in [self._requests[i]]]
        for T, batch in self._batches(sizes):
            rows = [items[at][0] for at in batch]
            lead = [self._requests[i].context[start:] for i in rows]
            self._score(base, start + T if start else 0, rows, lead, T)

    def _together(self, base, start: int, items: list[list[int]]) -> None:
        """Scores items of several continuations: the context once, then one choice at a time."""
        sizes = [len(self._requests[item[0]].context) - 1 - start for item in items]
        wide = [max(len(self._requests[i].continuation) for i in item) for item in items]
        for T, batch in self._batches(sizes, wide):
            contexts = [self._requests[items[at][0]].context for at in batch]
            room = T + program_length(max(wide[at] for at in batch))
            cache = self._fill(base, [c[start:-1] for c in contexts], start + room, T)
            for slot in range(max(len(items[at]) for at in batch)):
                # An item with fewer choices has its last one scored again.
                rows = [items[at][min(slot, len(items[at]) - 1)] for at in batch]
                longest = max(len(self._requests[i].continuation) for i in rows)
                width = program_length(longest)
                self._score(cache, start + room, rows, [c[-1:] for c in contexts], width)

    def _batches(self, sizes: list[int], then: Sequence[int] = ()) -> Iterator:
        """Yields (program length, indices), the longest first; only the last is padded with rows.

        A batch that its length does not fill takes shorter ones, so no length is compiled twice.
        """
        lengths = [program_length(max(size, 1)) for size in sizes]
        order = sorted(range(len(sizes)), key=lambda at: (lengths[at], *then[at : at + 1]))[::-1]
        while order:
            T = lengths[order[0]]
            rows = self._rows(T, len(sizes))
            batch, order = order[:rows], order[rows:]
            yield min(T, self._length), [*batch, *[batch[-1]] * (rows - len(batch))]

    def _rows(self, T: int, most: int) -> int:
        rows = min(max(1, self._batch_tokens // T), 1 << (most - 1).bit_length())
        return self._unit * -(-rows // self._unit)

    def _fill(self, base, rows: list[np.ndarray], size: int, T: int = 0) -> llama.Cache:
        tokens, lengths = _padded(rows, T or len(rows[0]))
        return _filled(self._config, size, self._params, self._rot, base, tokens, lengths)

    def _score(self, cache, size: int, rows: list[int], lead: list[np.ndarray], T: int) -> None:
        """Feeds T tokens: what is left of each context, `lead`, and the continuation but its last.

        `size` is the room of the cache, if there is one.
        """
        wanted = [self._requests[i].continuation for i in rows]
        fed = [np.concatenate(pair)[:-1] for pair in zip(lead, wanted, strict=True)]
        tokens, _ = _padded(fed, T)
        targets, counts = _padded(wanted, min(T, program_length(max(map(len, wanted)))))
        first = np.array([len(one) - 1 for one in lead], np.int32)
        options = self._params, self._rot, cache, tokens, first, targets
        nll, correct = map(np.asarray, _scored(self._config, size, *options))
        for row, i in enumerate(rows):
            self.log_likelihood[i] = -nll[row, : counts[row]].sum(dtype=np.float64)
            self.greedy[i] = correct[row, : counts[row]].all()


def _padded(rows: Sequence[np.ndarray], T: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as int32 [B, T] with zeros on the right, where causal attention never looks."""
    tokens = np.zeros((len(rows), T), np.int32)
    for one, row in zip(tokens, rows, strict=True):
        one[: len(row)] = row
    return tokens, np.array(list(map(len, rows)), np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _filled(config, size: int, params, rot, base, tokens, lengths) -> llama.Cache:
    """A cache of B rows with room for `size` tokens: those of `base`, then tokens [B, T]."""
    cache = _rows_of(config, rot, base, len(tokens), size)
    model = llama.Llama(config)
    _, full = cast(Any, model.apply({"params": params}, tokens, rotary=rot, cache=cache))
    return replace(full, length=cache.length + lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scored(config, size: int, params, rot, cache, tokens, first, targets):
    """Scores of targets [B, C], the first of which follows token `first` [B] of each row."""
    if cache is not None:
        cache = _rows_of(config, rot, cache, len(tokens), size)
    hidden, _ = cast(
        Any, llama.Llama(config).apply({"params": params}, tokens, rotary=rot, cache=cache)
    )
    at = first[:, None] + jnp.arange(targets.shape[1], dtype=jnp.int32)
    at = jnp.minimum(at, tokens.shape[1] - 1)[:, :, None]
    hidden = jnp.take_along_axis(hidden, at, axis=1)
    scores = token_scores(config, params, hidden, targets, chunk=chunk_of(len(tokens)))
    # Replicated on a mesh, so that every host of several can read its copy.
    return jax.tree.map(lambda x: constrain(x, None, None), scores)


def _rows_of(config, rot, base: llama.Cache | None, rows: int, size: int) -> llama.Cache:
    """A cache with `rows` rows: that of `base` if it has as many, else copies of its first row."""
    if base is None:
        return llama.init_cache(config, rows, size, rot)
    same = base.k.shape[1] == rows

    def grown(x):
        L, _, S, *rest = x.shape
        x = x if same else jnp.broadcast_to(x[:, :1], (L, rows, S, *rest))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, max(size - S, 0)), (0, 0), (0, 0)))
        return constrain(x, "layers", "batch", None, "kv_heads", "head_dim")

    length = base.length if same else jnp.broadcast_to(base.length[:1], (rows,))
    return llama.Cache(k=grown(base.k), v=grown(base.v), length=length)
