"""The notes hold the numbers that their commands compute, and are where they are said to be."""

import re
from pathlib import Path

import pytest

from docs.tools import notes

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/notes").glob("*.md"))


def text(name: str) -> str:
    return (notes.NOTES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", notes.QUICK)
def test_a_note_holds_what_its_command_computes(name, tmp_path):
    """If this fails: python -m docs.tools.notes."""
    assert notes.tables(text(name)) == notes.QUICK[name](tmp_path)


def test_released_models_are_measured_as_the_note_says(monkeypatch):
    short = [one for one in notes.RELEASED if one[3] <= 32_768]
    monkeypatch.setattr(notes, "RELEASED", short)
    lines = notes.released().splitlines()
    assert len(lines) == 2 + len(short) >= 8
    assert [line for line in lines if line not in notes.tables(text("smallest_bases"))[1]] == []


def test_every_note_has_a_statement_a_figure_a_command_and_an_entry():
    assert {page.stem for page in PAGES} == notes.EVERY.keys()
    for page in PAGES:
        found = page.read_text(encoding="utf-8")
        assert (
            re.search(r"^!\[", found, re.M) and f"python -m docs.tools.notes {page.stem}" in found
        )
        assert f"docs/notes/{page.stem}.md}}" in found and "@misc{" in found
        assert all(table.count("|") > 6 for table in notes.tables(found)), page.name


def test_every_note_is_listed_to_be_cited():
    for place in ("CITATION.cff", "docs/start/citing.md", "mkdocs.yml"):
        listed = (ROOT / place).read_text(encoding="utf-8")
        assert [p.name for p in PAGES if f"notes/{p.name}" not in listed] == []
    titles = [page.read_text(encoding="utf-8").splitlines()[0][2:] for page in PAGES]
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert [title for title in titles if f'title: "{title}"' not in cited] == []


def test_a_page_with_another_number_of_tables_is_refused():
    with pytest.raises(ValueError, match="the page has 0 tables, 1 were made"):
        notes.filled("nothing", ["| a |\n"])
