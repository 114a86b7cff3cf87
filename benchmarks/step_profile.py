"""One training step under jax.profiler, its time by part of the model: what `profile` prints."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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
