"""A run killed with SIGKILL at any moment ends as a run that nobody killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import resume_driver

from longrope_jax.training import metrics

DRIVER = Path(resume_driver.__file__)


def start(directory, cache):
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(DRIVER.parents[1]), *sys.path])),
    }
    directory.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(directory)],
        stdout=subprocess.PIPE,
        stderr=(directory / "stderr.txt").open("a"),
        text=True,
        env=os.environ | settings,
    )


def until(process, wanted):
    """Reads the output up to the line that is wanted; the number of the first step seen."""
    first = None
    for line in process.stdout:
        first = first or (line.startswith("step") and int(line.split()[1]))
        if line.strip() == wanted or (wanted == "a logged step" and first and logged(line)):
            return first
    pytest.fail(f"the run ended (code {process.wait()}) before {wanted!r}")


def logged(line):
    return line.startswith("step") and int(line.split()[1]) % 3 == 0


def kill(process):
    process.kill()
    process.stdout.close()
    assert process.wait() == -9


def until_a_save(directory):
    """Returns while orbax writes a checkpoint, under a temporary name, beside a whole one."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        names = [path.name for path in (directory / "checkpoints").glob("*")]
        if any(map(str.isdigit, names)) and not all(map(str.isdigit, names)):
            return
    pytest.fail("no checkpoint was being written")


def finish(directory, cache):
    process = start(directory, cache)
    first = until(process, f"step {resume_driver.STEPS}")
    process.stdout.read()
    assert process.wait() == 0, (directory / "stderr.txt").read_text()[-2000:]
    return first


def steady(directory):
    """The metrics without the fields that tell the time."""
    lines = metrics.read(directory)
    return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]


@pytest.mark.slow
def test_a_killed_run_ends_bit_identical(tmp_path):
    """Killed at a random moment, during a save, inside a hook; with gradient accumulation."""
    whole, killed, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
    assert finish(whole, cache) == 1

    seed = time.time_ns()
    print("seed of the delays:", seed)  # shown by pytest where the test fails
    delays = random.Random(seed)
    firsts = []
    for saving in (False, True):
        process = start(killed, cache)
        firsts.append(until(process, "a logged step"))
        time.sleep(delays.uniform(0, 0.4))
        if saving:
            until_a_save(killed)
        kill(process)
    process = start(killed, cache)
    firsts.append(until(process, "hook begins"))
    kill(process)
    assert not (killed / "hook.txt").exists()
    firsts.append(finish(killed, cache))

    assert firsts == sorted(firsts) and firsts[0] == 1 < firsts[2]
    assert firsts[3] <= resume_driver.HOOK
    assert (killed / "hook.txt").read_text() == f"{resume_driver.HOOK}\n"
    assert steady(killed) == steady(whole)
    assert [line["step"] for line in steady(whole)] == [*range(3, resume_driver.STEPS + 1, 3)]
    with np.load(whole / "final.npz") as expected, np.load(killed / "final.npz") as found:
        assert set(found) == set(expected) and len(set(expected)) > 30
        for name in expected:
            assert found[name].tobytes() == expected[name].tobytes(), name
