"""Cells made side by side: the files of one after another, and no process outlives its study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import lab
from experiments.lab import processes
from experiments.lab.cells import record

ROOT = Path(__file__).parents[1]
TWO = lab.Machine(processes=2, data=1)

pytestmark = pytest.mark.skipif(len(processes._cores()) < 2, reason="one core")


def chain(seed):
    """Three cells that stand on one another, and one beside them."""
    first = lab.Cell("draw", "first", seed)
    second = lab.Cell("draw", "second", seed, after=(first,))
    third = lab.Cell("draw", "third", seed, after=(second, first))
    return [first, third, second, lab.Cell("pid", "side", seed, after=(first,))]


def draw(cell):
    return {"x": np.random.default_rng([cell.seed, len(cell.row)]).normal(size=3)}


def pid(cell):
    return {"pid": np.int64(os.getpid()), "cores": np.int64(len(processes._cores()))}


def refuse(cell):
    if cell.seed == 1:
        raise ValueError("seed 1 cannot be drawn")
    time.sleep(30)
    return {}


def die(cell):
    if cell.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return pid(cell)


CELLS = [cell for seed in range(3) for cell in chain(seed)]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 9), max_size=3)), max_size=12),
    st.integers(1, 4),
)
def test_cells_that_stand_on_one_another_go_to_one_process_in_order(links, count):
    cells = {}
    for number, before in links:
        after = tuple(cells[i] for i in sorted(before) if i in cells and i != number)
        cells.setdefault(number, lab.Cell("draw", str(number), after=after))
    cells = list(cells.values())
    shares = processes.shares(cells, count)
    assert len(shares) <= count and all(shares)
    process = {cell: i for i, share in enumerate(shares) for cell in share}
    assert len(process) == len(cells) == sum(map(len, shares))
    assert all(process[before] == process[cell] for cell in cells for before in cell.after)
    assert all(share == sorted(share, key=cells.index) for share in shares)


@pytest.mark.slow
def test_several_processes_make_the_files_of_one(tmp_path, capsys):
    functions = {"draw": draw, "pid": pid}
    lab.complete(tmp_path / "one", CELLS, functions, lab.Machine(data=1))
    lab.complete(tmp_path / "two", CELLS, functions, TWO)
    made_by = set()
    for cell in CELLS:
        one, two = (lab.read(tmp_path / name, cell) for name in ("one", "two"))
        if cell.kind == "draw":
            np.testing.assert_array_equal(one["x"], two["x"])
        else:
            made_by.add((cell.seed, int(two["pid"])))
            assert int(two["cores"]) < int(one["cores"])
    assert len(made_by) == 3 and len({number for _, number in made_by}) == 2
    assert os.getpid() not in {number for _, number in made_by}
    assert record(tmp_path / "two", CELLS[0])["machine"]["processes"] == 2
    assert "|" in capsys.readouterr().out


@pytest.mark.slow
def test_what_one_process_cannot_make_stops_all(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^seed 1 cannot be drawn$"):
        lab.complete(tmp_path, [lab.Cell("x", "a", seed) for seed in range(2)], {"x": refuse}, TWO)
    assert time.monotonic() - began < 25  # the other would sleep for 30


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_next_start_goes_on(tmp_path):
    cells = [lab.Cell("x", "a", seed) for seed in range(2)]
    with pytest.raises(ValueError, match="ended with -9: the same command goes on"):
        lab.complete(tmp_path, cells, {"x": die}, TWO)
    lab.complete(tmp_path, cells, {"x": pid}, TWO)
    assert all(lab.read(tmp_path, cell) for cell in cells)


@pytest.mark.parametrize(
    "count, message", [(0, "at least one"), (10**6, "cores, and each process takes")]
)
def test_more_processes_than_cores_are_refused(tmp_path, count, message):
    with pytest.raises(ValueError, match=message):
        lab.complete(tmp_path, CELLS, {"draw": draw, "pid": pid}, lab.Machine(processes=count))


def test_work_that_cannot_go_to_another_process_is_refused(tmp_path):
    functions = {"draw": lambda cell: draw(cell), "pid": pid}
    with pytest.raises(ValueError, match=r"cannot give its work.*processes=1"):
        lab.complete(tmp_path, CELLS, functions, TWO)


STUDY = """
import os, signal, sys, time
from pathlib import Path
from experiments import lab
from longrope_jax.training.termination import asked_to_stop

HERE = Path(sys.argv[1])

def make(cell):
    with asked_to_stop() as stop:
        (HERE / f"{os.getpid()}.began").touch()
        while not stop.asked():
            time.sleep(0.01)
        (HERE / f"{os.getpid()}.saved").touch()
    raise SystemExit(stop.status)

def main(config, folder, command):
    cells = [lab.Cell("x", "a", seed) for seed in range(2)]
    lab.complete(folder, cells, {"x": make}, lab.Machine(processes=2))

if __name__ == "__main__":
    # A run in the background of a shell inherits that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = "--config=configs/helix.py"
    lab.run(main, "experiments.helix", ["study", config, f"--workdir={HERE / 'work'}"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_processes_end_with_their_study_and_save_where_there_is_time(tmp_path, number, status):
    script = tmp_path / "study.py"
    script.write_text(STUDY)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    study = subprocess.Popen(
        [sys.executable, script, tmp_path], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(began := [int(file.stem) for file in tmp_path.glob("*.began")]) < 2:
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    study.send_signal(number)
    if number == signal.SIGTERM:  # as `timeout` does
        study.send_signal(number)
    assert study.wait(timeout=60) == status
    while any(map(_runs, began)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Traceback" not in study.stderr.read()
    saved = {int(file.stem) for file in tmp_path.glob("*.saved")}
    assert saved == (set() if number == signal.SIGKILL else set(began))


def _runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
