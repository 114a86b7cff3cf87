"""The cells of the base-frequency ablation: what is trained and measured, in which order.

Everything that decides a number stands in its cell; experiments/base_frequency_ablation.py makes
the cells.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import base_frequency_results as results
from experiments import lab
from longrope_jax import llama, rotary, tasks
from longrope_jax.data import packing

# Continuations draw other windows than pretraining did, the same ones for every method.
CONTINUATION_SEED = 10_000
_TOKENIZER = "bpe:2048"  # where neither the config nor a checkpoint names one
_CRITERION_SAMPLES = 200  # of each task, about training documents
_ON_WINDOWS = ("loss", "mean_loss", "context_gain")  # kinds whose count is per document
QUESTIONS = ("first_sentence", "passkey", "answers")  # kinds of cells that ask for something


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a cell measures a model under; its columns are lengths times scales times controls.

    Attributes:
        method: the rotary method.
        step: of the continuation; 0 is before it.
        count: windows of each document, or samples of each column.
        lengths: tokens of a window or sample.
        scales: what frequencies are divided by, as in Giraffe's matrix; 1 is the method itself.
        controls: of questions, see `tasks.CONTROLS`.
        start: checkpoint and dtypes of a model that was not trained here.
        reads: tokens that the model reads, the last ones (cropping); 0: all.
    """

    method: rotary.Method
    step: int
    count: int
    lengths: tuple[int, ...]
    scales: tuple[float, ...] = (1.0,)
    controls: tuple[str, ...] = ("none",)
    start: tuple[str, ...] = ()
    reads: int = 0

    @property
    def columns(self) -> tuple[tuple[int, float, str], ...]:
        """(length, scale, control) of every column."""
        return tuple(itertools.product(self.lengths, self.scales, self.controls))


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """All measuring cells; the trainings that they measure are in their `after`."""
    config = filled(config, folder)[0]
    every = [*common(config), *(cell for part in parts(config) for cell in part.cells)]
    return list(dict.fromkeys(every))


@dataclasses.dataclass(frozen=True)
class Part:
    """What is measured of one row and seed, and what it costs.

    Attributes:
        label: row and seed, in words.
        cells: all of them.
        start: name of the pretraining that the row starts from.
        trained, scored: tokens that are trained on after the pretraining, and that are scored.
        pretrained: tokens of the pretraining.
    """

    label: str
    cells: tuple[lab.Cell, ...]
    start: str
    trained: int
    scored: int
    pretrained: int


def within(
    config: ConfigDict, every: Sequence[Part], per_token: float
) -> tuple[list[Part], list[str]]:
    """The parts that fit the time budget, in their order, and the labels of those left out.

    One seed of every row that has several is always there: a study of fewer rows says nothing.

    Args:
        config: with `minutes`.
        every: all parts, the most telling ones first.
        per_token: seconds that a token of training takes; one that is scored takes a third.
    """
    kept, left_out, started, spent = [], [], set(), 0.0
    needed = sum(settings.seeds > 1 for settings in config.rows.values()) or 1
    for part in every:
        tokens = part.trained + part.scored / 3
        tokens += 0 if part.start in started else part.pretrained
        if len(kept) >= needed and spent + tokens * per_token > 60 * config.minutes:
            left_out.append(part.label)
            continue
        kept.append(part)
        started.add(part.start)
        spent += tokens * per_token
    return kept, left_out


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts | None]:
    """The config with its tokenizer and beginning token, and the facts of a given checkpoint.

    Raises:
        ValueError: the checkpoint does not fit the config, or says no beginning token.
    """
    config, source = config.copy_and_resolve_references(), config.init_checkpoint
    if config.length < 1:
        raise ValueError(f"--config.length={config.length}: at least one token")
    if not source:
        config.tokenizer = config.tokenizer or _TOKENIZER
        config.bos = config.bos or ("<bos>" if config.tokenizer == "bytes" else "<s>")
        return config, None
    facts = lab.facts(folder, source, lab.Machine(**config.machine))
    if not isinstance(facts.method, rotary.RoPE):
        raise ValueError(
            f"--config.init_checkpoint={source} was trained with {rotary.notation(facts.method)}: "
            "this study starts from plain RoPE, give a checkpoint that was not extended yet"
        )
    length, base = facts.trained_length or config.length, sizes(config)["base"]
    if length != config.length or not math.isclose(facts.method.base, base):
        raise ValueError(
            f"--config.init_checkpoint={source} was trained at {length} tokens with base "
            f"{facts.method.base:g}, the config says {config.length} and {base:g}: "
            f"--config.length={length} --config.base_per_token={facts.method.base / length!r}"
        )
    if not config.tokenizer:
        config.bos = lab.check_bos(facts, source, config.bos)
    return config, facts


