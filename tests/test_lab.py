"""What every study promises, proved once on the example study: docs/examples/two_methods.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from docs.examples import two_methods
from experiments import lab
from experiments.lab import cells as cells_lib
from experiments.lab import cli
from longrope_jax import folders, rotary
from longrope_jax.training import loop

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of four random documents."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in "abcd":
        sentences = (" ".join(rng.choice(words, 3)).capitalize() + f" {i}." for i in range(60))
        (folder / f"{name}.txt").write_text("\n\n".join(sentences))
    return folder


def overrides(text):
    return {
        "corpus": str(text),
        "length": "32",
        "steps": "6",
        "held_out": "2",
        "evaluation.length": "64",
        "machine.checkpoint_every": "2",
        "machine.log_every": "1",
    }


def tiny(text, **changes) -> ConfigDict:
    config = cli.load_config(two_methods.__file__)
    for path, value in (overrides(text) | changes).items():
        cli.override(config, path, value)
    return config


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole study."""
    folder = tmp_path_factory.mktemp("run")
    two_methods.main(tiny(text), folder, "the command")
    return folder


def arrays(folder, config):
    plan = two_methods.plan(config, folder)
    every = dict.fromkeys(cell for one in plan for cell in (*one.after, one))
    clock = ("seconds", "tokens_per_second")
    return {
        (cell.name, name): array
        for cell in every
        for name, array in lab.read(folder, cell).items()
        if name not in clock
    }


# The promises


def test_done_again_only_redraws(finished, text, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in (finished / "cells").iterdir()}
    for name in ("train", "trained", "fresh", "text"):
        monkeypatch.setattr(lab, name, lambda *_, **__: pytest.fail("works again"))
    (finished / "report.html").unlink()
    two_methods.main(tiny(text), finished, "the command")
    assert {p: p.stat().st_mtime_ns for p in (finished / "cells").iterdir()} == before
    assert "Two methods" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_killed_anywhere_it_ends_the_same(finished, text, tmp_path):
    """SIGKILL while a step of each row's training is logged, and while the cells are measured."""
    flags = [f"--config.{name}={value}" for name, value in overrides(text).items()]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    module = [sys.executable, "-m", "docs.examples.two_methods", f"--workdir={tmp_path}", *flags]
    plan = two_methods.plan(tiny(text), tmp_path)
    seed = 0
    rng = np.random.default_rng(seed)
    for cell in sorted(rng.choice(len(plan), 2, replace=False)):
        (trained,) = plan[cell].after
        log = lab.run_folder(tmp_path, trained) / "metrics.jsonl"
        lines = int(rng.integers(1, 5))
        with subprocess.Popen(module, cwd=ROOT, env=env, start_new_session=True) as process:
            try:
                wait_for_lines(log, lines)
                hit = process.poll() is None
            finally:
                os.killpg(process.pid, signal.SIGKILL)
        assert hit, f"seed {seed}: the study ended before the kill at line {lines} of {log}"
        assert not lab.path(tmp_path, plan[cell]).exists(), f"seed {seed}: killed too late"
    subprocess.run(module, cwd=ROOT, env=env, check=True)
    once, again = arrays(finished, tiny(text)), arrays(tmp_path, tiny(text))
    assert once.keys() == again.keys()
    for name, array in once.items():
        np.testing.assert_array_equal(array, again[name], err_msg=str(name))


def wait_for_lines(log, lines, seconds=120):
    end = time.monotonic() + seconds
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert time.monotonic() < end, f"{log} never had {lines} lines"
        time.sleep(0.02)


def test_other_settings_never_meet(text, tmp_path):
    """Whatever decides numbers changes names, what does not changes none."""
    names = {cell.name for cell in two_methods.plan(tiny(text), tmp_path)}
    for path, value in {
        "steps": "7",
        "length": "16",
        "corpus": "plays",
        "rows.RoPE": "nope",
    }.items():
        other = {cell.name for cell in two_methods.plan(tiny(text, **{path: value}), tmp_path)}
        assert not (names & other) if path != "rows.RoPE" else names != other, path


