"""The cells of longrope_search: pretraining, searches, tests, and what hypotheses speak of."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import llama, rotary, tasks
from longrope_jax.data import packing, tokenizers
from longrope_jax.errors import unknown_name
from longrope_jax.search import gradient
from longrope_jax.search.evolution import Evolution
from longrope_jax.search.individuals import Target, published

TEXT, NEEDLE = KINDS = "text", "needle"
# What each search lowers, and how it goes about it.
SEARCHES = {
    "LongRoPE": (TEXT, "evolution"),
    "LongRoPE2": (NEEDLE, "evolution"),
    "gradient": (TEXT, "gradient"),
    "gradient, monotone": (TEXT, "gradient"),
    "gradient, needle": (NEEDLE, "gradient"),
    "gradient, needle, monotone": (NEEDLE, "gradient"),
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
    return list(cells(*filled(config, folder)))


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts]:
    """The config with hypotheses for each target, and the facts of the model that is searched.

    Raises:
        ValueError: a checkpoint that was not trained with plain RoPE, an unknown search, no model,
            or several of a checkpoint.
    """
    if config.models < 1 or (config.models > 1 and config.model):
        raise ValueError(
            f"--config.models={config.models} must be 1 for a checkpoint, else 1 or more"
        )
    for name in config.searches:
        if name not in SEARCHES:
            raise ValueError(f"--config.searches: {unknown_name('search', name, SEARCHES)}")
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


def tested(config: ConfigDict) -> int:
    """Held-out documents that no search sees."""
    held_out = config.held_out
    return (held_out if isinstance(held_out, int) else len(held_out)) - config.search_documents


def cells(config: ConfigDict, facts: lab.Facts) -> Iterator[lab.Cell]:
    """First models first, then first restarts.

    The seed of a row that is searched is model * restarts + restart, that of others the model.
    """
    for model in range(config.models):
        before = pretraining(config, facts, model)
        yield from _tests(config, "RoPE", 1, facts.method, model, before)
        for restart in range(max(config.seeds, config.restarts)):
            for factor in config.factors:
                extension = target(config, facts, factor)
                if restart == 0:
                    for row, method in rows(config, facts, extension).items():
                        yield from _tests(config, row, factor, method, model, before)
                    crop = {"kinds": (TEXT,), "reads": config.trained_length}
                    yield from _tests(config, CROPPED, factor, facts.method, model, before, **crop)
                for name in config.searches:
                    if restart < restarts(config, name):
                        seed = model * restarts(config, name) + restart
                        yield from _searched(config, name, extension, seed, restart, before)


def _tests(config, row: str, factor: float, what, seed: int, after, kinds=KINDS, reads: int = 0):
    for kind in kinds:
        asked = _asked(config, kind, factor, test=True)
        yield lab.Cell("loss", row, seed, (_text(config), asked, what, reads), after)


def _searched(config, name: str, extension: Target, seed: int, restart: int, before):
    """The tests of one search."""
    lowered = _asked(config, SEARCHES[name][0], extension.factor, test=False)
    settings = _settings(config, name, extension, restart)
    search = lab.Cell("search", name, seed, (_text(config), extension, lowered, settings), before)
    yield from _tests(config, name, extension.factor, WINNER, seed, (search,))
    if name == "LongRoPE":
        yield from _tests(config, PLAIN, extension.factor, UNSTARTED, seed, (search,))


def restarts(config: ConfigDict, name: str) -> int:
    """How often a search is done anew on each model."""
    return config.seeds if SEARCHES[name][1] == "evolution" else config.restarts


def _text(config: ConfigDict) -> tuple:
    source = config.model or config.tokenizer
    return source, config.corpus, config.held_out, config.bos, config.sentence_tokens


def pretraining(config: ConfigDict, facts: lab.Facts, model: int = 0) -> tuple[lab.Cell, ...]:
    """The cell that trains a model; none for a checkpoint."""
    if config.model:
        return ()
    recipe = lab.Recipe(
        facts.method,
        config.trained_length,
        **config.pretraining,
        mixture=packing.TaskMixture(**config.taught),
        first_sentence=tasks.FirstSentence(**config.needles),
        passkey=tasks.Passkey(**config.passkey),
        seed=config.model_seed + model,
    )
    what = facts.config, recipe, _text(config)
    return (lab.Cell("train", "pretraining", config.model_seed + model, what),)


def _asked(config: ConfigDict, kind: str, factor: float, *, test: bool) -> Asked:
    length = round(config.trained_length * factor)
    count = config.test_needles if test else config.windows
    if test and kind == TEXT:
        count = config.test_windows_per_document * tested(config)
    asked = Asked(kind, length, count, config.search_documents, test)
    return asked if kind == TEXT else dataclasses.replace(asked, **config.needles)


def _settings(config: ConfigDict, name: str, extension: Target, restart: int) -> dict[str, Any]:
    """What a search does, beside its target and what it lowers.

    An evolution draws other individuals for each restart, by its seed; a gradient begins at the
    published method that is next best.
    """
    if SEARCHES[name][1] == "gradient":
        steps = gradient.steps_within(Evolution(**config.evolution).evaluations)
        fixed = {"steps": steps, "learning_rate": config.learning_rate}
        started = {"start": restart} if restart else {}
        return fixed | {"monotone": "monotone" in name} | started
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


def named_quantities(config: ConfigDict) -> list[str]:
    """Names of what hypotheses may speak of."""
    targets = [f"{factor:g}x" for factor in (1, *config.factors)]
    return [f"{name} at {x}" for x in targets for name in (*KINDS, "tokens right")]


def quantities(
    config: ConfigDict, folder: Path, cells: Sequence[lab.Cell], key: str
) -> dict[str, lab.Scores]:
    """The test's numbers `key` by kind and target, such as "text at 2x".

    Seeds are restarts where one model is searched; else models, over whose restarts the mean is
    taken, since a claim is about other models.
    """
    found = {}
    once = {name for name in config.searches if restarts(config, name) == 1}
    times = {name: restarts(config, name) for name in config.searches} | {PLAIN: config.seeds}
    for factor, kind in itertools.product((1, *config.factors), KINDS):
        length = round(config.trained_length * factor)
        chosen = [c for c in cells if (c.what[1].kind, c.what[1].length) == (kind, length)]
        scores = lab.scores(folder, chosen, key)
        if config.models == 1:
            published = {cell.row for cell in chosen if not isinstance(cell.what[2], str)}
            scores = scores.repeated(once | published)
        else:
            values = {row: by_model(v, times.get(row, 1)) for row, v in scores.values.items()}
            values = {row: value for row, value in values.items() if len(value)}
            scores = lab.Scores(values, {row: scores.documents[row] for row in values})
        found[f"{kind} at {factor:g}x"] = scores
    return found


def by_model(values: np.ndarray, times: int) -> np.ndarray:
    """Mean over `times` restarts of each model, [models, samples]; an unfinished model is none."""
    whole = values[: len(values) // times * times]
    return whole.reshape(-1, times, *values.shape[1:]).mean(1)
