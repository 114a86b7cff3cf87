"""The weights show which features of a head were trained as pairs; the loss of a text confirms it.

The two features of a pair have one frequency and are mixed by every rotation, so training gives
their rows of wq and wk similar norms, while rows of different frequencies differ. Features j and
j + H/2 have one frequency in the half layout and distant ones in the interleaved layout; features
2j and 2j + 1 are a pair in the interleaved layout and neighbouring pairs in the half layout. With
n the norms of rows, the ratio
    mean |log n[j] - log n[j + H/2]| / mean |log n[2j] - log n[2j + 1]|
is therefore about 1 for the half layout and well above 1 for the interleaved one. For SmolLM2-135M
it is 0.96 when stored half and 2.76 when stored interleaved, which
`longrope inspect smollm2-135m --layout` prints. Norms of fresh random weights differ only by noise,
0.8/sqrt(D) on average, and show no layout.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from longrope_jax import llama, rotary, sharding

ABOVE, BELOW = 1.6, 1.3  # a ratio between the two shows neither layout
# Melville, Moby-Dick (1851), chapter 1.
TEXT = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in "
    "my purse, and nothing particular to interest me on shore, I thought I would sail about a "
    "little and see the watery part of the world."
)


def probe(config: llama.LlamaConfig, params: dict) -> tuple[str, bool]:
    """Returns a note on the layout of the weights, and whether it contradicts the config."""
    attention = params["layers"]["attention"]
    norms = [_everywhere(_row_norms(attention[name])) for name in ("wq", "wk")]
    half, neighbours = _spread(norms, config.head_dim)
    noise = 0.8 / math.sqrt(config.d_model)
    if max(half, neighbours) < 2 * noise:
        return "layout: the weights show none (their rows are as alike as random ones)", False
    ratio = half / max(neighbours, 1e-9)
    text = f"layout: norms of rows j and j+H/2 differ {ratio:.2f} times as much as of 2j and 2j+1"
    if BELOW < ratio < ABOVE:
        return f"{text}, which shows neither layout", False
    found = "interleaved" if ratio >= ABOVE else "half"
    if found == config.rotary_layout:
        return f"{text}: {found}, as expected", False
    return f"{text}: they look {found}, the format says {config.rotary_layout}", True


@jax.jit
def _row_norms(weight):
    """Returns norms [L, N, H] of weights [L, D, N, H]."""
    return jnp.sqrt(jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=1))


def _everywhere(values: jax.Array) -> np.ndarray:
    """Returns the whole array in float64 on this host, even if other hosts hold some shards."""
    if not values.is_fully_addressable:
        assert isinstance(values.sharding, NamedSharding)  # `place` puts all arrays on a mesh
        where = NamedSharding(values.sharding.mesh, PartitionSpec())
        values = jax.jit(lambda x: x, out_shardings=where)(values)
    return np.asarray(values, np.float64)


def _spread(norms: list[np.ndarray], head_dim: int) -> tuple[float, float]:
    logs = [np.log(np.maximum(n, 1e-30)) for n in norms]
    R = head_dim // 2
    half = np.mean([np.abs(n[..., :R] - n[..., R:]).mean() for n in logs])
    neighbours = np.mean([np.abs(n[..., ::2] - n[..., 1::2]).mean() for n in logs])
    return float(half), float(neighbours)


def score(config: llama.LlamaConfig, params: dict, spec, tokenizer) -> dict[str, float]:
    """Returns the mean loss in nats of TEXT under each layout; the right one is far lower."""
    tokens, mesh = tokenizer.encode(TEXT), getattr(params["embed"].sharding, "mesh", None)
    if mesh is not None:
        tokens = _divisible(tokens, mesh)
    tokens = np.atleast_2d(tokens)
    rot = rotary.make(spec, head_dim=config.head_dim, seq_len=tokens.shape[1])
    found = {}
    with sharding.mesh_of(params):
        for layout in rotary.LAYOUTS:
            one = dataclasses.replace(config, rotary_layout=layout)
            found[layout] = float(_loss(one, params, tokens, rot))
    return found


def _divisible(tokens: np.ndarray, mesh) -> np.ndarray:
    """Repeats a text until its rows and its length divide over the mesh."""
    rows, parts = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["sequence"]
    step = 2 * parts if parts > 1 else 1  # ring attention halves the part of each device
    return np.tile(np.resize(tokens, step * -(-len(tokens) // step)), (rows, 1))


@functools.partial(jax.jit, static_argnums=0)
def _loss(config, params, tokens, rot):
    logits = llama.logits(config, params, tokens, rot)[:, :-1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()
