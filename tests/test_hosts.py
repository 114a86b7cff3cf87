"""Several hosts, as real processes: equal numbers, one word before work, one line when one dies."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hosts_driver
import numpy as np
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def start(mode, process, count, folder, address):
    paths = [str(ROOT), str(ROOT / "tests"), *sys.path]
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(
        [sys.executable, hosts_driver.__file__, mode, address, str(process), str(count), folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    )


def address():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


def together(mode, count, folder, status=0):
    """What each host said on stdout and stderr."""
    at = address()
    started = [start(mode, i, count, str(folder), at) for i in range(count)]
    ended = [process.communicate(timeout=900) for process in started]
    for process, (_, err) in zip(started, ended, strict=True):
        assert process.returncode == status, err[-3000:]
    return ended


def arrays(folder, mesh):
    with np.load(next((folder / "cells").glob(f"{hosts_driver.cell(mesh).name}*"))) as saved:
        return {name: saved[name] for name in saved.files if name != "record"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    together("train", 1, folder)
    return arrays(folder, *hosts_driver.MESHES[1])


@pytest.mark.parametrize("count", [2, 4])
def test_training_on_several_hosts_equals_one_process(count, alone, tmp_path):
    """Hosts along each axis of the mesh, key heads that are copied and a padded vocabulary."""
    together("train", count, tmp_path)
    for mesh in hosts_driver.MESHES[count]:
        found = arrays(tmp_path, mesh)
        assert found.keys() == alone.keys() and len(found["loss"]) == 3
        np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-5)
        for name, expected in alone.items():
            np.testing.assert_allclose(found[name], expected, atol=1e-4, err_msg=f"{mesh} {name}")


def cells(folder):
    """Numbers of every cell of a study."""
    found = {}
    for path in sorted((folder / "cells").glob("*.npz")):
        with np.load(path) as saved:
            found[path.stem] = {name: saved[name] for name in saved.files if name != "record"}
    return found


def test_a_study_on_two_hosts_stops_goes_on_there_or_on_one_and_speaks_once(tmp_path):
    """Stopped by the last host in its first training; its numbers are those of one process."""
    first, other, alone = tmp_path / "two", tmp_path / "one", tmp_path / "alone"
    for _, err in together("stopped", 2, first, status=75):
        assert "Traceback" not in err
    assert not cells(first)
    shutil.copytree(first, other)
    (said, _), (whispered, _) = together("study", 2, first)
    assert "[cell 1 of 6" in said and "report: " in said
    # The library of the collectives prints on every host by itself.
    assert not [line for line in whispered.splitlines() if not line.startswith("[Gloo]")]
    together("study", 1, other)
    together("study", 1, alone)
    expected = cells(alone)
    assert len(expected) == 6
    for folder in (first, other):
        files = {path.name for path in folder.iterdir()}
        assert files == {path.name for path in alone.iterdir()} | {".shared"}
        found = cells(folder)
        assert found.keys() == expected.keys()
        for name, arrays in expected.items():
            for key, numbers in arrays.items():
                if numbers.dtype.kind != "f" or key in ("seconds", "tokens_per_second"):
                    continue
                same = {"rtol": 1e-4, "atol": 1e-5, "err_msg": f"{folder.name} {name} {key}"}
                np.testing.assert_allclose(found[name][key], numbers, **same)


def test_hosts_that_would_do_different_work_are_refused(tmp_path):
    """On each host one line says what differs: cells, packages, text, or a folder of its own.

    So does one say that an export cannot be written, before anything is.
    """
    for out, _ in together("disagree", 2, tmp_path):
        said = dict(line.split(": ", 1) for line in out.splitlines())
        assert list(said) == ["config", "versions", "corpus", "folder", "export"]
        assert "lie on several hosts" in said.pop("export")
        assert "cells to make" in said["config"]
        assert "has numpy 1." in said["versions"]
        assert "has text" in said["corpus"]
        assert all("host 0 has" in line or "host 1 has" in line for line in said.values()), said


@pytest.mark.parametrize(
    ("how", "lost"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGKILL, 0)]
)
def test_a_lost_host_ends_the_others_in_seconds(how, lost, tmp_path):
    """With one line and status 2; without host 0, which held JAX's service, JAX itself aborts."""
    at = address()
    started = [start("forever", i, 2, str(tmp_path), at) for i in range(2)]
    other = started[1 - lost]
    assert started[lost].stdout.readline() == "begins\n"
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):
        assert other.poll() is None
        time.sleep(0.2)
    started[lost].send_signal(how)
    began = time.monotonic()
    _, err = other.communicate(timeout=60)
    started[lost].kill()
    started[lost].communicate()
    assert time.monotonic() - began < hosts_driver.LOST + 25
    lines = [line for line in err.splitlines() if "error:" in line]
    if lost == 0:
        assert other.returncode != 0
    else:
        assert other.returncode == 2 and len(lines) == 1 and "lost" in lines[0], err[-3000:]


def test_a_host_that_does_not_come_is_one_line(tmp_path):
    process = start("train", 0, 2, str(tmp_path), address() + "late")
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert process.returncode == 2 and len(lines) == 1 and "within 3 s" in lines[0], err[-3000:]
