"""What many small training steps cost: steps per dispatch, and an allocator that keeps its memory.

    python -m benchmarks.dispatch

Trains the model of the ablation's `cpu` preset by `loop.fit` with 1 and with 10 steps per dispatch,
with glibc's default allocator and with the Makefile's settings, each in its own process by turns.
Prints tokens per second of CPU time, which other work on the machine disturbs less than wall time,
the kernel's share of it, and page faults per step; writes dispatch.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import process

ALLOCATORS = {"default": {}, "keeps memory": process.KEEP_MEMORY}
STEPS = (1, 10)
WARM, STEPS_TIMED = 20, 100
B, T = 32, 64


def main(argv: list[str] | None = None) -> list[dict]:
    """Measures, prints, writes dispatch.json; returns what it holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch")
    parser.add_argument("--processes", type=int, default=3, help="of each setting, by turns")
    parser.add_argument("--out", default="docs/results/benchmarks", metavar="DIR")
    args = parser.parse_args(argv)
    from experiments import lab
    from experiments.lab import files, reports

    settings = [(name, steps) for name in ALLOCATORS for steps in STEPS]
    found = {setting: [] for setting in settings}
    for _ in range(args.processes):
        for setting in settings:
            found[setting].append(_in_process(*setting))
    first = statistics.median(x["tokens_per_cpu_second"] for x in found[settings[0]])
    lines = []
    for (allocator, steps), runs in found.items():
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        ratio = median["tokens_per_cpu_second"] / first
        lines.append({"allocator": allocator, "steps per dispatch": steps, "ratio": ratio} | median)
    title = f"Steps of {B} x {T} tokens; ratio of tokens per CPU second to the first line"
    reports.print_table(lab.table(lines, title))
    files.save_json(Path(args.out) / "dispatch.json", lines)
    return lines


def _in_process(allocator: str, steps: int) -> dict[str, float]:
    """The numbers of one setting, from a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | ALLOCATORS[allocator]
    code = (
        f"import json; from benchmarks import dispatch; print(json.dumps(dispatch.time({steps})))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=process.ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"{allocator}, {steps} steps: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


class _Data:
    """The same batch for ever, so that only the steps are timed."""

    def __next__(self):
        import numpy as np

        tokens = np.arange(B * (T + 1), dtype=np.int32).reshape(B, T + 1) % 256
        ones, zeros = np.ones((B, T), np.float32), np.zeros((B, T), np.int32)
        return {"tokens": tokens, "weights": ones, "segment_start": zeros}

    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        pass


def time(steps_per_dispatch: int) -> dict[str, float]:
    """Trains in this process; tokens per CPU second, the kernel's share, page faults per step."""
    import jax

    from configs import base_frequency_ablation as configs
    from experiments.base_frequency_cells import shape
    from longrope_jax import rotary, sharding
    from longrope_jax.training import loop, optimizer, step

    config, mesh = (
        shape(configs.get_config("cpu"), vocab=2048),
        sharding.make_mesh(devices=jax.devices()[:1]),
    )
    adamw = optimizer.OptimizerConfig(3e-3, 10_000, warmup_steps=40)
    rot = rotary.make(rotary.RoPE(), head_dim=config.head_dim, seq_len=T)
    marks = {}

    def note(done: int, _: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        marks[done] = used.ru_utime, used.ru_stime, used.ru_minflt

    last = WARM + STEPS_TIMED
    every = loop.LoopConfig(
        last + 10,
        log_every=last + 10,
        checkpoint_every=last + 10,
        steps_per_dispatch=steps_per_dispatch,
        tensorboard=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        loop.fit(
            step.init_state(config, adamw, mesh),
            step.make_train_step(config, adamw, mesh),
            _Data(),
            rotary=rot,
            loop=every,
            mesh=mesh,
            directory=folder,
            on_step=note,
        )
    user, kernel, faults = (b - a for a, b in zip(marks[WARM], marks[last], strict=True))
    return {
        "tokens_per_cpu_second": B * T * STEPS_TIMED / (user + kernel),
        "kernel_share": kernel / (user + kernel),
        "page_faults_per_step": faults / STEPS_TIMED,
    }


if __name__ == "__main__":
    process.command_line(main)
