"""`generate` continues prompts of unequal length, with a key-value cache, sampling and streaming.

The cache always holds all tokens except the last; a step feeds that one and chooses the next. Rows
are left-aligned in one buffer. A short row computes garbage past its end; causal masking hides it
until real tokens overwrite it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from longrope_jax import llama, rotary, sharding
from longrope_jax.errors import unknown_name
from longrope_jax.sampling import Sampling, choose, row_keys

ROTARY_LENGTHS = ("final", "current")
GREEDY = Sampling()
_STEPS = 16  # decoding steps between two checks for stop sequences and two streamed parts
# Seconds that `llama.unstack_layers` saves and costs, measured for SmolLM2-135M on 2 cores.
_SAVED_PER_BYTE, _COMPILED_PER_LAYER = 3e-11, 0.2
_BUCKET = 256  # cache sizes are multiples of this, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Generation:
    """A Generation holds the new tokens that `generate` returns, with counts and times.

    Attributes:
        tokens: the new tokens of each row, int32, without the stop sequence that ended the row.
        prefilled, decoded: the number of tokens computed in each phase, over all rows; a prefix
            that is recomputed counts again.
        prefill_seconds, decode_seconds: wall time of each phase, without compilation.
    """

    tokens: list[np.ndarray]
    prefilled: int
    decoded: int
    prefill_seconds: float
    decode_seconds: float


def generate(
    config: llama.LlamaConfig,
    params: dict,
    method: rotary.RotaryLike,
    prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray,
    max_new_tokens: int,
    *,
    rotary_length: str = "final",
    refresh_every: int = 1,
    sampling: Sampling = GREEDY,
    stop: Sequence[Sequence[int]] = (),
    stream: Callable[[list[np.ndarray]], Any] | None = None,
    cache_dtype: str | None = None,
    prefill_chunk: int = 512,
) -> Generation:
    """Continues each prompt by up to `max_new_tokens` tokens, each row as if it were alone.

    Beyond the first layer no cache can follow a change of frequencies, since cached keys and values
    come from hidden states computed under the old ones. A method that depends on the length can
    therefore mean two things. With "final", the frequencies of prompt + new tokens apply
    throughout, and there is one prefill. With "current", each step equals a full forward pass at
    its own length, as Hugging Face intends; whenever the frequencies change (once for LongRoPE, at
    each token for dynamic NTK), the prefix is recomputed.

    Args:
        config: the architecture.
        params: the parameters.
        method: a rotary method or its text; or a Rotary from `rotary.make`, which is used at every
            length.
        prompts: token ids of each row, at least one per row.
        max_new_tokens: the largest number of tokens that are added to a row.
        rotary_length: "final" or "current", as above.
        refresh_every: with "current", tokens between two updates of the frequencies; 1 is exact,
            and larger values let the frequencies lag by up to this many tokens.
        sampling: how the next token is chosen; greedy by default.
        stop: sequences of tokens that end a row, e.g. ((eos,),).
        stream: a function called with each row's new tokens, a few at a time; together they are the
            result. It may return a bool per row, of which True ends that row.
        cache_dtype: dtype of the cache; None is that of the activations, and "bfloat16" halves a
            float32 cache.
        prefill_chunk: tokens of a prompt per forward pass, a power of two.

    On a CPU long texts are decoded from a second copy of the layers' weights, see
    `llama.unstack_layers`.

    Raises:
        ValueError: A prompt is empty, a token is outside the vocabulary, a stop sequence can never
            occur, an option is out of range, a length exceeds what the method allows, or the logits
            are not finite.
    """
    stops = _checked_stops(stop, config.vocab_size)
    rows = check(
        config,
        prompts,
        max_new_tokens,
        rotary_length=rotary_length,
        refresh_every=refresh_every,
        cache_dtype=cache_dtype,
        prefill_chunk=prefill_chunk,
    )
    run = _Run(config, params, rows, max_new_tokens, cache_dtype, prefill_chunk, sampling)
    if isinstance(method, rotary.Rotary):
        # The last token is never fed back, so it needs no position.
        rotary.check_length(method, int(run.lengths.max()) + max_new_tokens - 1)
    elif isinstance(method, str):
        method = rotary.parse(method)
    schedule = _Schedule(
        method, config.head_dim, run.lengths, max_new_tokens, rotary_length, refresh_every
    )
    output = _Output(len(rows), stops, stream)
    done = 0
    while done < max_new_tokens and output.active.any():
        rot, until = schedule.at(done, np.pad(output.active, (0, run.spare)))
        run.prefill(rot, done)
        while done < until and output.active.any():
            steps = min(_STEPS, until - done)
            new = run.decode(rot, done, steps)
            done += steps
            output.add(new, last=done == max_new_tokens)
    return Generation(
        output.tokens(), run.prefilled, run.decoded, run.prefill_seconds, run.decode_seconds
    )


def check(
    config: llama.LlamaConfig,
    prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray,
    max_new_tokens: int,
    *,
    rotary_length: str = "final",
    refresh_every: int = 1,
    cache_dtype: str | None = None,
    prefill_chunk: int = 512,
) -> list[np.ndarray]:
    """Checks the options of `generate` and returns the prompts as arrays.

    The arguments are those of `generate`. No parameters are needed, so the options can be checked
    before parameters are loaded.

    Raises:
        ValueError: An option is one that `generate` refuses.
    """
    rows = _checked_prompts(prompts, config.vocab_size)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if rotary_length not in ROTARY_LENGTHS:
        raise ValueError(unknown_name("rotary_length", str(rotary_length), ROTARY_LENGTHS))
    if refresh_every < 1:
        raise ValueError(f"refresh_every must be at least 1, got {refresh_every}")
    if refresh_every > 1 and rotary_length == "final":
        raise ValueError(
            f"refresh_every needs rotary_length='current', got {refresh_every} with 'final'"
        )
    if cache_dtype is not None and cache_dtype not in llama.DTYPES:
        raise ValueError(unknown_name("cache dtype", str(cache_dtype), llama.DTYPES))
    if prefill_chunk < 1 or prefill_chunk & (prefill_chunk - 1):
        raise ValueError(f"prefill_chunk must be a power of two, got {prefill_chunk}")
    return rows


def _checked_prompts(prompts, vocab_size: int) -> list[np.ndarray]:
    rows = [np.asarray(row) for row in prompts]
    if not rows:
        raise ValueError("no prompts: prompts must have at least one row")
    for i, row in enumerate(rows):
        if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
            found = f"{row.dtype}{list(row.shape)}"
            raise ValueError(f"prompt {i} is {found}: expected at least one integer token")
        if not 0 <= row.min() <= row.max() < vocab_size:
            found = f"{row.min()} to {row.max()}"
            raise ValueError(f"prompt {i} has tokens {found}: expected 0 to {vocab_size - 1}")
    return rows


def _checked_stops(stop, vocab_size: int) -> list[list[int]]:
    stops = [np.asarray(sequence).tolist() for sequence in stop]
    for sequence in stops:
        if not isinstance(sequence, list) or not sequence:
            raise ValueError(f"stop sequence {sequence!r}: expected at least one token, as (eos,)")
        if not all(type(at) is int and 0 <= at < vocab_size for at in sequence):
            raise ValueError(f"stop sequence {sequence}: expected tokens 0 to {vocab_size - 1}")
    return stops


class _Schedule:
    """A _Schedule finds at which lengths the frequencies change by comparing the frequencies."""

    def __init__(self, method, head_dim, lengths, max_new_tokens, rotary_length, every):
        self._method, self._head_dim, self._lengths = method, head_dim, lengths
        self._max_new_tokens, self._every = max_new_tokens, every
        self._current = rotary_length == "current" and not isinstance(method, rotary.Rotary)
        self._known: dict[int, list[rotary.Frequencies]] = {}

    def at(self, done: int, active: np.ndarray) -> tuple[rotary.Rotary, int]:
        """Returns the rotary after `done` new tokens, and the number of new tokens it lasts for."""
        if isinstance(self._method, rotary.Rotary):
            return self._method, self._max_new_tokens
        if not self._current:
            return self._rotary(self._lengths + self._max_new_tokens), self._max_new_tokens
        lengths = self._lengths + done
        until = done + 1
        while until < self._max_new_tokens and self._stays(done, until, active):
            until += 1
        return self._rotary(lengths), until

    def _stays(self, done: int, later: int, active) -> bool:
        # Frequencies are updated every `every` tokens, counted from the end of the prompt.
        if later % self._every:
            return True
        pairs = zip(self._lengths[active] + done, self._lengths[active] + later, strict=True)
        return all(_same(self._frequencies(a), self._frequencies(b)) for a, b in pairs)

    def _frequencies(self, length: int) -> list[rotary.Frequencies]:
        """Returns the frequencies of each of the layers' methods at a length."""
        length = int(length)
        if length not in self._known:
            self._known[length] = rotary.frequencies_of(
                self._method, head_dim=self._head_dim, seq_len=length
            )
        return self._known[length]

    def _rotary(self, lengths: np.ndarray) -> rotary.Rotary:
        """Makes one rotary, or one per row if rows differ, up to the longest row's end."""
        rows = [self._frequencies(length) for length in lengths]
        longest = int(self._lengths.max()) + self._max_new_tokens
        rotaries = [rotary.assemble(self._method, row, seq_len=longest) for row in rows]
        if all(_same(rows[0], row) for row in rows[1:]):
            return rotaries[0]
        return rotary.stack_rotaries(rotaries)


