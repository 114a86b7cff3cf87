"""The pages docs/results/STUDY/README.md are written from each study and its results by

python -m docs.tools.results

A page has the question, the protocol and the expected numbers from the study's docstring, then what
came out, computed: claims with their verdicts, figures, tables, command, versions and commit.
"""

import ast
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
_MOST_LINES, _MOST_COLUMNS = 64, 12  # of a table that is shown; longer ones are linked


def folders() -> dict[Path, Path]:
    """Returns the study's file by its folder of results."""
    found = sorted(RESULTS.rglob("results.json"))
    studies = {path.parent: path.relative_to(RESULTS).parts[0] for path in found}
    return {folder: ROOT / f"experiments/{name}.py" for folder, name in studies.items()}


def page(folder: Path, study: Path) -> str:
    """Returns the page of a folder of results in Markdown."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    docstring = ast.get_docstring(ast.parse(study.read_text(encoding="utf-8"))) or ""
    title, _, rest = docstring.partition("\n")
    part = folder.relative_to(RESULTS / study.stem).as_posix()
    name = study.stem if part == "." else f"{study.stem}, {part}"
    above = "../" * len(folder.relative_to(ROOT).parts)
    blocks = [f"# {name}", f"**{title}** ([code]({above}experiments/{study.name}))"]
    blocks += list(_paragraphs(rest))
    blocks += ["## What came out", *_claims(found)]
    blocks += [f"![{image.stem.replace('_', ' ')}]({image.name})" for image in _figures(folder)]
    blocks += [_shown(path) for path in sorted(folder.glob("*.csv"))]
    blocks += ["## How it was made", *_made(found)]
    return "\n\n".join(blocks) + "\n"


def _paragraphs(docstring: str) -> Iterator[str]:
    """The docstring's text; what is indented, commands and tables, stays as it is."""
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines):
            text = [line[4:] for line in lines]
            yield "```text\n" + "\n".join(text) + "\n```"
        else:
            yield _plain(" ".join(line.strip() for line in lines))


def _plain(text: str) -> str:
    """Names with underscores stand as they are, outside of code that is marked."""
    return re.sub(r"(`[^`]*`)|([\w/]*_[\w/]*(?:\.\w+)?)", lambda m: m[1] or f"`{m[2]}`", text)


def _claims(found: dict) -> list[str]:
    claims = [f"- {_plain(claim)}" for claim in found["claims"]]
    missing = found.get("cells_missing", 0)
    minutes = found["config"].get("minutes")
    why = f"did not fit its {minutes} minutes" if minutes else "are not measured yet"
    left = [f"{missing} cells of this study {why}."] if missing else []
    return (["\n".join(claims)] if claims else []) + left


def _figures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def _shown(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    link = f"[{path.name}]({path.name})"
    if len(lines) > _MOST_LINES or len(header) > _MOST_COLUMNS:
        return f"{link}: {len(lines):,} lines of {', '.join(header)}."
    rows = [header, ["---"] * len(header), *([_short(value) for value in line] for line in lines)]
    cells = ("| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in rows)
    return f"{link}\n\n" + "\n".join(cells)


def _short(value: str) -> str:
    """A number to five digits; whole numbers and text as they are."""
    if not re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", value):
        return value
    number = float(value)
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e15 else f"{number:.5g}"


def _made(found: dict) -> list[str]:
    config = json.dumps(found["config"], ensure_ascii=False)
    return [
        "```sh\n" + found["command"] + "\n```",
        "\n".join(f"- {line}" for line in dict.fromkeys(map(_maker, found["made_by"]))),
        f"<details><summary>Its config</summary>\n\n```json\n{config}\n```\n\n</details>",
    ]


def _maker(made: dict) -> str:
    known = made["versions"]
    commit = known.get("commit") or "not known, from a copy without its history"
    dirty = ", with changes" if commit.endswith("-dirty") else ""
    shown = commit[:12] if " " not in commit else commit
    cells, seconds = made.get("cells"), made.get("seconds")
    work = f"{cells} cell{'s' * (cells > 1)} in {seconds:,.0f} s, " if cells and seconds else ""
    packages = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = ", ".join(f"{p} {known[p]}" for p in packages if p in known)
    return f"{work}{versions}, on {known.get('device', 'cpu')}; commit {shown}{dirty}"


def pages() -> dict[Path, str]:
    """Returns the text of every page by its path."""
    return {folder / "README.md": page(folder, study) for folder, study in folders().items()}


def main() -> None:
    """Writes the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
