"""The pretrained model, its sequences, and one search after the other."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.ablation import train
from experiments.ablation.study import Study
from experiments.progress import StudyProgress
from experiments.search import plan
from longrope_jax.data import tasks
from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.search import evolution, gradient
from longrope_jax.search.evolution import History
from longrope_jax.search.fitness import Objective
from longrope_jax.search.individuals import Target, published
from longrope_jax.training.flops import train_flops_per_token

# Needles of the search and of the test, also drawn from other documents.
_SEARCH_SEED, _TEST_SEED = 1, 2


@dataclass(frozen=True)
class Sequences:
    """tokens int32 [n, T+1], weights float32 [n, T] of the targets, document [n] of each."""

    tokens: np.ndarray
    weights: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True, eq=False)
class Workbench:
    """Text and model of the study, loaded when a search needs them."""

    config: ConfigDict
    workdir: Path

    @functools.cached_property
    def study(self) -> Study:
        """The ablation's, whose text and pretraining are used."""
        return Study(self.config.study, self.workdir)

    @property
    def search_documents(self) -> tuple[TokenizedDocument, ...]:
        """Held-out documents that fitness is measured on."""
        return self.study.held_out[: self.config.search_documents]

    @property
    def test_documents(self) -> tuple[TokenizedDocument, ...]:
        """Held-out documents that neither training nor any search has seen."""
        return self.study.held_out[self.config.search_documents :]

    def target(self, factor: float) -> Target:
        """The extension by `factor`."""
        return plan.target(self.config, factor, self.study.model.head_dim)

    @functools.cache  # noqa: B019  (one workbench lives as long as its process)
    def sequences(self, kind: str, length: int, *, test: bool) -> Sequences:
        """Text windows or needles of `length` tokens, for the searches or for the test."""
        documents = self.test_documents if test else self.search_documents
        if kind == "needle":
            return self._needles(documents, length, test)
        per = self.config.test_windows_per_document
        if not test:
            per = -(-self.config.windows // len(documents))
        tokens, names = documents.validation_windows(
            documents,
            length=length,
            per_document=per,
            bos=self.study.tokenizer.special(self.config.study.bos),
        )
        count = len(tokens) if test else self.config.windows
        # Round robin, so that a number which does not divide leaves out no document.
        order = np.argsort(np.arange(len(tokens)) % per, kind="stable")[:count]
        weights = np.ones((count, length), np.float32)
        return Sequences(tokens[order], weights, names[order])

    def _needles(self, documents, length: int, test: bool) -> Sequences:
        samples = tasks.first_sentence_samples(
            self.study.first_sentence,
            documents,
            self.study.tokenizer,
            length=length + 1,  # as long as a text window with the token after it
            count=self.config.test_needles if test else self.config.windows,
            seed=_TEST_SEED if test else _SEARCH_SEED,
            bos=self.config.study.bos,
        )
        weights = samples.answer[:, 1:].astype(np.float32)
        return Sequences(samples.tokens, weights, samples.documents)

    def params(self, progress: StudyProgress):
        """Of the model: from a checkpoint, or pretrained here first."""
        return train.pretrained(self.study, plan.model_run(self.config), progress)

    def path(self, search: plan.Search) -> Path:
        """Where a search is kept."""
        return self.workdir / "searches" / f"{search.slug}.npz"

    def check(self) -> None:
        """Everything that the searches and the test will ask of the config, before any of them.

        Raises:
            ValueError: the first thing that cannot be honoured.
        """
        c, held_out = self.config, len(self.study.held_out)
        if not 1 <= c.search_documents <= held_out - 2:
            raise ValueError(
                f"search_documents must leave 2 of {held_out} held-out documents to the test, got "
                f"{c.search_documents}"
            )
        parts = self.study.mesh.shape["data"] * self.study.mesh.shape["fsdp"]
        if c.windows < 1 or c.windows % parts:
            raise ValueError(f"windows must be a multiple of {parts} devices, got {c.windows}")
        if c.evolution.seeds < 1 or c.individuals_at_once < 1 or plan.gradient_steps(c) < 1:
            raise ValueError("evolution needs a seed, an individual at once and 6 evaluations")
        for factor in c.factors:
            for method in plan.EVOLUTIONS:
                plan.space(c, method, self.target(factor))
            for kind in ("text", "needle"):
                for test in (False, True):
                    self.sequences(kind, self.target(factor).seq_len, test=test)
        self.study.check()

    def flops(self, length: int) -> float:
        """Of one forward token at this length."""
        return train_flops_per_token(self.study.model, length) / 3


def objective(bench: Workbench, search: plan.Search, params) -> Objective:
    """What a search lowers."""
    target, settings = bench.target(search.factor), plan.evolution(bench.config)
    sequences = bench.sequences(search.objective, target.seq_len, test=False)
    return Objective(
        config=bench.study.model,
        params=params,
        target=target,
        tokens=sequences.tokens,
        weights=sequences.weights,
        mesh=bench.study.mesh,
        group=settings.mutants + settings.crossovers,
        at_once=bench.config.individuals_at_once,
    )


def execute(bench: Workbench, search: plan.Search, params, progress: StudyProgress) -> None:
    """One search, from where its file ends."""
    progress.describe(f"{search.method} to {search.factor:g}x, seed {search.seed}")
    lowered = objective(bench, search, params)
    tokens = lowered.tokens_per_evaluation

    def count(forwards: int) -> None:
        progress.advance(forwards * tokens * bench.flops(lowered.target.seq_len), forwards * tokens)

    if search.method in plan.EVOLUTIONS:
        space = plan.space(bench.config, search.method, lowered.target)
        evolution.search(
            space,
            plan.evolution(bench.config),
            lowered.fitness,
            bench.path(search),
            seed=search.seed,
            on_generation=count,
        )
    else:
        _descend(bench, search, lowered, count)


def _descend(bench, search: plan.Search, lowered: Objective, count: Callable[[int], None]) -> None:
    """A gradient from the best published method, whose choice is part of its budget."""
    starts = bench.workdir / "searches" / f"{search.slug}-starts.npz"
    if not starts.exists():
        candidates = list(published(lowered.target).values())
        history = History().extended(candidates, lowered.fitness(candidates))
        evolution.save(starts, history)
        count(len(candidates))
    gradient.learn(
        evolution.load(starts).best,
        lowered,
        bench.path(search),
        steps=plan.gradient_steps(bench.config),
        learning_rate=bench.config.learning_rate,
        monotone=search.method == "gradient, monotone",
        on_step=lambda: count(plan.FORWARDS_PER_GRADIENT),
    )
