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
and with plain RoPE that reads only the last L tokens (cropped). Presets: cpu (10 minutes on 2 idle
cores), tiny. The learning rate was not tuned. A first run, on another pretrained model, agrees on
what beats PI, NTK and YaRN, but not on all of gradient against evolution: there LongRoPE was below
YaRN at 2x too, and the gradient not behind LongRoPE2 on needles.

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
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import llama, rotary, tasks
from longrope_jax.data import documents, packing, tokenizers
from longrope_jax.search import evolution, gradient
from longrope_jax.search.evolution import Evolution, History
from longrope_jax.search.fitness import Objective
from longrope_jax.search.individuals import Target, published
from longrope_jax.search.longrope import LongRoPESpace
from longrope_jax.search.longrope2 import LongRoPE2Space
from longrope_jax.training.flops import train_flops_per_token

TEXT, NEEDLE = KINDS = "text", "needle"
# What each search lowers, and how it goes about it.
SEARCHES = {
    "LongRoPE": (TEXT, "evolution"),
    "LongRoPE2": (NEEDLE, "evolution"),
    "gradient": (TEXT, "gradient"),
    "gradient, monotone": (TEXT, "gradient"),
    "gradient, needle": (NEEDLE, "gradient"),
}
CROPPED, PLAIN = "cropped", "LongRoPE, no start tokens"
WINNER, UNSTARTED = "winner", "winner without start tokens"  # what a test cell measures


@dataclasses.dataclass(frozen=True)
class Asked:
    """Sequences of `length` tokens that a fitness or a test is measured on: text, or needles.

    The first `searched` held-out documents belong to the searches, the others to the test. A needle
    is the first sentence of a text, asked for at its end by `prompt` and closed by `end`.
    """

    kind: str
    length: int
    count: int
    searched: int
    test: bool
    prompt: str = ""
    end: str = ""


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure on test documents; searches and pretraining are what they stand on."""
    return list(_cells(*filled(config, folder)))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains, searches and measures what is missing, then writes the report."""
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = filled(config, folder)
    cells, work = list(_cells(config, facts)), Work(config, facts, folder, machine)
    left = lab.missing(folder, cells)
    if machine.measure and left:
        check(work, left)
    functions = {"train": work.train, "search": work.search, "loss": work.loss}
    lab.complete(folder, cells, functions, machine)
    return publish(config, facts, folder, cells, command)


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts]:
    """The config with hypotheses for each target, and the facts of the model that is searched.

    Raises:
        ValueError: a checkpoint that was not trained with plain RoPE.
    """
    if config.model:
        config, facts = lab.filled(config, folder)
    else:
        config, facts = config.copy_and_resolve_references(), _planned(config)
    if type(facts.method) is not rotary.RoPE:
        raise ValueError(f"--config.model={config.model} has {facts.method}: give one with RoPE")
    expanded = {}
    for (name, hypothesis), factor in itertools.product(config.hypotheses.items(), config.factors):
        one = hypothesis.to_dict()
        texts = {k: tuple(t.format(x=f"{factor:g}x") for t in one[k]) for k in ("gates", "checks")}
        expanded[f"{name} at {factor:g}x"] = one | texts
    with config.unlocked():
        config.hypotheses = ConfigDict(expanded)
    return config, facts


def _planned(config: ConfigDict) -> lab.Facts:
    """The facts of the model that is pretrained here."""
    tokenizer = tokenizers.load(config.tokenizer)
    shape = llama.LlamaConfig(vocab_size=tokenizer.vocab_size, **config.shape)
    method = rotary.RoPE(base=config.base_per_token * config.trained_length)
    specials = tuple(tokenizer.specials)
    return lab.Facts(shape, method, config.trained_length, config.bos, specials, 0, ())


def target(config: ConfigDict, facts: lab.Facts, factor: float) -> Target:
    """The extension of the model by `factor`."""
    return Target(facts.base, facts.config.head_dim, config.trained_length, factor)