def sizes(config: ConfigDict) -> dict[str, float]:
    """What methods may name: the base scales with the pretraining length."""
    base = config.base_per_token * config.length
    abf = base * config.abf_factor
    return {"base": base, "abf": abf, "length": config.length, "factor": config.factor}


def shape(config: ConfigDict, facts: lab.Facts | None = None, vocab: int = 1) -> llama.LlamaConfig:
    """The model: a given checkpoint's, a published preset with changes, or a shape of its own.

    Raises:
        ValueError: a vocabulary too small for a tokenizer of `vocab` tokens.
    """
    fields = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    if facts:
        model = dataclasses.replace(facts.config, **fields)
    elif config.model.preset:
        model = llama.preset(config.model.preset, **fields)
    else:
        fields |= {name: v for name, v in config.model.items() if name != "preset"}
        return llama.LlamaConfig(vocab_size=vocab, **fields)
    if model.vocab_size < vocab:
        name = config.init_checkpoint or config.model.preset
        raise ValueError(
            f"{name} has {model.vocab_size} tokens, --config.tokenizer={config.tokenizer} {vocab}"
        )
    return model


def common(config: ConfigDict) -> Iterator[lab.Cell]:
    """What stands beside all rows: chance, and the measured shares of what is taught."""
    text, count, mixture = text_of(config), config.evaluation.generated, mixture_of(config)
    asked = wording(config, "answers")
    yield lab.Cell("chance", "chance", what=(*asked, results.full(config), count, text))
    for phase in ("continuation",) if config.init_checkpoint else ("pretraining", "continuation"):
        if mixture.first_sentence or mixture.passkey:
            yield lab.Cell("taught", phase, what=(recipe_of(config, phase, rotary.RoPE()), text))


def parts(config: ConfigDict) -> Iterator[Part]:
    """Rows of several seeds first, seed by seed: cut short, a study still says much."""
    rows = config.rows
    runs = [(row, seed) for row, settings in rows.items() for seed in range(settings.seeds)]
    for row, seed in sorted(runs, key=lambda run: (rows[run[0]].seeds == 1, run[1])):
        yield _part(config, row, rows[row].first_seed + seed)


def probe(config: ConfigDict) -> lab.Cell:
    """The cell that times the first steps of the continuation."""
    recipe = recipe_of(config, "continuation", rotary.RoPE())
    return lab.Cell("probe", "probe", what=(recipe, config.model, text_of(config)))


def _start(config: ConfigDict, row: str, seed: int) -> tuple[tuple, tuple[lab.Cell, ...], int]:
    """Start of the checkpoint, or the pretraining that a row starts from, and its tokens."""
    given = (config.init_checkpoint, config.dtype, config.param_dtype)
    if config.init_checkpoint:
        return given, (), 0
    settings, text, first = config.rows[row], text_of(config), results.start_row(config.rows[row])
    plain = rotary.RoPE(base=sizes(config)["base"])
    recipe = recipe_of(config, "pretraining", plain, seed, settings.taught)
    before = lab.Cell("train", first, seed, (recipe, config.model, given[1:], text))
    if recipe.mixture and config.criterion.share:
        steps = max(recipe.warmup_steps + 1, round(config.criterion.more * recipe.steps))
        more = dataclasses.replace(recipe, steps=steps)
        taught = {
            "passkey": recipe.mixture.passkey,
            "first_sentence": recipe.mixture.first_sentence,
        }
        asked = {kind: wording(config, kind)[0] for kind, share in taught.items() if share}
        what = (more, dict(config.criterion), _CRITERION_SAMPLES, asked, text)
        return (), (lab.Cell("prolonged", first, seed, what, (before,)),), recipe.tokens
    return (), (before,), recipe.tokens


