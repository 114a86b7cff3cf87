"""Two kills of the script that kills at random; by hand it goes on for minutes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_two_kills_at_random_moments_change_nothing(tmp_path):
    seed = str(time.time_ns())
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "chaos.py"), "--kills=2", f"--seed={seed}"],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        cwd=ROOT,
    )
    assert run.returncode == 0, f"seed {seed}: {run.stdout}{run.stderr[-2000:]}"
