"""A score rule tells attention about a method whose scores are not one rotation of q and k.

A remapping scores a query and a key under one of several rotations ("branches"), chosen by their
two positions; ALiBi adds a bias. Queries then carry one rotated copy for each branch, side by side
in the head axis, and keys carry one copy for each rotation that some branch reads.
"""

import jax
import jax.numpy as jnp
import numpy as np


class ScoreRule:
    """The rule of one branch, the plain rotation, without bias; methods override what differs.

    Rules are small frozen dataclasses of numbers. They are static under jit, so another number is
    another program. m and n are int positions of query and key within their document. What a branch
    gives at positions that choose another branch does not matter.

    Attributes:
        scales: for each branch, the number that its frequencies are divided by.
        keys: for each branch, the index of the keys' rotation that it reads.
    """

    scales: tuple[float, ...] = (1.0,)
    keys: tuple[int, ...] = (0,)

    def query_positions(self, m) -> tuple:
        """Returns the position by which each branch rotates queries, each in the shape of m."""
        return (m,)

    def key_positions(self, n) -> tuple:
        """Returns the position of each rotation of the keys, each in the shape of n."""
        return (n,)

    def choose(self, m, n) -> jax.Array:
        """Returns the branch that scores each query and key, int32, m and n broadcast."""
        return jnp.zeros(jnp.broadcast_shapes(jnp.shape(m), jnp.shape(n)), jnp.int32)

    def slopes(self, n_heads: int) -> np.ndarray | None:
        """Returns what a score loses per token of distance, float64 [N]; None is no bias."""
        return None

    @property
    def key_copies(self) -> int:
        """The number of rotated copies of a key that the cache holds."""
        return max(self.keys) + 1

    def relative_position(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Returns the distance in tokens at which query and key are scored, float64 on the host."""
        m, n = np.broadcast_arrays(m, n)
        chosen = np.asarray(self.choose(m, n))
        queries = [np.asarray(x, np.float64) for x in self.query_positions(m)]
        keys = [np.asarray(x, np.float64) for x in self.key_positions(n)]
        branches = zip(queries, self.keys, self.scales, strict=True)
        return np.choose(chosen, [(q - keys[which]) / scale for q, which, scale in branches])
