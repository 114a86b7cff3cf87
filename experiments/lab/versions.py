"""Versions that a result depends on."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def versions() -> dict[str, str | None]:
    """Python, packages, device kind, and the git commit (`-dirty` if changed) or None."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "commit": commit(_ROOT),
    }


def commit(root: Path) -> str | None:
    """The commit of the checkout at `root`; None where there is none."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # The folder may lie inside somebody else's checkout.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
