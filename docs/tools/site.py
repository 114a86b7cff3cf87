"""A hook of mkdocs: pages link to files of the repository, which the site does not have.

A link that leads nowhere stops the build. One to code or data becomes the address of the file where
the repository has a public one (`Source` in setup.cfg's project_urls), else the bare text.
"""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
