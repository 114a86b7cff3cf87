"""Dual chunk attention never uses a position beyond the trained length."""

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

    m and n are the positions of query and key in tokens, s is the chunk and c the original_length.
    A query in the key's chunk stands at m mod s; one chunk ahead it stands at
    min((m mod s) + s, c - 1), so that the c - s nearest tokens keep their distance; further ahead
    it stands at c - 1. The method needs no training, and keys are cached once. Scores depend on
    where m and n lie in their chunks, not on m - n alone.

    Source: An et al. (2402.17463) eqs. 2-8.
    Cache: rotated keys, one copy; three copies of the query.
    Peers: the released ChunkLlama takes s = 5/8 L and c - 1 = 3/4 L for a model trained on L
        tokens, which is dual_chunk:original_length=3/4 L + 1,chunk=5/8 L here. It also multiplies
        scores by 0.05 ln(length/L) + 1, which is not in the paper and is left out here.

    Attributes:
        original_length: the trained length c in whole tokens; required.
        chunk: the chunk s in whole tokens, below c; default three quarters of c as in the paper.
        inner: the method that rotates queries and keys; default RoPE.
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
        """Returns the inner method's frequencies with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("dual_chunk", f, DualChunkRule(self._chunk, self.original_length - 1))


@dataclasses.dataclass(frozen=True)
class DualChunkRule(ScoreRule):
    """The score rule of dual chunk attention: the same chunk, the next one, all further ones."""

    chunk: int
    last: int
    scales = (1.0, 1.0, 1.0)
    keys = (0, 0, 0)

    def query_positions(self, m):
        """Returns the query's position as seen from its own chunk, the next one, and later ones."""
        inside = m % self.chunk
        return inside, jnp.minimum(inside + self.chunk, self.last), 0 * m + self.last

    def key_positions(self, n):
        """Returns the key's position in its chunk."""
        return (n % self.chunk,)

    def choose(self, m, n):
        """Returns by how many chunks the query is ahead, 2 at most."""
        return jnp.clip(m // self.chunk - n // self.chunk, 0, 2).astype(jnp.int32)
