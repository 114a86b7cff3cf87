"""Self-Extend: far tokens are grouped, near ones are not."""

import dataclasses

import jax.numpy as jnp

from longrope_jax.rotary.frequencies import Frequencies, check_tokens, remapped
from longrope_jax.rotary.methods.rope import PLAIN
from longrope_jax.rotary.registry import Method, check_method, register
from longrope_jax.rotary.score_rule import ScoreRule


@register("self_extend")
@dataclasses.dataclass(frozen=True)
class SelfExtend:
    """Self-Extend: relative position m - n below w, else m//G - n//G + w - w//G.

    m, n positions of query and key in tokens, w = window, G = group; // rounds down. No training,
    one softmax over both. The trained length L then reaches (L - w) G + w.
    Far scores depend on where m and n lie in their groups, not on m - n alone.

    Source: Jin et al. (2401.01325) section 3.
    Cache: rotated keys, two copies.
    Peers: the authors' code takes w - w/G with its fraction, and drops that shift while all
        positions are below w; with G dividing w both are this formula.

    Attributes:
        window: w, whole tokens; no default (Llama 2: 512 to 1,536).
        group: G, whole tokens; no default (Llama 2: 2 to 64).
        inner: the method that rotates; default RoPE.
    """

    window: int
    group: int
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_tokens(window=self.window, group=self.group)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """The inner method's, with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("self_extend", f, SelfExtendRule(self.window, self.group))


@dataclasses.dataclass(frozen=True)
class SelfExtendRule(ScoreRule):
    """Branch 0 plain; branch 1 by groups, shifted to start at w."""

    window: int
    group: int
    scales = (1.0, 1.0)
    keys = (0, 1)

    def query_positions(self, m):
        """As in ScoreRule."""
        return m, m // self.group + (self.window - self.window // self.group)

    def key_positions(self, n):
        """As in ScoreRule."""
        return n, n // self.group

    def choose(self, m, n):
        """As in ScoreRule."""
        return jnp.asarray(m - n >= self.window, jnp.int32)
