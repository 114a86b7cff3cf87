"""Dual chunk attention: no position ever reaches the trained length."""

import dataclasses

import jax.numpy as jnp

from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_original_length,
    check_tokens,
    remapped,
)
from longrope_jax.rotary.methods.rope import PLAIN
from longrope_jax.rotary.registry import Method, check_method, register
from longrope_jax.rotary.score_rule import ScoreRule


@register("dual_chunk")
@dataclasses.dataclass(frozen=True)
class DualChunk:
    """Dual chunk attention: key at n mod s; query by how many chunks of s tokens it is ahead.

    In the same chunk m mod s; one ahead min((m mod s) + s, c - 1), so that the c - s nearest tokens
    keep their distance; further ahead c - 1. m, n positions of query and key in tokens,
    s = chunk, c = original_length. No training; keys are cached once. Scores depend on where m and
    n lie in their chunks, not on m - n alone.

    Source: An et al. (2402.17463) eqs. 2-8.
    Cache: rotated keys, one copy; three copies of the query.
    Peers: the released ChunkLlama has s = 5/8 L and c - 1 = 3/4 L for a model trained on L tokens:
        dual_chunk:original_length=3/4 L + 1,chunk=5/8 L. The factor that it also puts on scores
        (0.05 ln(length/L) + 1) is not in the paper and is left out.

    Attributes:
        original_length: c, whole tokens the model was trained on; no default.
        chunk: s, whole tokens, below c; default three quarters of c as in the paper.
        inner: the method that rotates; default RoPE.
    """

    original_length: int
    chunk: int | None = None
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_original_length(self.original_length)
        check_tokens(original_length=self.original_length)
        check_tokens(chunk=self._chunk)
        if self._chunk >= self.original_length:
            raise ValueError(
                f"chunk must be below original_length, got {self.chunk} and {self.original_length}"
            )

    @property
    def _chunk(self) -> int:
        return 3 * self.original_length // 4 if self.chunk is None else self.chunk

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """The inner method's, with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("dual_chunk", f, DualChunkRule(self._chunk, self.original_length - 1))


@dataclasses.dataclass(frozen=True)
class DualChunkRule(ScoreRule):
    """Branches of the same chunk, the next one, and all further ones."""

    chunk: int
    last: int
    scales = (1.0, 1.0, 1.0)
    keys = (0, 0, 0)

    def query_positions(self, m):
        """As in ScoreRule."""
        inside = m % self.chunk
        return inside, jnp.minimum(inside + self.chunk, self.last), 0 * m + self.last

    def key_positions(self, n):
        """As in ScoreRule."""
        return (n % self.chunk,)

    def choose(self, m, n):
        """As in ScoreRule."""
        return jnp.clip(m // self.chunk - n // self.chunk, 0, 2).astype(jnp.int32)
