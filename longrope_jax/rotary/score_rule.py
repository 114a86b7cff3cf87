"""What attention must know of a method whose scores are more than one rotation of q and k.

A remapping scores a pair of tokens under one of several rotations ("branches"), chosen by the two
positions; ALiBi adds a bias. Queries then carry one rotated copy per branch, side by side in the
head axis, and keys one per rotation that the branches read.
"""

import jax
import jax.numpy as jnp
import numpy as np


class ScoreRule:
    """One branch, the plain rotation, and no bias; a method's rule overrides what differs.

    Rules are small frozen dataclasses of numbers: static under jit, so that another number is
    another program. m and n are int positions of query and key within their document; what is
    given for one branch at positions that choose another does not matter.

    Attributes:
        scales: a number per branch that its frequencies are divided by.
        keys: for each branch, which of the keys' rotations it reads.
    """

    scales: tuple[float, ...] = (1.0,)
    keys: tuple[int, ...] = (0,)

    def query_positions(self, m) -> tuple:
        """The position that each branch rotates queries by, each in the shape of m."""
        return (m,)

    def key_positions(self, n) -> tuple:
        """The position of each rotation of the keys, each in the shape of n."""
        return (n,)

    def choose(self, m, n) -> jax.Array:
        """int32, the branch whose score a pair uses, in the joint shape of m and n."""
        return jnp.zeros(jnp.broadcast_shapes(jnp.shape(m), jnp.shape(n)), jnp.int32)

    def slopes(self, n_heads: int) -> np.ndarray | None:
        """float64 [N], what a score loses per token of distance; None is no bias."""
        return None

    @property
    def key_copies(self) -> int:
        """How many rotated copies of a key the cache holds."""
        return max(self.keys) + 1

    def relative_position(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """The distance in tokens that a pair is scored at, float64 on the host."""
        m, n = np.broadcast_arrays(m, n)
        chosen = np.asarray(self.choose(m, n))
        queries = [np.asarray(x, np.float64) for x in self.query_positions(m)]
        keys = [np.asarray(x, np.float64) for x in self.key_positions(n)]
        branches = zip(queries, self.keys, self.scales, strict=True)
        return np.choose(chosen, [(q - keys[which]) / scale for q, which, scale in branches])
