"""A report as one HTML file that needs no network."""

import base64
import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.figures import Figure as Drawing
from experiments.lab.files import write
from longrope_jax.folders import located


def cell(value: Any) -> str:
    """A value as tables show it: floats with 6 digits, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


_NUMBERS = int | float | np.integer | np.floating


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under a header; floats are shown with 6 digits, None as a dash.

    A table with a `name` is also printed in the terminal and written to NAME.csv, whose numbers
    keep all their digits.

    Attributes:
        header: one word or more for each column.
        rows: one value for each column.
        caption: stands above the table.
        name: of the CSV file; "" for a table of the report alone.
        formats: how the numbers of a column are shown, by its header, e.g. `"{:.3f}".format`.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    name: str = ""
    formats: Mapping[str, Callable[[Any], str]] = dataclasses.field(default_factory=dict)

    def shown(self) -> list[list[str]]:
        """The rows as readers see them."""
        formats = [self.formats.get(name, cell) for name in self.header]
        return [
            [
                (show if isinstance(value, _NUMBERS) else cell)(value)
                for show, value in zip(formats, row, strict=True)
            ]
            for row in self.rows
        ]


def table(
    rows: Sequence[Mapping[str, Any]],
    caption: str = "",
    name: str = "",
    formats: Mapping[str, Callable[[Any], str]] | Callable[[Any], str] = cell,
) -> Table:
    """A table of mappings with the same keys, which are its header.

    Args:
        rows: one mapping or more.
        caption: stands above the table.
        name: of the CSV file; "" for a table of the report alone.
        formats: how numbers are shown, by column or the same for all.
    """
    header = list(rows[0])
    if not isinstance(formats, Mapping):
        formats = dict.fromkeys(header, formats)
    return Table(header, [list(row.values()) for row in rows], caption, name, formats)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing, which the report contains as a PNG and which is also written to NAME.png."""

    name: str
    drawing: Drawing | Path  # once published, the path of the PNG
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Text | Table | Figure]


_CSS = """
:root { color-scheme: light dark; --line: #ccc; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #2a2a2a; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
pre { background: var(--soft); padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
caption, figcaption { text-align: left; font-size: .9rem; padding: .4rem 0; }
figure { margin: 1rem 0; }
img { max-width: 100%; background: white; border-radius: 4px; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def write_html(
    path: Path,
    title: str,
    command: str,
    sections: Sequence[Section],
) -> None:
    """Writes one HTML file that needs nothing else: no script, no network, images inside.

    Args:
        path: of the file.
        title: of the page.
        command: the command line that made it; empty if none did.
        sections: what it says, in order, their figures published; all text is escaped.

    Raises:
        OSError: the file of a figure cannot be read.
    """
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>Made by</p>\n<pre><code>{html.escape(command)}</code></pre>" if command else "",
        *(_section_html(section) for section in sections),
        "</body>\n</html>\n",
    ]
    write(path, "\n".join(parts).encode())


def _section_html(section: Section) -> str:
    blocks = "\n".join(_block_html(block) for block in section.blocks)
    return f"<section>\n<h2>{html.escape(section.title)}</h2>\n{blocks}\n</section>"


def _block_html(block: Text | Table | Figure) -> str:
    if isinstance(block, Text):
        return "\n".join(f"<p>{html.escape(p)}</p>" for p in block.text.split("\n\n"))
    caption = html.escape(block.caption)
    if isinstance(block, Figure):
        data = base64.b64encode(located(block.drawing).read_bytes()).decode()
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    head = _row_html("th", block.header)
    body = "\n".join(_row_html("td", row) for row in block.shown())
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>\n'
        f"<thead>{head}</thead>\n<tbody>{body}</tbody></table></div>"
    )


def _row_html(tag: str, row: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) + "</tr>"
