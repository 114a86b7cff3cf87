r"""A trained model beyond its trained length under every method, untrained: text, tasks, suites.

    python -m experiments.extension_suite \
        --config=configs/extension_suite.py:quick --workdir=DIR

Another checkpoint on a text of your own; all lengths follow from the trained length it declares:

    python -m experiments.extension_suite --workdir=DIR --config.model=CHECKPOINT \
        --config.documents="('FOLDER:a.txt',)"

Every method is compared with plain RoPE, and with plain RoPE that reads only the last tokens, as
many as it was trained on (cropped): what can be had without any extension. What a method costs
within the trained length, and on benchmarks of short questions, stands beside what it gains beyond.
Tasks are scored with the right answer given, in one forward; some are answered by greedy text too.
A task that plain RoPE cannot do at the shortest length says nothing about length.

Presets: quick (SmolLM2-135M on one play to 12,288 tokens; 5 minutes on 2 idle CPU cores, 487 s of
processor time, 2.8 GB), full (four documents, six tasks of 50 samples at 4,096 to 16,384 tokens,
four suites; 124 hours by the rate of its first losses, which were measured on busy cores;
resumable, in rounds of 10 samples that each make a table), tpu (a 7B of yours to 131,072 tokens),
tiny (seconds). Each run prints what is left, in PFLOP and, from the cells there are, in hours.

Expected with preset quick, nats per token on Hamlet, one document and so no interval:

    method    0 to 8,192   8,192 to 12,288   within, minus rope   beyond, minus rope
    cropped     3.411          3.343               0.000               -0.259
    yarn        3.430          3.355               0.020               -0.247
    rope        3.411          3.602
    pi          4.135          4.081               0.724                0.479

Of 4 pass keys at 512 and at 1,024 tokens RoPE and YaRN find all, and PI, as it stands for 12,288
tokens, none. Of 50 questions of PIQA each of the three has 35 right.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import extension_report, lab
from experiments.extension_cells import (
    ANSWERED,
    ASKED,
    LOSS,
    SUITE,
    Part,
    Reading,
    costs,
    every,
    filled,
)
from longrope_jax import sharding, tasks
from longrope_jax.commands import suite as suite_command
from longrope_jax.data import documents, questions, suites
from longrope_jax.evaluation import retrieval


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """Every cell, ordered so that each beginning of them makes a table."""
    return every(*filled(config, folder))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Says what is left, measures it, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is measured; nothing to show.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = filled(config, folder)
    cells, work = every(config, facts), Work(config, machine)
    if machine.measure:
        work.check(lab.missing(folder, cells))
        for line in costs(facts, folder, cells):
            print("  ".join(f"{k}: {v}" for k, v in line.items()), flush=True)
    asked = {ASKED: work.asked, ANSWERED: work.asked}
    lab.complete(folder, cells, {LOSS: work.loss, SUITE: work.suite} | asked, machine)
    return extension_report.publish(config, facts, folder, cells, command)


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Makes the cells of a config; text and model are read when a cell needs them."""

    config: ConfigDict
    machine: lab.Machine

    @functools.cached_property
    def tokenizer(self):
        """The checkpoint's, from its headers alone."""
        return lab.opened(self.config.model).tokenizer

    @functools.cached_property
    def model(self):
        """The checkpoint on the devices."""
        types = {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype}
        return lab.model(self.config.model, self.machine, **types)

    def window(self, reading: Reading) -> np.ndarray:
        """BOS and the document's tokens from its first sentence on, [1, T + 1]."""
        chosen = lab.document(reading.document, self.tokenizer, self.config.sentence_tokens)
        bos = self.tokenizer.special(self.config.bos)
        options = {"length": reading.length, "per_document": 1, "bos": bos}
        return documents.validation_windows([chosen], **options)[0]

    def loss(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Mean loss of each block of positions of a window, [1, blocks]."""
        *_, reading, settings = cell.what
        options = {"block": settings["block"], "reads": reading.reads}
        tokens = self.window(reading)
        blocks = lab.losses(self.model, reading.method, tokens, self.machine, **options)
        return {"blocks": blocks, "documents": np.asarray([reading.document])}

    def samples(self, part: Part, length: int) -> tasks.Samples:
        """The samples of a part."""
        options = self.tokenizer, self.config.sentence_tokens, self.config.bos
        drawn = _drawn(dataclasses.replace(part, first=0, count=0), length, *options)
        return drawn.part(part.first, part.count)

    def asked(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """What `retrieval.measured` keeps of a part's samples."""
        *_, reading, part = cell.what
        found = self.samples(part, reading.length)
        found = retrieval.cropped(found, reading.reads) if reading.reads else found
        batch = min(self.machine.rows(found.tokens.shape[1]), len(found.tokens))
        options = {"batch": batch, "rule": part.task.rule, "decode": self.model.decode}
        options["answered"] = part.count if cell.kind == ANSWERED else 0
        given = self.model.config, self.model.params, reading.method
        with sharding.mesh_of(self.model.params):
            return retrieval.measured(*given, found, **options)

    def suite(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """The score of every item by the suite's own metric, [items]."""
        *_, method, name, items = cell.what
        found = suites.load(name, limit=items)
        ready = dataclasses.replace(self.model, method=method)
        tokens = max(1, self.machine.tokens_per_batch // 4)
        values = suite_command.measure(ready, found, generate=False, tokens=tokens)
        return {"scores": values[found.metric], "documents": np.arange(len(found.items))}

    def check(self, cells: Iterable[lab.Cell]) -> None:
        """Makes the inputs of all cells, so that a bad text is known before the model is loaded.

        Raises:
            ValueError: everything that is wrong with the inputs, in one message.
        """
        wrong: dict[str, None] = {}
        for cell in cells:
            try:
                if cell.kind == SUITE:
                    suites.load(cell.what[-2], limit=1)
                    continue
                *_, reading, part = cell.what
                _ = (
                    self.window(reading)
                    if cell.kind == LOSS
                    else self.samples(part, reading.length)
                )
            except ValueError as error:
                wrong[str(error)] = None
        if wrong:
            raise ValueError(
                f"{'; '.join(wrong)}. Give other documents (--config.documents), shorter windows "
                "(--config.windows.NAME.factor), other tasks (--config.tasks) or other sentences "
                "to begin at (--config.sentence_tokens)"
            )


@functools.lru_cache(maxsize=32)
def _drawn(part: Part, length: int, tokenizer, sentence_tokens, bos: str) -> tasks.Samples:
    """All samples of a task at a length, of which a cell asks a part."""
    if isinstance(part.task, tasks.ARTICLES):
        chosen = questions.load(part.sources[0])
    else:
        chosen = [lab.document(name, tokenizer, sentence_tokens) for name in part.sources]
    options = {"length": length, "count": part.of, "seed": part.seed, "bos": bos}
    return part.task.samples(chosen, tokenizer, **options)


if __name__ == "__main__":
    lab.run(main, "experiments.extension_suite")
