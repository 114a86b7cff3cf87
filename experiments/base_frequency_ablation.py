"""The base-frequency study of Llama 2 Long (2309.16039): Table 5, Figures 5a and 5b, in miniature.

    python -m experiments.base_frequency_ablation \
        --config=configs/base_frequency_ablation.py:cpu --workdir=DIR

One Llama is pretrained at a short length with a small base; from that checkpoint it is continued at
8 times the length under each method, with the same data order and budget. Presets: cpu (what
`make reproduce` runs), laptop (at most two hours on 2 cores), tpu_7b (the paper's settings), tiny.

On a folder of your own text, with a row of your own; and from a checkpoint instead of pretraining:

    python -m experiments.base_frequency_ablation --workdir=DIR --config.corpus=FOLDER \
        --config.rows.YaRN.method=yarn:factor=8,original_length=64
    python -m experiments.base_frequency_ablation --workdir=DIR \
        --config.init_checkpoint=CHECKPOINT --config.length=T --config.base_per_token=BASE/T

Killed at any moment and started again, it goes on where it was; the same command on a folder that
holds `cells/` redraws every figure without training. More seeds, rows, samples or lengths are added
in the folder that is there. experiments/base_frequency_results.py has the quantities and tables,
experiments/base_frequency_report.py the figures and the text of the report.

In the paper, perplexity on Books at 32,768 tokens: RoPE 6.548, PI 6.341, ABF 6.323, xPos ABF 6.331.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import base_frequency_report as report
from experiments import base_frequency_results as results
from experiments import lab
from longrope_jax import llama, rotary, sharding
from longrope_jax.data import packing, tasks, tokenizers
from longrope_jax.evaluation import retrieval
from longrope_jax.evaluation.by_position import context_bins, nll_by_position, position_blocks
from longrope_jax.evaluation.scoring import chance_rouge_l

BLOCKS = 64  # in which loss by position is kept, of twice the continued length
BINS_PER_DOUBLING = 2  # of the context, for the power law
# Continuations draw other windows than pretraining did, the same ones for every method.
CONTINUATION_SEED = 10_000
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
    """

    method: rotary.Method
    step: int
    count: int
    lengths: tuple[int, ...]
    scales: tuple[float, ...] = (1.0,)
    controls: tuple[str, ...] = ("none",)
    start: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[tuple[int, float, str], ...]:
        """(length, scale, control) of every column."""
        return tuple(itertools.product(self.lengths, self.scales, self.controls))


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """All measuring cells; the trainings that they measure are in their `after`."""
    return list(dict.fromkeys(_cells(filled(config, folder)[0])))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    results.check_hypotheses(config)
    config, facts = filled(config, folder)
    cells, work = plan(config, folder), Work(config, folder, machine, facts)
    if machine.measure and (left := lab.missing(folder, cells)):
        check(work, left)
    lab.complete(folder, cells, work.functions, machine)
    head_dim = shape(config, facts).head_dim
    return report.publish(results.Found(config, folder, cells, head_dim), command)


# The cells.


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts | None]:
    """The config with its tokenizer and beginning token, and the facts of a given checkpoint.

    Raises:
        ValueError: the checkpoint does not fit the config, or says no beginning token.
    """
    config, source = config.copy_and_resolve_references(), config.init_checkpoint
    if not source:
        config.tokenizer = config.tokenizer or "bytes"
        config.bos = config.bos or ("<bos>" if config.tokenizer == "bytes" else "")
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


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    """Rows of several seeds first, seed by seed: cut short, a study still says much."""
    rows, text, mixture = config.rows, _text(config), _mixture(config)
    count = config.evaluation.generated
    yield lab.Cell(
        "chance", "chance", what=(*_wording(config, "answers"), _full(config), count, text)
    )
    for phase in ("continuation",) if config.init_checkpoint else ("pretraining", "continuation"):
        if mixture.first_sentence or mixture.passkey:
            yield lab.Cell("taught", phase, what=(_recipe(config, phase, rotary.RoPE()), text))
    runs = [(row, seed) for row, settings in rows.items() for seed in range(settings.seeds)]
    for row, seed in sorted(runs, key=lambda run: (rows[run[0]].seeds == 1, run[1])):
        yield from _row_cells(config, row, seed)


