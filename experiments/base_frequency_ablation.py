r"""The base-frequency study of Llama 2 Long (2309.16039): Table 5, Figures 5a and 5b, in miniature.

    python -m experiments.base_frequency_ablation \
        --config=configs/base_frequency_ablation.py:cpu --workdir=DIR

One Llama is pretrained at a short length with a small base until it can do what it is asked; from
that checkpoint it is continued at 8 times the length under each method, with the same data order
and budget. Presets: cpu (what `make reproduce` runs, within a time budget), the four parts of the
overnight study (small_prose, small_code, large_prose, large_code; `reproduce.py:overnight` runs
them all), colab (a T4 or v5e-1), tpu_7b and tpu_7b_1b (the paper's settings, and cut to a billion
tokens), tiny.

On a folder of your own text, with a row of your own; and from a checkpoint instead of pretraining:

    python -m experiments.base_frequency_ablation --workdir=DIR --config.corpus=FOLDER \
        --config.rows.YaRN.method=yarn:factor=8,original_length=64
    python -m experiments.base_frequency_ablation --workdir=DIR \
        --config.init_checkpoint=CHECKPOINT --config.length=T --config.base_per_token=BASE/T

Killed at any moment and started again, it goes on where it was; the same command on a folder that
holds `cells/` redraws every figure without training. More seeds, rows, samples or lengths are added
in the folder that is there. experiments/base_frequency_results.py has the quantities,
experiments/base_frequency_tables.py the tables, experiments/base_frequency_report.py the figures
and the text of the report.

In the paper, perplexity on Books at 32,768 tokens: RoPE 6.548, PI 6.341, ABF 6.323, xPos ABF 6.331.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import base_frequency_cells as cells_of
from experiments import base_frequency_report as report
from experiments import base_frequency_results as results
from experiments import lab
from longrope_jax import llama, rotary, sharding, tasks
from longrope_jax.data import documents, packing, tokenizers
from longrope_jax.evaluation import retrieval
from longrope_jax.evaluation.by_position import (
    context_bins,
    cropped_nll,
    nll_by_position,
    position_blocks,
)
from longrope_jax.evaluation.scoring import chance_rouge_l

plan = cells_of.plan  # every study has it under this name
BLOCKS = 64  # in which loss by position is kept, of twice the continued length
BINS_PER_DOUBLING = 2  # of the context, for the power law


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    return report.publish(found(config, folder), command)


def found(config: ConfigDict, folder: Path) -> results.Found:
    """Trains and measures what is missing; the report is made of what it returns.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    results.check_hypotheses(config)
    config, facts = cells_of.filled(config, folder)
    work = Work(config, folder, machine, facts)
    common, every = list(cells_of.common(config)), list(cells_of.parts(config))
    cells = list(dict.fromkeys([*common, *(cell for part in every for cell in part.cells)]))
    if machine.measure and (left := lab.missing(folder, cells)):
        check(work, left)
    affordable, left_out = every, ()
    if config.minutes:
        probe = cells_of.probe(config)
        lab.complete(folder, [probe], work.functions, machine)
        seconds = lab.read(folder, probe)
        if seconds is not None:
            affordable, left_out = cells_of.within(config, every, float(seconds["per_token"]))
    wanted = [*common, *(cell for part in affordable for cell in part.cells)]
    lab.complete(folder, wanted, work.functions, machine)
    head_dim = cells_of.shape(config, facts).head_dim
    return results.Found(config, folder, cells, head_dim, tuple(left_out))


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
        losses["context_gain"] = self.context_gain
        trained = {"train": self.train, "prolonged": self.prolonged, "probe": self.probe}
        return losses | asked | trained | {"chance": self.chance, "taught": self.taught}

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The config's, or the given checkpoint's."""
        if self.config.tokenizer:
            return lab.tokenizer(self.config.tokenizer, self.config.corpus, self.folder)
        return lab.opened(self.config.init_checkpoint).tokenizer

    @functools.cached_property
    def shape(self) -> llama.LlamaConfig:
        """The model's, with the tokenizer's vocabulary."""
        return cells_of.shape(self.config, self.facts, self.tokenizer.vocab_size)

    @functools.cached_property
    def text(self) -> lab.Text:
        """Documents to train on, and held-out ones with sentences that training never sees."""
        length, windows = 2 * results.full(self.config), self.config.evaluation.windows_per_document
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
        return lab.Models(*given, fresh=self.fresh, again=lambda c: self.functions[c.kind](c))

    def fresh(self, cell: lab.Cell):
        """A model to pretrain."""
        new = self.shape, self.tokenizer, cell.what[0].method, self.machine
        return lab.fresh(*new, seed=cell.seed)

    def train(self, cell: lab.Cell) -> dict[str, Any]:
        """The pretraining of a seed, or the continuation of a row."""
        return self.models.train(cell, self.text)

    def prolonged(self, cell: lab.Cell) -> dict[str, Any]:
        """The pretraining as it is where it meets the criterion, else continued once.

        The criterion is asked of training documents: whether the model can do the tasks at its own
        length at all, which held-out text makes no easier.
        """
        _, criterion, count, asked, _ = cell.what
        before = self._mastered(self.models.start(cell), asked, count)
        met = all(share.mean() >= criterion["share"] for share in before.values())
        if met:
            lab.keep_as(self.folder, cell)
            arrays, after = dict(lab.needed(self.folder, cell.after[0])), before
        else:
            arrays = self.models.train(cell, self.text)
            model = lab.trained(lab.run_folder(self.folder, cell), self.machine)
            after = self._mastered(model, asked, count)
        kept = {name: arrays[name] for name in ("trainable", "held_out")}
        known = {f"{name} before": share for name, share in before.items()} | after
        return kept | known | {"prolonged": np.bool_(not met)}

    def _mastered(self, model, asked: dict[str, Any], count: int) -> dict[str, np.ndarray]:
        """Share of answer tokens right at the model's own length, for samples of training text."""
        length = self.config.length
        documents = [d for d in self.text.training if _has_room(d, length)]
        rot = rotary.make(model.method, head_dim=model.config.head_dim, seq_len=length)
        found = {}
        for name, task in asked.items():
            options = {"length": length, "count": count, "seed": length, "bos": self.text.bos}
            samples = task.samples(documents, self.tokenizer, **options)
            rows = self.machine.rows(length)
            with sharding.mesh_of(model.params):
                _, share = retrieval.teacher_forced(
                    model.config, model.params, rot, samples, batch=rows
                )
            found[name] = share
        return found

    def probe(self, cell: lab.Cell) -> dict[str, Any]:
        """Seconds that a token of the continuation takes on this machine, after compilation."""
        recipe = cell.what[0]
        model = lab.fresh(self.shape, self.tokenizer, recipe.method, self.machine, seed=0)
        return {"per_token": np.float64(lab.time_steps(model, recipe, self.text, self.machine))}

    def each(self, cell: lab.Cell, score: Callable[..., Any]) -> list[Any]:
        """`score((config, params, rotary), length, control)` of every column of a cell."""
        setting, model = cell.what[0], self.models.start(cell)
        found = []
        for length, scale, control in setting.columns:
            read = setting.reads or length
            size = {"head_dim": model.config.head_dim, "seq_len": read}
            every = rotary.frequencies_of(setting.method, **size)
            scaled = [rotary.rescale(f, scale) for f in every]
            rot = rotary.assemble(setting.method, scaled, seq_len=read)
            with sharding.mesh_of(model.params):
                found.append(score((model.config, model.params, rot), length, control))
        return found

    def windows(self, cell: lab.Cell) -> tuple[np.ndarray, np.ndarray]:
        """Validation windows of twice the continued length, and their documents."""
        return self.text.windows(2 * results.full(self.config), cell.what[0].count)

    def losses(self, cell: lab.Cell) -> list[np.ndarray]:
        """Loss [n, T] at every position of the validation windows, cut to a column's length."""
        tokens, _ = self.windows(cell)

        def score(given, length: int, _: str) -> np.ndarray:
            batch = self.machine.rows(length)
            return nll_by_position(*given, tokens[:, : length + 1], batch_size=batch)

        return self.each(cell, score)

    def context_gain(self, cell: lab.Cell) -> dict[str, Any]:
        """Loss of the windows' last quarter under the whole context, and under `reads` tokens.

        Both score the same tokens, each document's windows averaged: what differs is the context.
        """
        setting, names = cell.what[0], self.windows(cell)[1]
        (length,), reads = setting.lengths, setting.reads
        tokens = self.windows(cell)[0][:, : length + 1]
        model = self.models.start(cell)
        given = model.config, model.params
        rot = rotary.make(setting.method, head_dim=model.config.head_dim, seq_len=length)
        short = {"length": reads, "stride": max(1, reads // 4)}
        rows = self.machine.rows
        with sharding.mesh_of(model.params):
            whole = nll_by_position(*given, rot, tokens, batch_size=rows(length))
            part = cropped_nll(*given, setting.method, tokens, batch_size=rows(reads), **short)
        last = slice(-(length // 4), None)
        means = {"long": whole[:, last].mean(1), "short": part[:, last].mean(1)}
        documents = np.asarray(list(dict.fromkeys(names.tolist())))
        return {k: _by_document(v, names) for k, v in means.items()} | {"documents": documents}

    def loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Loss in blocks of positions and in bins of context, over twice the continued length.

        The windows of a document are averaged. A method whose frequencies depend on the length is
        measured at that length.
        """
        (nll,) = self.losses(cell)
        T = nll.shape[1]
        points = int(np.log2(T) * BINS_PER_DOUBLING)
        bins = context_bins(nll, np.unique(np.geomspace(1, T // 2 + 1, points).astype(int)))
        found = {"blocks": position_blocks(nll, T // BLOCKS), "bins": bins.nll}
        names = self.windows(cell)[1]
        means = {key: _by_document(values, names) for key, values in found.items()}
        documents = np.asarray(list(dict.fromkeys(names.tolist())))
        return means | {"documents": documents, "bin_lengths": bins.lengths}

    def mean_loss(self, cell: lab.Cell) -> dict[str, Any]:
        """Mean loss of each document's windows."""
        names = self.windows(cell)[1]
        means = [_by_document(nll.mean(1), names) for nll in self.losses(cell)]
        documents = np.asarray(list(dict.fromkeys(names.tolist())))
        return {"loss": np.stack(means, -1), "documents": documents}

    @functools.cache  # noqa: B019  (it lives as long as its study)
    def samples(self, task, count: int, length: int, control: str = "none") -> tasks.Samples:
        """Questions about the held-out documents, the same for every run."""
        options = {"length": length, "count": count, "seed": length, "control": control}
        return task.samples(self.text.held_out, self.tokenizer, bos=self.text.bos, **options)

    def asked(self, cell: lab.Cell) -> dict[str, Any]:
        """Whole answers right and share of their tokens right, with the right answers given."""
        setting, _, task = cell.what

        def score(given, length: int, control: str) -> tuple[np.ndarray, np.ndarray]:
            samples = self.samples(task, setting.count, length, control)
            samples = samples.last(setting.reads or length)
            return retrieval.teacher_forced(*given, samples, batch=self.machine.rows(length))

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


def _has_room(document: documents.TokenizedDocument, length: int) -> bool:
    """Whether a sample of `length` tokens can begin in the document."""
    return bool((document.starts <= len(document.tokens) - length).any())


def _by_document(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Means over each document's windows, in the order in which documents come."""
    return np.stack([values[names == name].mean(0) for name in dict.fromkeys(names.tolist())])


def check(work: Work, cells: Sequence[lab.Cell]) -> None:
    """Makes the inputs of all missing cells, so that nothing is trained for a bad config or text.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    _check_sizes(work.config)
    with lab.naming("tokenizer"):
        tokenizer = work.tokenizer
    with lab.naming("bos"):
        tokenizer.special(work.config.bos)
    for cell in cells:
        if cell.kind == "train":
            recipe, twice = cell.what[0], 2 * results.full(work.config)
            with lab.naming("continuation" if cell.row in work.config.rows else "pretraining"):
                lab.check_recipe(recipe, work.shape, work.machine, scored=twice)
            lab.windows(recipe, work.text)
        elif cell.kind in cells_of.QUESTIONS:
            setting, _, task = cell.what
            for length, _, control in setting.columns:
                work.samples(task, setting.count, length, control).last(setting.reads or length)
    lab.check_held_out(work.folder, cells, work.text)


def _check_sizes(config: ConfigDict) -> None:
    e = config.evaluation
    if not config.init_checkpoint and config.pretraining.steps < 1:
        raise ValueError(
            "this preset starts from a pretrained model: --config.init_checkpoint=CHECKPOINT, or "
            "--config.pretraining.steps=STEPS to pretrain one"
        )
    if not all(0 < share <= 2 for share in e.lengths):
        raise ValueError(
            f"--config.evaluation.lengths must be above 0 and at most 2, got {tuple(e.lengths)}"
        )
    if not all(0 < share < 1 for share in config.branches):
        raise ValueError(
            f"--config.branches must lie between 0 and 1, got {tuple(config.branches)}"
        )
    if not 1 <= e.generated <= e.samples:
        raise ValueError(
            f"--config.evaluation.generated={e.generated} must be 1 to {e.samples}, which is "
            "--config.evaluation.samples"
        )
    if config.factor not in (2, 4, 8, 16, 32) or results.full(config) % BLOCKS:
        raise ValueError(
            f"--config.factor={config.factor} must be 2, 4, 8, 16 or 32, and times "
            f"--config.length={config.length} a multiple of {BLOCKS}"
        )


if __name__ == "__main__":
    lab.run(main, "experiments.base_frequency_ablation")
