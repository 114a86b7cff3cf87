"""ReRoPE keeps distances beyond a window constant; Leaky ReRoPE lets them grow more slowly."""

import dataclasses

import jax.numpy as jnp

from longrope_jax.rotary.frequencies import Frequencies, check_factor, check_tokens, remapped
from longrope_jax.rotary.methods.rope import PLAIN
from longrope_jax.rotary.registry import Method, check_method, register
from longrope_jax.rotary.score_rule import ScoreRule


@register("rerope")
@dataclasses.dataclass(frozen=True)
class ReRoPE:
    """ReRoPE: scores at relative position min(m - n, w).

    m and n are the positions of query and key in tokens, and w is the window. The method needs no
    training. It has two score matrices: the plain one where m - n < w, and one with the query at
    constant w and the key at 0.

    Source: Su Jianlin (kexue.fm 9708), who takes a quarter to a half of the trained length for w
        and adds log-n scaling: log_n:inner=(rerope:window=...).
    Cache: rotated keys, two copies (the second is not rotated).
    Peers: the yarn repo has it, as two score matrices for the whole sequence.

    Attributes:
        window: the window w in whole tokens; required.
        inner: the method that rotates queries and keys; default RoPE.
    """

    window: int
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_tokens(window=self.window)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the inner method's frequencies with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("rerope", f, ReRoPERule(self.window))


@dataclasses.dataclass(frozen=True)
class ReRoPERule(ScoreRule):
    """The score rule of ReRoPE: a plain branch, and one with the query at w and the key at 0."""

    window: int
    scales = (1.0, 1.0)
    keys = (0, 1)

    def query_positions(self, m):
        """Returns the query's own position, and w."""
        return m, 0 * m + self.window

    def key_positions(self, n):
        """Returns the key's own position, and 0 in the branch beyond the window."""
        return n, 0 * n

    def choose(self, m, n):
        """Returns 1 where the distance reaches the window, else 0."""
        return jnp.asarray(m - n >= self.window, jnp.int32)


@register("leaky_rerope")
@dataclasses.dataclass(frozen=True)
class LeakyReRoPE:
    """Leaky ReRoPE: relative position m - n up to w, then w + (m - n - w)/k.

    m and n are the positions of query and key in tokens, w is the window and k the factor. The
    method needs no training. The far branch has frequencies divided by k, queries at m + w(k - 1)
    and keys at n, so that all positions stay whole and exact. With infinite k the method would be
    ReRoPE, with k = 1 it is `inner`.

    Source: Su Jianlin (kexue.fm 9708).
    Cache: rotated keys, two copies.
    Peers: the yarn repo has it, as two score matrices for the whole sequence.

    Attributes:
        window: the window w in whole tokens; required.
        factor: the factor k, at least 1, with w(k - 1) a whole number; required (kexue.fm: 8 and
            16).
        inner: the method that rotates queries and keys; default RoPE.
    """

    window: int
    factor: float
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_factor(self.factor)
        check_tokens(window=self.window)
        shift = self.window * (self.factor - 1)
        if shift != int(shift):
            raise ValueError(
                f"window * (factor - 1) must be a whole number, got {shift}: take another window"
            )
        check_tokens(0, **{"window * (factor - 1)": int(shift)})

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the inner method's frequencies with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("leaky_rerope", f, LeakyReRoPERule(self.window, float(self.factor)))


@dataclasses.dataclass(frozen=True)
class LeakyReRoPERule(ScoreRule):
    """The score rule of Leaky ReRoPE: a plain branch, and a slower one w(k - 1) tokens ahead."""

    window: int
    factor: float
    keys = (0, 1)

    @property
    def scales(self):
        """The numbers that each branch divides its frequencies by: 1 and k."""
        return 1.0, self.factor

    def query_positions(self, m):
        """Returns the query's own position, and the position w(k - 1) tokens ahead."""
        return m, m + int(self.window * (self.factor - 1))

    def key_positions(self, n):
        """Returns the key's own position for both branches."""
        return n, n

    def choose(self, m, n):
        """Returns 1 where the distance reaches the window, else 0."""
        return jnp.asarray(m - n >= self.window, jnp.int32)