def test_more_seeds_and_other_evaluation_train_nothing_again(finished, text):
    trained = {c.name for c in trained_cells(two_methods.plan(tiny(text), finished))}
    more = two_methods.plan(tiny(text, seeds="3"), finished)
    new = [cell for cell in lab.missing(finished, more) if cell.kind == "train"]
    assert {cell.seed for cell in new} == {2} and len(new) == 2
    other = two_methods.plan(tiny(text, **{"evaluation.windows": "1"}), finished)
    assert {c.name for c in trained_cells(other)} == trained
    assert {cell.kind for cell in lab.missing(finished, other)} == {"loss"}


def trained_cells(plan):
    return {before for cell in plan for before in cell.after}


def test_a_bad_config_is_refused_before_any_work(text, tmp_path):
    for changes, words in (
        ({"bos": "<start>"}, ("<start>", "<bos>")),
        ({"held_out": "4"}, ("held_out",)),
        ({"corpus": str(tmp_path / "nowhere")}, ("nowhere",)),
        ({"evaluation.length": "100_000"}, ("a.txt", "tokens", "held_out")),
    ):
        with pytest.raises(ValueError) as error:
            two_methods.main(tiny(text, **changes), tmp_path / "run")
        assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run" / "runs").exists()


# Cells


def test_a_name_does_not_depend_on_the_process_or_on_how_a_number_is_written():
    cell = lab.Cell("loss", "RoPE PI", 3, (rotary.RoPE(base=500_000), 8, {"b": 1, "a": (2,)}))
    same = lab.Cell("loss", "RoPE PI", 3, (rotary.RoPE(base=5e5), 8.0, {"a": [2], "b": 1}))
    assert cell.name == same.name == "loss-rope-pi-seed3-" + cell.name[-8:]
    code = (
        "from experiments import lab; from longrope_jax import rotary; print(lab.Cell('loss', "
        "'RoPE PI', 3, (rotary.RoPE(base=500_000), 8, {'b': 1, 'a': (2,)})).name)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == cell.name


def test_what_a_cell_starts_from_is_part_of_its_name():
    before = [lab.Cell("train", "a", what=(i,)) for i in range(2)]
    names = {lab.Cell("loss", "a", after=(one,)).name for one in before}
    assert len(names) == 2


def test_a_new_option_at_its_default_renames_no_cell():
    recipe = lab.Recipe(rotary.RoPE(), 32, 6, 8, 1e-3)
    identity = lab.Cell("train", "a", what=(recipe,)).identity["what"][0][1]
    assert "sparse_group" not in identity and identity["steps"] == 6


def test_a_value_without_a_name_is_refused():
    with pytest.raises(TypeError, match="object"):
        _ = lab.Cell("loss", "a", what=(object(),)).name


def test_a_cell_is_whole_or_not_there(tmp_path):
    cells = [lab.Cell("loss", row) for row in ("a", "b")]

    def measure(cell):
        if cell.row == "b":
            raise RuntimeError("cut off")
        return {"x": np.arange(3.0)}

    with pytest.raises(RuntimeError):
        lab.complete(tmp_path, cells, {"loss": measure}, lab.Machine())
    assert lab.missing(tmp_path, cells) == [cells[1]]
    assert [p.name for p in (tmp_path / "cells").iterdir()] == [f"{cells[0].name}.npz"]
    assert lab.read(tmp_path, cells[0])["x"].tolist() == [0, 1, 2]


def test_what_a_cell_starts_from_is_made_only_if_the_cell_is_missing(tmp_path):
    first = lab.Cell("train", "a")
    second = lab.Cell("loss", "a", after=(first,))
    made = []

    def make(cell):
        made.append(cell.kind)
        return {"x": 1.0}

    functions = {"train": make, "loss": make}
    lab.complete(tmp_path, [second], functions, lab.Machine())
    lab.path(tmp_path, first).unlink()
    lab.complete(tmp_path, [second], functions, lab.Machine())
    assert made == ["train", "loss"]


def test_a_damaged_cell_says_what_to_do(tmp_path):
    cell = lab.Cell("loss", "a")
    lab.complete(tmp_path, [cell], {"loss": lambda _: {"x": np.zeros(100)}}, lab.Machine())
    file = lab.path(tmp_path, cell)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="delete"):
        lab.read(tmp_path, cell)


