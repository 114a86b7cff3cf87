"""STRING moves far tokens to distances that training saw more often."""

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


@register("string")
@dataclasses.dataclass(frozen=True)
class STRING:
    """STRING: relative position m - n below S, else m - n - S + W.

    m and n are the positions of query and key in tokens, S is the shift and W the window. Long
    distances are rare in training, so within the trained length they are moved down by S - W. The
    method needs no training, and keys are cached once.

    Source: An et al. (2410.18745), who take a third to a half of the trained length for S and at
        least 32 for W. (Their equation indexes differently; this is the relative position it
        describes.)
    Cache: rotated keys, one copy; two copies of the query.
    Peers: none of the compared implementations has it.

    Attributes:
        original_length: the trained length in whole tokens; required.
        shift: the shift S in whole tokens; default a third of `original_length`, rounded down.
        window: the window W in whole tokens, at most S; default 128 as in the paper.
        inner: the method that rotates queries and keys; default RoPE.
    """

    original_length: int
    shift: int | None = None
    window: int = 128
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_original_length(self.original_length)
        check_tokens(original_length=self.original_length)
        check_tokens(shift=self._shift, window=self.window)
        if self.window > self._shift:
            raise ValueError(f"window must be at most shift, got {self.window} and {self._shift}")

    @property
    def _shift(self) -> int:
        return self.original_length // 3 if self.shift is None else self.shift

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the inner method's frequencies with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("string", f, STRINGRule(self._shift, self.window))


@dataclasses.dataclass(frozen=True)
class STRINGRule(ScoreRule):
    """The score rule of STRING: a plain branch, and one with queries S - W tokens back."""

    shift: int
    window: int
    scales = (1.0, 1.0)
    keys = (0, 0)

    def query_positions(self, m):
        """Returns the query's own position, and the one S - W tokens back."""
        return m, jnp.maximum(m - (self.shift - self.window), 0)

    def key_positions(self, n):
        """Returns the key's own position."""
        return (n,)

    def choose(self, m, n):
        """Returns 1 where the distance reaches the shift, else 0."""
        return jnp.asarray(m - n >= self.shift, jnp.int32)
