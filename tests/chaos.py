"""Kills a study, a fetch and an export at random moments, and compares with undisturbed ones.

    python tests/chaos.py --minutes 10 --seed 0

Each round begins in an empty folder and is killed up to six times by SIGKILL, SIGTERM or SIGINT;
then it is left alone. What it comes to must be equal bit for bit, with nothing half written beside
it, and a process that was asked to end must have said so in one line. Processes are forked from
one that has imported everything, so that most kills meet work.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from docs.examples import two_methods
from experiments.lab import cli
from longrope_jax import llama, rotary, runs, weights
from longrope_jax.data import archives
from longrope_jax.training import metrics
from longrope_jax.training.checkpoints import params_shapes, restore_params

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHAPE = llama.LlamaConfig(260, 16, 1, 2, 2, 8, 32)
CONFIG = {
    "steps": 12,
    "seeds": 1,
    "length": 64,
    "held_out": 2,
    "evaluation.length": 64,
    "evaluation.windows": 1,
    "machine.checkpoint_every": 2,
    "machine.log_every": 1,
    "machine.steps_per_dispatch": 1,
}
CONTENT = bytes(range(256)) * 2000


def text(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdef":
        lines = (" ".join(rng.choice(["amber", "brook", "cedar"], 3)) for _ in range(80))
        words = "\n\n".join(f"{line.capitalize()} {i}." for i, line in enumerate(lines))
        (folder / f"{name}.txt").write_text(words)
    return folder


def study(folder: Path) -> None:
    """Training, checkpoints, scoring and publishing."""
    two_methods.SHAPE = SHAPE
    flags = [f"--config.{k}={v}" for k, v in CONFIG.items()]
    flags += [f"--config.corpus={folder.parent / 'text'}", f"--workdir={folder}"]
    cli.run(two_methods.main, "docs.examples.two_methods", ["chaos", *flags])


def fetch(folder: Path) -> None:
    """Fetching an archive, from a client that writes it piece by piece."""
    source = archives.Archive("pip", "none", "1", "none.whl", hashlib.sha256(CONTENT).hexdigest())

    def slow(source, target, kept):
        with target.open("wb") as file:
            for start in range(0, len(CONTENT), 50_000):
                file.write(CONTENT[start : start + 50_000])
                file.flush()
                time.sleep(0.02)

    archives._fetch = slow
    cli.run(lambda *_: archives.fetch_archive(source, folder), "chaos", _plain(folder))


def export(folder: Path) -> None:
    """Writing a checkpoint for transformers."""

    def write(*_):
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: llama.init_params(_LARGE, jax.random.key(0)))
        params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)
        if not (folder / "out").exists():
            weights.save(folder / "out", _LARGE, params, rotary.RoPE())

    cli.run(write, "chaos", _plain(folder))


_LARGE = llama.LlamaConfig(2000, 512, 4, 8, 8, 64, 2048)
WORK = {"study": study, "fetch": fetch, "export": export}


def _plain(folder: Path) -> list[str]:
    config = "docs/examples/two_methods.py"
    return ["chaos", f"--config={config}", f"--workdir={folder}"]


def outcome(folder: Path) -> dict[str, str]:
    """Digests of all that must be equal, by name; what tells the time is left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith(".") and path.name != ".lock":
            found[f"left behind: {name}"] = ""
        if path.is_dir() or "checkpoints" in path.parts or "tensorboard" in path.parts:
            continue
        if path.suffix == ".npz":
            with np.load(path) as saved:
                arrays = {k: saved[k] for k in saved.files if k not in _CLOCK}
            found[name] = _digest(*(k.encode() + a.tobytes() for k, a in arrays.items()))
        elif path.name == "metrics.jsonl":
            lines = metrics.read(path.parent)
            kept = [{k: v for k, v in x.items() if k not in metrics.WALL_CLOCK} for x in lines]
            found[name] = _digest(json.dumps(kept).encode())
        elif path.suffix in (".csv", ".png", ".safetensors", ".whl") or path.name == "config.json":
            found[name] = _digest(path.read_bytes())
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for kept in sorted(folder.glob("runs/*/checkpoints")):
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), params_shapes(kept)
        )
        leaves = jax.tree.leaves(restore_params(kept, like))
        found[str(kept.relative_to(folder))] = _digest(
            *(p.name.encode() for p in sorted(kept.iterdir())),
            *(np.asarray(x).tobytes() for x in leaves),
            repr(runs.load(kept.parent)).encode(),
        )
    return found


