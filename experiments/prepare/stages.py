"""What a stage is, how stages follow each other, and what is counted between them."""

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping

from longrope_jax.data.corpora import Document

Stage = Callable[[Iterable[Document]], Iterator[Document]]


@dataclasses.dataclass
class Tally:
    """How much passed behind a stage; complete once the documents were all taken.

    Attributes:
        stage: name of the stage, "input" before the first.
        documents: how many.
        lines: lines with text in them.
        characters: of all documents.
    """

    stage: str
    documents: int = 0
    lines: int = 0
    characters: int = 0

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Passes documents on and counts them."""
        for document in documents:
            self.documents += 1
            self.lines += sum(bool(line.strip()) for line in document.text.split("\n"))
            self.characters += len(document.text)
            yield document


def through(
    documents: Iterable[Document], stages: Mapping[str, Stage]
) -> tuple[Iterator[Document], list[Tally]]:
    """The documents behind all stages, and a tally of the input and behind each stage."""
    tallies = [Tally("input")]
    flow = tallies[0].watch(documents)
    for name, stage in stages.items():
        tallies.append(Tally(name))
        flow = tallies[-1].watch(stage(flow))
    return flow, tallies


def each(rule: Callable[[str], str]) -> Stage:
    """A stage of a rule for one text; a document that the rule leaves empty is dropped."""

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            text = rule(document.text)
            if text.strip():
                yield Document(document.name, text)

    return stage


def keep(test: Callable[[str], bool]) -> Stage:
    """A stage that keeps the documents whose text passes the test, unchanged."""
    return each(lambda text: text if test(text) else "")


def normal(text: str) -> str:
    """CCNet's normal form: lower case without accents, every digit 0, other signs left out."""
    plain = unicodedata.normalize("NFD", text.lower())
    kept = ("0" if c.isdigit() else c for c in plain if c.isalnum() or c.isspace())
    return " ".join("".join(kept).split())