def test_a_changed_byte_of_a_cell_is_noticed(tmp_path):
    """Anywhere in its file: one line, or the numbers that were saved."""
    cell, saved = lab.Cell("loss", "a"), np.arange(5.0)
    lab.complete(tmp_path, [cell], {"loss": lambda _: {"x": saved}}, lab.Machine())
    file, noticed = lab.path(tmp_path, cell), 0
    whole = file.read_bytes()
    for at in range(0, len(whole), 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = lab.read(tmp_path, cell)
        except ValueError as error:
            assert str(file) in str(error) and "delete it" in str(error)
            noticed += 1
        else:
            if "x" in found:  # else its name was changed, which is an error where it is read
                np.testing.assert_array_equal(found["x"], saved)
    assert noticed > len(whole) / 6


def test_a_cell_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cells_lib, "_MOST_BYTES", 10**6)
    cell = lab.Cell("loss", "a")
    lab.complete(tmp_path, [cell], {"loss": lambda _: {"x": np.zeros(10**6, "f4")}}, lab.Machine())
    assert lab.path(tmp_path, cell).stat().st_size < 10**5
    with pytest.raises(ValueError, match="unpacks to 4,00"):
        lab.read(tmp_path, cell)


def test_each_cell_says_which_machine_made_it(tmp_path):
    cells = [lab.Cell("loss", row) for row in ("a", "b")]
    for cell, remat in zip(cells, ("none", "full"), strict=True):
        machine = lab.Machine(remat=remat)
        lab.complete(tmp_path, [cell], {"loss": lambda _: {"x": 1.0}}, machine)
    made = cells_lib.measured_by(tmp_path, cells)
    assert [group["machine"]["remat"] for group in made] == ["none", "full"]
    assert [group["cells"] for group in made] == [1, 1]


def test_nothing_is_made_where_only_a_report_is_wanted(tmp_path):
    there, absent = lab.Cell("loss", "a"), lab.Cell("loss", "b")
    lab.complete(tmp_path, [there], {"loss": lambda _: {"x": 1.0}}, lab.Machine())
    lab.complete(tmp_path, [there, absent], {"loss": pytest.fail}, lab.Machine(measure=False))
    assert lab.missing(tmp_path, [there, absent]) == [absent]


def test_a_folder_without_any_cell_has_no_report(tmp_path):
    with pytest.raises(ValueError, match=r"no cell to show.*measure"):
        cells = [lab.Cell("loss", "a")]
        lab.complete(tmp_path, cells, {"loss": pytest.fail}, lab.Machine(measure=False))
    assert not (tmp_path / "cells").exists()


def test_halves_of_files_are_removed_and_those_of_the_living_kept(tmp_path):
    """Beside cells, searches and figures, of a study that is done, too."""
    cell = lab.Cell("loss", "a")
    lab.complete(tmp_path, [cell], {"loss": lambda _: {"x": 1.0}}, lab.Machine())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid()):
        for name in (f"cells/.a.npz.{process}.tmp", f"runs/s/.s.npz.{process}.npz"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"half")
    lab.complete(tmp_path, [cell], {"loss": pytest.fail}, lab.Machine(measure=False))
    assert len(list(tmp_path.rglob(f".*.{dead.pid}.*"))) == 2  # a reader removes nothing
    lab.complete(tmp_path, [cell], {"loss": pytest.fail}, lab.Machine())
    assert not list(tmp_path.rglob(f".*.{dead.pid}.*"))
    assert len(list(tmp_path.rglob(f".*.{os.getpid()}.*"))) == 2
    assert lab.read(tmp_path, cell)


