"""Words for annotations; jaxtyping's say the type and the shape, in the letters of the model.

B batch, T query length, S key length, D model, N query heads, K key heads, H head, R rotated pairs,
F feed-forward, V vocabulary, L layers. The tests check every annotated shape at run time.
"""

import jax
import numpy as np

# On a device or on the host.
AnyArray = jax.Array | np.ndarray
