"""One of two processes with two CPU devices each: loss and gradients over a mesh of all four.

python tests/context_driver.py ADDRESS PROCESS OUTPUT: process 0 writes OUTPUT, an npz.
"""

import dataclasses
import sys
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longrope_jax import llama, rotary, sharding
from longrope_jax.training.step import weighted_nll

CONFIG = llama.LlamaConfig(64, 16, 1, 2, 2, 8, 24)
MESHES = {"ring": {"sequence": 4}, "all_gather": {"fsdp": 2, "sequence": 2}}


def batch():
    """Two rows of packed documents."""
    rng = np.random.default_rng(0)
    starts = np.array([[0] * 5 + [5] * 11, [0] * 14 + [14] * 2], np.int32)
    tokens = rng.integers(0, 64, (2, 17)).astype(np.int32)
    return {"tokens": tokens, "weights": np.ones((2, 16), np.float32), "segment_start": starts}


def params():
    """Drawn by numpy: nothing to compile."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(partial(llama.init_params, CONFIG), jax.random.key(0))
    return jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) * 0.3), shapes)


def loss_and_gradients(params, batch, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    rot = rotary.make(rotary.RoPE(), head_dim=8, seq_len=16)
    return jax.value_and_grad(partial(weighted_nll, config))(params, rot, batch)


def on_mesh(how, process):
    mesh = sharding.make_mesh(**MESHES[how])
    boxed = jax.eval_shape(partial(llama.init_boxed, CONFIG), jax.random.key(0))
    placed = jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda at: x[at]),
        params(),
        sharding.shardings(mesh, boxed),
    )
    rows = batch()
    if MESHES[how].get("fsdp") == 2:  # each process has one row; else both have both
        rows = jax.tree.map(lambda x: x[process : process + 1], rows)
    run = partial(loss_and_gradients, context_parallel=how)
    with jax.set_mesh(mesh):
        run = jax.jit(run, out_shardings=NamedSharding(mesh, P()))
        return jax.tree.map(np.asarray, run(placed, sharding.shard_batch(mesh, rows)))


def main(address, process, output):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    assert jax.device_count() == 4 and len(jax.local_devices()) == 2
    found = {how: jax.tree.leaves(on_mesh(how, int(process))) for how in MESHES}
    if process == "0":
        np.savez(output, **{f"{h}.{i}": x for h in found for i, x in enumerate(found[h])})
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
