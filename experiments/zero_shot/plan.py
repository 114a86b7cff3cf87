"""What the study measures: cells, ordered so that every beginning of them makes a table."""

import dataclasses
import hashlib
import json
import re

from ml_collections import ConfigDict

from longrope_jax import rotary
from longrope_jax.errors import unknown_name
from longrope_jax.llama import LlamaConfig
from longrope_jax.training.flops import train_flops_per_token

LOSS, PASSKEY, SENTENCE = "loss", "passkey", "first sentence"
REMOVED = "first sentence, removed"  # asked for, but not in the context: what guessing gives
TASKS = (PASSKEY, SENTENCE, REMOVED)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: a task under a method at a length (tokens) on a document (its number).

    Attributes:
        same_as: the first method of the plan with these very frequencies at this length; measured
            once, under that name.
        sequences: windows or samples of `length` tokens.
    """

    task: str
    method: str
    length: int
    document: int
    same_as: str
    sequences: int
    slug: str

    @property
    def tokens(self) -> int:
        """Tokens to score."""
        return self.length * self.sequences


class Plan:
    """Methods at their lengths and the cells of a config, for one base model."""

    def __init__(self, config: ConfigDict, model: LlamaConfig, base: float | None):
        self.config, self.model, self._base = config, model, base
        self._specs: dict[tuple[str, int], rotary.Method] = {}
        self._known: dict[int, dict[str, rotary.Frequencies]] = {}
        check(config)
        self.methods = labels(config)
        self.cells = list(dict.fromkeys(self._cells()))

    @property
    def reference(self) -> str:
        """Label of the method that the others are compared with: the first."""
        return next(iter(self.methods))

    def spec(self, method: str, length: int) -> rotary.Method:
        """The method of a label, for sequences of `length` tokens.

        Raises:
            ValueError: unknown placeholder, method or option.
        """
        if (method, length) not in self._specs:
            self._specs[method, length] = self._read(method, length)
        return self._specs[method, length]

    def _read(self, method: str, length: int) -> rotary.Method:
        trained = self.config.trained_length
        values = {"trained": trained, "kv_heads": self.model.n_kv_heads}
        values["factor"] = max(1.0, length / trained)
        fill = {} if self._base is None else {"base": self._base}
        try:
            return rotary.parse(self.methods[method].format(**values), fill)
        except KeyError as error:
            name = str(error).strip("'")
            raise ValueError(unknown_name("placeholder", name, values)) from error

    def same_as(self, method: str, length: int) -> str:
        """The first method, in the config's order of the measured, with the same frequencies."""
        known = self._known.setdefault(length, {})
        if method not in known:
            f = self.spec(method, length).frequencies(head_dim=self.model.head_dim, seq_len=length)
            rotary.from_frequencies(f, seq_len=length)
            known[method] = f
        return next(name for name, f in known.items() if f.equals(known[method]))

    def _cells(self):
        """Round by round: core loss, retrieval, then the other losses."""
        groups = list(self.config.loss.values())
        for document in range(len(self.config.documents)):
            for number, group in enumerate(groups):
                if document < group.documents:
                    for method in group.methods:
                        yield self._cell(LOSS, method, group.length, document, 1)
                if number == 0:
                    yield from self._retrieval(document)
            if not groups:
                yield from self._retrieval(document)

    def _retrieval(self, document: int):
        r = self.config.retrieval
        if document >= r.documents:
            return
        for task in (PASSKEY, SENTENCE):
            for length in r.lengths if r[task] else ():
                for method in r.methods:
                    yield self._cell(task, method, length, document, r[task])
        if r[SENTENCE]:
            yield self._cell(REMOVED, r.methods[0], r.lengths[0], document, r[SENTENCE])

    def _cell(self, task: str, text: str, length: int, document: int, sequences: int) -> Cell:
        method = next(label for label, known in self.methods.items() if known == text)
        same = self.same_as(method, length)
        mark = self._fingerprint(task, self.spec(same, length), length, document, sequences)
        name = re.sub(r"[^a-z0-9_]+", "-", f"{task}-{same.partition(':')[0]}")
        slug = f"{name}-{length}-doc{document}-{mark}"
        return Cell(task, method, length, document, same, sequences, slug)

    def _fingerprint(self, task, spec, length, document, sequences) -> str:
        """Of all that decides a cell's numbers: other settings never meet in one file."""
        c = self.config
        parts = [task, repr(spec), length, document, sequences, c.model, c.bos, c.sentence_tokens]
        parts += [c.tokenizer, c.dtype, c.param_dtype, c.seed, c.shape.to_dict()]
        if task == LOSS:
            parts += [c.documents[document], c.block]
        else:
            parts += [c.documents[: c.retrieval.documents], _texts(c.retrieval)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]

    def work(self) -> list[Cell]:
        """Cells to measure: of those with the same numbers the first."""
        first: dict[str, Cell] = {}
        for cell in self.cells:
            first.setdefault(cell.slug, cell)
        return list(first.values())

    def flops(self, cell: Cell) -> float:
        """Of a cell by plain attention; remapped positions cost up to a few times its scores."""
        return train_flops_per_token(self.model, cell.length) / 3 * cell.tokens


def labels(config: ConfigDict) -> dict[str, str]:
    """Label to text of every method: its name, or its text where several have that name."""
    groups = [*config.loss.values(), config.retrieval]
    texts = dict.fromkeys(text for group in groups for text in group.methods)
    names = [text.partition(":")[0] for text in texts]
    return {
        name if names.count(name) == 1 else text: text
        for name, text in zip(names, texts, strict=True)
    }


def _texts(retrieval: ConfigDict) -> list[str]:
    names = ("fact", "passkey_prompt", "first_sentence_prompt", "end")
    return [retrieval[name] for name in names]


def check(config: ConfigDict) -> None:
    """Raises ValueError where lengths, blocks, edges and documents do not fit together."""
    count, edges = len(config.documents), list(config.edges)
    if not config.loss and not config.retrieval.documents:
        raise ValueError("nothing to measure: config.loss and config.retrieval are empty")
    if edges != sorted(set(edges)) or edges[0] != 0 or config.trained_length not in edges:
        raise ValueError(
            f"edges must rise from 0 and name the trained length of {config.trained_length}"
        )
    if config.block < 1 or any(edge % config.block for edge in edges):
        raise ValueError(f"block must divide all edges {tuple(edges)}, got {config.block}")
    first, groups = next(iter(labels(config).values()), None), list(config.loss.values())
    for group in groups:
        if group.length not in edges or group.length <= config.trained_length:
            raise ValueError(
                f"a loss length must be an edge beyond {config.trained_length}, got {group.length}"
            )
        if first not in {m for g in groups if g.length == group.length for m in g.methods}:
            raise ValueError(f"{first} must be measured at {group.length} too: it is compared with")
    for what in (*config.loss.values(), config.retrieval):
        if not 0 <= what.documents <= count:
            raise ValueError(f"{what.documents} documents are asked for, the config has {count}")
    r = config.retrieval
    if r.documents and not (r.methods and r.lengths and r[PASSKEY] + r[SENTENCE] > 0):
        raise ValueError("retrieval needs methods, lengths and samples, or 0 documents")
