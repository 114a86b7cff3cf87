"""Where the time of one training step goes: forward, backward and AdamW on SmolLM2-135M's shape.

    python -m benchmarks.profile --threads=2

The compiled step runs once under jax.profiler. Each operation's own time (without what runs inside
it) goes to the part of the model whose name XLA kept with it: a fusion counts whole for the part
that its result belongs to, an operation without a name for that of its first user. Operations may
run side by side, so that their sum can exceed the step; the trace itself costs a little, which the
two totals below the table show.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks import process

# The first that is found in an operation's name.
PARTS = (
    ("attention", r"attention\._attend"),
    ("projections to q, k, v and back", r"layers/attention/.*(dot_general|checkpoint)"),
    ("rotation", r"layers/attention/"),
    ("MLP", r"layers/mlp/"),
    ("norms", r"_norm/"),
    ("loop over layers: weights and saved values", r"Llama\._layers/(while|broadcast)"),
    ("embedding, phases", r"Llama"),
    ("loss", r"jvp\("),
    ("optimizer, gradient norm", r"."),
    ("copies and other operations without a name", r""),
)
_BETWEEN = "between operations"
_EXECUTOR = "ThunkExecutor::Execute"
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)")
_COMPUTATION = re.compile(r"^%?([\w.-]+) .*{$", re.M)
_OPERATION = re.compile(r'op_name="([^"]+)"')
_CALLED = re.compile(r"calls=%?([\w.-]+)")
_WORD = re.compile(r"[\w.-]+")


def main(argv: list[str] | None = None) -> dict:
    """Measures in a process of its own, prints, writes profile.json; returns what it holds."""
    args = _parser().parse_args(argv)
    from experiments import report

    common = {"sizes": args.sizes, "threads": args.threads, "folder": ""}
    found = process.start(common | {"do": "profile", "remat": args.remat})
    report.save_json(Path(args.out) / "profile.json", found)
    title = f"One training step of {found['tokens']} tokens, remat={args.remat}"
    report.print_table(title, ("part", "forward s", "backward s", "share"), printed(found["parts"]))
    total = sum(sum(times.values()) for times in found["parts"].values())
    print(f"operations {total:.2f} s; step {found['step_seconds']:.2f} s,", end=" ")
    print(f"under the profiler {found['traced_seconds']:.2f} s")
    return found


def printed(parts: dict[str, dict[str, float]]) -> list[tuple]:
    """Cells of the table, the longest first."""
    total = sum(sum(times.values()) for times in parts.values())
    rows = sorted(parts.items(), key=lambda item: -sum(item[1].values()))
    return [
        (name, f"{t['forward']:.3f}", f"{t['backward']:.3f}", f"{sum(t.values()) / total:.1%}")
        for name, t in rows
    ]


def step_profile(sizes, remat: str) -> dict:
    """Seconds of each part of one step, in this process."""
    import jax

    from benchmarks import ours

    run, state, rest = ours.train_step(sizes, remat)
    state = jax.block_until_ready(run(state, *rest))[0]
    step_seconds, (state, _) = ours.timed(run, state, *rest)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            traced_seconds, _ = ours.timed(run, state, *rest)
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        lines = [
            [(e.start_ns, e.duration_ns, e.name) for e in line.events]
            for plane in data.planes
            for line in plane.lines
        ]
    times = sum((own_times(line) for line in lines), Counter())
    found = {"tokens": sizes.train, "remat": remat, "step_seconds": step_seconds}
    found |= {"traced_seconds": traced_seconds}
    return found | {"parts": by_part(times, operation_names(run.as_text()))}


def own_times(events: Iterable[tuple[float, float, str]]) -> Counter:
    """Per name the nanoseconds of (start, duration, name) without what lies inside, of a thread."""
    own, open_until = Counter(), []
    for start, duration, name in sorted(events, key=lambda e: (e[0], -e[1])):
        while open_until and open_until[-1][0] <= start:
            open_until.pop()
        if open_until:
            own[open_until[-1][1]] -= duration
        own[name] += duration
        open_until.append((start + duration, name))
    return own


def operation_names(hlo: str) -> dict[str, str]:
    """For each instruction of a compiled program the name of the operation it comes from.

    One that has none takes the most frequent of what it calls, else that of its first user.
    """
    names, frequent = {}, {}
    for text in hlo.split("\n}"):
        lines = [found for line in text.splitlines() if (found := _INSTRUCTION.match(line))]
        own, of_user = Counter(), {}
        for instruction, body in reversed([line.groups() for line in lines]):
            operation, called = _OPERATION.search(body), _CALLED.search(body)
            if operation:
                own[operation[1]] += 1
                name = operation[1]
            else:
                name = frequent.get(called and called[1]) or of_user.get(instruction, "")
            names[instruction] = name
            if name:
                of_user |= dict.fromkeys(_WORD.findall(body.partition(", metadata")[0]), name)
        if own and (computation := _COMPUTATION.search(text)):
            frequent[computation[1]] = own.most_common(1)[0][0]
    return names


def by_part(times: Counter, names: dict[str, str]) -> dict[str, dict[str, float]]:
    """Seconds of each part in forward and backward, of nanoseconds by instruction."""
    parts = {name: {"forward": 0.0, "backward": 0.0} for name, _ in PARTS}
    parts[_BETWEEN] = {"forward": times[_EXECUTOR] / 1e9, "backward": 0.0}
    for name, nanoseconds in times.items():
        if name in names:
            operation = names[name]
            part = next(part for part, pattern in PARTS if re.search(pattern, operation))
            way = "backward" if "transpose(" in operation else "forward"
            parts[part][way] += nanoseconds / 1e9
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = process.parser("profile")
    parser.add_argument("--remat", default="none", help="what the backward finds saved")
    return parser


if __name__ == "__main__":
    process.command_line(main)
