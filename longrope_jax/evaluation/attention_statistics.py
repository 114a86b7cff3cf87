"""A model's queries and keys before rotation are measured as moments over text, per head.

From these moments `analysis.decay.expected_score` computes the mean score at each distance under
any rotary method, which is the quantity of Llama 2 Long (2309.16039) footnote 3 for a real model.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int

from longrope_jax import rotary as rotary_lib
from longrope_jax.llama import Block, LlamaConfig, RMSNorm, layer_windows, query_norm


def query_key_moments(
    config: LlamaConfig,
    params: dict,
    rotary: rotary_lib.RotaryLike,
    tokens: Int[np.ndarray, "windows T"],
    *,
    batch_size: int = 1,
) -> Float64[np.ndarray, "L N H H"]:
    """Returns the mean outer product of a query and an earlier key before rotation, per head.

    The mean is over all pairs of a query and an earlier key in the same window, and every window
    has equal weight. Layers are computed one after another; memory is linear in T.

    Args:
        config: the model's architecture.
        params: the model's parameters.
        rotary: the rotary method that the model runs with, normally the one it was trained with,
            or its text; or a Rotary made for T tokens.
        tokens: int [windows, T], T at least 2.
        batch_size: windows per batch; on a mesh a multiple of its data and fsdp axes.

    Returns:
        float64 [L, N, H, H], whose entry [l, n, a, b] is the mean of q_a k_b.

    Raises:
        ValueError: there is no window, or windows have fewer than 2 tokens.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or len(tokens) < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be [windows, T] with T at least 2, got {tokens.shape}")
    rot = rotary_lib.as_rotary(rotary, head_dim=config.head_dim, seq_len=tokens.shape[1])
    total = np.zeros(())
    for start in range(0, len(tokens), batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < len(tokens)) / len(tokens)  # rows beyond the last window get no weight
        batch = jnp.asarray(tokens[rows % len(tokens)])
        found = _batch_moments(config, params, rot, batch, jnp.asarray(weight, jnp.float32))
        total = total + np.asarray(found, np.float64)
    return total


@functools.partial(jax.jit, static_argnums=0)
def _batch_moments(config, params, rotary, tokens, weight):
    phases = rotary_lib.phases(rotary, jnp.arange(tokens.shape[1], dtype=jnp.int32))

    def layer(x, scanned):
        weights, own = scanned
        normed = x
        if config.norms != "after":
            normed = cast(
                jax.Array, RMSNorm(config).apply({"params": weights["attention_norm"]}, x)
            )
        moments = _moments(config, normed.astype(jnp.float32), weights["attention"], weight)
        block = Block(config, rotary.score_rule)
        (x, _), _ = block.apply({"params": weights}, (x, None), phases, None, 0, None, own)
        return x, moments

    x = jnp.take(params["embed"].astype(config.dtype), tokens, axis=0)
    x = x * jnp.asarray(config.embed_scale, x.dtype)
    own = layer_windows(config), rotary_lib.method_of_layer(rotary, config.n_layers)
    return jax.lax.scan(layer, x, (params["layers"], own))[1]


def _heads(config, x, weights, name):
    """Returns queries "q" or keys "k" of one layer before rotation, float32 [B, T, heads, H]."""
    found = jnp.einsum("BTD,DNH->BTNH", x, weights[f"w{name}"].astype(jnp.float32))
    if config.attention_bias:
        found = found + weights[f"b{name}"].astype(jnp.float32)
    if config.qk_norm or config.qk_norm_joint:
        norm = query_norm(config, name)
        found = cast(jax.Array, norm.apply({"params": weights[f"{name}_norm"]}, found))
    return found


def _moments(config, x, weights, weight):
    """Returns the moments [N, H, H] of one layer from its normalised input [B, T, D]."""
    T = x.shape[1]
    q, k = (_heads(config, x, weights, name) for name in "qk")
    earlier = (jnp.cumsum(k, axis=1) - k) * 2 / (T * (T - 1))
    q = q.reshape(*x.shape[:2], k.shape[2], -1, k.shape[3])
    moments = jnp.einsum("B,BTKGH,BTKE->KGHE", weight, q, earlier)
    return moments.reshape(-1, *moments.shape[2:])
