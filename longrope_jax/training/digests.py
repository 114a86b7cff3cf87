"""Digests tell whether the numbers of a checkpoint are those that were saved, on any mesh."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp

_KEYS = ("digests", "checksum")


def sealed(data: dict, tree: Any) -> dict:
    """Returns the data of a checkpoint with a digest of each array beside it and a checksum."""
    found = data | {"digests": of(tree)}
    return found | {"checksum": _checksum(found)}


def check(data: dict, tree: Any) -> dict:
    """Returns the data that `sealed` was given; one that has no seal, of older versions, as it is.

    Args:
        data: as it was read.
        tree: arrays as they were read, in the data types of the file; not all of them are needed.

    Raises:
        ValueError: A number is another one than was saved; the message names the array.
    """
    if not any(key in data for key in _KEYS):
        return data
    whole = {key: value for key, value in data.items() if key != "checksum"}
    if data.get("checksum") != _checksum(whole):
        raise ValueError("what is saved beside the arrays has changed")
    for name, found in of(tree).items():
        if whole["digests"].get(name) != found:
            raise ValueError(f"the array {name} does not hold the numbers that were saved")
    return {key: value for key, value in data.items() if key not in _KEYS}


def of(tree: Any) -> dict[str, int]:
    """Returns a 32-bit digest of each array by its path, the same for every sharding.

    It is the sum of an array's words, each times an odd number of its place's own, modulo 2^32: no
    single changed bit leaves it as it is, and two changed places do by a chance of 2^-32.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    sums = jax.device_get(_sums([jnp.asarray(x) for _, x in leaves]))
    return {name: int(found) for name, found in zip(names, sums, strict=True)}


def _checksum(data: dict) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_sum(x) for x in arrays]


def _sum(x: jax.Array) -> jax.Array:
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(size) + index
    mixed = (place ^ (place >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return jnp.sum(words * (mixed | jnp.uint32(1)), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of an array as uint32; 64-bit numbers get a last axis of two."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
