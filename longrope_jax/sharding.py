"""One table maps logical axes to mesh axes; checks ensure that nothing is silently unsharded.

The mesh has Auto axes: arrays carry NamedShardings, and the compiler inserts the collectives of
functions under `jax.jit`.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longrope_jax import hosts
from longrope_jax.errors import unknown_name

AXES = ("data", "fsdp", "sequence", "tensor")

# The axis D of parameters is divided over these.
PARAMETER_AXES = ("fsdp", "sequence")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "sequence": "sequence",  # T inside attention and the MLP
    "residual_sequence": ("sequence", "tensor"),  # T of the residual stream and of its norms
    "residual": None,  # D of activations
    "embed": PARAMETER_AXES,
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    "rank": None,  # the inner axis of LoRA's adapters
}

# Where these axes of a parameter do not divide, every device of the mesh axis holds them whole:
# keys and values are then computed once more per device, and the vocabulary is padded in use.
WHOLE_IF_UNDIVIDED = ("kv_heads", "vocab")


def make_mesh(
    *, data: int = 1, fsdp: int = 1, sequence: int = 1, tensor: int = 1, devices=None
) -> Mesh:
    """Makes a mesh over all devices; one size may be -1, for all devices that the others leave.

    Raises:
        ValueError: The product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"mesh axis {name} must have a positive size or -1, got {size}")
    free = [name for name, size in sizes.items() if size == -1]
    known = 1
    for size in sizes.values():
        known *= max(size, 1)
    if len(free) > 1 or len(devices) % known or (not free and known != len(devices)):
        raise ValueError(
            f"mesh {sizes} does not divide {len(devices)} devices: choose sizes whose product is "
            f"{len(devices)}, or one size of -1"
        )
    sizes |= {name: len(devices) // known for name in free}
    # A torus axis of a TPU slice may serve two mesh axes: 4x4x4 chips as fsdp=8, sequence=8.
    laid_out = mesh_utils.create_device_mesh(
        tuple(sizes[a] for a in AXES), devices, allow_split_physical_axes=True
    )
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(*names: str | None) -> P:
    """Returns the PartitionSpec of an array with these logical axes; None is not sharded.

    Raises:
        ValueError: A name is not in RULES.
    """
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(unknown_name("logical axis", name, RULES))
    return P(*(None if name is None else RULES[name] for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Shards `x` inside a jitted function by the logical names of its axes.

    It acts under `jax.set_mesh` and returns `x` unchanged without a mesh.

    Raises:
        ValueError: A name is unknown, the number of names is not that of axes, an axis does not
            divide, or `x` lies on several devices while no mesh is set.
    """
    spec = partition_spec(*names)
    if not _mesh_of(x):
        return x
    check_divides(x.shape, spec, context_shape(), _described(names))
    return jax.lax.with_sharding_constraint(x, spec)


def _mesh_of(*arrays: jax.Array) -> bool:
    """Returns whether a mesh is set; raises ValueError if none is but the arrays lie on one."""
    if not jax.sharding.get_abstract_mesh().empty:
        return True
    for x in arrays:
        mesh = jax.typeof(x).sharding.mesh
        if not mesh.empty and mesh.size > 1:
            raise ValueError(
                f"an array of shape {x.shape} lies on a mesh of {mesh.size} devices, but no mesh "
                "is set, so nothing would be sharded: call it under jax.set_mesh(mesh)"
            )
    return False


def context_shape() -> dict[str, int]:
    """Returns the size of each axis of the mesh that is set, or an empty dict without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def mesh_of(params: Any) -> AbstractContextManager:
    """Returns a context that sets the mesh on which `params` lie, or does nothing without one."""
    leaf = jax.tree.leaves(params)[0]
    mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def platform() -> str:
    """Returns the platform that the program being traced will run on: "cpu", "gpu" or "tpu".

    It is that of the devices of the mesh that is set, which need not be attached: a TPU program can
    be compiled ahead of time. Without a mesh it is JAX's default back end.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        name = jax.default_backend()
        return "gpu" if name in ("cuda", "rocm") else name
    # The kind, as in "TPU v5p", since a device of jax before 0.10.1 names no platform.
    kind = device.device_kind.lower()
    return next((name for name in ("tpu", "cpu") if kind.startswith(name)), "gpu")


def axis_size(*axes: str) -> int:
    """Returns into how many parts these mesh axes together divide an array; 1 without a mesh."""
    return math.prod(context_shape().get(axis, 1) for axis in axes)


def spare_rows(rows: int) -> int:
    """Returns how many rows make a batch of `rows` one that the mesh divides; 0 without a mesh."""
    return -rows % axis_size("data", "fsdp")


def heads_in_use(K: int) -> int:
    """Returns how many key heads attention has of a model's K: as many as `tensor` divides.

    Beyond K they are copies, see `repeated`, so that each device has those of its query heads.
    """
    return math.lcm(K, axis_size("tensor"))


def repeated(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Returns `x` with each slice of an axis several times in a row, `size` slices in all."""
    copies = size // x.shape[axis]
    return x if copies == 1 else jnp.repeat(x, copies, axis=axis)


def padded(x: jax.Array, axis: int, mesh_axis: str = "tensor") -> jax.Array:
    """Returns `x` with zeros at the end of an axis, up to a size that the mesh axis divides."""
    missing = -x.shape[axis] % axis_size(mesh_axis)
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def per_device(f, names_in: tuple, names_out):
    """Makes each device run `f` on its own shard; logical axis names say how arrays are divided.

    Without a mesh, or on one device, `f` runs on entire arrays. Inside `f`, collectives over
    `manual_axes(...)` are correct in both cases. Use it for what the compiler cannot divide by
    itself (kernels) or divides badly (loops whose bounds depend on data, sums over chunks).

    Args:
        f: the function of arrays that each device runs.
        names_in: for each argument, a tuple of the logical names of its axes.
        names_out: such a tuple for the result, or a tuple of such tuples for several results.

    Returns:
        A function of entire arrays. It raises ValueError if an axis does not divide.
    """

    def run(*args):
        if not _mesh_of(*args) or jax.sharding.get_abstract_mesh().size == 1:
            return f(*args)
        specs = tuple(partition_spec(*names) for names in names_in)
        for x, spec, names in zip(args, specs, names_in, strict=True):
            check_divides(x.shape, spec, context_shape(), _described(names))
        several = isinstance(names_out[0], tuple)
        out = (
            tuple(partition_spec(*n) for n in names_out) if several else partition_spec(*names_out)
        )
        return jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)(*args)

    return run


def manual_axes(*axes: str) -> tuple[str, ...]:
    """Returns the axes above 1 among `axes`, for use in a collective inside `per_device`."""
    sizes = context_shape()
    return tuple(axis for axis in axes if sizes.get(axis, 1) > 1)


def check_divides(
    shape: tuple[int, ...], spec: P, mesh_shape: dict[str, int], what: str = "an array"
) -> None:
    """Raises ValueError, naming `what`, unless each axis of `shape` divides by its mesh axes."""
    if len(spec) != len(shape):
        raise ValueError(
            f"{what}: {len(spec)} logical axes for an array of shape {shape}, expected {len(shape)}"
        )
    for size, axes in zip(shape, spec, strict=True):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = 1
        for axis in axes:
            if axis not in mesh_shape:
                raise ValueError(f"{unknown_name('mesh axis', axis, mesh_shape)}; see make_mesh")
            parts *= mesh_shape[axis]
        if size % parts:
            raise ValueError(
                f"{what}: the axis of size {size} in shape {shape} does not divide by {parts} "
                f"(mesh axes {', '.join(axes)}): choose a mesh that divides {size}"
            )


def _described(names: tuple[str | None, ...]) -> str:
    return f"an array with axes ({', '.join(map(str, names))})"


def shardings(mesh: Mesh, boxed: Any) -> Any:
    """Returns the NamedShardings of a tree of linen's boxes, which name logical axes.

    The arrays in the boxes may be abstract or concrete. Arrays without a box (step counters) are
    replicated, and so are axes of `WHOLE_IF_UNDIVIDED` that do not divide.

    Raises:
        ValueError: A logical name is unknown, or an axis does not divide.
    """
    tensor = mesh.shape["tensor"]

    def cut(name: str | None, size: int) -> str | None:
        return None if name in WHOLE_IF_UNDIVIDED and size % tensor else name

    def one(path, leaf):
        if not isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, P())
        spec = partition_spec(*leaf.names)
        if len(spec) == leaf.value.ndim:
            spec = partition_spec(*map(cut, leaf.names, leaf.value.shape))
        what = jax.tree_util.keystr(path, simple=True, separator="/") or "an array"
        check_divides(leaf.value.shape, spec, dict(mesh.shape), what)
        return NamedSharding(mesh, spec)

    return jax.tree.map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def shard_batch(mesh: Mesh, batch: Any, *, axis: int = 0) -> Any:
    """Puts host arrays on the mesh, with their batch axis B divided over data and fsdp.

    With several hosts, each process passes the rows that its own devices hold. Processes whose
    devices hold the same rows (a sequence or tensor axis across hosts) pass the same rows.

    Raises:
        ValueError: B does not divide over data and fsdp.
    """
    sharding = NamedSharding(mesh, P(*(None,) * axis, RULES["batch"]))
    hosts = batch_share(mesh)[1]
    parts = mesh.shape["data"] * mesh.shape["fsdp"] // hosts

    def put(x):
        if x.shape[axis] % parts:
            raise ValueError(
                f"batch of {x.shape[axis]} does not divide over {parts} devices (the mesh's data "
                f"and fsdp axes): use a multiple of {parts}"
            )
        shape = (*x.shape[:axis], x.shape[axis] * hosts, *x.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, batch)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): of `count` equal parts of the global batch this host holds `index`.

    Hosts that share a sequence or tensor axis hold the same part.

    Raises:
        ValueError: The parts of two hosts overlap without being equal.
    """
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    held: dict[int, set[int]] = {}
    for i, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(i)
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    if any(len(part) * len(parts) != len(rows) for part in parts):
        raise ValueError(
            f"hosts hold overlapping rows {parts} of the batch: choose mesh axes for which two "
            "hosts hold either the same rows or none in common"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def start_multihost() -> None:
    """Joins the processes of a TPU pod or GPU cluster, see `hosts.start`."""
    hosts.start()
