"""The real training, prefill and decode steps, lowered for a slice that need not be there."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longrope_jax import generate, llama, rotary, sampling, sharding
from longrope_jax.aot.workload import Workload
from longrope_jax.training import optimizer
from longrope_jax.training import step as training

BASE = 500_000.0  # Llama 2 Long's; a method is data, so any other gives the same program
CHUNK = 512  # tokens per pass of a prefill, the default of `generate`
# The paper's fine-tuning: 100,000 steps (2309.16039 section 2.1); numbers here change no shape.
OPTIMIZER = optimizer.OptimizerConfig(learning_rate=2e-5, total_steps=100_000)


def check_compiler() -> None:
    """Refuses to go on without libtpu.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("no TPU compiler is installed: pip install 'longrope_jax[aot]'")


def mesh_of(work: Workload) -> Mesh:
    """The mesh over the devices of the slice, which need not be there.

    Raises:
        ValueError: libtpu is not installed, or does not know the slice.
    """
    check_compiler()
    try:
        slice_ = topologies.get_topology_desc(topology_name=work.topology, platform="tpu")
    except Exception as error:
        raise ValueError(f"libtpu knows no slice {work.topology!r}: {error}") from error
    return sharding.make_mesh(**dict(work.mesh), devices=slice_.devices)


def lower(work: Workload, mesh: Mesh, tokens: int) -> jax.stages.Lowered:
    """The lowered program of a workload; a training step takes `tokens`."""
    with jax.set_mesh(mesh):
        if work.program == "train":
            return _train(work, mesh, work.accumulated(tokens))
        return _prefill(work, mesh) if work.program == "prefill" else _decode(work, mesh)


def _train(work: Workload, mesh: Mesh, A: int) -> jax.stages.Lowered:
    config = work.config()
    state = training.abstract_state(config, OPTIMIZER, mesh)
    rows = P(None, ("data", "fsdp"), None)
    T, put = work.length, functools.partial(_array, mesh, rows)
    batch = {
        "tokens": put((A, work.batch, T + 1), jnp.int32),
        "weights": put((A, work.batch, T), jnp.float32),
        "segment_start": put((A, work.batch, T), jnp.int32),
    }
    step = training.make_train_step(config, OPTIMIZER, mesh).jitted
    return step.lower(state, _rotary(work, mesh), batch, None)


def _prefill(work: Workload, mesh: Mesh) -> jax.stages.Lowered:
    params, tokens, cache = _served(work, mesh)
    rot, longest = _rotary(work, mesh), _array(mesh, P(), (), jnp.int32)
    return generate._prefill.lower(work.config(), CHUNK, params, rot, tokens, cache, longest)


def _decode(work: Workload, mesh: Mesh) -> jax.stages.Lowered:
    params, tokens, cache = _served(work, mesh)
    how = sampling.Sampling()
    data, keys = jax.eval_shape(lambda: (how.data(), sampling.row_keys(how, work.batch)))
    data, keys = jax.tree.map(lambda x: _array(mesh, P(), x.shape, x.dtype), (data, keys))
    steps = _array(mesh, P(), (), jnp.int32)
    rot = _rotary(work, mesh)
    return generate._decode.lower(work.config(), params, rot, data, keys, tokens, cache, steps)


def _served(work: Workload, mesh: Mesh):
    """The parameters, tokens [B, S] and cache [L, B, S, K, H] that `generate` holds."""
    config, B, S = work.config(), work.batch, work.length
    with jax.set_mesh(mesh):
        K = sharding.heads_in_use(config.n_kv_heads)
    shape = config.n_layers, B, S, K, config.head_dim
    spec = sharding.partition_spec("layers", "batch", None, "kv_heads", "head_dim")
    kv = _array(mesh, spec, shape, jnp.uint16)
    cache = llama.Cache(k=kv, v=kv, length=_array(mesh, P(), (B,), jnp.int32))
    tokens = _array(mesh, P(), (B, S), jnp.int32)
    return training.abstract_params(config, mesh), tokens, cache


def _rotary(work: Workload, mesh: Mesh):
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices("cpu")[:1])):
        rot = rotary.make(
            rotary.RoPE(base=BASE), head_dim=work.config().head_dim, seq_len=work.length
        )
    return jax.tree.map(lambda x: _array(mesh, P(), x.shape, x.dtype), rot)


def _array(mesh: Mesh, spec: P, shape: tuple[int, ...], dtype) -> Any:
    """The shape of an array, which stands wherever the array itself would."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
