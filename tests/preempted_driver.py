"""Trains until a signal: preempted_driver.py ADDRESS PROCESS COUNT DIRECTORY stop|go.

COUNT 1 trains on one process; four CPU devices in all, so that the numbers are the same.
"""

import os
import signal
import sys

import jax

if __name__ == "__main__":
    # Before test_loop is imported, which makes an array.
    jax.config.update("jax_num_cpu_devices", 4 // int(sys.argv[3]))
    if int(sys.argv[3]) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[1], int(sys.argv[3]), int(sys.argv[2]))

import test_loop

from longrope_jax import sharding
from longrope_jax.training import loop, metrics
from longrope_jax.training import step as steps

STEPS, TERMINATED_AT = 120, 5  # notice travels between hosts while steps go on


def main(address, process, count, directory, stop):
    process = int(process)
    mesh = sharding.make_mesh(data=4)
    index, parts = sharding.batch_share(mesh)

    class Rows(test_loop.Batches):
        """This host's rows of the batch that all hosts make."""

        def __next__(self):
            return {k: v[index::parts] for k, v in super().__next__().items()}

    def on_step(step, tokens):
        if stop == "stop" and process == 1 and step == TERMINATED_AT:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.fit(
        steps.init_state(test_loop.CONFIG, test_loop.ADAMW, mesh, seed=1),
        steps.make_train_step(test_loop.CONFIG, test_loop.ADAMW, mesh),
        Rows(),
        rotary=test_loop.ROPE,
        loop=loop.LoopConfig(STEPS, log_every=2, checkpoint_every=STEPS, tensorboard=False),
        mesh=mesh,
        directory=directory,
        on_step=on_step,
    )
    if process == 0:
        print(metrics.read(directory)[-1]["loss"])


if __name__ == "__main__":
    main(*sys.argv[1:])