def test_a_second_process_in_a_study_is_refused(tmp_path):
    cell = lab.Cell("loss", "a")
    with folders.only_writer(tmp_path), pytest.raises(ValueError, match="another process") as error:
        lab.complete(tmp_path, [cell], {"loss": pytest.fail}, lab.Machine())
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    lab.complete(tmp_path, [cell], {"loss": lambda _: {"x": 1.0}}, lab.Machine())


def test_a_row_that_diverged_is_named(tmp_path):
    def train(cell):
        raise loop.Diverged("the run diverged at step 3")

    with pytest.raises(ValueError, match=r"train: a, seed 2: .*diverged at step 3"):
        lab.complete(tmp_path, [lab.Cell("train", "a", 2)], {"train": train}, lab.Machine())


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.parse("experiments.helix", ["--workdir=~/run"])[1] == tmp_path / "run"


# Scores and verdicts


def measured(folder, values, documents=("x", "y", "z")):
    """Cells with these values, {row: [seeds, samples]}."""
    cells = []
    for row, seeds in values.items():
        for seed, samples in enumerate(seeds):
            cell = lab.Cell("loss", row, seed)
            arrays = {"loss": np.asarray(samples), "documents": np.asarray(documents)}
            lab.complete(folder, [cell], {"loss": lambda _, a=arrays: a}, lab.Machine())
            cells.append(cell)
    return cells


def test_seeds_count_up_to_the_first_that_diverged(tmp_path):
    values = {"a": [[1, 2, 3], [1, 2, np.nan], [1, 2, 3]], "b": [[1, 1, 1]] * 3}
    found = lab.scores(tmp_path, measured(tmp_path, values), "loss")
    assert found.values["a"].shape == (1, 3) and found.values["b"].shape == (3, 3)


def test_rows_are_paired_on_the_documents_that_both_have(tmp_path):
    a = measured(tmp_path, {"a": [[1.0, 2.0, 3.0]]})
    b = measured(tmp_path, {"b": [[9.0, 1.0, 0.0]]}, documents=("w", "y", "x"))
    between = lab.difference(lab.scores(tmp_path, [*a, *b], "loss"), "a", "b")
    assert between.estimate == pytest.approx(((1 - 0) + (2 - 1)) / 2)


def test_one_document_gives_no_interval(tmp_path):
    cells = measured(tmp_path, {"a": [[1.0]], "b": [[2.0]]}, documents=("x",))
    found = lab.scores(tmp_path, cells, "loss")
    assert found.interval("a") is None and lab.against(found, "a") == {"b": None}
    assert lab.check({"loss": found}, "loss: a - b < 0").verdict == "indistinguishable"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("loss: a - b < 0", "holds"),
        ("loss: a - b > 0", "reversed"),
        ("loss: |a - b| <= 5", "holds"),
        ("loss: |a - b| <= 0.1", "reversed"),
        ("loss: a - 0.5 > 0", "holds"),
        ("loss: a - c > 0", "not run"),
    ],
)
def test_a_check_says_what_its_interval_says(tmp_path, text, verdict):
    values = {"a": [[1.0, 1.1, 0.9]] * 3, "b": [[2.0, 2.2, 1.9], [2.1, 2.2, 2.0], [2.0, 2.1, 2.0]]}
    found = lab.scores(tmp_path, measured(tmp_path, values), "loss")
    assert lab.check({"loss": found}, text).verdict == verdict


