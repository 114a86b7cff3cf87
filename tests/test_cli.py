"""The command `longrope` and the package's door: quick, and one line for what is wrong."""

import subprocess
import sys
import warnings

import pytest

import longrope_jax
from longrope_jax import cli
from longrope_jax.commands import diff


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_imports_nothing_else():
    code = (
        "import time; began = time.perf_counter(); import longrope_jax; "
        "seconds = time.perf_counter() - began; import sys; "
        "print(seconds, *(m for m in ('jax', 'numpy', 'flax') if m in sys.modules))"
    )
    seconds, *imported = python(code)
    assert float(seconds) < 0.2 and not imported


def test_the_door_gives_its_names():
    assert set(longrope_jax.__all__) <= set(dir(longrope_jax))
    assert longrope_jax.load.__module__ == longrope_jax.Model.__module__ == "longrope_jax.model"
    assert longrope_jax.rotary.RoPE
    assert longrope_jax.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="lode"):
        longrope_jax.lode  # noqa: B018


def test_help_imports_no_command(capsys):
    code = (
        "import sys; from longrope_jax import cli; cli.main(['--help']); "
        "print(*(m for m in ('jax', 'numpy') if m in sys.modules))"
    )
    assert python(code)[-1] == "checkpoint."  # the help's last word: nothing was imported
    for argv in ([], ["--help"], ["-h"]):
        assert cli.main(argv) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == longrope_jax.__version__


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_says_how_it_is_used(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0 and f"    longrope {name} " in text
    assert cli.main([name, "--nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["explan"]) == 2
    assert "unknown command 'explan'; did you mean 'explain'?" in capsys.readouterr().err


def test_stopped_by_hand_it_prints_one_line(capsys, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stop)
    assert cli.main(["explain", "rope"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_warning_is_one_line_without_source(capsys, monkeypatch):
    def warned(_):
        warnings.warn("one\nthing", stacklevel=1)
        return 0

    monkeypatch.setattr(diff, "main", warned)
    assert cli.main(["diff", "rope", "abf"]) == 0
    assert capsys.readouterr().err == "warning: one thing\n"