def _tested(config: ConfigDict) -> int:
    """Held-out documents that no search sees."""
    held_out = config.held_out
    return (held_out if isinstance(held_out, int) else len(held_out)) - config.search_documents


def _cells(config: ConfigDict, facts: lab.Facts) -> Iterator[lab.Cell]:
    """First seeds first."""
    text, before = _text(config), pretraining(config, facts)

    def tests(row: str, factor: float, what, *, seed=0, after=before, kinds=KINDS, reads=0):
        for kind in kinds:
            asked = _asked(config, kind, factor, test=True)
            yield lab.Cell("loss", row, seed, (text, asked, what, reads), after)

    yield from tests("RoPE", 1, facts.method)
    for seed in range(config.seeds):
        for factor in config.factors:
            extension = target(config, facts, factor)
            for row, method in rows(config, facts, extension).items() if seed == 0 else ():
                yield from tests(row, factor, method)
            if seed == 0:
                crop = {"kinds": (TEXT,), "reads": config.trained_length}
                yield from tests(CROPPED, factor, facts.method, **crop)
            for name, (kind, way) in SEARCHES.items():
                if way == "evolution" or seed == 0:
                    lowered = _asked(config, kind, factor, test=False)
                    what = text, extension, lowered, _settings(config, name, extension)
                    search = lab.Cell("search", name, seed, what, before)
                    yield from tests(name, factor, WINNER, seed=seed, after=(search,))
                    if name == "LongRoPE":
                        yield from tests(PLAIN, factor, UNSTARTED, seed=seed, after=(search,))


def _text(config: ConfigDict) -> tuple:
    source = config.model or config.tokenizer
    return source, config.corpus, config.held_out, config.bos, config.sentence_tokens


def pretraining(config: ConfigDict, facts: lab.Facts) -> tuple[lab.Cell, ...]:
    """The cell that trains the model; none for a checkpoint."""
    if config.model:
        return ()
    recipe = lab.Recipe(
        facts.method,
        config.trained_length,
        **config.pretraining,
        mixture=packing.TaskMixture(**config.taught),
        first_sentence=tasks.FirstSentence(**config.needles),
        passkey=tasks.Passkey(**config.passkey),
        seed=config.model_seed,
    )
    what = facts.config, recipe, _text(config)
    return (lab.Cell("train", "pretraining", config.model_seed, what),)


def _asked(config: ConfigDict, kind: str, factor: float, *, test: bool) -> Asked:
    length = round(config.trained_length * factor)
    count = config.test_needles if test else config.windows
    if test and kind == TEXT:
        count = config.test_windows_per_document * _tested(config)
    asked = Asked(kind, length, count, config.search_documents, test)
    return asked if kind == TEXT else dataclasses.replace(asked, **config.needles)


def _settings(config: ConfigDict, name: str, extension: Target) -> dict[str, Any]:
    """What a search does, beside its target and what it lowers."""
    if SEARCHES[name][1] == "gradient":
        steps = gradient.steps_within(Evolution(**config.evolution).evaluations)
        fixed = {"steps": steps, "learning_rate": config.learning_rate}
        return fixed | {"monotone": name == "gradient, monotone"}
    settings = {"sizes": Evolution(**config.evolution), "probability": config.probability}
    if name == "LongRoPE":
        # Start tokens below the trained length only.
        counts = tuple(n for n in config.start_counts if n < extension.length)
        settings["start_counts"] = counts
    return settings


