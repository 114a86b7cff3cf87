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

Killed at any moment and started again, it goes on where it was; what is done is not done again, so
the same command on a folder that holds `cells/` redraws every figure without training. More seeds,
rows, samples or lengths are added in the folder that is there. What is measured and how it is
judged: experiments/base_frequency_results.py.

In the paper, perplexity on Books at 32,768 tokens: RoPE 6.548, PI 6.341, ABF 6.323, xPos ABF 6.331.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import base_frequency_results as results
from experiments import lab
from longrope_jax import llama, rotary, sharding
from longrope_jax.data import packing, tasks, tokenizers
from longrope_jax.evaluation import retrieval
from longrope_jax.evaluation.by_position import context_bins, nll_by_position, position_blocks
from longrope_jax.evaluation.scoring import chance_rouge_l
from longrope_jax.model import Model

BLOCKS = 64  # in which loss by position is kept, of twice the continued length
BINS_PER_DOUBLING = 2  # of the context, for the power law
# Continuations draw other windows than pretraining did, the same ones for every method.
CONTINUATION_SEED = 10_000
_QUESTIONS = ("first_sentence", "passkey", "answers")  # kinds of cells that ask for something


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a cell measures a model under; its columns are lengths times scales times controls.

    Attributes:
        method: the rotary method.
        step: of the continuation; 0 is before it, the last step what it came to.
        count: windows of each document, or samples of each column.
        lengths: tokens of a window or sample.
        scales: what frequencies are divided by, as in Giraffe's matrix; 1 is the method itself.
        controls: of questions, see `tasks.CONTROLS`.
        start: checkpoint and dtypes of a model that was not pretrained here; () for others.
    """

    method: rotary.Method
    step: int
    count: int
    lengths: tuple[int, ...]
    scales: tuple[float, ...] = (1.0,)
    controls: tuple[str, ...] = ("none",)
    start: tuple[str, ...] = ()


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """All measuring cells; what they are measured on is in their `after`."""
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
    cells = list(dict.fromkeys(_cells(config)))
    work = Work(config, folder, machine, facts)
    if machine.measure:
        check(work, lab.missing(folder, cells))
    lab.complete(folder, cells, work.functions, machine)
    head_dim = shape(config, facts).head_dim
    return results.publish(results.Found(config, folder, cells, head_dim), command)


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
    _check_start(config, facts)
    if not config.tokenizer:
        config.bos = lab.check_bos(facts, source, config.bos)
    return config, facts


def _check_start(config: ConfigDict, facts: lab.Facts) -> None:
    """Refuses a checkpoint that was trained at another length or with another method."""
    found, source = facts.method, config.init_checkpoint
    length = facts.trained_length or config.length
    same = isinstance(found, rotary.RoPE) and math.isclose(found.base, bases(config)["base"])
    if not isinstance(found, rotary.RoPE):
        raise ValueError(
            f"--config.init_checkpoint={source} was trained with {rotary.notation(found)}: this "
            "study starts from plain RoPE, give a checkpoint that was not extended yet"
        )
    if length != config.length or not same:
        raise ValueError(
            f"--config.init_checkpoint={source} was trained at {length} tokens with base "
            f"{found.base:g}, the config says {config.length} and {bases(config)['base']:g}: "
            f"--config.length={length} --config.base_per_token={found.base / length!r}"
        )


def bases(config: ConfigDict) -> dict[str, float]:
    """What methods may name: the base scales with the pretraining length."""
    base = config.base_per_token * config.length
    abf = base * config.abf_factor
    return {"base": base, "abf": abf, "length": config.length, "factor": config.factor}


def row_method(config: ConfigDict, row: str) -> rotary.Method:
    """The method of a row, with the config's sizes filled in.

    Raises:
        ValueError: an unknown placeholder, method or option.
    """
    values, settings = bases(config), config.rows[row]
    with lab.naming(f"rows.{row}.method"):
        return lab.read_method(settings.method, **values, swept=values["base"] * settings.times)


def shape(config: ConfigDict, facts: lab.Facts | None = None, vocab: int = 1) -> llama.LlamaConfig:
    """The model: a given checkpoint's, a published preset with changes, or a shape of its own.

    Raises:
        ValueError: a vocabulary too small for a tokenizer of `vocab` tokens.
    """
    types = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    fields = {k: v for k, v in config.model.items() if k != "preset"} | types
    if facts:
        model = dataclasses.replace(facts.config, **types)
    elif config.model.preset:
        model = llama.preset(config.model.preset, **fields)
    else:
        return llama.LlamaConfig(vocab_size=vocab, **fields)
    if model.vocab_size < vocab:
        name = config.init_checkpoint or config.model.preset
        raise ValueError(
            f"{name} has {model.vocab_size} tokens, --config.tokenizer={config.tokenizer} {vocab}: "
            "give the tokenizer that belongs to it"
        )
    return model


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    """Rows of several seeds first, seed by seed: cut short, a study still says much."""
    runs = [(row, seed) for row, settings in config.rows.items() for seed in range(settings.seeds)]
    runs.sort(key=lambda run: (config.rows[run[0]].seeds == 1, run[1]))
    text, taught = _text(config), _mixture(config)
    yield lab.Cell("chance", "chance", what=(text, _full(config), config.evaluation.generated))
    for phase in ("pretraining", "continuation")[bool(config.init_checkpoint) :]:
        if taught.first_sentence or taught.passkey:
            recipe = _recipe(config, phase, rotary.RoPE(), seed=0)
            yield lab.Cell("taught", phase, what=(recipe, text))
    for row, seed in runs:
        yield from _row_cells(config, row, seed)


def _row_cells(config: ConfigDict, row: str, seed: int) -> Iterator[lab.Cell]:
    """Everything that is measured of one row and seed, and of the model that it starts from."""
    settings, method, text = config.rows[row], row_method(config, row), _text(config)
    plain = rotary.RoPE(base=bases(config)["base"])
    label = results.start_row(settings)
    start, before = (config.init_checkpoint, config.dtype, config.param_dtype), ()
    if not config.init_checkpoint:
        recipe = _recipe(config, "pretraining", plain, seed, taught=settings.taught)
        before = (lab.Cell("pretrain", label, seed, (config.model, start[1:], recipe, text)),)
        start = ()
    recipe = _recipe(config, "continuation", method, CONTINUATION_SEED + seed,
                     taught=settings.taught, rate=settings.rate)  # fmt: skip
    continued = lab.Cell("continue", row, seed, (start, recipe, text), before)

    def cell(kind: str, step: int, count: int, of: rotary.Method = method, **columns) -> lab.Cell:
        setting = Setting(of, step, count, start=() if step else start, **columns)
        what = (setting, text, *_wording(config, kind))
        name = row if of is method else label
        return lab.Cell(kind, name, seed, what, (continued,) if step else before)

    e, full, last = config.evaluation, _full(config), config.continuation.steps
    at, twice = {"lengths": (full,)}, {"lengths": (2 * full,)}
    for task in ("first_sentence", "passkey"):
        yield cell(task, 0, e.samples, plain, lengths=(config.length,))
    yield cell("loss", 0, e.windows_per_document, **twice)
    yield cell("first_sentence", 0, e.generated, **at)
    for step in results.steps_between(config):
        yield cell("mean_loss", step, e.windows_per_document, **at)
        yield cell("first_sentence", step, e.generated, **at)
    yield cell("loss", last, e.windows_per_document, **twice)
    lengths = tuple(round(share * full) for share in e.lengths)
    for kind, count in zip(_QUESTIONS, (e.samples, e.samples, e.generated), strict=True):
        yield cell(kind, last, count, lengths=lengths)
    for kind in ("first_sentence", "answers"):
        yield cell(kind, last, e.generated, controls=results.CONTROLS, **at)
    if scales := results.other_scales(config):
        yield cell("mean_loss", last, e.windows_per_document, scales=scales, **at)
        yield cell("first_sentence", last, e.generated, scales=scales, **at)


def _full(config: ConfigDict) -> int:
    return config.length * config.factor


def _text(config: ConfigDict) -> tuple:
    names = ("corpus", "tokenizer", "bos", "held_out", "sentence_tokens")
    return tuple(config[name] for name in names)


def _wording(config: ConfigDict, kind: str) -> tuple[tasks.FirstSentence | tasks.Passkey, ...]:
    """The task that a kind of cell asks, as the config words it."""
    r = config.retrieval
    if kind == "passkey":
        return (tasks.Passkey(fact=r.passkey_fact, prompt=r.passkey_prompt),)
    first = tasks.FirstSentence(prompt=r.first_sentence_prompt, end=r.first_sentence_end)
    return (first,) if kind in _QUESTIONS else ()


def _mixture(config: ConfigDict) -> packing.TaskMixture:
    r = config.retrieval
    return packing.TaskMixture(r.taught_first_sentence, r.taught_passkey, r.answer_weight)


def _recipe(
    config: ConfigDict, phase: str, method: rotary.Method, seed: int, *, taught=True, rate=1.0
) -> lab.Recipe:
    """One phase of training, at its length."""
    fields = config[phase].to_dict()
    return lab.Recipe(
        method,
        config.length if phase == "pretraining" else _full(config),
        **fields | {"learning_rate": fields["learning_rate"] * rate},
        mixture=_mixture(config) if taught else None,
        first_sentence=_wording(config, "first_sentence")[0],
        passkey=_wording(config, "passkey")[0],
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
    _held: dict[tuple, Model] = dataclasses.field(default_factory=dict)

    @property
    def functions(self) -> dict[str, Any]:
        """The function of each kind of cell."""
        asked = {"first_sentence": self.asked, "passkey": self.asked, "answers": self.answers}
        losses = {"loss": self.loss, "mean_loss": self.mean_loss}
        trained = {"pretrain": self.pretrain, "continue": self.carry_on}
        return trained | losses | asked | {"chance": self.chance, "taught": self.taught}

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The config's, or the given checkpoint's."""
        if self.config.tokenizer:
            return tokenizers.load(self.config.tokenizer)
        return lab.opened(self.config.init_checkpoint).tokenizer

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to train on, and held-out ones with sentences that training never sees."""
        count = self.config.evaluation.windows_per_document
        length = 2 * _full(self.config)
        found = lab.text(self.config, self.tokenizer, length=length, windows=count, unseen=True)
        if len(found.held_out) < 2:
            raise ValueError(
                f"--config.held_out={self.config.held_out}: intervals and chance need two "
                "documents that are held out"
            )
        return found

    @functools.cached_property
    def shape(self) -> llama.LlamaConfig:
        """The model's, with the tokenizer's vocabulary."""
        return shape(self.config, self.facts, self.tokenizer.vocab_size)

    @functools.cache  # noqa: B019  (it lives as long as its study)
    def samples(self, task, length: int, control: str, count: int) -> tasks.Samples:
        """Questions about the held-out documents, the same for every run."""
        first = isinstance(task, tasks.FirstSentence)
        make = tasks.first_sentence_samples if first else tasks.passkey_samples
        options = {"length": length, "count": count, "seed": length, "bos": self.text.bos}
        return make(task, self.text.held_out, self.tokenizer, **options, control=control)

    def model(self, cell: lab.Cell) -> Model:
        """What a cell measures or trains further; only one model is held at a time."""
        run = cell.after[0] if cell.after else None
        step = getattr(cell.what[0], "step", 0)
        key = run, step if 0 < step < self.config.continuation.steps else None
        if key not in self._held:
            self._held.clear()
            if run is None:
                types = {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype}
                model = lab.model(self.config.init_checkpoint, self.machine, **types)
                model = dataclasses.replace(model, tokenizer=self.tokenizer)
            else:
                kept = lab.run_folder(self.folder, run)
                model = lab.trained(kept, self.machine, snapshot=key[1])
            self._held[key] = model
        return self._held[key]

    def pretrain(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """A model of the config's shape, at the short length with the small base."""
        recipe = cell.what[2]
        new = (self.shape, self.tokenizer, recipe.method, self.machine)
        return self._train(cell, lab.fresh(*new, seed=cell.seed), recipe)

    def carry_on(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """The continuation of a row at the long length, under its method."""
        model = self.model(cell)
        self._held.clear()  # training uses up the parameters
        return self._train(cell, model, cell.what[1], results.steps_between(self.config))

    def _train(self, cell, model: Model, recipe: lab.Recipe, snapshots: Sequence[int] = ()):
        run = lab.run_folder(self.folder, cell)
        return lab.train(model, recipe, self.text, run, self.machine, snapshots=snapshots)

    def losses(self, cell: lab.Cell) -> list[np.ndarray]:
        """Loss [n, T] at every position of the validation windows, for every column.

        Windows of twice the continued length are cut to the column's length.
        """
        setting, model = cell.what[0], self.model(cell)
        tokens, _ = self.text.windows(2 * _full(self.config), setting.count)
        found = []
        for length, scale in itertools.product(setting.lengths, setting.scales):
            rot = scaled(setting.method, scale, model.config.head_dim, length)
            rows, batch = tokens[:, : length + 1], self.machine.rows(length)
            with sharding.mesh_of(model.params):
                found.append(
                    nll_by_position(model.config, model.params, rot, rows, batch_size=batch)
                )
        return found

    def loss(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Loss in blocks of positions and in bins of context, over twice the continued length.

        A method whose frequencies depend on the length is measured at that length.
        """
        (nll,) = self.losses(cell)
        T = nll.shape[1]
        points = int(np.log2(T) * BINS_PER_DOUBLING)
        bins = context_bins(nll, np.unique(np.geomspace(1, T // 2 + 1, points).astype(int)))
        blocks = position_blocks(nll, T // BLOCKS)
        kept = {"blocks": blocks, "bins": bins.nll, "bin_lengths": bins.lengths}
        return kept | {"documents": self._documents(cell)}

    def mean_loss(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Mean loss of each window, a column for each scale."""
        means = [nll.mean(1) for nll in self.losses(cell)]
        return {"loss": np.stack(means, -1), "documents": self._documents(cell)}

    def _documents(self, cell: lab.Cell) -> np.ndarray:
        return self.text.windows(2 * _full(self.config), cell.what[0].count)[1]

    def questions(self, cell: lab.Cell) -> Iterator[tuple[tasks.Samples, dict[str, Any]]]:
        """Samples of every column, and what the functions of `retrieval` take beside them."""
        setting, _, task = cell.what
        model = self.model(cell)
        columns = itertools.product(setting.lengths, setting.scales, setting.controls)
        for length, scale, control in columns:
            rot = scaled(setting.method, scale, model.config.head_dim, length)
            given = {"config": model.config, "params": model.params, "rotary": rot}
            samples = self.samples(task, length, control, setting.count)
            yield samples, given | {"samples": samples, "batch": self.machine.rows(length)}

    def asked(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Whole answers right and share of their tokens right, with the right answers given."""
        columns = []
        for _, given in self.questions(cell):
            with sharding.mesh_of(given["params"]):
                columns.append(retrieval.teacher_forced(**given))
        exact, share = (np.stack(parts, -1) for parts in zip(*columns, strict=True))
        return {"exact": exact, "answer_tokens": share, "documents": given["samples"].documents}

    def answers(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """ROUGE-L of greedy answers."""
        end, scores = tasks.encode(self.tokenizer, cell.what[2].end), []
        for samples, given in self.questions(cell):
            with sharding.mesh_of(given["params"]):
                found = retrieval.answers(**given, end=end)
            scores.append(retrieval.rouge_l_of_answers(found, samples, self.tokenizer.decode))
        return {"rouge": np.stack(scores, -1), "documents": samples.documents}

    def chance(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """ROUGE-L of other documents' first sentences, and what was said about the text."""
        _, length, count = cell.what
        task = _wording(self.config, "answers")[0]
        samples = self.samples(task, length, "none", count)
        texts = [self.tokenizer.decode(reference) for reference in samples.references()]
        rouge = chance_rouge_l(texts, samples.documents)
        notes = np.asarray(self.text.notes, dtype=np.str_)
        return {"rouge": rouge, "documents": samples.documents, "notes": notes}

    def taught(self, cell: lab.Cell) -> dict[str, float]:
        """Share of taught answers in the training windows of a phase."""
        return packing.answer_share(lab.windows(cell.what[0], self.text))


def scaled(method: rotary.Method, scale: float, head_dim: int, length: int) -> rotary.Rotary:
    """The method for a length, its frequencies divided by `scale`."""
    f = method.frequencies(head_dim=head_dim, seq_len=length)
    return rotary.from_frequencies(rotary.rescale(f, scale), seq_len=length)


def check(work: Work, cells: Sequence[lab.Cell]) -> None:
    """Makes the inputs of all missing cells, so that nothing is trained for a bad config or text.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    if not cells:
        return
    _check_sizes(work.config)
    twice = 2 * _full(work.config)
    with lab.naming("bos"):
        work.tokenizer.special(work.config.bos)
    for cell in cells:
        if cell.kind in ("pretrain", "continue"):
            phase = "pretraining" if cell.kind == "pretrain" else "continuation"
            recipe = next(value for value in cell.what if isinstance(value, lab.Recipe))
            with lab.naming(phase):
                lab.check_recipe(recipe, work.shape, work.machine, scored=twice)
            lab.windows(recipe, work.text)
        elif cell.kind in _QUESTIONS:
            setting, _, task = cell.what
            for length, control in itertools.product(setting.lengths, setting.controls):
                work.samples(task, length, control, setting.count)
    lab.check_held_out(work.folder, cells, work.text)


def _check_sizes(config: ConfigDict) -> None:
    e, full = config.evaluation, _full(config)
    if list(e.lengths) != sorted(set(e.lengths)) or not e.lengths or e.lengths[-1] != 1:
        raise ValueError(f"--config.evaluation.lengths must rise to 1.0, got {tuple(e.lengths)}")
    if not all(0 < share < 1 for share in e.at):
        raise ValueError(f"--config.evaluation.at must lie between 0 and 1, got {tuple(e.at)}")
    if not 1 <= e.generated <= e.samples:
        raise ValueError(
            f"--config.evaluation.generated must be 1 to {e.samples} (--config.evaluation.samples),"
            f" got {e.generated}"
        )
    if config.factor not in (2, 4, 8, 16, 32) or full % BLOCKS:
        raise ValueError(
            f"--config.factor must be 2, 4, 8, 16 or 32 and --config.length times it a multiple of "
            f"{BLOCKS}, got {config.factor} and {config.length}"
        )


if __name__ == "__main__":
    lab.run(main, "experiments.base_frequency_ablation")