_CLOCK = ("record", *metrics.WALL_CLOCK)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def forked(work, folder: Path, log: Path) -> int:
    """Starts `work` in a process of its own, whose words go to a file; returns the process."""
    process = os.fork()
    if process:
        return process
    # The parent's handlers and files are not the child's.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    status = 1
    try:
        work(folder)
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def result(folder: Path, log: Path) -> dict[str, str]:
    """The outcome, read in a process of its own, since the parent touches no device."""

    def read(folder):
        log.with_suffix(".json").write_text(json.dumps(outcome(folder)))

    status = os.waitpid(forked(read, folder, log), 0)[1]
    if status:
        raise RuntimeError(f"the outcome cannot be read: {log.read_text()}")
    return json.loads(log.with_suffix(".json").read_text())


def chaos(seed: int, *, minutes: float, kills: int = 10**9) -> dict[str, collections.Counter]:
    """Counts of rounds, kills by signal and faults for each kind of work.

    Args:
        seed: of works, signals and moments.
        minutes: to go on for.
        kills: to stop after.
    """
    rng, counts = random.Random(seed), {name: collections.Counter() for name in WORK}
    with tempfile.TemporaryDirectory(prefix="chaos") as root:
        root = Path(root)
        text(root / "text")
        expected, took = {}, {}
        for name, work in WORK.items():
            for _ in range(2):  # the first compiles
                shutil.rmtree(root / name, ignore_errors=True)
                (root / name).mkdir()
                began = time.monotonic()
                status = os.waitpid(forked(work, root / name, root / "log"), 0)[1]
                took[name] = time.monotonic() - began
                assert status == 0, (root / "log").read_text()
            expected[name] = result(root / name, root / "log")
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until and sum(c["kills"] for c in counts.values()) < kills:
            name = rng.choice(list(WORK))
            took[name] = _round(name, root, rng, took[name], counts[name], expected[name])
            total = sum(counts.values(), collections.Counter())  # said now, since one may be killed
            print(f"{total['kills']} kills, {total['faults']} faults", flush=True)
    return counts


def _round(name, root, rng, took, count, expected) -> float:
    """One folder's kills and its end; returns the longest wait before the next round's kills."""
    folder, log = root / "round", root / "log"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for _ in range(rng.randint(1, 6)):
        sent, process = rng.choice(SIGNALS), forked(WORK[name], folder, log)
        time.sleep(rng.uniform(0.02, took))
        os.kill(process, sent)
        status = os.waitpid(process, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            count["ended before"] += 1
            took = max(0.8 * took, 0.1)  # the machine was busier when it was measured
            break
        took *= 1.1
        count["kills"] += 1
        count[sent.name] += 1
        said = log.read_text()
        if "Traceback" in said or (sent == signal.SIGINT and "goes on" not in said):
            _fault(count, f"{name}: {sent.name} said {said[-1500:]!r}")
    status = os.waitpid(forked(WORK[name], folder, log), 0)[1]
    count["rounds"] += 1
    if status:
        _fault(count, f"{name} does not go on: {log.read_text()[-1500:]}")
        return took
    found = result(folder, log)
    if found != expected:
        wrong = [k for k in expected | found if expected.get(k) != found.get(k)]
        _fault(count, f"{name} differs in {wrong}")
    return took


def _fault(count, what: str) -> None:
    count["faults"] += 1
    print(what, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10**9)
    options = parser.parse_args()
    counts = chaos(options.seed, minutes=options.minutes, kills=options.kills)
    for name, count in counts.items():
        print(name, dict(count))
    sys.exit(any(count["faults"] for count in counts.values()))


if __name__ == "__main__":
    main()