def test_a_failed_gate_makes_a_claim_untestable_never_reversed(tmp_path):
    found = lab.scores(
        tmp_path, measured(tmp_path, {"a": [[1.0, 1, 1]], "b": [[2.0, 2, 2]]}), "loss"
    )
    claims = {
        "open": {"claim": "", "gates": ("loss: b - a > 0",), "checks": ("loss: a - b > 0",)},
        "shut": {"claim": "", "gates": ("loss: a - b > 0",), "checks": ("loss: a - b > 0",)},
    }
    assert [h.verdict for h in lab.judged(claims, {"loss": found})] == [
        "reversed",
        "not testable here",
    ]


def test_a_cell_has_one_name_on_all_machines():
    """A power may differ in its last digits between processors; that changes no name."""
    names = [
        lab.Cell("loss", "a", what=(factor,)).name
        for factor in (2.045222871202537, 2.0452228712025367, 2.0452228713, float("inf"))
    ]
    assert names[0] == names[1] and len(set(names)) == 3


def test_checks_of_one_hypothesis_are_decided_one_after_the_other():
    """Holm's rule: what 95 % decides alone is not decided beside a clearer check, nor after it."""
    rng = np.random.default_rng(0)
    documents = np.arange(40)
    noise = rng.normal(0, 1, (1, 40))
    noise -= noise.mean()
    t = stats.t.ppf(0.975, 39) * noise.std(ddof=1) / 40**0.5
    rows = {"zero": 0 * noise, "clear": noise + 9 * t, "near": noise + 1.06 * t}
    found = {"loss": lab.Scores(rows, dict.fromkeys(rows, documents))}
    near, clear = "loss: near - 0 > 0", "loss: clear - 0 > 0"
    assert lab.check(found, near).verdict == "holds"
    assert [one.verdict for one in lab.holm(found, [near])] == ["holds"]
    assert [one.verdict for one in lab.holm(found, [near, clear])] == ["holds", "holds"]
    # Two checks as near as that: the first is decided at 97.5 % and is not, so neither is.
    both = lab.holm(found, [near, "loss: near - 0.001 > 0"])
    assert [one.verdict for one in both] == ["indistinguishable"] * 2
    # A check that cannot be run takes no confidence from the others.
    beside = lab.holm(found, [near, "loss: gone - 0 > 0"])
    assert [one.verdict for one in beside] == ["holds", "not run"]


def test_seeds_may_begin_at_any_number(tmp_path):
    values = [np.asarray([1.0, 2.0]), np.asarray([3.0, 4.0])]
    every = [lab.Cell("loss", "a", seed, ("x",)) for seed in (99, 100)]
    for cell, value in zip(every, values, strict=True):
        lab.path(tmp_path, cell).parent.mkdir(exist_ok=True)
        np.savez(lab.path(tmp_path, cell), loss=value, documents=["x", "y"])
    np.testing.assert_array_equal(lab.scores(tmp_path, every, "loss").values["a"], values)


def test_the_text_of_a_check_is_refused_before_the_run():
    for text, words in (
        ("loss: a - b", "cannot read"),
        ("los: a - b > 0", "did you mean 'loss'"),
        ("loss: a - c > 0", "unknown row 'c'"),
        ("loss: a - b > -1", "must not be negative"),
    ):
        with pytest.raises(ValueError, match=words):
            lab.check_text(text, ["loss"], ["a", "b"])


# The command line


