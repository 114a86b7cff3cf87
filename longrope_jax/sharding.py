"""One table from logical axes to mesh axes, the mesh, and checks: nothing is silently unsharded.

`jax.jit` with NamedSharding is pjit's successor. The mesh has Auto axes: arrays carry
NamedShardings and the compiler inserts the collectives.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longrope_jax.rotary import unknown

AXES = ("data", "fsdp", "sequence", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "sequence": "sequence",
    "residual": None,  # D of activations
    "embed": "fsdp",  # D of parameters
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
        ValueError: the sizes do not multiply to the number of devices, or sequence above 1.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    if sequence != 1:
        raise ValueError("a sequence axis above 1 is not supported yet: use fsdp or tensor")
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
    return jax.make_mesh(
        tuple(sizes[a] for a in AXES), AXES, (AxisType.Auto,) * len(AXES), devices=devices
    )


def partition_spec(*names: str | None) -> P:
    """PartitionSpec of an array whose axes have these logical names (None: not sharded).

    Raises:
        ValueError: a name that is not in RULES.
    """
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(unknown("logical axis", name, RULES))
    return P(*(None if name is None else RULES[name] for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Shards `x` inside a jitted function by the logical names of its axes.

    Acts under `jax.set_mesh`; without a mesh there is one device and nothing to do.

    Raises:
        ValueError: unknown name, wrong number of names, or an axis that does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    spec = partition_spec(*names)
    if mesh.empty:
        return x
    check_divides(x.shape, spec, dict(mesh.shape))
    return jax.lax.with_sharding_constraint(x, spec)


def check_divides(shape: tuple[int, ...], spec: P, mesh_shape: dict[str, int]) -> None:
    """Raises ValueError unless every sharded axis of `shape` divides by its mesh axes."""
    if len(spec) != len(shape):
        raise ValueError(f"{len(spec)} logical axes for an array of shape {shape}")
    for size, axes in zip(shape, spec, strict=True):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = 1
        for axis in axes:
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

    On several hosts each process passes its own part of the global batch.

    Raises:
        ValueError: B does not divide.
    """
    sharding = NamedSharding(mesh, P(*(None,) * axis, RULES["batch"]))
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(x):
        size = x.shape[axis] * jax.process_count()
        if size % parts:
            raise ValueError(f"batch of {size} does not divide over {parts} devices")
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)


def start_multihost() -> None:
    """Joins the processes of a TPU pod or GPU cluster; call before any other use of JAX."""
    jax.distributed.initialize()
