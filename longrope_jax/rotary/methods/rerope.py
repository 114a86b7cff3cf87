"""ReRoPE and Leaky ReRoPE: distances beyond a window stand still, or grow more slowly."""

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

    m, n positions of query and key in tokens, w = window. No training. Two score matrices: the
    plain one where m - n < w, else query at constant w and key at 0.

    Source: Su Jianlin (kexue.fm 9708), who takes w of a quarter to a half of the trained length and
        adds log-n scaling: log_n:inner=(rerope:window=...).
    Cache: rotated keys, two copies (the second is not turned).
    Peers: the YaRN repository has it as two score matrices for the whole sequence.

    Attributes:
        window: w, whole tokens; no default.
        inner: the method that rotates; default RoPE.
    """

    window: int
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_tokens(window=self.window)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """The inner method's, with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("rerope", f, ReRoPERule(self.window))


@dataclasses.dataclass(frozen=True)
class ReRoPERule(ScoreRule):
    """Branch 0 plain; branch 1 query at w, key at 0."""

    window: int
    scales = (1.0, 1.0)
    keys = (0, 1)

    def query_positions(self, m):
        """As in ScoreRule."""
        return m, 0 * m + self.window

    def key_positions(self, n):
        """As in ScoreRule."""
        return n, 0 * n

    def choose(self, m, n):
        """As in ScoreRule."""
        return jnp.asarray(m - n >= self.window, jnp.int32)


@register("leaky_rerope")
@dataclasses.dataclass(frozen=True)
class LeakyReRoPE:
    """Leaky ReRoPE: relative position m - n up to w, then w + (m - n - w)/k.

    m, n positions of query and key in tokens, w = window, k = factor. No training. The far branch
    has frequencies divided by k, queries at m + w(k - 1) and keys at n, so all positions stay whole
    and exact. With infinite k it would be ReRoPE, with k = 1 it is `inner`.

    Source: Su Jianlin (kexue.fm 9708).
    Cache: rotated keys, two copies.
    Peers: the YaRN repository has it as two score matrices for the whole sequence.

    Attributes:
        window: w, whole tokens; no default.
        factor: k, at least 1, with w(k - 1) a whole number; no default (kexue.fm: 8 and 16).
        inner: the method that rotates; default RoPE.
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
        """The inner method's, with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("leaky_rerope", f, LeakyReRoPERule(self.window, float(self.factor)))


@dataclasses.dataclass(frozen=True)
class LeakyReRoPERule(ScoreRule):
    """Branch 0 plain; branch 1 w(k - 1) tokens further, in slower turns."""

    window: int
    factor: float
    keys = (0, 1)

    @property
    def scales(self):
        """As in ScoreRule."""
        return 1.0, self.factor

    def query_positions(self, m):
        """As in ScoreRule."""
        return m, m + int(self.window * (self.factor - 1))

    def key_positions(self, n):
        """As in ScoreRule."""
        return n, n

    def choose(self, m, n):
        """As in ScoreRule."""
        return jnp.asarray(m - n >= self.window, jnp.int32)
