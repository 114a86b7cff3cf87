"""One row times the output weights, the largest product of a decoded token, in four formats.

    taskset -c 0 python -m benchmarks.row_product

prints processor milliseconds of a product of 576 numbers with SmolLM2-135M's 49,152 x 576 weights:
in float32, in bfloat16 as XLA computes it, and with bfloat16 or Q8_0 weights (blocks of 32, 8 bits
each and a scale) that are widened to float32 a part at a time. XLA multiplies a part that is
written out; without that it fuses the widening into a loop that it does not vectorise.
"""

import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS, WIDTH, BLOCK, PARTS = 49_152, 576, 32, 48
TURNS, CALLS = 3, 4
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def by_parts(widen, x, *weights):
    """Widens a part of the rows at a time and multiplies it, [ROWS]."""
    parts = tuple(array.reshape(PARTS, -1, array.shape[-1]) for array in weights)

    def one(_, part):
        return None, lax.optimization_barrier(widen(*part)) @ x

    return lax.scan(one, None, parts)[1].reshape(-1)


def widen_bfloat16(weights):
    """Float32 of bfloat16, whose bits are given."""
    return lax.bitcast_convert_type(weights.astype(jnp.uint32) << 16, jnp.float32)


def widen_q8(weights, scales):
    """Float32 of Q8_0."""
    blocks = weights.reshape(len(weights), -1, BLOCK).astype(jnp.float32)
    return (blocks * scales[..., None]).reshape(weights.shape)


def q8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q8_0: int8 [N, K] and a scale for each block [N, K / 32]."""
    blocks = weights.reshape(len(weights), -1, BLOCK)
    scales = np.abs(blocks).max(-1) / 127
    rounded = np.round(blocks / scales[..., None]).astype(np.int8)
    return rounded.reshape(weights.shape), scales.astype(np.float32)


def main() -> None:
    """Prints the median of each format, measured by turns, and its largest error."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
    rng = np.random.default_rng(0)
    weights = 0.02 * rng.standard_normal((ROWS, WIDTH), np.float32)
    x = jnp.asarray(rng.standard_normal(WIDTH, np.float32))
    half = jnp.asarray(weights).astype(jnp.bfloat16)
    bits = lax.bitcast_convert_type(half, jnp.uint16)
    q8_0 = tuple(map(jnp.asarray, q8(weights)))
    cases = {
        "float32": (lambda x, w: w @ x, jnp.asarray(weights)),
        "bfloat16": (lambda x, w: w @ x.astype(w.dtype), half),
        "bfloat16 by parts": (functools.partial(by_parts, widen_bfloat16), bits),
        "Q8_0 by parts": (functools.partial(by_parts, widen_q8), *q8_0),
    }
    compiled = {name: (jax.jit(function), held) for name, (function, *held) in cases.items()}
    exact = weights.astype(np.float64) @ np.asarray(x, np.float64)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    errors = {n: np.abs(np.asarray(f(x, *held)) - exact).max() for n, (f, held) in compiled.items()}
    for _ in range(TURNS):
        for name, (function, held) in compiled.items():
            began = time.process_time()
            for _ in range(CALLS):
                function(x, *held).block_until_ready()
            seconds[name].append((time.process_time() - began) / CALLS)
    for name, found in seconds.items():
        ratio = np.median(found) / np.median(seconds["float32"])
        print(
            f"{name:18} {1e3 * np.median(found):6.2f} ms, {ratio:5.2f} of float32; largest error "
            f"{errors[name] / np.abs(exact).max():.1e} of the largest result"
        )


if __name__ == "__main__":
    main()
