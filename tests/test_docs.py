"""The pages that are made from the code are current, short, and lead somewhere."""

import re
from pathlib import Path

import pytest

from docs.tools import methods, results, site
from longrope_jax.rotary import names

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "results" not in p.parts)


def test_the_pages_of_methods_are_current():
    """If this fails: python -m docs.tools.methods."""
    folder = ROOT / "docs/methods"
    assert {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.md")} == methods.pages()


@pytest.mark.parametrize("folder", results.folders(), ids=lambda f: str(f.relative_to(ROOT)))
def test_the_pages_of_results_are_current(folder):
    """If this fails: python -m docs.tools.results."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == results.page(folder, results.folders()[folder])
    assert site.linked(page, folder / "README.md")
    named = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page)
    assert named and [name for name in named if not (folder / name).exists()] == []


def test_every_page_of_results_is_linked():
    linked = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
    paths = (folder.relative_to(ROOT / "docs") / "README.md" for folder in results.folders())
    assert [str(path) for path in paths if f"({path})" not in linked] == []


def test_every_name_of_a_method_is_on_a_page():
    text = "".join(methods.pages().values())
    assert [name for name in names() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    site.linked(page.read_text(encoding="utf-8"), page)


def test_a_link_that_leads_nowhere_stops_the_build():
    with pytest.raises(ValueError, match=r"docs/index.md links to nowhere.md"):
        site.linked("[a](nowhere.md)", ROOT / "docs/index.md")


def test_code_is_no_link_while_there_is_no_public_address(monkeypatch):
    page, text = ROOT / "docs/rotary.md", "see [RoPE](../longrope_jax/rotary/methods/rope.py)"
    monkeypatch.setattr(site, "address", lambda: "")
    assert site.linked(text, page) == "see RoPE"
    monkeypatch.setattr(site, "address", lambda: "https://a.b/c")
    assert "](https://a.b/c/blob/main/longrope_jax/rotary/methods/rope.py)" in site.linked(
        text, page
    )


def test_every_page_of_the_navigation_exists():
    named = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert len(named) > 15 and [n for n in named if not (ROOT / "docs" / n).exists()] == []
