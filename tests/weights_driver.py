"""One of two processes with two CPU devices each: a checkpoint onto a mesh of all four.

python tests/weights_driver.py ADDRESS PROCESS CHECKPOINT: prints what it holds as JSON.
"""

import json
import sys

import jax
import numpy as np
from checkpoints import numbers

import longrope_jax
from longrope_jax import sharding
from longrope_jax.weights import layout


def main(address, process, path):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    # In this order the heads lie on different processes.
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=_crossed(jax.devices()))
    loaded = longrope_jax.load(path, mesh=mesh)
    expected = numbers(loaded.config)
    equal = jax.tree.map(
        lambda x, whole: all(np.array_equal(s.data, whole[s.index]) for s in x.addressable_shards),
        loaded.params,
        expected,
    )
    held = sum(s.data.nbytes for x in jax.tree.leaves(loaded.params) for s in x.addressable_shards)
    found = {
        "equal": all(jax.tree.leaves(equal)),
        "share": held / sum(x.nbytes for x in jax.tree.leaves(expected)),
        "wq": [str(s.index) for s in _wq(loaded.params).addressable_shards],
        "notes": loaded.notes,
        "losses": layout.score(loaded.config, loaded.params, loaded.method, loaded.tokenizer),
    }
    print(json.dumps(found))
    jax.distributed.shutdown()


def _crossed(devices):
    return [devices[at] for at in (0, 2, 1, 3)]


def _wq(params):
    return params["layers"]["attention"]["wq"]


if __name__ == "__main__":
    main(*sys.argv[1:])