def _part(config: ConfigDict, row: str, seed: int) -> Part:
    """Everything that is measured of one row and seed, and of the model that it starts from."""
    settings, text, known = config.rows[row], text_of(config), sizes(config)
    with lab.naming(f"rows.{row}.method"):
        swept = known["base"] * settings.times
        method = lab.read_method(settings.method, **known, swept=swept)
    start, before, pretrained = _start(config, row, seed)
    plain, first = rotary.RoPE(base=known["base"]), results.start_row(settings)
    last, tokens, scored = config.continuation.steps, 0, 0
    runs = {}
    for steps in (*results.branches(config, row), last):
        recipe = recipe_of(
            config, "continuation", method, seed, settings.taught, settings.rate, steps
        )
        tokens += recipe.tokens
        runs[steps] = (lab.Cell("train", row, seed, (recipe, start, text), before),)
    cells = []

    def add(kind: str, step: int, count: int, lengths: Sequence[int], **columns) -> None:
        nonlocal scored
        of, at = columns.pop("method", method), () if step else start
        label = columns.pop("label", row if of is method else first)
        setting = Setting(of, step, count, tuple(lengths), start=at, **columns)
        what = (setting, text, *wording(config, kind))
        cells.append(lab.Cell(kind, label, seed, what, runs[step] if step else before))
        each = count * _documents(config) if kind in _ON_WINDOWS else count
        scored += each * sum(length for length, _, _ in setting.columns)

    e, full = config.evaluation, [results.full(config)]
    windows, few, twice = e.windows_per_document, e.generated, [2 * full[0]]
    for kind in ("first_sentence", "passkey"):
        add(kind, 0, e.samples, [config.length], method=plain)
    if first == results.START:
        cropped = {"method": plain, "reads": config.length, "label": results.CROPPED}
        add("context_gain", 0, windows, full, **cropped)
        for kind in ("first_sentence", "passkey"):
            add(kind, 0, e.samples, results.lengths(config), **cropped)
    add("loss", 0, windows, twice)
    for step in results.branches(config, row):
        add("mean_loss", step, windows, full)
        for kind in ("first_sentence", "passkey"):
            add(kind, step, few, full)
    add("loss", last, windows, twice)
    add("context_gain", last, windows, full, reads=config.length)
    for kind, count in zip(QUESTIONS, (e.samples, e.samples, few), strict=True):
        add(kind, last, count, results.lengths(config))
    for kind in QUESTIONS:
        add(kind, last, few, full, controls=results.CONTROLS)
    if scales := tuple(scale for scale in e.scales if scale != 1):
        add("mean_loss", last, windows, full, scales=scales)
        add("first_sentence", last, few, full, scales=scales)
    return Part(
        f"{row}, seed {seed}",
        tuple(cells),
        before[0].name if before else "",
        tokens,
        scored,
        pretrained,
    )


def _documents(config: ConfigDict) -> int:
    """How many documents are held out at most, for an estimate of the time."""
    if isinstance(config.held_out, int):
        return config.held_out or 40
    return len(config.held_out)


def text_of(config: ConfigDict) -> tuple:
    """What decides the text, as cells name it."""
    names = ("corpus", "tokenizer", "bos", "held_out", "sentence_tokens")
    return tuple(config[name] for name in names)


def mixture_of(config: ConfigDict) -> packing.TaskMixture:
    """How training windows teach the tasks."""
    r = config.retrieval
    with lab.naming("retrieval"):
        return packing.TaskMixture(
            r.taught_first_sentence, r.taught_passkey, r.answer_weight, every=r.every
        )


def wording(config: ConfigDict, kind: str) -> tuple[tasks.FirstSentence | tasks.Passkey, ...]:
    """The task that a kind of cell asks, as the config words it."""
    r = config.retrieval
    if kind == "passkey":
        with lab.naming("retrieval.passkey_fact"):
            return (tasks.Passkey(fact=r.passkey_fact, prompt=r.passkey_prompt),)
    first = tasks.FirstSentence(prompt=r.first_sentence_prompt, end=r.first_sentence_end)
    return (first,) if kind in QUESTIONS else ()


def recipe_of(
    config: ConfigDict,
    phase: str,
    method: rotary.Method,
    seed: int = 0,
    taught: bool = True,
    rate: float = 1.0,
    steps: int = 0,
) -> lab.Recipe:
    """One phase of training at its length; a continuation may be annealed after fewer steps."""
    fields, is_first = config[phase].to_dict(), phase == "pretraining"
    fields["learning_rate"] *= rate
    fields["steps"] = steps or fields["steps"]
    first_sentence, passkey = (wording(config, kind)[0] for kind in QUESTIONS[:2])
    return lab.Recipe(
        method,
        config.length if is_first else results.full(config),
        **fields,
        mixture=mixture_of(config) if taught else None,
        first_sentence=first_sentence,
        passkey=passkey,
        seed=seed if is_first else CONTINUATION_SEED + seed,
    )