def _row_cells(config: ConfigDict, row: str, seed: int) -> Iterator[lab.Cell]:
    """Everything that is measured of one row and seed, and of the model that it starts from."""
    settings, text, known = config.rows[row], _text(config), sizes(config)
    with lab.naming(f"rows.{row}.method"):
        swept = known["base"] * settings.times
        method = lab.read_method(settings.method, **known, swept=swept)
    start, before = (config.init_checkpoint, config.dtype, config.param_dtype), ()
    plain, first = rotary.RoPE(base=known["base"]), results.start_row(settings)
    if not config.init_checkpoint:
        recipe = _recipe(config, "pretraining", plain, seed, settings.taught)
        before = (lab.Cell("train", first, seed, (recipe, config.model, start[1:], text)),)
        start = ()
    seen = CONTINUATION_SEED + seed
    recipe = _recipe(config, "continuation", method, seen, settings.taught, settings.rate)
    after = (lab.Cell("train", row, seed, (recipe, start, text), before),)

    def cell(kind: str, step: int, count: int, lengths: Sequence[int], **columns) -> lab.Cell:
        of, at = columns.pop("method", method), () if step else start
        setting = Setting(of, step, count, tuple(lengths), start=at, **columns)
        label = row if of is method else first
        what = (setting, text, *_wording(config, kind))
        return lab.Cell(kind, label, seed, what, after if step else before)

    e, full, last = config.evaluation, [_full(config)], config.continuation.steps
    windows, few, twice = e.windows_per_document, e.generated, [2 * full[0]]
    for kind in ("first_sentence", "passkey"):
        yield cell(kind, 0, e.samples, [config.length], method=plain)
    yield cell("loss", 0, windows, twice)
    yield cell("first_sentence", 0, few, full)
    for step in results.steps_between(config):
        yield cell("mean_loss", step, windows, full)
        yield cell("first_sentence", step, few, full)
    yield cell("loss", last, windows, twice)
    for kind, count in zip(QUESTIONS, (e.samples, e.samples, few), strict=True):
        yield cell(kind, last, count, results.lengths(config))
    for kind in ("first_sentence", "answers"):
        yield cell(kind, last, few, full, controls=results.CONTROLS)
    if scales := tuple(scale for scale in e.scales if scale != 1):
        yield cell("mean_loss", last, windows, full, scales=scales)
        yield cell("first_sentence", last, few, full, scales=scales)


def _full(config: ConfigDict) -> int:
    return config.length * config.factor


def _text(config: ConfigDict) -> tuple:
    names = ("corpus", "tokenizer", "bos", "held_out", "sentence_tokens")
    return tuple(config[name] for name in names)


def _mixture(config: ConfigDict) -> packing.TaskMixture:
    r = config.retrieval
    with lab.naming("retrieval"):
        return packing.TaskMixture(r.taught_first_sentence, r.taught_passkey, r.answer_weight)


def _wording(config: ConfigDict, kind: str) -> tuple[tasks.FirstSentence | tasks.Passkey, ...]:
    """The task that a kind of cell asks, as the config words it."""
    r = config.retrieval
    if kind == "passkey":
        with lab.naming("retrieval.passkey_fact"):
            return (tasks.Passkey(fact=r.passkey_fact, prompt=r.passkey_prompt),)
    first = tasks.FirstSentence(prompt=r.first_sentence_prompt, end=r.first_sentence_end)
    return (first,) if kind in QUESTIONS else ()


def _recipe(
    config: ConfigDict, phase: str, method: rotary.Method, seed: int = 0, taught=True, rate=1.0
) -> lab.Recipe:
    """One phase of training, at its length."""
    fields = config[phase].to_dict()
    fields["learning_rate"] *= rate
    first_sentence, passkey = (_wording(config, kind)[0] for kind in QUESTIONS[:2])
    return lab.Recipe(
        method,
        config.length if phase == "pretraining" else _full(config),
        **fields,
        mixture=_mixture(config) if taught else None,
        first_sentence=first_sentence,
        passkey=passkey,
        seed=seed,
    )


