"""What every experiment shares: versions, result files, figures, tables, the HTML report."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from experiments.figures import colours, save_figure, style, subplots
from experiments.files import save_csv, save_json
from experiments.page import Figure, Section, Table, Text, cell, write_html

__all__ = [
    "Figure",
    "Section",
    "Table",
    "Text",
    "cell",
    "colours",
    "print_table",
    "save_csv",
    "save_figure",
    "save_json",
    "style",
    "subplots",
    "versions",
    "write_html",
]


def versions() -> dict[str, str | None]:
    """Python, packages, device kind, and the git commit (`-dirty` if changed) or None."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
        "commit": _commit(Path(__file__).resolve().parents[1]),
    }


def _commit(root: Path) -> str | None:
    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package can lie inside somebody else's checkout.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table to the terminal; brackets in cells are text, not markup."""
    table = RichTable(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(RichText(cell(value)) for value in row))
    console = Console()
    if not (console.is_terminal or console.is_jupyter):
        # A log file has no width to fold a row at.
        console = Console(width=160)
    console.print(table)
