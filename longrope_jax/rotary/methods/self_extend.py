"""Self-Extend groups far tokens and leaves near ones as they are."""

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

    m and n are the positions of query and key in tokens, w is the window and G the group; // rounds
    down. The method needs no training, and one softmax runs over near and far tokens. A model
    trained on L tokens then reaches (L - w) G + w. Far scores depend on where m and n lie in their
    groups, not on m - n alone.

    Source: Jin et al. (2401.01325) section 3.
    Cache: rotated keys, two copies.
    Peers: the authors' code shifts by w - w/G with its fraction, and not at all while all positions
        are below w; where G divides w it is this formula.

    Attributes:
        window: the window w in whole tokens; required (Llama 2: 512 to 1,536).
        group: the group G in whole tokens; required (Llama 2: 2 to 64).
        inner: the method that rotates queries and keys; default RoPE.
    """

    window: int
    group: int
    inner: Method = PLAIN

    def __post_init__(self):
        check_method("inner", self.inner)
        check_tokens(window=self.window, group=self.group)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the inner method's frequencies with `score_rule` set."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        return remapped("self_extend", f, SelfExtendRule(self.window, self.group))


@dataclasses.dataclass(frozen=True)
class SelfExtendRule(ScoreRule):
    """The score rule of Self-Extend: a plain branch, and one by groups that starts at w."""

    window: int
    group: int
    scales = (1.0, 1.0)
    keys = (0, 1)

    def query_positions(self, m):
        """Returns the query's own position, and that of its group shifted by w - w//G."""
        return m, m // self.group + (self.window - self.window // self.group)

    def key_positions(self, n):
        """Returns the key's own position, and that of its group."""
        return n, n // self.group

    def choose(self, m, n):
        """Returns 1 where the distance reaches the window, else 0."""
        return jnp.asarray(m - n >= self.window, jnp.int32)
