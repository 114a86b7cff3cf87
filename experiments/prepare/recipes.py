"""Which stages each source of LLaMA's goes through, in which order (2302.13971, section 2.1)."""

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from experiments.prepare import cleaners, dedup, quality, sources, web
from experiments.prepare.stages import Tally, each, keep, through
from longrope_jax.data.corpora import Document


@dataclasses.dataclass(frozen=True)
class Made:
    """What a recipe made of its source.

    Attributes:
        documents: that are left.
        tallies: how much passed, the input first.
        facts: what else was measured on the way, by name.
    """

    documents: tuple[Document, ...]
    tallies: tuple[Tally, ...]
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def common_crawl(
    pages: Sequence[Document], clean: Iterable[str], *, wanted: str = "en", citations: int = 8
) -> Made:
    """CCNet's stages and the model of cited pages, for pages of HTML.

    Args:
        pages: HTML, named FOLDER/FILE as they link to each other.
        clean: texts that the n-gram model learns from.
        wanted: language that is kept.
        citations: other pages that link to a page for it to be an example of a cited one.

    Raises:
        ValueError: a package is missing, or no page is left in the language.
    """
    first = {
        "running text": each(web.main_text),
        "lines seen once": dedup.lines(),
        f"language {wanted}": keep(functools.partial(web.in_language, wanted)),
    }
    flow, tallies = through(pages, first)
    texts = list(flow)
    model = quality.NGrams.learn(clean)
    low, high = quality.thirds(model, texts)
    counts = sources.citations(pages)
    cited = {d.name for d in texts if counts[d.name] >= citations}
    halves = _halves(texts, cited)
    margins = {d.name: m for half in halves for d, m in half}
    second = {
        "head and middle third": keep(lambda text: model.bits(text) <= high),
        "like cited pages": lambda documents: (d for d in documents if margins[d.name] >= 0),
    }
    flow, more = through(texts, second)
    kept = tuple(flow)
    each_half = [_ranking(half, cited) for half in halves]
    facts = {
        "bits per byte, end of head": low,
        "bits per byte, end of middle": high,
        "pages cited": len(cited),
        "chance that a cited page ranks above another": float(np.mean(each_half)),
    }
    return Made(kept, (*tallies, *more[1:]), facts)


def _halves(texts: Sequence[Document], cited: set[str]) -> list[list[tuple[Document, float]]]:
    """Each half of the pages with its margins under the model of the other half."""
    parts: list[list[Document]] = [[], []]
    for document in texts:
        parts[zlib.crc32(document.name.encode()) % 2].append(document)
    judged = []
    for own, other in (parts, parts[::-1]):
        examples = [d.text for d in other if d.name in cited]
        model = quality.Citation.learn(examples, [d.text for d in other if d.name not in cited])
        margins = model.margins([d.text for d in own]) if own else []
        judged.append(list(zip(own, map(float, margins), strict=True)))
    return judged


def _ranking(half: Sequence[tuple[Document, float]], cited: set[str]) -> float:
    above = np.asarray([margin for d, margin in half if d.name in cited])
    below = np.asarray([margin for d, margin in half if d.name not in cited])
    return quality.ranking(above, below)


def c4(pages: Iterable[Document]) -> Made:
    """Everything that pages show, under C4's rules, lines once."""
    stages = {
        "all text": each(web.all_text),
        "C4's rules": each(web.c4),
        "lines seen once": dedup.lines(),
    }
    return _made(pages, stages)


def code(packages: Iterable[tuple[str, Sequence[Document]]]) -> Made:
    """Modules of permissive packages, without headers on licences, without odd files and copies."""
    licensed: set[str] = set()

    def modules() -> Iterator[Document]:
        for metadata, files in packages:
            if cleaners.permissive(metadata):
                licensed.update(file.name for file in files)
            yield from files

    stages = {
        "Apache, BSD or MIT": lambda documents: (d for d in documents if d.name in licensed),
        "headers, shape of lines": each(cleaners.code),
        "files once": dedup.files(),
    }
    return _made(modules(), stages)


def books(documents: Iterable[Document], most: float = 0.9) -> tuple[Made, list[tuple]]:
    """Books that overlap no earlier one by more than `most`, and what was dropped for which one."""
    dropped: list[tuple[str, str, float]] = []
    return _made(documents, {f"overlap up to {most:.0%}": dedup.books(most, dropped)}), dropped


def _made(documents: Iterable[Document], stages: Mapping) -> Made:
    flow, tallies = through(documents, stages)
    return Made(tuple(flow), tuple(tallies))
