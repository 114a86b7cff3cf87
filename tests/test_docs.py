"""The pages that are made from the code are current, short, and lead somewhere."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from docs.tools import methods, results, site
from docs.tools import tasks as tasks_page
from longrope_jax.rotary import names
from longrope_jax.rotary.methods import giraffe, ntk_aware, yarn

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "results" not in p.parts)


def test_the_pages_of_methods_are_current():
    """If this fails: python -m docs.tools.methods."""
    folder = ROOT / "docs/methods"
    assert {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.md")} == methods.pages()


def test_the_page_of_tasks_is_current():
    """If this fails: python -m docs.tools.tasks."""
    assert tasks_page.PAGE.read_text(encoding="utf-8") == tasks_page.page()


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


def commands() -> Iterator[tuple[str, str, str]]:
    """(file, study, the rest of the line) of every command of a study that a page or docstring has.

    A line that a backslash ends goes on in the next one.
    """
    pages = [p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md"]
    for path in [*PAGES, *pages, *sorted((ROOT / "experiments").glob("*.py"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for study, rest in re.findall(r"-m experiments\.([a-z]\w*)\b([^\n`]*)", text):
            yield str(path.relative_to(ROOT)), study, rest


def unknown_fields(study: str, rest: str) -> list[str]:
    """The --config fields of a command that its preset does not have, or has as a group."""
    module = importlib.import_module(f"configs.{study}")
    preset = re.search(r"--config=\S+\.py:(\w+)", rest)
    config = module.get_config(preset[1]) if preset else module.get_config()
    open_groups = ("machine.", "rows.")  # fields of lab.Machine, and rows of one's own
    wrong = []
    for field in re.findall(r"--config\.([\w.]+)=", rest):
        at: object = config
        for name in field.split("."):
            at = at.get(name) if isinstance(at, ConfigDict) else None
        if not field.startswith(open_groups) and (at is None or isinstance(at, ConfigDict)):
            wrong.append(field)
    return wrong


def test_the_commands_of_studies_name_fields_that_are_there():
    found = list(commands())
    wrong = [(file, bad) for file, study, rest in found if (bad := unknown_fields(study, rest))]
    assert len(found) > 40 and wrong == []


@pytest.mark.parametrize(
    "method, names",
    [("yarn", yarn.RAMPS), ("ntk", ntk_aware.RULES), ("giraffe_truncated", giraffe.RULES)],
)
def test_a_methods_page_says_what_each_choice_of_an_option_is(method, names):
    page = (ROOT / f"docs/methods/{method}.md").read_text(encoding="utf-8")
    assert all(f"\n- `{name}`: " in page for name in names)


@pytest.mark.parametrize("study", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_a_studys_commands_over_several_lines_are_printed_as_they_are_written(study):
    words = ast.get_docstring(ast.parse(study.read_text(encoding="utf-8"))) or ""
    assert not re.search(r"\S {3,}--", words)
