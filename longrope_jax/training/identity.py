"""What a training run is known by, so that another run is not continued in its place."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from longrope_jax import sharding
from longrope_jax.rotary import Rotary


def of_run(
    train_step: Callable, data: grain.DatasetIterator, rotary: tuple[Rotary, ...], mesh: Mesh
) -> dict[str, Any]:
    """Returns what a run is known by: values that must not change when it goes on, for JSON.

    Mesh, hosts and microbatches may change; the first batch stands for text, tokenizer and seed.

    Raises:
        ValueError: Hosts that should read the same rows do not.
    """
    settings = getattr(getattr(train_step, "func", train_step), "settings", {})
    start = data.get_state()
    tokens = np.asarray(next(data)["tokens"], np.int32)
    data.set_state(start)
    index, parts = sharding.batch_share(mesh)
    mark = sum(zlib.crc32(row.tobytes()) for row in tokens) % 2**32  # whatever the rows' order
    if jax.process_count() > 1:
        pairs = multihost_utils.process_allgather(np.asarray([index, mark], np.uint32))
        if len({tuple(pair) for pair in pairs.tolist()}) > parts:
            raise ValueError(
                "hosts that share rows of the mesh read other data: make the iterator with the "
                "mesh, packing.iterator(..., mesh=mesh), of the same text on every host"
            )
        mark = sum(dict(pairs.tolist()).values()) % 2**32
    return settings | {
        "batch": len(tokens) * parts,
        "length": tokens.shape[1] - 1,
        "first_batch": mark,
        "rotary": zlib.crc32(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(rotary))),
    }


def check(saved: dict[str, Any], known_by: dict[str, Any], directory: Path) -> None:
    """Raises ValueError for the first value in which a run differs; an older one tells less."""
    for name, value in known_by.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"the run in {directory} was started with {name}={saved[name]}, not {value}: go on "
                "as it began, or train in another directory"
            )
