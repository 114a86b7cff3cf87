"""Two processes of which one is told to end stop at the same step, and a single one goes on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import preempted_driver
import pytest

from longrope_jax.training import checkpoints

DRIVER = Path(preempted_driver.__file__)


def train(folder, count, stop):
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    path = os.pathsep.join(filter(None, [str(DRIVER.parents[1]), *sys.path]))
    command = [sys.executable, str(DRIVER), address]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(count), str(folder), stop],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(count)
    ]
    try:
        told = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], told


@pytest.mark.slow
def test_hosts_stop_at_one_step_and_another_number_goes_on(tmp_path):
    statuses, told = train(tmp_path / "a", 2, "stop")
    assert statuses == [75, 75], told
    assert "is saved" in told[0][1] and "is saved" not in told[1][1]
    at = checkpoints.latest_step(tmp_path / "a" / "checkpoints")
    assert preempted_driver.TERMINATED_AT <= at < preempted_driver.STEPS
    statuses, told = train(tmp_path / "a", 1, "go on")
    assert statuses == [0], told
    statuses, whole = train(tmp_path / "b", 1, "go on")
    assert statuses == [0], whole
    assert float(told[0][0]) == pytest.approx(float(whole[0][0]), rel=1e-5)
