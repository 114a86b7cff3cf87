"""Notebooks of colab/ are what their sources say, and run in their tiny setting."""

import json
from pathlib import Path

import pytest

from colab import build
from docs.tools import site

COLAB = Path(build.__file__).parent
SOURCES = build.sources()
# What a run must print, whatever its size.
PRINTS = {
    "01_why_abf_works": ("abf          first negative score at 18438", "4,293"),
}


def cells(source: Path) -> list[dict]:
    return json.loads((COLAB / f"{source.stem}.ipynb").read_text(encoding="utf-8"))["cells"]


def printed(found) -> str:
    outputs = [output for cell in found for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_every_source_has_a_notebook_and_every_notebook_a_source():
    assert {s.stem for s in SOURCES} == {p.stem for p in COLAB.glob("*.ipynb")} == PRINTS.keys()


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_notebook_holds_its_source_and_its_outputs(source):
    text, found = source.read_text(encoding="utf-8"), cells(source)
    first = (COLAB / "first_cell.txt").read_text(encoding="utf-8")
    assert "".join(found[1]["source"]) == first.format(address=site.address()).rstrip()
    for cell in found[2:]:
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]) in text
    assert (COLAB / f"{source.stem}.ipynb").stat().st_size < build.LIMIT
    assert any("image/png" in o.get("data", {}) for c in found for o in c.get("outputs", ()))
    assert [line for line in PRINTS[source.stem] if line not in printed(found)] == []


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_notebook_runs(source, monkeypatch):
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    monkeypatch.setenv("LONGROPE_TINY", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = build.executed(source).cells
    expected = [line for line in PRINTS[source.stem] if not line.startswith("4,293")]
    assert [line for line in expected if line not in printed(found)] == []