def rows(config: ConfigDict, facts: lab.Facts, extension: Target) -> dict[str, rotary.Method]:
    """The methods of the test that are not searched."""
    values = {name: individual.factors for name, individual in published(extension).items()}
    values |= {"factor": extension.factor, "abf": facts.base * config.abf_factor}
    return {
        row: lab.method(r.method, facts, extension.length, f"rows.{row}.method", **values)
        for row, r in config.rows.items()
    }


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
    def model(self):
        """The trained model that is searched."""
        if self.config.model:
            return lab.model(self.config.model, self.machine)
        (trained,) = pretraining(self.config, self.facts)
        return lab.trained(lab.run_folder(self.folder, trained), self.machine)

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
        (tokens, weights, _), model = self.sequences(lowered), self.model
        sizes, run = Evolution(**self.config.evolution), lab.run_folder(self.folder, cell)
        sizes_of = {"group": sizes.mutants + sizes.crossovers}
        sizes_of["at_once"] = max(1, self.machine.tokens_per_batch // weights.size)
        fixed = model.config, model.params, extension, tokens, weights, self.machine.mesh()
        objective = Objective(*fixed, **sizes_of)
        flops = train_flops_per_token(self.model.config, extension.seq_len) / 3
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
            loss, right = lab.scored(self.model, rot, tokens, weights, self.machine)
            within, _ = lab.scored(self.model, rot, *self.sequences(short)[:2], self.machine)
            return {"loss": loss, "right": right, "within": within, "documents": names}
        block, method = math.gcd(trained, asked.length), self.method(cell)
        blocks = lab.losses(self.model, method, tokens, self.machine, block=block, reads=reads)
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
    every = [*c.rows, *SEARCHES, PLAIN, CROPPED, *(cell.row for cell in cells)]
    lab.check_hypotheses(c.hypotheses, _quantities(c), every)
    scored = Evolution(**c.evolution).evaluations
    if c.search_documents < 1 or _tested(c) < 2:
        raise ValueError(
            f"--config.search_documents={c.search_documents} leaves {_tested(c)} of the held-out "
            "documents to the test: it needs 2, and the searches 1"
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


def _quantities(config: ConfigDict) -> list[str]:
    """Names of what hypotheses may speak of."""
    targets = [f"{factor:g}x" for factor in (1, *config.factors)]
    return [f"{name} at {x}" for x in targets for name in (*KINDS, "tokens right")]


def quantities(config: ConfigDict, folder: Path, cells: Sequence[lab.Cell], key: str):
    """The test's numbers `key` by kind and target, such as "text at 2x"."""
    found, seedless = {}, {name for name in SEARCHES if SEARCHES[name][1] == "gradient"}
    for factor, kind in itertools.product((1, *config.factors), KINDS):
        length = round(config.trained_length * factor)
        chosen = [c for c in cells if (c.what[1].kind, c.what[1].length) == (kind, length)]
        once = seedless | {cell.row for cell in chosen if not isinstance(cell.what[2], str)}
        found[f"{kind} at {factor:g}x"] = lab.scores(folder, chosen, key).repeated(once)
    return found


def publish(config, facts: lab.Facts, folder: Path, cells, command: str) -> lab.Report:
    """Writes tables, figures and claims of the cells there are."""
    keys = "loss", "within", "right"
    loss, within, right = (quantities(config, folder, cells, key) for key in keys)
    answers = {k.replace(NEEDLE, "tokens right"): v for k, v in right.items() if NEEDLE in k}
    searches = [c.after[0] for c in cells if c.after and c.after[0].kind == "search"]
    arrays = {cell: lab.read(folder, cell) for cell in dict.fromkeys(searches)}
    found = {cell: evolution.from_arrays(one) for cell, one in arrays.items() if one}
    judged = lab.judged(config.hypotheses, loss | answers)
    shown = [name for name, scores in loss.items() if scores.rows and not name.endswith(" 1x")]
    tables = [_loss_table(name, loss[name], within[name], right[name]) for name in shown]
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(judged), "Hypotheses", "hypotheses")
    spent, specs = [_spent(*one) for one in found.items()], _specs(found)
    equal = [lab.table(spent, "Searches at equal compute", "searches")] if found else []
    figures = [_factors(config, facts, found), _descents(config, found)] if found else []
    winners = [f"{x['search']} to {x['target']}:\n\n{x['spec']}\n\n{x['hf']}" for x in specs]
    means = {name: {row: x.mean(row) for row in x.rows} for name, x in loss.items()}
    claims = [_lowest(name, loss[name]) for name in shown]
    claims += [f"{h.name}: {h.claim}: {h.verdict}." for h in judged]
    sections = [
        lab.Section("Result", [*figures[:1], *tables]),
        lab.Section("What was claimed", [verdicts, _explained(config, facts)]),
        lab.Section("Searches", [*equal, *figures[1:], *map(lab.Paragraphs, winners)]),
    ]
    page = {"claims": claims, "sections": sections, "cells": cells}
    page["results"] = {"loss": means, "searches": spent, "specs": specs}
    return lab.publish(folder, command, config, title="Searched and learned factors", **page)


def _lowest(name: str, loss: lab.Scores) -> str:
    """The row with the lowest loss, and how the best lies to cropped text."""
    methods = [row for row in loss.rows if row != CROPPED]
    best = min(methods, key=lambda row: float(loss.mean(row)))
    said = f"Lowest loss, {name} the trained length: {best}, {loss.mean(best):.3f} nats"
    if CROPPED in loss.rows:
        said += f"; cropped {loss.mean(CROPPED):.3f}; {lab.counted(loss, methods, CROPPED)}"
    return said + "."


def _loss_table(name: str, loss: lab.Scores, within: lab.Scores, right: lab.Scores) -> lab.Table:
    """Every row, lowest loss first: its loss, what it is against others, its short-range cost."""
    lines = []
    for row in sorted(loss.rows, key=lambda row: float(loss.mean(row))):
        line = {"row": row, "seeds": len(loss.values[row]), "loss": lab.show(loss.mean(row))}
        for other in ("PI", "NTK", "YaRN", CROPPED):
            line[f"minus {other}"] = lab.show(lab.gap(loss, row, other))
        line["within L, minus RoPE"] = lab.show(lab.gap(within, row, "RoPE"))
        share = right.mean(row) if row in right.rows else None
        lines.append(line | {"tokens right": lab.show(share, 2)})
    title = f"Loss of {name} the trained length, nats per token"
    return lab.table(lines, title, name.replace(" ", "_"))


def _spent(cell: lab.Cell, found: History) -> dict[str, Any]:
    """Budget, start and result of a search."""
    _, extension, lowered, settings = cell.what
    scored, descent = len(found.fitness), "steps" in settings
    passes = gradient.cost(scored) if descent else scored
    first = found.fitness[: 1 if descent else settings["sizes"].population]
    line = {"search": cell.row, "target": f"{extension.factor:g}x"}
    line["seed"] = None if descent else cell.seed
    line["forward passes"] = passes - 2 * scored if descent else scored
    line |= {"backward passes": scored if descent else 0, "forward equivalents": passes}
    line |= {"tokens": passes * lowered.count * lowered.length, "loss at start": min(first)}
    line |= {"loss found": min(found.fitness), "start tokens": found.best.start_count}
    return line | {"critical pair": found.best.critical or None}


def _specs(found: Mapping[lab.Cell, History]) -> list[dict[str, Any]]:
    """The best of the seeds of each search and target, as code and as Hugging Face's JSON.

    Hugging Face has no start tokens: its JSON is that of the same factors without them.
    """
    best: dict[tuple, lab.Cell] = {}
    for cell in sorted(found, key=lambda cell: min(found[cell].fitness), reverse=True):
        best[cell.row, cell.what[1]] = cell
    specs = []
    for (row, extension), cell in sorted(best.items(), key=lambda item: item[0][0]):
        spec = extension.spec(found[cell].best)
        plain = rotary.to_hf(dataclasses.replace(spec, start_count=0), head_dim=extension.head_dim)
        named = {"search": row, "target": f"{extension.factor:g}x", "spec": f"rotary.{spec!r}"}
        more = {"hf": json.dumps(plain), "hf leaves out start tokens": spec.start_count}
        specs.append(named | {"loss found": min(found[cell].fitness)} | more)
    return specs


@lab.style()
def _factors(config, facts: lab.Facts, found: Mapping[lab.Cell, History]) -> lab.Figure:
    """lambda_j of every row and of every winner, one panel for each target."""
    colour = dict(zip(SEARCHES, lab.colours(list(SEARCHES)), strict=True))
    fig, axes = lab.subplots(1, len(config.factors), size=(11, 4.6), squeeze=False)
    for ax, factor in zip(axes[0], config.factors, strict=True):
        extension = target(config, facts, factor)
        curves = {}
        for row, method in rows(config, facts, extension).items():
            f = method.frequencies(head_dim=extension.head_dim, seq_len=extension.seq_len).inv_freq
            if f.shape == extension.inv_freq.shape and (f > 0).all():
                curves.setdefault(tuple(np.round(extension.inv_freq / f, 9)), row)
        dashes = itertools.cycle((":", "--", "-.", (0, (1, 3)), (0, (5, 1, 1, 1))))
        for (curve, row), dash in zip(curves.items(), dashes, strict=False):
            ax.plot(curve, color="#7F7F7F", linestyle=dash, label=row)
        for cell, one in found.items():
            if cell.what[1].factor == factor:
                label = cell.row if cell.seed == 0 else None
                ax.plot(one.best.factors, color=colour[cell.row], label=label)
        ax.set(xlabel="pair j, fast to slow", title=f"to {factor:g}x the trained length")
    axes[0, 0].set_ylabel("factor λ of the wavelength")
    axes[0, 0].legend()
    return lab.Figure("factors", fig, "Factors by pair; several lines: seeds.")


@lab.style()
def _descents(config: ConfigDict, found: Mapping[lab.Cell, History]) -> lab.Figure:
    """Lowest loss so far against forward passes; rows are targets, columns the two losses."""
    colour = dict(zip(SEARCHES, lab.colours(list(SEARCHES)), strict=True))
    panels = list(itertools.product(config.factors, KINDS))
    size = (11, 3.6 * len(config.factors))
    fig, axes = lab.subplots(len(config.factors), 2, size=size, squeeze=False, sharex=True)
    for ax, (factor, kind) in zip(axes.flat, panels, strict=True):
        shown = []
        for cell, one in found.items():
            if (cell.what[1].factor, cell.what[2].kind) == (factor, kind):
                cost, loss = np.arange(len(one.fitness)) + 1, np.minimum.accumulate(one.fitness)
                cost = gradient.cost(cost) if "steps" in cell.what[3] else cost
                look = {"color": colour[cell.row], "label": cell.row if cell.seed == 0 else None}
                ax.plot(cost, loss, drawstyle="steps-post", **look)
                # What comes before is PI, which would flatten all that follows.
                shown += loss[np.searchsorted(cost, gradient.cost(0)) :].tolist()
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) + 1e-6
            ax.set_ylim(min(shown) - margin, max(shown) + margin)
            ax.legend()
        ax.set_title(f"loss of {kind} at {factor:g}x, search documents", loc="left")
        ax.set(xlabel="forward passes (a gradient counts as three)", ylabel="lowest loss so far")
    return lab.Figure("progress", fig, "Progress of the searches at equal compute.")


def _explained(config: ConfigDict, facts: lab.Facts) -> lab.Paragraphs:
    return lab.Paragraphs(
        f"L = {config.trained_length} tokens, {facts.method}. Searches on "
        f"{config.search_documents} held-out documents of {config.corpus} ({config.windows} "
        f"windows or needles), test on {_tested(config)} others. Intervals: 95%, over test "
        "documents and, where a row has several, over seeds of the search; one model: they say "
        "nothing of other models. Within L: the same windows up to L, and other needles of L "
        "tokens. Cropped: RoPE reads the last L tokens, at least seven eighths of them.\n\n"
        "Every search gets the same number of forward passes over sequences of the same documents; "
        "a gradient counts as three. It begins at the best of PI, NTK and YaRN, whose passes count "
        "too, has no start tokens, and is not held to a range or to monotone factors; its monotone "
        "variant is projected onto LongRoPE's space after every step. Loss at start: the best of "
        "the first generation, or the gradient's first point."
    )


if __name__ == "__main__":
    lab.run(main, "experiments.longrope_search")
