"""A study on several hosts: hosts_driver.py MODE ADDRESS PROCESS COUNT WORKDIR.

Four CPU devices in all, or one where COUNT is 1. MODE `train` trains a tiny model by the studies'
own path on each of the meshes, `study` is a whole study, `stopped` the same until the last host is
told to end in its first training, `disagree` prints what is refused, `forever` trains until killed.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import curriculum as presets
from experiments import curriculum, lab
from experiments.lab import progress
from experiments.lab.versions import versions
from longrope_jax import hosts, llama, rotary, weights
from longrope_jax.data import documents, tokenizers
from longrope_jax.data.corpora import Document

MESHES = {
    1: [{"data": 1}],
    2: [{"data": 2, "tensor": 2}, {"sequence": 4}],
    4: [{"fsdp": 2, "sequence": 2}, {"tensor": 4}],
}
# Two key heads and 261 tokens divide over no tensor axis of four.
CONFIG = llama.LlamaConfig(261, 16, 1, 4, 2, 8, 32)
LENGTH, LOST = 32, 5
ARM = "switch at 40%, base too"


def recipe(steps=3):
    return lab.Recipe(rotary.RoPE(100.0), LENGTH, steps, 4, 1e-2, warmup_steps=1)


def text(seed=0):
    tokenizer, rng = tokenizers.ByteTokenizer(), np.random.default_rng(seed)
    made = []
    for name in "abc":
        words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(60)]
        one = Document(name, " ".join(f"{word.title()} {word}." for word in words))
        made.append(documents.tokenize_document(one, tokenizer, min_tokens=4, max_tokens=40))
    return lab.Text(tokenizer, "<bos>", tuple(made[1:]), tuple(made[:1]))


def machine(mesh):
    return lab.Machine(**{"data": 1} | mesh, accumulation=2, log_every=1, steps_per_dispatch=1)


def train(folder, cell, mesh, steps=3, seed=0):
    on = machine(mesh)
    model = lab.fresh(CONFIG, tokenizers.ByteTokenizer(), rotary.RoPE(100.0), on, seed=1)
    run = lab.run_folder(folder, cell)
    losses = lab.train(model, recipe(steps), text(seed), run, on)["loss"]
    params = lab.trained(run, on).params
    with jax.set_mesh(on.mesh()):
        whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(on.mesh(), jax.P()))(params)
    return {"loss": losses, **_flat(whole)}


def _flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True): np.asarray(x) for path, x in leaves}


def cell(mesh):
    return lab.Cell("train", "x".join(f"{a}{n}" for a, n in mesh.items()), what=(str(mesh),))


def train_all(folder, process, count):
    for mesh in MESHES[count]:
        functions = {"train": lambda cell, mesh=mesh: train(folder, cell, mesh)}
        lab.complete(folder, [cell(mesh)], functions, machine(mesh))


def forever(folder, process, count):
    """Until it is killed; the hosts exchange gradients in every step."""
    print("begins", flush=True)
    train(folder, cell({}), MESHES[count][0], steps=100_000)


def disagree(folder, process, count):
    on, second = machine(MESHES[count][0]), process == 1
    functions = {"train": lambda _: {}}

    def other_versions():
        known = versions()
        known["numpy"] = f"1.{process}"
        try:
            lab.complete(folder, [], functions, on)
        finally:
            known["numpy"] = np.__version__

    def export():
        model = lab.fresh(CONFIG, tokenizers.ByteTokenizer(), rotary.RoPE(100.0), on, seed=1)
        out = folder / "exported" / str(process)
        try:
            weights.save(out, CONFIG, model.params, model.method)
        finally:
            assert not out.parent.exists(), "something was written"

    cases = {
        "config": lambda: lab.complete(folder, [cell({"data": 4 + second})], functions, on),
        "versions": other_versions,
        "corpus": lambda: train(folder, cell({}), MESHES[count][0], seed=process),
        "folder": lambda: lab.complete(folder / str(process), [], functions, on),
        "export": export,
    }
    hosts.agree({"work": "the same"})
    for name, case in cases.items():
        try:
            case()
            print(f"{name}: nothing was said", flush=True)
        except ValueError as error:
            print(f"{name}: {error}", flush=True)


def study(folder, process, count):
    """The tiny curriculum of one seed and two arms, as its command runs it."""
    config = presets.get_config("tiny")
    config.seeds, config.rows = 1, {row: config.rows[row] for row in ("long throughout", ARM)}
    config.hypotheses = {}
    config.machine = dict(config.machine) | {"steps_per_dispatch": 1, "multihost": count > 1}
    curriculum.main(config, folder, "curriculum")


def stopped(folder, process, count):
    before = progress.step

    def step(done, *rest):
        before(done, *rest)
        if done == 3 and process == count - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    progress.step = step
    study(folder, process, count)


def main(mode, address, process, count, folder):
    process, count = int(process), int(count)
    jax.config.update("jax_num_cpu_devices", max(1, 4 // count if count > 1 else 1))
    modes = {"train": train_all, "forever": forever, "disagree": disagree}
    work = (modes | {"study": study, "stopped": stopped})[mode]

    def run(config: ConfigDict, workdir: Path, command: str):
        if count > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            where = {"num_processes": count, "process_id": process}
            late = 3 if address.endswith("late") else 120
            # A busy machine may leave a host without a turn for seconds.
            lost = LOST if mode == "forever" else hosts.LOST
            hosts.start(
                late=late, lost=lost, coordinator_address=address.removesuffix("late"), **where
            )
        work(workdir, process, count)

    lab.run(run, "hosts_driver", ["", f"--workdir={folder}"])


def get_config():
    return ConfigDict({"machine": {}})


if __name__ == "__main__":
    main(*sys.argv[1:])