# The work.


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Makes the cells of a config; text and models are read when a cell needs them."""

    config: ConfigDict
    folder: Path
    machine: lab.Machine
    facts: lab.Facts | None

    @property
    def functions(self) -> dict[str, Callable[[lab.Cell], dict[str, Any]]]:
        """The function of each kind of cell."""
        asked = {"first_sentence": self.asked, "passkey": self.asked, "answers": self.answers}
        losses = {"loss": self.loss, "mean_loss": self.mean_loss}
        others = {"train": self.train, "chance": self.chance, "taught": self.taught}
        return losses | asked | others

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The config's, or the given checkpoint's."""
        if self.config.tokenizer:
            return tokenizers.load(self.config.tokenizer)
        return lab.opened(self.config.init_checkpoint).tokenizer

    @functools.cached_property
    def shape(self) -> llama.LlamaConfig:
        """The model's, with the tokenizer's vocabulary."""
        return shape(self.config, self.facts, self.tokenizer.vocab_size)

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to train on, and held-out ones with sentences that training never sees."""
        length, windows = 2 * _full(self.config), self.config.evaluation.windows_per_document
        options = {"length": length, "windows": windows, "unseen": True}
        found = lab.text(self.config, self.tokenizer, **options)
        if len(found.held_out) < 2:
            raise ValueError(
                f"--config.held_out={self.config.held_out}: intervals and chance need two "
                "documents that are held out"
            )
        return found

    @functools.cached_property
    def models(self) -> lab.Models:
        """The model that the study starts from, and what each training came to."""
        types = {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype}
        given = (self.config.init_checkpoint, self.folder, self.machine, types)
        return lab.Models(*given, fresh=self.fresh)

    def fresh(self, cell: lab.Cell):
        """A model to pretrain."""
        new = self.shape, self.tokenizer, cell.what[0].method, self.machine
        return lab.fresh(*new, seed=cell.seed)

    def train(self, cell: lab.Cell) -> dict[str, Any]:
        """The pretraining of a seed, or the continuation of a row."""
        kept = results.steps_between(self.config) if cell.row in self.config.rows else ()
        return self.models.train(cell, self.text, kept)

    def each(self, cell: lab.Cell, score: Callable[..., Any]) -> list[Any]:
        """`score((config, params, rotary), length, control)` of every column of a cell."""
        setting, between = cell.what[0], results.steps_between(self.config)
        model = self.models.start(cell, setting.step if setting.step in between else None)
        found = []
        for length, scale, control in setting.columns:
            f = setting.method.frequencies(head_dim=model.config.head_dim, seq_len=length)
            rot = rotary.from_frequencies(rotary.rescale(f, scale), seq_len=length)
            with sharding.mesh_of(model.params):
                found.append(score((model.config, model.params, rot), length, control))
        return found

    def windows(self, cell: lab.Cell) -> tuple[np.ndarray, np.ndarray]:
        """Validation windows of twice the continued length, and their documents."""
        return self.text.windows(2 * _full(self.config), cell.what[0].count)

    def losses(self, cell: lab.Cell) -> list[np.ndarray]:
        """Loss [n, T] at every position of the validation windows, cut to a column's length."""
        tokens, _ = self.windows(cell)

        def score(given, length: int, _: str) -> np.ndarray:
            rows, batch = tokens[:, : length + 1], self.machine.rows(length)
            return nll_by_position(*given, rows, batch_size=batch)

        return self.each(cell, score)

    def loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Loss in blocks of positions and in bins of context, over twice the continued length.

        A method whose frequencies depend on the length is measured at that length.
        """
        (nll,) = self.losses(cell)
        T = nll.shape[1]
        points = int(np.log2(T) * BINS_PER_DOUBLING)
        bins = context_bins(nll, np.unique(np.geomspace(1, T // 2 + 1, points).astype(int)))
        found = {"blocks": position_blocks(nll, T // BLOCKS), "documents": self.windows(cell)[1]}
        return found | {"bins": bins.nll, "bin_lengths": bins.lengths}

    def mean_loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Mean loss of each window."""
        means = [nll.mean(1) for nll in self.losses(cell)]
        return {"loss": np.stack(means, -1), "documents": self.windows(cell)[1]}

    @functools.cache  # noqa: B019  (it lives as long as its study)
    def samples(self, task, count: int, length: int, control: str = "none") -> tasks.Samples:
        """Questions about the held-out documents, the same for every run."""
        first = isinstance(task, tasks.FirstSentence)
        make = tasks.first_sentence_samples if first else tasks.passkey_samples
        options = {"length": length, "count": count, "seed": length, "control": control}
        return make(task, self.text.held_out, self.tokenizer, bos=self.text.bos, **options)

    def asked(self, cell: lab.Cell) -> dict[str, Any]:
        """Whole answers right and share of their tokens right, with the right answers given."""
        setting, _, task = cell.what

        def score(given, *column) -> tuple[np.ndarray, np.ndarray]:
            samples, rows = self.samples(task, setting.count, *column), self.machine.rows(column[0])
            return retrieval.teacher_forced(*given, samples, batch=rows)

        exact, share = (np.stack(c, -1) for c in zip(*self.each(cell, score), strict=True))
        documents = self.samples(task, setting.count, setting.lengths[0]).documents
        return {"exact": exact, "answer_tokens": share, "documents": documents}

    def answers(self, cell: lab.Cell) -> dict[str, Any]:
        """ROUGE-L of greedy answers."""
        setting, _, task = cell.what
        end, decode = tasks.encode(self.tokenizer, task.end), self.tokenizer.decode

        def score(given, *column) -> np.ndarray:
            samples, rows = self.samples(task, setting.count, *column), self.machine.rows(column[0])
            found = retrieval.answers(*given, samples, end=end, batch=rows)
            return retrieval.rouge_l_of_answers(found, samples, decode)

        rouge = np.stack(self.each(cell, score), -1)
        documents = self.samples(task, setting.count, setting.lengths[0]).documents
        return {"rouge": rouge, "documents": documents}

    def chance(self, cell: lab.Cell) -> dict[str, Any]:
        """ROUGE-L of other documents' first sentences, and notes on the text."""
        task, length, count, _ = cell.what
        samples = self.samples(task, count, length)
        sentences = [self.tokenizer.decode(ids) for ids in samples.references()]
        rouge = chance_rouge_l(sentences, samples.documents)
        notes = np.asarray(self.text.notes, np.str_)
        return {"rouge": rouge, "documents": samples.documents, "notes": notes}

    def taught(self, cell: lab.Cell) -> dict[str, Any]:
        """Share of taught answers in the training windows of a phase."""
        return packing.answer_share(lab.windows(cell.what[0], self.text))


