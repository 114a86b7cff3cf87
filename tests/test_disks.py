"""Disks that fill in the middle of a file, and folders that cannot be written or have odd names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PROGRESS = r"$|\[cell|\d+ of \d+ parts"
UNSHARE = ["unshare", "-m"] if hasattr(os, "getuid") and os.getuid() == 0 else ["unshare", "-Urm"]


def environment(tmp_path):
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, sys.path)]
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | settings | cache


@pytest.fixture(scope="module")
def small_disks(tmp_path_factory):
    """Skips where no tmpfs can be mounted."""
    command = [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path_factory.mktemp("mount"))]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk needs `unshare -m` and a tmpfs")


@pytest.mark.slow
@pytest.mark.parametrize("work", ["study", "report", "fetch", "export", "tokenize"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(work, small_disks, tmp_path):
    """What was whole stays as it was, and the end is that on a disk with room, bit for bit."""
    driver = str(ROOT / "tests" / "disk_driver.py")
    run = subprocess.run(
        [*UNSHARE, sys.executable, driver, work, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    *starts, wrong = map(json.loads, run.stdout.splitlines())
    assert len(starts) > 1 and starts[-1]["status"] == 0 and wrong == [], run.stdout
    before = {}
    for start in starts:
        assert before.items() <= start["whole"].items(), "a whole file changed"
        before = start["whole"]
    for start in starts[:-1]:
        said = [line for line in start["said"].splitlines() if not re.match(_PROGRESS, line)]
        assert start["status"] == 2 and len(said) == 1, start["said"]
        assert said[0].startswith("error: ") and "No space left" in said[0], said
