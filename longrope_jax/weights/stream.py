"""Tensors move between files and devices in slices of rows; the host holds one slice at a time.

Each device fills its part of a parameter by donated updates of its own buffer. This needs no copy
and no collective, and each of several hosts reads only what its devices hold.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from longrope_jax import llama, sharding
from longrope_jax.rotary import half_from_interleaved
from longrope_jax.weights import names
from longrope_jax.weights.files import TensorSource, check_shape

SLICE_VALUES = 1 << 20  # 4 MiB in float32


def check(config: llama.LlamaConfig, source: TensorSource, form: str, *, ignored=()) -> None:
    """Checks that a checkpoint has exactly the tensors of a config.

    Args:
        config: the architecture.
        source: the tensors of the checkpoint.
        form: "hf", "gguf" or "meta", the format that names the tensors.
        ignored: endings of the names of tensors that may be present and are not loaded.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place in the model.
    """
    wanted = set()
    for name, leaf, _ in names.tensors(config, form):
        check_shape(source, name, names.file_shape(config, leaf))
        wanted.add(name)
    for name in source.shapes.keys() - wanted:
        if not name.endswith(tuple(ignored)):
            raise ValueError(
                f"{source.where} has a tensor {name[:100]!r} that a Llama of this config has no "
                "place for: is it another architecture, or one with more layers?"
            )


def place(config: llama.LlamaConfig, source: TensorSource, form: str, mesh=None) -> dict:
    """Returns the parameters in `config.param_dtype`, on a mesh or, for None, the default device.

    Raises:
        ValueError: a tensor holds NaN, infinity, or a value beyond the range of the dtype.
    """
    boxed = jax.eval_shape(functools.partial(llama.init_boxed, config), jax.random.key(0))
    shapes = nn.meta.unbox(boxed)
    if mesh is None:
        where = jax.sharding.SingleDeviceSharding(jnp.zeros(()).devices().pop())
        layout = jax.tree.map(lambda _: where, shapes)
    else:
        layout = sharding.shardings(mesh, boxed)
    params = {}
    for leaf in names.leaves(config):
        shape, to = (functools.reduce(dict.get, leaf.path, tree) for tree in (shapes, layout))
        *parents, last = leaf.path
        home = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, params)
        home[last] = _leaf(config, source, form, leaf, shape, to)
    return params


def _leaf(config, source, form, leaf, shape, where) -> jax.Array:
    """Returns one parameter, filled slice by slice."""
    regions = where.addressable_devices_indices_map(shape.shape)
    regions = {device: _bounds(index, shape.shape) for device, index in regions.items()}
    buffers = {
        device: jnp.zeros([stop - start for start, stop in region], shape.dtype, device=device)
        for device, region in regions.items()
    }
    layers = config.n_layers if leaf.stacked else 1
    for layer in range(layers):
        for axis, start, stop in _slices(config, leaf):
            box = [(0, size) for size in shape.shape]
            if leaf.stacked:
                box[0] = (layer, layer + 1)
            box[leaf.stacked + axis] = start, stop
            touched = [d for d, region in regions.items() if _overlap(box, region)]
            if not touched:
                continue
            piece = _piece(config, source, leaf, leaf.name(form, layer), start, stop, shape.dtype)
            piece = piece[None] if leaf.stacked else piece
            for device in touched:
                buffers[device] = _update(buffers[device], piece, box, regions[device], device)
    return jax.make_array_from_single_device_arrays(shape.shape, where, list(buffers.values()))


def _slices(config, leaf):
    """Returns (axis of the parameter, start, stop) of slices of the file's first axis."""
    shape = names.split_shape(config, leaf)
    count = -(-math.prod(shape) // SLICE_VALUES)
    step = -(-shape[0] // count)
    axis = leaf.letters.index(leaf.axes[0])
    return [(axis, at, min(at + step, shape[0])) for at in range(0, shape[0], step)]


def _piece(config, source, leaf, name, start, stop, dtype) -> np.ndarray:
    """Returns a slice with the axes in the order of the parameter, in the given dtype."""
    shape = names.split_shape(config, leaf)
    # One index of the first axis is this many rows of the file.
    rows = names.file_shape(config, leaf)[0] // shape[0]
    piece = source.rows(name, start * rows, stop * rows).reshape(stop - start, *shape[1:])
    order = [leaf.axes.replace(",", "").index(letter) for letter in leaf.letters]
    return np.ascontiguousarray(cast(piece, dtype, f"{source.where}: {name}").transpose(order))


def cast(values: np.ndarray, dtype, where: str) -> np.ndarray:
    """Returns values in another dtype.

    Raises:
        ValueError: a value is not finite, before or after the cast.
    """
    with np.errstate(over="ignore"):
        values = values.astype(dtype, copy=False)
    if not np.isfinite(values).all():
        raise ValueError(f"{where} holds NaN, infinity or a value beyond {np.dtype(dtype).name}")
    return values


def _bounds(index, shape):
    return [s.indices(size)[:2] for s, size in zip(index, shape, strict=True)]


def _overlap(a, b) -> bool:
    return all(x[0] < y[1] and y[0] < x[1] for x, y in zip(a, b, strict=True))


def _update(buffer, piece, box, region, device):
    """Writes the part of the piece that lies in the device's region into its buffer."""
    both = list(zip(box, region, strict=True))
    inside = tuple(slice(max(a, c) - a, min(b, d) - a) for (a, b), (c, d) in both)
    start = np.array([max(a, c) - c for (a, _), (c, _) in both], np.int32)
    part = jax.device_put(np.ascontiguousarray(piece[inside]), device)
    # Without waiting, slices would pile up on the host faster than the device takes them.
    return jax.block_until_ready(_write(buffer, part, jax.device_put(start, device)))


@functools.partial(jax.jit, donate_argnums=0)
def _write(buffer, part, start):
    return jax.lax.dynamic_update_slice(buffer, part, list(start))


def fetch(config: llama.LlamaConfig, params: dict, leaf: names.Leaf, layer: int, dtype, layout):
    """Returns one tensor on the host, with the axes and the dtype that a file has.

    Args:
        config: the architecture.
        params: the parameters.
        leaf: the parameter.
        layer: the layer of a stacked parameter.
        dtype: dtype of the result.
        layout: "half" or "interleaved", the order of the features of wq and wk in the file.

    Raises:
        ValueError: the parameter is missing, has another shape or lies on several hosts, or a value
            is not finite or beyond `dtype`.
    """
    array: Any = params
    for key in leaf.path:
        if not isinstance(array, dict) or key not in array:
            raise ValueError(f"the parameters have no {'/'.join(leaf.path)}")
        array = array[key]
    known = names.sizes(config)
    shape = tuple(known[letter] for letter in leaf.letters)
    if array.shape != ((config.n_layers, *shape) if leaf.stacked else shape):
        raise ValueError(
            f"{'/'.join(leaf.path)} has shape {array.shape}, but the config wants {shape}"
            f"{' in each layer' if leaf.stacked else ''}"
        )
    if not getattr(array, "is_fully_addressable", True):
        raise ValueError(
            f"{'/'.join(leaf.path)} lies on several hosts: save from a mesh of one host's devices"
        )
    values = np.asarray(_layer_of(array, layer) if leaf.stacked else array)
    values = cast(values, dtype, "/".join(leaf.path))
    if leaf.rotated and layout != config.rotary_layout:
        order = half_from_interleaved(config.head_dim)
        values = values[..., order if layout == "half" else np.argsort(order)]
    order = [leaf.letters.index(letter) for letter in leaf.axes.replace(",", "")]
    return values.transpose(order).reshape(names.file_shape(config, leaf))


@jax.jit
def _layer_of(array, layer):
    return jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
