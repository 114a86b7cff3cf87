"""Searched and learned factors against PI, NTK-aware and YaRN, with no training of the weights.

    python -m experiments.longrope_search --config=configs/longrope_search.py:cpu --workdir=DIR

A Llama is pretrained at a short length L (or read: --config.model=CHECKPOINT). Then, at 2 L and
4 L, five ways to find one factor per rotary pair get the same budget of forward passes over
sequences of held-out documents:

    LongRoPE (2402.13753)   evolution, loss of text; factors and start tokens
    LongRoPE2 (2502.20082)  evolution, loss of the answers to needles; critical pair and factors
    gradient                Adam on log lambda through the phases, loss of text
    gradient, monotone      the same, projected onto LongRoPE's monotone factors
    gradient, needle        as gradient, loss of the answers to needles

and every winner, chosen by its fitness, is compared on other documents with the published methods
and with plain RoPE that reads only the last L tokens (cropped). Presets: cpu (one model, 10 minutes
on 2 idle cores), overnight (3 models, 3 restarts, needles by monotone factors too; about an hour),
paper (the same with LongRoPE's 1,344 passes; about 6 hours; in the folder of overnight it trains no
model again), tiny. The learning rate was not tuned. A first run, on another pretrained model,
agrees on what beats PI, NTK and YaRN, but not on all of gradient against evolution: there LongRoPE
was below YaRN at 2x too, and the gradient not behind LongRoPE2 on needles.

Expected with preset cpu, loss on 10 test plays in nats (its difference to YaRN is in the report):

    row                   text 2x   text 4x   needle 2x   needle 4x
    RoPE                  2.278     3.109     4.17        5.57
    PI                    2.835     3.501     2.77        4.54
    NTK                   1.872     2.095     1.57        3.90
    YaRN                  1.856     1.917     0.53        0.87
    LongRoPE              1.852     1.890     0.53        0.88
    LongRoPE2             1.863     1.925     0.08        0.13
    gradient              1.844     1.876     1.08        1.16
    gradient, monotone    1.841     1.885     0.14        0.41
    gradient, needle      1.912     1.921     0.15        0.10
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments import longrope_search_cells as cells_of
from experiments import longrope_search_report as report
from experiments.longrope_search_cells import NEEDLE, SEARCHES, WINNER, Asked
from longrope_jax import rotary, tasks
from longrope_jax.data import documents, tokenizers
from longrope_jax.model import Model
from longrope_jax.search import evolution, gradient
from longrope_jax.search.evolution import Evolution
from longrope_jax.search.fitness import Objective
from longrope_jax.search.individuals import Target
from longrope_jax.search.longrope import LongRoPESpace
from longrope_jax.search.longrope2 import LongRoPE2Space
from longrope_jax.training.flops import train_flops_per_token

plan = cells_of.plan  # every study has it under this name


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains, searches and measures what is missing, then writes the report."""
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = cells_of.filled(config, folder)
    cells = list(cells_of.cells(config, facts))
    work = Work(config, facts, folder, machine)
    left = lab.missing(folder, cells)
    if machine.measure and left:
        check(work, left)
    functions = {"train": work.train, "search": work.search, "loss": work.loss}
    lab.complete(folder, cells, functions, machine)
    return report.publish(config, facts, folder, cells, command)


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Makes the cells of a config; text and model are read when a cell needs them."""

    config: ConfigDict
    facts: lab.Facts
    folder: Path
    machine: lab.Machine

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to pretrain on, and those held out for searches and test."""
        c = self.config
        tokenizer = lab.opened(c.model).tokenizer if c.model else tokenizers.load(c.tokenizer)
        per_search = -(-c.windows // c.search_documents)
        windows = max(c.test_windows_per_document, per_search)
        length = round(c.trained_length * max(c.factors))
        return lab.text(c, tokenizer, length=length, windows=windows, unseen=True)

    @functools.cached_property
    def _held(self) -> dict:
        """The one model that is held."""
        return {}

    def model(self, cell: lab.Cell) -> Model:
        """The trained model that a cell searches or tests."""
        while cell.after:
            cell = cell.after[0]
        trained = cell if cell.kind == "train" else None
        if trained not in self._held:
            self._held.clear()
            self._held[trained] = (
                lab.trained(lab.run_folder(self.folder, trained), self.machine)
                if trained
                else lab.model(self.config.model, self.machine)
            )
        return self._held[trained]

    def train(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """The model, from nothing."""
        shape, recipe, _ = cell.what
        fresh = lab.fresh(shape, self.text.tokenizer, recipe.method, self.machine, seed=cell.seed)
        return lab.train(fresh, recipe, self.text, lab.run_folder(self.folder, cell), self.machine)

    def sequences(self, asked: Asked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens int32 [n, T + 1], weights float32 [n, T] of the targets, documents [n]."""
        part = slice(asked.searched, None) if asked.test else slice(asked.searched)
        chosen, bos = self.text.held_out[part], self.text.bos
        if asked.kind == NEEDLE:
            # As long as a text window with the token after it; the test has needles of its own.
            task, options = tasks.FirstSentence(asked.prompt, asked.end), {"bos": bos}
            options |= {"length": asked.length + 1, "count": asked.count, "seed": 1 + asked.test}
            found = task.samples(chosen, self.text.tokenizer, **options)
            return found.tokens, found.answer[:, 1:].astype(np.float32), found.documents
        per = -(-asked.count // len(chosen))
        options = {"per_document": per, "bos": self.text.tokenizer.special(bos)}
        tokens, names = documents.validation_windows(chosen, length=asked.length, **options)
        # Round robin, so that a number which does not divide leaves out no document.
        order = np.argsort(np.arange(len(tokens)) % per, kind="stable")[: asked.count]
        return tokens[order], np.ones((asked.count, asked.length), np.float32), names[order]

    def search(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """One search, from where its files in the run's folder end: everything that it scored."""
        _, extension, lowered, settings = cell.what
        (tokens, weights, _), model = self.sequences(lowered), self.model(cell)
        sizes, run = Evolution(**self.config.evolution), lab.run_folder(self.folder, cell)
        sizes_of = {"group": sizes.mutants + sizes.crossovers}
        sizes_of["at_once"] = max(1, self.machine.tokens_per_batch // weights.size)
        fixed = model.config, model.params, extension, tokens, weights, self.machine.mesh()
        objective = Objective(*fixed, **sizes_of)
        flops = train_flops_per_token(model.config, extension.seq_len) / 3
        budget = gradient.cost(settings["steps"]) if "steps" in settings else sizes.evaluations
        count = lab.counting(budget, objective.tokens_per_evaluation, flops)
        if "steps" in settings:
            descent = gradient.from_published(objective, run, **settings, on_forwards=count)
            return {"factors": descent.factors, "fitness": descent.losses}
        options = {"seed": cell.seed, "on_generation": count}
        space, file = _space(extension, settings), run / "history.npz"
        found = evolution.search(space, sizes, objective.fitness, file, **options)
        return evolution.to_arrays(found)

    def loss(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Loss of each test sequence: of all of it, within the trained length, beyond it.

        Of a needle the answer alone counts; within is then another needle of the trained length.
        """
        (_, asked, _, reads), trained = cell.what, self.config.trained_length
        tokens, weights, names = self.sequences(asked)
        if asked.kind == NEEDLE:
            rot, short = self.rotary(cell), dataclasses.replace(asked, length=trained)
            loss, right = lab.scored(self.model(cell), rot, tokens, weights, self.machine)
            within, _ = lab.scored(self.model(cell), rot, *self.sequences(short)[:2], self.machine)
            return {"loss": loss, "right": right, "within": within, "documents": names}
        block, method = math.gcd(trained, asked.length), self.method(cell)
        blocks = lab.losses(
            self.model(cell), method, tokens, self.machine, block=block, reads=reads
        )
        inner, outer = blocks[:, : trained // block], blocks[:, trained // block :]
        found = {"loss": blocks.mean(1), "within": inner.mean(1), "documents": names}
        return found | ({"beyond": outer.mean(1)} if outer.size else {})

    def method(self, cell: lab.Cell) -> rotary.Method:
        """What a test cell measures: its own method, or the winner of the search before it."""
        what = cell.what[2]
        if not isinstance(what, str):
            return what
        best = evolution.from_arrays(lab.read(self.folder, cell.after[0])).best
        plain = dataclasses.replace(best, start_count=0)
        return cell.after[0].what[1].spec(best if what == WINNER else plain)

    def rotary(self, cell: lab.Cell) -> rotary.Rotary:
        """The arrays of that method for the length of the test."""
        head_dim, length = self.facts.config.head_dim, cell.what[1].length
        return rotary.make(self.method(cell), head_dim=head_dim, seq_len=length)


def _space(extension: Target, settings: Mapping[str, Any]):
    """What an evolution searches; None for a gradient."""
    if "start_counts" in settings:
        return LongRoPESpace(extension, settings["start_counts"], settings["probability"])
    return LongRoPE2Space(extension, settings["probability"]) if "sizes" in settings else None


def check(work: Work, cells: Sequence[lab.Cell]) -> None:
    """Refuses what pretraining, searches and tests would refuse, before any of them.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    c, parts = work.config, lab.batch_parts(work.machine.mesh())
    every = [*c.rows, *SEARCHES, cells_of.PLAIN, cells_of.CROPPED, *(cell.row for cell in cells)]
    lab.check_hypotheses(c.hypotheses, cells_of.named_quantities(c), every)
    scored = Evolution(**c.evolution).evaluations
    if c.search_documents < 1 or cells_of.tested(c) < 2:
        raise ValueError(
            f"--config.search_documents={c.search_documents} leaves {cells_of.tested(c)} of the "
            "held-out documents to the test: it needs 2, and the searches 1"
        )
    if not 1 <= c.restarts <= gradient.STARTS:
        raise ValueError(
            f"--config.restarts={c.restarts} must be 1 to {gradient.STARTS}, the methods that a "
            "gradient begins at"
        )
    if c.seeds < 1 or gradient.steps_within(scored) < 1:
        raise ValueError(
            f"--config.seeds={c.seeds} must be at least 1, and --config.evolution score at least 6 "
            f"individuals, a step of the gradient: it scores {scored}"
        )
    if c.windows < 1 or c.windows % parts:
        raise ValueError(f"--config.windows={c.windows} must be a multiple of {parts} devices")
    for cell in cells:
        if cell.kind == "train":
            with lab.naming("pretraining"):
                lab.check_recipe(cell.what[1], cell.what[0], work.machine)
        elif cell.kind == "search":
            _space(cell.what[1], cell.what[3])
        elif not isinstance(cell.what[2], str):
            work.rotary(cell)
    for asked in {x for cell in cells for x in cell.what if isinstance(x, Asked)}:
        work.sequences(asked)


if __name__ == "__main__":
    lab.run(main, "experiments.longrope_search")
