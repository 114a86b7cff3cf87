"""Makes the notebooks of this folder from colab/sources: written, executed, kept with outputs.

    python -m colab.build [NAME ...]      # all, or those whose names begin so
    LONGROPE_TINY=1 python -m colab.build --check    # executes small, writes nothing
    python -m colab.build --text     # executes nothing: new words and first cells, old outputs

Needs the extra `notebooks`. Only the sources, percent scripts of jupytext, are edited by hand. The
first cell comes from colab/first_cell.txt and the public address in setup.cfg's project_urls, from
which each notebook gets its badge too.
"""

import sys
import time
from pathlib import Path

from docs.tools.site import address

COLAB = Path(__file__).parent
ROOT = COLAB.parent
LIMIT = 300_000  # bytes of a notebook


def sources() -> list[Path]:
    """Returns the sources in order."""
    return sorted((COLAB / "sources").glob("*.py"))


def notebook(source: Path):
    """Returns a notebook without outputs: its title, the first cell, then the rest."""
    import jupytext
    import nbformat

    made = jupytext.read(source, fmt="py:percent")
    first = (COLAB / "first_cell.txt").read_text(encoding="utf-8").format(address=address())
    made.cells.insert(1, nbformat.v4.new_code_cell(first.rstrip()))
    made.cells[0].source += badge(source.stem, address())
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return made


def badge(name: str, address: str) -> str:
    """Returns the link that opens a notebook in Colab, "" without an address on GitHub."""
    if not address.startswith("https://github.com/"):
        return ""
    colab = address.replace("https://github.com", "https://colab.research.google.com/github")
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"\n\n[![Open in Colab]({image})]({colab}/blob/main/colab/{name}.ipynb)"


def reworded(source: Path):
    """Returns the notebook with the outputs that it has, which belong to the same code.

    Raises:
        ValueError: a cell of code is new or changed, so it must be executed.
    """
    import nbformat

    made = notebook(source)
    old = nbformat.read(COLAB / f"{source.stem}.ipynb", as_version=4)
    known = {cell.source: cell for cell in old.cells if cell.cell_type == "code"}
    first, made.metadata = old.cells[1], old.metadata
    for number, cell in enumerate(made.cells):
        if cell.cell_type == "code":
            had = first if number == 1 else known.get(cell.source)
            if had is None:
                raise ValueError(f"{source.stem} has new code, execute it: {cell.source[:60]!r}")
            cell.outputs, cell.execution_count = had.outputs, had.execution_count
    return made


def executed(source: Path, *, timeout: int = 7200):
    """Returns the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
        ValueError: it is larger than a notebook of this folder may be.
    """
    import nbclient
    import nbformat

    made = notebook(source)
    client = nbclient.NotebookClient(made, timeout=timeout, resources={"metadata": {"path": ROOT}})
    client.execute()
    without_noise(made)
    if len(nbformat.writes(made)) > LIMIT:
        raise ValueError(f"{source.stem} is larger than {LIMIT:,} bytes: draw fewer figures")
    return made


def without_noise(made) -> None:
    """Drops what differs from run to run and from machine to machine: times, standard error."""
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]


def main(names: list[str]) -> None:
    """Makes the named notebooks, all by default, and writes them unless `--check` is given."""
    import nbformat

    wanted = tuple(name for name in names if name[:2] != "--") or ("",)
    for source in sources():
        if not source.stem.startswith(wanted):
            continue
        start = time.perf_counter()
        made = reworded(source) if "--text" in names else executed(source)
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s")
        if "--check" not in names:
            nbformat.write(made, COLAB / f"{source.stem}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
