"""The pages docs/methods/NAME.md and the table of docs/rotary.md are written from the code by

python -m docs.tools.methods
"""

import csv
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from longrope_jax.rotary import docstrings, documentation
from longrope_jax.rotary.registry import classes, names_of

DOCS = Path(__file__).parents[1]
ATLAS = DOCS / "results/method_atlas/methods.csv"
_TURNING = (
    "In the [atlas](../studies.md) (trained on 4,096 tokens, head size 128, extended by 8 where "
    "the method has a factor), {name}: {turning} of 64 pairs turn, {beyond} of them have a "
    "wavelength beyond the trained length, and the decay curve first turns negative {negative}."
)


def pages() -> dict[str, str]:
    """Returns the text of each page of this package's methods, by file name."""
    own = [cls for cls in classes() if cls.__module__.startswith("longrope_jax.")]
    formulas = tomllib.loads((DOCS / "tools/formulas.toml").read_text(encoding="utf-8"))
    with ATLAS.open(encoding="utf-8", newline="") as file:
        atlas = {row["method"].rstrip("*"): row for row in csv.DictReader(file)}
    return {f"{names_of(cls)[0]}.md": _page(cls, formulas, atlas) for cls in own}


def _page(cls: type, formulas: dict[str, str], atlas: dict[str, dict]) -> str:
    names = names_of(cls)
    _, plain, options, source, exported, cache, peers = documentation.row(cls)
    formula = f"$$\n{formulas[names[0]]}\n$$" if names[0] in formulas else plain
    title = docstrings.formula(cls).partition(":")[0]
    parts = [
        f"# `{names[0]}`: {title}",
        _also(names),
        formula,
        _symbols(cls),
        f"**Source.** {source}",
        "**Options.**\n\n" + "\n".join(f"- {line}" for line in options.split("<br>")),
        *(_drawn(name, atlas[name]) for name in names if name in atlas),
        f"**What may be cached.** {cache}.",
        f"**Hugging Face.** {exported}.",
        f"**Who differs.** {peers}",
        f"**In code.** [{cls.__name__}](../../{cls.__module__.replace('.', '/')}.py), "
        f"`longrope explain {names[0]}` for its pairs. Symbols: [rotary methods](../rotary.md).",
        *_papers(source),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _symbols(cls: type) -> str:
    """What the symbols mean, and the variants; an item of a list follows on its neighbour."""
    parts = [documentation.escaped(part) for part in docstrings.body(cls)]
    return re.sub(r"(^- .*\n)\n(?=- )", r"\1", "\n\n".join(parts), flags=re.M)


def _also(names: Sequence[str]) -> str:
    return "Also registered as " + ", ".join(f"`{n}`" for n in names[1:]) + "." if names[1:] else ""


def _drawn(name: str, row: dict) -> str:
    negative = f"at {int(row['first negative']):,} tokens" if row["first negative"] else "nowhere"
    return _TURNING.format(
        name=f"`{name}`", turning=row["turning"], beyond=row["beyond"], negative=negative
    )


def _papers(source: str) -> list[str]:
    """An entry to cite for every paper; arXiv gives its full one under the address."""
    found = dict.fromkeys(re.findall(r"\[(\d{4}\.\d{5})\]", source))
    return [
        f"```bibtex\n@misc{{arxiv_{number.replace('.', '_')},\n  eprint = {{{number}}},\n"
        f"  archivePrefix = {{arXiv}},\n  url = {{https://arxiv.org/abs/{number}}}\n}}\n```"
        for number in found
    ]


def main() -> None:
    """Writes the table and the pages; pages of methods that are gone are deleted."""
    documentation.update(DOCS / "rotary.md")
    folder, texts = DOCS / "methods", pages()
    folder.mkdir(exist_ok=True)
    for old in {path.name for path in folder.glob("*.md")} - texts.keys():
        (folder / old).unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
