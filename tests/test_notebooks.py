"""Notebooks of colab/ are what their sources say, and run in their tiny setting."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from colab import build
from docs.tools import site

COLAB = Path(build.__file__).parent
SOURCES = build.sources()
# What a run must print: whatever its size, and in full.
PRINTS = {
    "01_why_abf_works": (("abf          first negative score at 18438",), ("4,293",)),
    "02_a_real_model_beyond_its_length": (
        ("134,515,008 parameters", "RoPE(base=100000.0)", "What is the pass key?", "P(pass key)"),
        ("cropped",),
    ),
    "03_the_ablation_in_miniature": (("report: runs/miniature",), ("H8, continued ABF finds",)),
    "04_your_model_your_text": (("export.gguf: 512 tokens", "YaRN(factor=4"), ("148,096 numbers",)),
    "05_your_own_method": (
        (
            "yes  cos and sin are exact up to the last token",
            "no   a Hugging Face config can say it",
            "training programs compiled for",
        ),
        ("for 6 trainings: 1",),
    ),
    "06_does_it_fit": (
        ("fits", "peak memory, GiB", "MFU at most"),
        ("does not fit", "llama2_7b, 32,768 tokens"),
    ),
}
OWN = ("longrope_jax", "experiments", "docs")
NEEDS = {"06_does_it_fit": "libtpu"}


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
    drawn = any("image/png" in o.get("data", {}) for c in found for o in c.get("outputs", ()))
    assert drawn == ("plot." in text or "Image(" in text)
    small, full = PRINTS[source.stem]
    assert [line for line in small + full if line not in printed(found)] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_notebook_says_how_long_it_takes(source):
    title = source.read_text(encoding="utf-8").split("# %%")[1]
    assert re.search(r"\d+ minutes on 2 CPU cores|two minutes on a CPU", title)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_what_a_notebook_names_exists(source):
    """Nothing is executed: a name that goes from this project is found here in a second."""
    tree, known = ast.parse(source.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            own = [a for a in node.names if a.name.partition(".")[0] in OWN]
            known |= {a.asname or a.name: importlib.import_module(a.name) for a in own}
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in OWN:
            module = importlib.import_module(str(node.module))
            for one in node.names:
                if not hasattr(module, one.name):
                    importlib.import_module(f"{node.module}.{one.name}")
                known[one.asname or one.name] = getattr(module, one.name)
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    modules = {name: found for name, found in known.items() if hasattr(found, "__file__")}
    assert [f"{n}.{a}" for n, a in used if n in modules and not hasattr(modules[n], a)] == []


def test_a_badge_leads_to_colab_where_there_is_a_public_address():
    found = build.badge("01_why", "https://github.com/a/b")
    assert "(https://colab.research.google.com/github/a/b/blob/main/colab/01_why.ipynb)" in found
    assert build.badge("01_why", "") == ""


def test_new_words_keep_outputs_and_new_code_must_be_executed(monkeypatch, tmp_path):
    for package in ("jupytext", "nbformat"):
        pytest.importorskip(package)
    source = tmp_path / f"{SOURCES[0].stem}.py"
    text = SOURCES[0].read_text(encoding="utf-8")
    source.write_text(text.replace("# # Why an", "# # How an", 1))
    made = build.reworded(source)
    assert made.cells[0].source.startswith("# How an")
    assert "18438" in printed(made.cells)
    source.write_text(text + "\n# %%\nprint(1)\n")
    with pytest.raises(ValueError, match="new code, execute it: 'print"):
        build.reworded(source)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_notebook_runs(source, monkeypatch):
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    if source.stem in NEEDS:
        pytest.importorskip(NEEDS[source.stem])
    monkeypatch.setenv("LONGROPE_TINY", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = build.executed(source).cells
    assert [line for line in PRINTS[source.stem][0] if line not in printed(found)] == []
