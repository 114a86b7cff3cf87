"""What is installed is one package that works by itself: the wheel, in a clean environment."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from checkpoints import tokenizer_json, write

ROOT = Path(__file__).parents[1]
SOURCES = ("longrope_jax", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command, **options):
    """What a command prints; an error with its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment that has the wheel, and of everything else what this one has."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a copy: a build in the checkout would find what earlier builds left
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder)]
    run(*pip, "wheel", *build)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env/bin/python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    # Dependencies come from here; a path in a .pth file brings none of the links of this
    # environment's own editable installation.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python, site


@pytest.fixture
def work(installed, tmp_path, monkeypatch):
    """Runs the installed commands in an empty folder, with no path to the checkout."""
    python, _ = installed
    monkeypatch.chdir(tmp_path)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = clean | {"JAX_PLATFORMS": "cpu"}
    return lambda program, *words: run(python.parent / program, *words, env=environment)


@pytest.mark.slow
def test_only_the_package_is_installed(installed):
    _, site = installed
    found = {path.name for path in site.iterdir()} - {"__pycache__", "dependencies.pth"}
    assert found == {"longrope_jax", next(n for n in found if n.endswith(".dist-info"))}
    assert (site / "longrope_jax/py.typed").exists()


@pytest.mark.slow
def test_the_installed_package_is_imported_from_there(installed, work):
    _, site = installed
    where = work("python", "-c", "import longrope_jax; print(longrope_jax.__file__)")
    assert Path(where.strip()).is_relative_to(site)


@pytest.mark.slow
def test_the_command_explains_a_method(work, tmp_path):
    config = {"rope_theta": 1e4, "head_dim": 64, "max_position_embeddings": 8192}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert "YaRN" in work("longrope", "explain", "yarn:factor=4,original_length=4096")
    assert "rope" in work("longrope", "explain", "config.json").lower()


@pytest.mark.slow
def test_the_command_generates_from_a_checkpoint(work, tmp_path):
    path, _ = write(tmp_path, "hf")
    (path / "tokenizer.json").write_text(tokenizer_json())
    flags = ["--prompt", "the cat", "--max-new-tokens", "4"]
    assert work("longrope", "generate", str(path), *flags).strip()