def config():
    row = {"method": "rope", "seeds": 1}
    fields = {"rows": {"RoPE, lr 1/2": row}, "row_defaults": row, "steps": 5, "rate": 0.1}
    fields |= {"names": ("a",), "held_out": 3, "draw": True, "loss": {"1": {"length": 4}}}
    return ConfigDict(fields)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "1_000", 1000),
        ("rate", "1e-3", 1e-3),
        ("draw", "False", False),
        ("names", "('b', 'c')", ("b", "c")),
        ("names", "'b'", ("b",)),
        ("held_out", "('a.txt', 'b.txt')", ("a.txt", "b.txt")),
        ("loss.1.length", "8", 8),
        ("rows.RoPE, lr 1/2.method", "pi:factor=8,base=1e4", "pi:factor=8,base=1e4"),
        ("rows.YaRN.method", "yarn:factor=8", "yarn:factor=8"),
    ],
)
def test_any_field_can_be_overridden(path, text, value):
    changed = config()
    cli.override(changed, path, text)
    node = changed
    for name in path.split("."):
        node = node[name]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("stepz", "5", ("stepz", "steps")),
        ("rows.YaRN.methd", "x", ("methd", "method", "config.rows.YaRN")),
        ("loss.2.length", "5", ("'2'", "config.loss")),
        ("steps.more", "5", ("steps", "single value")),
        ("steps", "five", ("--config.steps", "'five'", "whole number")),
        ("draw", "perhaps", ("--config.draw", "true or false")),
        ("names", "a", ("--config.names", "tuple")),
        ("rows", "x", ("--config.rows", "fields")),
    ],
)
def test_a_bad_override_names_the_field_and_the_way_out(path, text, words):
    with pytest.raises(ValueError) as error:
        cli.override(config(), path, text)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("--workdir",)),
        (["--workdir=x", "--confg=y"], ("confg", "config")),
        (["--workdir=x", "y"], ("'y'", "--config.FIELD=VALUE")),
        (["--workdir=x", "--config=nowhere.py"], ("no config nowhere.py below",)),
        (
            ["--workdir=x", "--config=configs/base_frequency.py:cpu"],
            ("did you mean configs/base_frequency_ablation.py?",),
        ),
        (
            ["--workdir=x", "--config=configs/base_frequency_ablation.py", "--config.seeds=3"],
            ("'seeds'", "there is --config.row_defaults.seeds"),
        ),
        (["--workdir=x", "--config.steps"], ("config.steps", "needs a value")),
    ],
)
def test_a_bad_command_line_is_one_line_that_says_what_to_do(arguments, words):
    with pytest.raises(ValueError) as error:
        cli.parse("docs.examples.two_methods", arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_a_study_may_lie_in_any_folder_that_python_finds(tmp_path, monkeypatch):
    (tmp_path / "my_own_study.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'steps': 3})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config, _ = cli.parse("my_own_study", [f"--workdir={tmp_path}", "--config.steps=4"])
    assert config.steps == 4
    with pytest.raises(ValueError) as error:
        cli.parse("nobodys.study", [f"--workdir={tmp_path}"])
    assert all(word in str(error.value) for word in ("nobodys.study", "python -m", "--config"))


def test_a_workdir_that_cannot_be_used_is_refused_at_once(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    access = os.access
    # Root, as whom tests may run, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    for workdir, words in (
        (closed / "new" / "folder", ("no permission", str(closed))),
        (__file__, ("is a file",)),
    ):
        with pytest.raises(ValueError) as error:
            cli.parse("docs.examples.two_methods", [f"--workdir={workdir}"])
        assert all(word in str(error.value) for word in ("--workdir", *words)), error.value
    assert not list(closed.iterdir())


def test_errors_and_interrupts_are_one_line(capsys):
    def stop(*_):
        raise KeyboardInterrupt

    def refuse(*_):
        raise ValueError("one\nreason")

    def overflow(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore")

    memory = "error: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes. --config"
    cases = ((refuse, 2, "error: one reason\n"), (stop, 130, "goes on"), (overflow, 2, memory))
    for main, status, words in cases:
        with pytest.raises(SystemExit) as end:
            cli.run(main, "docs.examples.two_methods", ["study", "--workdir=x"])
        assert end.value.code == status and words in capsys.readouterr().err


# The report


def test_a_report_contains_its_tables_figures_claims_and_who_made_them(finished):
    page = (finished / "report.html").read_text()
    for words in ("minus RoPE", "data:image/png;base64", "nats.", "jaxlib", "the command"):
        assert words in page
    assert (finished / "loss.csv").read_text().startswith("row,loss,minus RoPE\n")
    assert (finished / "loss_by_position.png").stat().st_size < 300_000
