"""What a run is computed with, as opposed to what it computes."""

import dataclasses
import os
import sys

import jax
from jax.sharding import Mesh

from longrope_jax import hosts, sharding


@dataclasses.dataclass(frozen=True)
class Machine:
    """Settings that change speed and memory, never what is computed beyond rounding.

    They are no part of a cell's identity; each cell's file says which machine made it.

    Attributes:
        data, fsdp, sequence, tensor: sizes of the mesh's axes; -1 takes the devices that are left.
        multihost: start on every host of a pod.
        remat: activations saved for the backward pass, see `LlamaConfig.remat`.
        accumulation: microbatches that a training step is split into.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints.
        checkpoints_kept: how many of the newest stay; 0 keeps all, for `--during-training`.
        steps_per_dispatch: training steps that the devices do at a time, see `LoopConfig`.
        tokens_per_batch: of scored batches.
        processes: that make independent cells, such as those of different seeds, side by side, each
            on its share of the CPU's cores.
        measure: False draws the report from the cells there are and makes none.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    multihost: bool = False
    remat: str = "none"
    accumulation: int = 1
    log_every: int = 10
    checkpoint_every: int = 100
    checkpoints_kept: int = 1
    steps_per_dispatch: int = 10
    tokens_per_batch: int = 8192
    processes: int = 1
    measure: bool = True

    def mesh(self) -> Mesh:
        """The devices as the axes arrange them.

        Raises:
            ValueError: the axes do not divide the devices.
        """
        return sharding.make_mesh(
            data=self.data, fsdp=self.fsdp, sequence=self.sequence, tensor=self.tensor
        )

    def rows(self, length: int) -> int:
        """Sequences of `length` tokens per scored batch, a multiple of the devices they go to."""
        parts = batch_parts(self.mesh())
        return max(parts, self.tokens_per_batch // length // parts * parts)


def start(machine: Machine) -> None:
    """Joins the hosts of a pod, if the machine is one; before anything else touches devices.

    From then on the standard output of host 0 alone is seen: tables and progress are there once.
    Errors stay on the host that has them. A second call does nothing, since several studies may
    run in one process.
    """
    if machine.multihost and not jax.distributed.is_initialized():
        hosts.start()
    if hosts.several() and not writes() and sys.stdout.name != os.devnull:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process


def batch_parts(mesh: Mesh) -> int:
    """Devices that a batch is split over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def writes() -> bool:
    """Whether this process writes results: on several hosts one does."""
    return jax.process_index() == 0
