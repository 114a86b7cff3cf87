"""The end of every study: result files, figures, tables in the terminal, one HTML report."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from experiments.lab.cells import Cell, measured_by, missing
from experiments.lab.figures import save_figure
from experiments.lab.files import save_csv, save_json
from experiments.lab.machine import writes
from experiments.lab.page import Figure, Section, Table, Text, write_html
from experiments.lab.versions import versions
from longrope_jax.folders import located


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A published report: its sections can stand in another one too.

    Attributes:
        title: of the page.
        claims: sentences that the numbers bear out, each computed.
        sections: with figures as paths of PNG files.
        results: what results.json holds.
    """

    title: str
    claims: tuple[str, ...]
    sections: tuple[Section, ...]
    results: dict[str, Any]


def publish(
    folder: Path,
    command: str,
    config: Mapping[str, Any],
    *,
    title: str,
    claims: Sequence[str],
    sections: Sequence[Section],
    results: Mapping[str, Any] | None = None,
    cells: Iterable[Cell] = (),
) -> Report:
    """Writes results.json, CSV files, PNG figures and report.html; prints the named tables.

    Of several hosts one writes.

    Args:
        folder: of the study.
        command: the command line, which the report states.
        config: of the study.
        title: of the report.
        claims: sentences that the numbers bear out; they come first.
        sections: the report, the headline and its figure in the first one.
        results: what results.json holds beside command, config, versions and claims.
        cells: that the numbers come from; the report says what measured them and how many are
            missing.

    Returns:
        The report, for a page that joins several.
    """
    folder, cells = located(folder), list(dict.fromkeys(cells))
    made = measured_by(folder, cells) if cells else [{"versions": versions()}]
    left = len(missing(folder, cells))
    facts = {"command": command, "config": config, "made_by": made, "claims": claims}
    written = facts | ({"cells_missing": left} if left else {}) | dict(results or {})
    if writes():
        save_json(folder / "results.json", written)
    done = [_published(folder, section) for section in sections]
    text = [Text("\n\n".join(claims))] if claims else []
    if left:
        text.append(Text(f"{left} cells of this study are not measured yet."))
    if text and done:
        done[0] = dataclasses.replace(done[0], blocks=[*text, *done[0].blocks])
    page = [*done, _made_by(made)]
    if writes():
        write_html(folder / "report.html", title, command, page)
    for block in (block for section in done for block in section.blocks):
        if isinstance(block, Table) and block.name:
            print_table(block)
    for sentence in claims:
        print(sentence)
    print(f"report: {folder / 'report.html'}")
    return Report(title, tuple(claims), tuple(done), written)


def join(folder: Path, command: str, title: str, reports: Sequence[Report]) -> Path:
    """Writes one report of several into `folder` and returns its path."""
    sections = [section for report in reports for section in report.sections]
    path = located(folder) / "report.html"
    write_html(path, title, command, [*sections, _made_by([{"versions": versions()}])])
    print(f"report: {path}")
    return path


def _published(folder: Path, section: Section) -> Section:
    """The section with its figures and tables written."""
    blocks = []
    for block in section.blocks:
        if isinstance(block, Figure) and not isinstance(block.drawing, PurePath):
            path = folder / f"{block.name}.png"
            if writes():
                save_figure(block.drawing, path)
            block = dataclasses.replace(block, drawing=path)
        elif isinstance(block, Table) and block.name and writes():
            save_csv(folder / f"{block.name}.csv", block.header, block.rows)
        blocks.append(block)
    return dataclasses.replace(section, blocks=blocks)


def _made_by(groups: Sequence[Mapping[str, Any]]) -> Section:
    """Versions and machine of the cells; a column for each combination."""
    columns = []
    for group in groups:
        count = {"cells": group["cells"]} if "cells" in group else {}
        spent = {"seconds": f"{group['seconds']:,.0f}"} if "seconds" in group else {}
        columns.append(count | spent | group["versions"] | group.get("machine", {}))
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name) for column in columns)] for name in names]
    note = "" if len(columns) < 2 else "Cells of several machines differ by rounding."
    return Section("Versions", [Table(["what", *[""] * len(columns)], rows, note)])


def print_table(table: Table) -> None:
    """Prints a table to the terminal; brackets in cells are text, not markup."""
    title = table.caption or table.name
    printed = RichTable(title=RichText(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, name in enumerate(table.header):
        printed.add_column(RichText(name), justify="right" if i else "left", overflow="fold")
    for row in table.shown():
        printed.add_row(*map(RichText, row))
    console = Console()
    if not (console.is_terminal or console.is_jupyter):
        # A log file has no width to fold a row at.
        console = Console(width=160)
    console.print(printed)
