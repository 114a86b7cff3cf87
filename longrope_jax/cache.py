"""The cache of keys and values, with which a text is continued without reading it again."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from longrope_jax import rotary as rotary_lib
from longrope_jax.architecture import DTYPES, LlamaConfig
from longrope_jax.errors import unknown_name
from longrope_jax.sharding import constrain, heads_in_use


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["k", "v", "length"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """A Cache holds the rotated keys and the values of all tokens so far.

    bfloat16 is stored as its bits in uint16, see attention.to_cache.

    Attributes:
        k: rotated keys [L, B, S, K, H], or [L, B, S, K, C H] if a remapping rotates keys C times.
        v: values [L, B, S, K, H].
        length: the number of tokens in each row, int32 [B].
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array


def init_cache(
    config: LlamaConfig,
    batch: int,
    size: int,
    rotary: rotary_lib.RotaryLike | None = None,
    *,
    dtype: str | None = None,
) -> Cache:
    """Makes an empty cache of keys and values.

    Args:
        config: the architecture.
        batch: the number of rows B.
        size: the number of tokens S that each row has room for.
        rotary: a rotary method, its text or a Rotary; needed by methods that cache more than one
            copy of a key.
        dtype: dtype of keys and values; None is that of the activations.

    Raises:
        ValueError: The dtype is unknown, or the method cannot be read.
    """
    dtype = dtype or config.dtype
    if dtype not in DTYPES:
        raise ValueError(unknown_name("cache dtype", str(dtype), DTYPES))
    held = "uint16" if dtype == "bfloat16" else dtype
    K, H = heads_in_use(config.n_kv_heads), config.head_dim
    shape = config.n_layers, batch, size, K
    if rotary is not None and not isinstance(rotary, rotary_lib.Rotary):
        rotary = rotary_lib.make(rotary, head_dim=H, seq_len=size)
    copies = key_copies(rotary and rotary.score_rule)
    # Two separate arrays, since each may be donated.
    k, v = _empty((*shape, copies * H), held), _empty((*shape, H), held)
    return Cache(k=k, v=v, length=jnp.zeros(batch, jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty(shape, dtype):
    return constrain(jnp.zeros(shape, dtype), "layers", "batch", None, "kv_heads", "head_dim")


def check_room(cache: Cache, new: int) -> None:
    """Raises ValueError if `new` tokens exceed the cache; under jit the lengths are unknown."""
    if isinstance(cache.length, Tracer):
        return
    longest, size = int(cache.length.max()), cache.k.shape[2]
    if longest + new > size:
        raise ValueError(
            f"no room for {new} tokens after {longest} in a cache of {size}: pass a larger size to "
            "init_cache"
        )


def key_copies(rule: Any) -> int:
    """Returns how many copies of a key the cache holds: one, or as many as a remapping rotates."""
    return 1 if rule is None else rule.key_copies