def check(work: Work, cells: Sequence[lab.Cell]) -> None:
    """Makes the inputs of all missing cells, so that nothing is trained for a bad config or text.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    _check_sizes(work.config)
    with lab.naming("bos"):
        work.tokenizer.special(work.config.bos)
    for cell in cells:
        if cell.kind == "train":
            recipe, twice = cell.what[0], 2 * _full(work.config)
            with lab.naming("continuation" if cell.row in work.config.rows else "pretraining"):
                lab.check_recipe(recipe, work.shape, work.machine, scored=twice)
            lab.windows(recipe, work.text)
        elif cell.kind in QUESTIONS:
            setting, _, task = cell.what
            for length, _, control in setting.columns:
                work.samples(task, setting.count, length, control)
    lab.check_held_out(work.folder, cells, work.text)


def _check_sizes(config: ConfigDict) -> None:
    e = config.evaluation
    if not config.init_checkpoint and config.pretraining.steps < 1:
        raise ValueError(
            "this preset starts from a pretrained model: --config.init_checkpoint=CHECKPOINT, or "
            "--config.pretraining.steps=STEPS to pretrain one"
        )
    if not e.lengths or list(e.lengths) != sorted({*e.lengths, 1.0}) or e.lengths[-1] != 1:
        raise ValueError(f"--config.evaluation.lengths must rise to 1.0, got {tuple(e.lengths)}")
    if not all(0 < share < 1 for share in e.at):
        raise ValueError(f"--config.evaluation.at must lie between 0 and 1, got {tuple(e.at)}")
    if not 1 <= e.generated <= e.samples:
        raise ValueError(
            f"--config.evaluation.generated={e.generated} must be 1 to {e.samples}, which is "
            "--config.evaluation.samples"
        )
    if config.factor not in (2, 4, 8, 16, 32) or _full(config) % BLOCKS:
        raise ValueError(
            f"--config.factor={config.factor} must be 2, 4, 8, 16 or 32, and times "
            f"--config.length={config.length} a multiple of {BLOCKS}"
        )


if __name__ == "__main__":
    lab.run(main, "experiments.base_frequency_ablation")
