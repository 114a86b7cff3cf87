"""Hooks of mkdocs: pages link to files of the repository, and formulas become MathML.

A link that leads nowhere stops the build. One to code or data becomes the address of the file where
the repository has a public one (`Source` in setup.cfg's project_urls), else the bare text. Browsers
draw MathML themselves, so a formula needs no script from another server.
"""

import configparser
import html
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FORMULA = re.compile(r'<(div|span) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def address() -> str:
    """Returns the public address of the repository, "" while there is none."""
    setup = configparser.ConfigParser(inline_comment_prefixes="#")
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["metadata"].get("project_urls", "").splitlines()
    named = dict(line.split(" = ") for line in lines if " = " in line)
    return named.get("Source", "").rstrip("/")


def linked(text: str, page: Path) -> str:
    """Returns the Markdown of a page with its links to code and data rewritten.

    Raises:
        ValueError: a link leads nowhere.
    """

    def rewrite(match: re.Match) -> str:
        name, target, _ = match.groups()
        path = (page.parent / target).resolve()
        if not path.exists():
            raise ValueError(f"{page.relative_to(ROOT)} links to {target}, which does not exist")
        if path.is_relative_to(ROOT / "docs") and path.suffix == ".md":
            return match[0]
        return f"[{name}]({address()}/blob/main/{path.relative_to(ROOT)})" if address() else name

    return _LINK.sub(rewrite, text)


def on_page_markdown(markdown: str, page, config, files) -> str:
    """What mkdocs calls for every page."""
    del config, files
    return linked(markdown, Path(page.file.abs_src_path))


def drawn(page: str) -> str:
    """Returns the HTML of a page with its LaTeX formulas as MathML."""
    # Of the extra `docs`.
    from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]

    def formula(match: re.Match) -> str:
        tag, kind, latex = match.groups()
        display = "block" if kind == "[" else "inline"
        return f"<{tag}>{convert(html.unescape(latex).strip(), display=display)}</{tag}>"

    return _FORMULA.sub(formula, page)


def on_page_content(html: str, page, config, files) -> str:
    """What mkdocs calls for the HTML of every page."""
    del page, config, files
    return drawn(html)