def _same(a: list[rotary.Frequencies], b: list[rotary.Frequencies]) -> bool:
    return a is b or all(one.equals(other) for one, other in zip(a, b, strict=True))


class _Run:
    """A _Run holds the tokens and the cache on the device, and measures times.

    A mesh divides whole rows: spare ones, which repeat the last, make their number one that it
    divides, and nobody sees what they become.
    """

    def __init__(self, config, params, rows, max_new_tokens, cache_dtype, prefill_chunk, sampling):
        self.spare = sharding.spare_rows(len(rows))
        keys = row_keys(sampling, len(rows))
        rows = [*rows, *[rows[-1]] * self.spare]
        self.lengths = np.asarray([len(row) for row in rows], np.int32)
        longest = int(self.lengths.max())
        size = _BUCKET * -(-(longest + max_new_tokens) // _BUCKET)
        tokens = np.zeros((len(rows), size), np.int32)
        for row, prompt in zip(tokens, rows, strict=True):
            row[: len(prompt)] = prompt
        self._tokens = jnp.asarray(tokens)
        self._cache, self._cache_dtype = None, cache_dtype
        self._chunk = min(prefill_chunk, 1 << max(longest - 1, 1).bit_length() - 1)
        self._config, self._params, self._decode_params = config, params, None
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling.data()
        self._keys = keys[np.minimum(np.arange(len(rows)), len(keys) - 1)]
        self.prefilled = self.decoded = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self._compiled: set[tuple] = set()

    def prefill(self, rot: rotary.Rotary, done: int) -> None:
        """Fills the cache with all tokens except each row's last."""
        longest = int(self.lengths.max()) + done - 1
        if self._cache is None:
            rows, size = self._tokens.shape
            self._cache = llama.init_cache(self._config, rows, size, rot, dtype=self._cache_dtype)

        def fill(longest):
            self._cache = _prefill(
                self._config, self._chunk, self._params, rot, self._tokens, self._cache, longest
            )

        self.prefill_seconds += self._timed(("prefill", rot.hi.shape), fill, longest)
        lengths = self.lengths + np.int32(done - 1)
        self._cache = dataclasses.replace(self._cache, length=jnp.asarray(lengths))
        self.prefilled += int(lengths[: len(lengths) - self.spare].sum())

    def decode(self, rot: rotary.Rotary, done: int, steps: int) -> np.ndarray:
        """Decodes the next `steps` tokens of each row that is not spare, int32 [B, steps]."""

        if self._decode_params is None:
            self._decode_params = self._params
            if _unstacking_pays(self._config, self._params, self._max_new_tokens):
                self._decode_params = llama.unstack_layers(self._config, self._params)

        def go(steps):
            self._tokens, self._cache = _decode(
                self._config,
                self._decode_params,
                rot,
                self._sampling,
                self._keys,
                self._tokens,
                self._cache,
                steps,
            )

        self.decode_seconds += self._timed(("decode", rot.hi.shape), go, steps)
        own = len(self.lengths) - self.spare
        self.decoded += steps * own
        at = self.lengths[:own, None] + done + np.arange(steps)
        new = np.take_along_axis(np.asarray(self._tokens)[:own], at, axis=1)
        if (new < 0).any():
            raise ValueError(
                f"the logits are not finite with dtype={self._config.dtype} and "
                f"param_dtype={self._config.param_dtype}: float16 overflows in many models, use "
                "bfloat16 or float32; else the weights are damaged"
            )
        return new

    def _timed(self, program: tuple, function, n: int) -> float:
        """Returns the seconds of function(n), after function(0) has compiled a new program."""
        if program not in self._compiled:
            function(np.int32(0))
            self._compiled.add(program)
        jax.block_until_ready(self._cache)
        began = time.perf_counter()
        function(np.int32(n))  # which stays 32 bits with jax_enable_x64
        jax.block_until_ready(self._cache)
        return time.perf_counter() - began


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def _prefill(config, chunk: int, params, rot, tokens, cache, longest):
    """Fills the cache with tokens 0 to longest-1 of [B, S], in chunks.

    `longest` is 0 or at least `chunk`. The last chunk is moved back to end at the longest row's
    end, so that no position exceeds what the rotary was made for; the overlap is recomputed with
    the same result.
    """
    model = llama.Llama(config)

    def one(i, cache):
        start = jnp.minimum(i * chunk, longest - chunk)
        part = jax.lax.dynamic_slice_in_dim(tokens, start, chunk, axis=1)
        cache = dataclasses.replace(cache, length=jnp.full_like(cache.length, start))
        return model.apply({"params": params}, part, rotary=rot, cache=cache)[1]

    return jax.lax.fori_loop(0, -(-longest // chunk), one, cache)


def _unstacking_pays(config, params, max_new_tokens: int) -> bool:
    """Returns whether unstacking saves a CPU more time than compiling L separate layers takes."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["layers"]))
    saved = max_new_tokens * size * _SAVED_PER_BYTE
    return sharding.platform() == "cpu" and saved > config.n_layers * _COMPILED_PER_LAYER


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(5, 6))
def _decode(config, params, rot, sampling, keys, tokens, cache, steps):
    """Returns (tokens, cache) after `steps` steps; cache.length is each last token's index."""
    model, rows = llama.Llama(config), jnp.arange(tokens.shape[0], dtype=jnp.int32)

    def step(_, state):
        tokens, cache = state
        last = tokens[rows, cache.length][:, None]
        hidden, cache = cast(Any, model.apply({"params": params}, last, rotary=rot, cache=cache))
        logits = llama.unembed(config, params, hidden[:, 0])
        new = choose(logits, sampling, keys, cache.length)
        new = jnp.where(jnp.isfinite(logits).all(-1), new, -1)  # no token, see `_Run.decode`
        return tokens.at[rows, cache.length].set(new), cache

    return jax.lax.fori_loop(0, steps, step, (tokens, cache))


class _Output:
    """An _Output collects new tokens, cuts them at stop sequences, and streams what is certain."""

    def __init__(self, rows: int, stop: list[list[int]], stream):
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._sent, self._stop, self._stream = [0] * rows, stop, stream
        self.active = np.ones(rows, bool)

    def add(self, new: np.ndarray, *, last: bool) -> None:
        """Appends new tokens [B, n] to all rows that have not ended."""
        for i in np.flatnonzero(self.active):
            row, before = self._rows[i], len(self._rows[i])
            row += new[i].tolist()
            end = _first_stop(row, self._stop, before)
            if end is not None:
                del row[end:]
                self.active[i] = False
        if self._stream is not None:
            ended = self._stream([self._fresh(i, last=last) for i in range(len(self._rows))])
            for i in np.flatnonzero(ended if ended is not None else ()):
                del self._rows[i][self._sent[i] :]  # tokens held back do not belong to the result
                self.active[i] = False

    def tokens(self) -> list[np.ndarray]:
        """Returns the new tokens of each row."""
        return [np.asarray(row, np.int32) for row in self._rows]

    def _fresh(self, i: int, *, last: bool) -> np.ndarray:
        """Returns the unsent tokens of row i that no stop sequence can remove any more."""
        row = self._rows[i]
        held = 0 if last or not self.active[i] else _begun(row, self._stop)
        start, self._sent[i] = self._sent[i], max(self._sent[i], len(row) - held)
        return np.asarray(row[start : self._sent[i]], np.int32)


def _first_stop(row: list[int], stops: list[list[int]], before: int) -> int | None:
    """Returns where the first stop sequence begins that ends after the first `before` tokens."""
    for end in range(before + 1, len(row) + 1):
        starts = [end - len(s) for s in stops if end >= len(s) and row[end - len(s) : end] == s]
        if starts:
            return min(starts)
    return None


def _begun(row: list[int], stops: list[list[int]]) -> int:
    """Returns how many tokens at the end of a row may be the beginning of a stop sequence."""
    sizes = [n for s in stops for n in range(1, len(s)) if row[-n:] == s[:n]]
    return max(sizes, default=0)
