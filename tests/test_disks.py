"""Disks that fill in the middle of a file, and folders that cannot be written or have odd names."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from checkpoints import CONFIG

from experiments import lab
from experiments.lab import cli as study_cli
from longrope_jax import cli, llama, rotary, weights

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


ODD = ["two words", "new\nline", "長い 文", "-dash", "a'b\"c", "%s{x}", "x" * 200]


def tokenize(folder):
    corpus, out = str(folder / "text"), str(folder / "tokens")
    return cli.main(["tokenize", corpus, "--tokenizer=bytes", f"--out={out}", "--processes=1"])


def export(folder):
    """Saves a model in the folder, reads it again, and says what it holds."""
    params = llama.init_params(CONFIG, jax.random.key(0))
    weights.save(folder / "model", CONFIG, params, rotary.RoPE())
    return cli.main(["inspect", str(folder / "model")])


def study(folder):
    """Cells and report of a study that computes no model."""

    def main(config, workdir, command):
        cells = [lab.Cell("sum", "row", what=(1,))]
        lab.complete(workdir, cells, {"sum": lambda _: {"sum": [1.0]}}, lab.Machine())
        table = lab.Table(["row", "sum"], [["row", 1.0]], "Sums", name="sums")
        sections = [lab.Section("Sums", [table])]
        lab.publish(
            workdir, command, config, title="Sums", claims=[], sections=sections, cells=cells
        )

    with pytest.raises(SystemExit) as end:
        study_cli.run(main, "docs.examples.two_methods", ["study", f"--workdir={folder / 'study'}"])
    return end.value.code


WORKS = {"tokenize": tokenize, "export": export, "study": study}


def prepared(folder):
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "a.txt").write_text("Some words. " * 40)
    return folder


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("work", WORKS)
def test_folders_of_any_name_work(work, name, tmp_path, capsys):
    folder = prepared(tmp_path / name)
    assert WORKS[work](folder) == 0, capsys.readouterr().err
    made = {"tokenize": "tokens", "export": "model/config.json", "study": "study/report.html"}
    assert (folder / made[work]).exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("work", WORKS)
def test_a_folder_that_cannot_be_written_is_one_line(work, tmp_path, capsys, monkeypatch):
    """The operating system refuses each new folder, as on a disk that is mounted read-only."""
    folder = prepared(tmp_path / "closed")

    def refused(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", refused)
    assert _status(WORKS[work], folder) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and "Read-only" in said[0], said
    assert str(folder) in said[0]


@pytest.mark.parametrize("work", WORKS)
def test_a_folder_whose_place_is_a_file_is_one_line(work, tmp_path, capsys):
    folder = prepared(tmp_path / "folder")
    for name in ("tokens", "model", "study"):
        (folder / name).write_text("in use")
    assert _status(WORKS[work], folder) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and str(folder) in said[0], said
    assert (folder / "model").read_text() == "in use"


def test_a_study_makes_a_folder_again_that_is_removed(tmp_path, capsys):
    def main(config, workdir, command):
        def removing(_):
            shutil.rmtree(workdir)
            return {"sum": [1.0]}

        lab.complete(workdir, [lab.Cell("sum", "row")], {"sum": removing}, lab.Machine())

    with pytest.raises(SystemExit) as end:
        study_cli.run(main, "docs.examples.two_methods", ["study", f"--workdir={tmp_path / 'w'}"])
    assert end.value.code == 0 and list(tmp_path.glob("w/cells/*.npz"))


def _status(work, folder):
    """The exit status; an error that `weights.save` raises is what a command prints."""
    try:
        return work(folder)
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        return 2


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
