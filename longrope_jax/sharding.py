"""One table from logical axes to mesh axes, the mesh, and checks: nothing is silently unsharded.

`jax.jit` with NamedSharding is pjit's successor. The mesh has Auto axes: arrays carry
NamedShardings and the compiler inserts the collectives.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longrope_jax.errors import unknown_name

AXES = ("data", "fsdp", "sequence", "tensor")

# What D of parameters is divided over.
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
    "rank": None,  # of LoRA's adapters
}


def make_mesh(
    *, data: int = 1, fsdp: int = 1, sequence: int = 1, tensor: int = 1, devices=None
) -> Mesh:
    """Mesh over all devices; one of the sizes may be -1, which takes what the others leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"mesh axis {name} must be positive or -1, got {size}")
    free = [name for name, size in sizes.items() if size == -1]
    known = 1
    for size in sizes.values():
        known *= max(size, 1)
    if len(free) > 1 or len(devices) % known or (not free and known != len(devices)):
        raise ValueError(f"mesh {sizes} does not divide {len(devices)} devices")
    sizes |= {name: len(devices) // known for name in free}
    # A torus axis of a TPU slice may serve two mesh axes: 4x4x4 chips as fsdp=8, sequence=8.
    laid_out = mesh_utils.create_device_mesh(
        tuple(sizes[a] for a in AXES), devices, allow_split_physical_axes=True
    )
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(*names: str | None) -> P:
    """PartitionSpec of an array whose axes have these logical names (None: not sharded).

    Raises:
        ValueError: a name that is not in RULES.
    """
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(unknown_name("logical axis", name, RULES))
    return P(*(None if name is None else RULES[name] for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Shards `x` inside a jitted function by the logical names of its axes.

    Acts under `jax.set_mesh`; without a mesh there is one device and nothing to do.

    Raises:
        ValueError: unknown name, wrong number of names, or an axis that does not divide.
    """
    spec = partition_spec(*names)
    if not _mesh_of(x):
        return x
    check_divides(x.shape, spec, context_shape())
    return jax.lax.with_sharding_constraint(x, spec)


def _mesh_of(*arrays: jax.Array) -> bool:
    """Whether a mesh is set; an error if none is, though the arrays lie on one."""
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
    """Sizes of the axes of the mesh that is set: empty without one."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def mesh_of(params: Any) -> AbstractContextManager:
    """A context in which functions of `params` run: their mesh is set, where they lie on one."""
    leaf = jax.tree.leaves(params)[0]
    mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def platform() -> str:
    """Where the program being traced will run: "cpu", "gpu" or "tpu".

    The devices of the mesh that is set decide (they need not be at hand: a TPU program can be
    compiled ahead of time), without a mesh JAX's default back end.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def axis_size(*axes: str) -> int:
    """Into how many parts these mesh axes together divide an array; 1 without a mesh."""
    return math.prod(context_shape().get(axis, 1) for axis in axes)


def per_device(f, names_in: tuple, names_out):
    """`f` run by each device on its own shard, arrays divided by their axes' logical names.

    Without a mesh, or on one device, it is `f` on whole arrays. Inside, collectives over
    `manual_axes(...)` are right in both cases. For what the compiler cannot divide by itself
    (kernels), or divides badly (loops whose bounds depend on data, sums over chunks).

    Args:
        f: function of arrays.
        names_in: per argument a tuple of logical names.
        names_out: the same for the result, or a tuple of such tuples for several results.

    Returns:
        Function of whole arrays. It raises ValueError where an axis does not divide.
    """

    def run(*args):
        if not _mesh_of(*args) or jax.sharding.get_abstract_mesh().size == 1:
            return f(*args)
        specs = tuple(partition_spec(*names) for names in names_in)
        for x, spec in zip(args, specs, strict=True):
            check_divides(x.shape, spec, context_shape())
        several = isinstance(names_out[0], tuple)
        out = (
            tuple(partition_spec(*n) for n in names_out) if several else partition_spec(*names_out)
        )
        return jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)(*args)

    return run


def manual_axes(*axes: str) -> tuple[str, ...]:
    """The mesh axes to name in a collective inside `per_device`: those that divide something."""
    sizes = context_shape()
    return tuple(axis for axis in axes if sizes.get(axis, 1) > 1)


def check_divides(shape: tuple[int, ...], spec: P, mesh_shape: dict[str, int]) -> None:
    """Raises ValueError unless every sharded axis of `shape` divides by its mesh axes."""
    if len(spec) != len(shape):
        raise ValueError(f"{len(spec)} logical axes for an array of shape {shape}")
    for size, axes in zip(shape, spec, strict=True):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = 1
        for axis in axes:
            if axis not in mesh_shape:
                raise ValueError(f"{unknown_name('mesh axis', axis, mesh_shape)}; see make_mesh")
            parts *= mesh_shape[axis]
        if size % parts:
            raise ValueError(f"axis of size {size} in {shape} does not divide by {parts} ({axes})")


def shardings(mesh: Mesh, boxed: Any) -> Any:
    """NamedShardings of a tree with linen's logical partitioning boxes (abstract or concrete).

    Arrays without a box (step counters) are replicated.

    Raises:
        ValueError: unknown logical name, or an axis that does not divide.
    """

    def one(leaf):
        if not isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, P())
        spec = partition_spec(*leaf.names)
        check_divides(leaf.value.shape, spec, dict(mesh.shape))
        return NamedSharding(mesh, spec)

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def shard_batch(mesh: Mesh, batch: Any, *, axis: int = 0) -> Any:
    """Puts host arrays on the mesh, their batch axis B over data and fsdp.

    On several hosts each process passes the rows that its own devices hold; processes whose devices
    hold the same rows (a sequence or tensor axis across hosts) pass the same.

    Raises:
        ValueError: B does not divide.
    """
    sharding = NamedSharding(mesh, P(*(None,) * axis, RULES["batch"]))
    hosts = batch_share(mesh)[1]
    parts = mesh.shape["data"] * mesh.shape["fsdp"] // hosts

    def put(x):
        if x.shape[axis] % parts:
            raise ValueError(f"batch of {x.shape[axis]} does not divide over {parts} devices")
        shape = (*x.shape[:axis], x.shape[axis] * hosts, *x.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, batch)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): the global batch is cut into `count` equal parts, this host holds one.

    Hosts that share a sequence or tensor axis hold the same part.

    Raises:
        ValueError: hosts whose parts overlap.
    """
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    held: dict[int, set[int]] = {}
    for i, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(i)
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    if any(len(part) * len(parts) != len(rows) for part in parts):
        raise ValueError(
            f"hosts hold overlapping rows {parts} of the batch: choose other mesh axes"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def start_multihost() -> None:
    """Joins the processes of a TPU pod or GPU cluster; call before any other use of JAX."""
    jax.distributed.initialize()
