"""A trained model at lengths beyond its training, under every method, with no training.

    python -m experiments.zero_shot_extension \
        --config=configs/zero_shot_extension.py:quick --workdir=DIR

Another checkpoint on a text of your own; all lengths follow from the trained length it declares:

    python -m experiments.zero_shot_extension --workdir=DIR --config.model=CHECKPOINT \
        --config.documents="('FOLDER:a.txt',)"

Every method is compared with plain RoPE, and with plain RoPE that reads only the last tokens, as
many as it was trained on (cropped): what can be had without any extension. What a method costs
within the trained length stands beside what it gains beyond it. Pass keys and first sentences are
asked for with the right answer given, in one forward.

Presets: quick (SmolLM2-135M on one play to 12,288 tokens; at most 15 minutes on 2 CPU cores), full
(four documents, all methods to 16,384 tokens, six to 32,768; ten hours, 1.2 GB), tiny (seconds).

Expected with preset quick, nats per token on Hamlet, one document and so no interval:

    method    0 to 8,192   8,192 to 12,288   within, minus rope   beyond, minus rope
    yarn        3.430          3.355               0.020               -0.247
    rope        3.411          3.602
    pi          4.135          4.081               0.724                0.479

The pass key is found at 4,096 tokens, and by none of the three in one sample of 12,288.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from experiments import lab
from longrope_jax import rotary, tasks
from longrope_jax.data import documents

CROPPED = "cropped"
LOSS, PASSKEY, SENTENCE = "loss", "passkey", "first sentence"
REMOVED = "first sentence, removed"  # asked for, but not in the context: what guessing gives


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a cell lets the model read: a document (CORPUS:DOCUMENT), its length in tokens, how.

    With `reads` the model reads only the last so many tokens.
    """

    document: str
    length: int
    method: rotary.Method
    reads: int = 0


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that differ in method and document alone: a task at one length."""

    length: int
    methods: tuple[str, ...]
    documents: int
    settings: Mapping[str, Any]


# By label of a method: the method at one length, and the first label with the same frequencies.
Rows = dict[str, tuple[rotary.Method, str]]


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """Every cell, ordered so that each beginning of them makes a table."""
    return list(dict.fromkeys(_cells(*filled(config, folder))))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Measures the cells that are missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is measured; nothing to show.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = filled(config, folder)
    cells, work = list(dict.fromkeys(_cells(config, facts))), Work(config, machine)
    if machine.measure:
        check(work, facts, lab.missing(folder, cells))
    lab.complete(folder, cells, {LOSS: work.loss, "retrieval": work.answers}, machine)
    return publish(config, facts, folder, cells, command)


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, lab.Facts]:
    """The config with what it leaves open filled from the checkpoint, and the checkpoint's facts.

    Raises:
        ValueError: a token, a length or blocks that do not fit.
    """
    config, facts = lab.filled(config, folder)
    config.retrieval.end = config.retrieval.end or config.bos
    if config.blocks < 1 or config.trained_length % config.blocks:
        raise ValueError(f"--config.blocks={config.blocks} must divide {config.trained_length}")
    factors = [(f"windows.{name}.factor", w.factor) for name, w in config.windows.items()]
    for field, factor in [*factors, *(("edges", edge) for edge in config.edges)]:
        if factor <= 1 or factor * config.blocks % 1:
            raise ValueError(
                f"--config.{field} must be above 1 and a multiple of 1/{config.blocks} "
                f"(--config.blocks), got {factor}"
            )
    if not groups(config):
        raise ValueError("nothing to measure: --config.windows and --config.retrieval are empty")
    return config, facts


def groups(config: ConfigDict) -> list[Group]:
    """What is measured in a round: losses of the first windows, retrieval, losses of the others."""
    asked, block = config.retrieval, config.trained_length // config.blocks
    losses = [
        Group(_tokens(config, w.factor), w.methods, w.documents, {"block": block})
        for w in config.windows.values()
    ]
    # The depths of the facts are spread over the documents: all of them decide each sample.
    fixed = {"documents": config.documents[: asked.documents], "seed": config.seed}
    passkey = {"task": PASSKEY, "samples": asked.passkey, "fact": asked.fact}
    sentence = {"task": SENTENCE, "samples": asked.first_sentence, "end": asked.end}
    passkey |= fixed | {"prompt": asked.passkey_prompt}
    sentence |= fixed | {"prompt": asked.first_sentence_prompt}
    lengths = [_tokens(config, factor) for factor in asked.factors]
    wanted = [(n, asked.methods, s) for s in (passkey, sentence) for n in lengths if s["samples"]]
    wanted += [(n, (), sentence | {"task": REMOVED}) for n in lengths[:1] if asked.first_sentence]
    retrieval = [Group(n, texts, asked.documents, s) for n, texts, s in wanted if asked.documents]
    return [*losses[:1], *retrieval, *losses[1:]]


def rows_at(config: ConfigDict, facts: lab.Facts, length: int) -> Rows:
    """Every method that is measured at a length, the reference first.

    Raises:
        ValueError: unknown placeholder, method or option.
    """
    of_length = [group for group in groups(config) if group.length == length]
    wanted = {config.reference, *(text for group in of_length for text in group.methods)}
    trained, kv_heads = config.trained_length, facts.config.n_kv_heads
    values = {"kv_heads": kv_heads, "factor": max(1.0, length / trained)}
    rows, known = {}, {}
    for label, text in labels(config).items():
        if text in wanted:
            method = lab.method(text, facts, trained, f"methods: {text}", **values)
            size = {"head_dim": facts.config.head_dim, "seq_len": length}
            new = rotary.frequencies_of(method, **size), getattr(method, "pattern", None)
            known[label] = new
            rows[label] = method, next(name for name, one in known.items() if _same(one, new))
    return rows


def _same(one, other) -> bool:
    """Says whether two methods, as frequencies and pattern over layers, are the same."""
    pairs = zip(one[0], other[0], strict=False)
    return one[1] == other[1] and all(a.equals(b) for a, b in pairs)


def labels(config: ConfigDict) -> dict[str, str]:
    """Label to text of every method: its name, or its text where several have that name."""
    every = [config.reference, *(text for group in groups(config) for text in group.methods)]
    names = [text.partition(":")[0] for text in dict.fromkeys(every)]
    return {
        name if names.count(name) == 1 else text: text
        for name, text in zip(names, dict.fromkeys(every), strict=True)
    }


def _tokens(config: ConfigDict, factor: float) -> int:
    return round(config.trained_length * factor)


def _cells(config: ConfigDict, facts: lab.Facts) -> Iterator[lab.Cell]:
    """Round by round, one document each."""
    start = (config.model, config.dtype, config.param_dtype), (config.bos, config.sentence_tokens)
    known = {n: rows_at(config, facts, n) for n in {group.length for group in groups(config)}}
    for number, document in enumerate(config.documents):
        for group in groups(config):
            kind = "retrieval" if "task" in group.settings else LOSS
            if number < (group.documents or len(config.documents)):
                for row, method, reads in _read(config, known[group.length], group):
                    reading = Reading(document, group.length, method, reads)
                    yield lab.Cell(kind, row, what=(*start, reading, group.settings))


def _read(config: ConfigDict, rows: Rows, group: Group):
    """(row, method, tokens read): the reference, cropping beyond the trained length, the others."""
    texts, (reference, *_) = labels(config), rows
    yield reference, rows[reference][0], 0
    if group.length > config.trained_length:
        yield CROPPED, rows[reference][0], config.trained_length
    for label, (_, same_as) in rows.items():
        if texts[label] in group.methods:
            yield same_as, rows[same_as][0], 0


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

    def document(self, name: str):
        """A document as tokens."""
        return lab.document(name, self.tokenizer, self.config.sentence_tokens)

    def window(self, reading: Reading) -> np.ndarray:
        """BOS and the document's tokens from its first sentence on, [1, T + 1]."""
        bos, chosen = self.tokenizer.special(self.config.bos), [self.document(reading.document)]
        options = {"length": reading.length, "per_document": 1, "bos": bos}
        return documents.validation_windows(chosen, **options)[0]

    def loss(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Mean loss of each block of positions of a window, [1, blocks]."""
        *_, reading, settings = cell.what
        options = {"block": settings["block"], "reads": reading.reads}
        tokens = self.window(reading)
        blocks = lab.losses(self.model, reading.method, tokens, self.machine, **options)
        return {"blocks": blocks, "documents": np.asarray([reading.document])}

    def samples(self, reading: Reading, asked: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Samples of the reading's document: tokens int32 [n, T], which of them answer [n, T].

        They are drawn among those of all documents, over which the depths of facts are spread.
        """
        names = list(asked["documents"])
        chosen = [self.document(name) for name in names], self.tokenizer
        options = {"length": reading.length, "count": len(names) * asked["samples"]}
        options |= {"seed": asked["seed"], "bos": self.config.bos}
        if asked["task"] == PASSKEY:
            task = tasks.Passkey(fact=asked["fact"], prompt=asked["prompt"])
            found = task.samples(*chosen, **options)
        else:
            task = tasks.FirstSentence(prompt=asked["prompt"], end=asked["end"])
            options["control"] = "removed" if asked["task"] == REMOVED else "none"
            found = task.samples(*chosen, **options)
        own = slice(names.index(reading.document), None, len(names))
        return found.tokens[own], found.answer[own]

    def answers(self, cell: lab.Cell) -> dict[str, np.ndarray]:
        """Per sample: whole answer right, share of its tokens right, mean loss of them in nats."""
        *_, reading, asked = cell.what
        tokens, answer = self.samples(reading, asked)
        if reading.reads:  # BOS and the last tokens
            tokens, answer = (
                np.concatenate([x[:, :1], x[:, 1 - reading.reads :]], axis=1)
                for x in (tokens, answer)
            )
        # The last token of a sample predicts nothing, but belongs to its length.
        head_dim = self.model.config.head_dim
        rot = rotary.make(reading.method, head_dim=head_dim, seq_len=tokens.shape[1])
        weights = answer[:, 1:].astype(np.float32)
        nll, share = lab.scored(self.model, rot, tokens, weights, self.machine)
        names = np.asarray([reading.document] * len(share))
        return {"exact": share == 1, "share": share, "nll": nll, "documents": names}


def check(work: Work, facts: lab.Facts, cells: Iterable[lab.Cell]) -> None:
    """Makes the inputs of all cells, so that a text too short is known before the model is loaded.

    Raises:
        ValueError: everything that is wrong with the documents, in one message.
    """
    wrong: dict[str, None] = {}
    for cell in cells:
        *_, reading, settings = cell.what
        length = reading.reads or reading.length
        rotary.make(reading.method, head_dim=facts.config.head_dim, seq_len=length)
        try:
            _ = work.window(reading) if cell.kind == LOSS else work.samples(reading, settings)
        except ValueError as error:
            wrong[str(error)] = None
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}. Give other documents (--config.documents), shorter windows "
            "(--config.windows.NAME.factor, --config.retrieval.factors) or other sentences to "
            "begin at (--config.sentence_tokens)"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """Loss in windows of one length: of each block of positions, and means of the tables' columns.

    `within` and `beyond` are means on each side of the trained length, `ordered` the measured rows
    with the lowest loss beyond it first, `reference` the one that the others are compared with.
    """

    length: int
    rows: Rows
    reference: str
    blocks: lab.Scores
    columns: Mapping[str, lab.Scores]
    within: lab.Scores
    beyond: lab.Scores
    ordered: tuple[str, ...]


def losses(config: ConfigDict, facts: lab.Facts, folder: Path, cells) -> list[Losses]:
    """The finished losses, longest windows first."""
    trained, block, found = config.trained_length, config.trained_length // config.blocks, []
    chosen = [cell for cell in cells if cell.kind == LOSS]
    for length in sorted({cell.what[2].length for cell in chosen}, reverse=True):
        blocks = lab.scores(folder, [c for c in chosen if c.what[2].length == length], "blocks")
        inner = {n for n in (_tokens(config, edge) for edge in config.edges) if n < length}
        pairs = [*itertools.pairwise([0, trained, *sorted(inner), length]), (trained, length)]

        def part(a: int, b: int, blocks=blocks) -> lab.Scores:
            return blocks.map(lambda values: values[..., a // block : b // block].mean(-1))

        columns = {f"{a:,} to {b:,}": part(a, b) for a, b in pairs}
        beyond, rows = part(trained, length), rows_at(config, facts, length)
        ordered = tuple(sorted(beyond.rows, key=lambda row, x=beyond: float(x.mean(row))))
        one = length, rows, next(iter(rows)), blocks, columns, part(0, trained), beyond, ordered
        found += [Losses(*one)] if ordered else []
    return found


def loss_records(found: Losses) -> list[dict[str, Any]]:
    """One line of the table for each measured row."""
    lines, reference = [], found.reference
    for row in found.ordered:
        same = [label for label, (_, same_as) in found.rows.items() if same_as == row]
        line = {"method": " = ".join(same or [row])}
        line["documents"] = len(found.blocks.documents[row])
        line |= {name: x.interval(row) or float(x.mean(row)) for name, x in found.columns.items()}
        line[f"within, minus {reference}"] = lab.gap(found.within, row, reference)
        line[f"beyond, minus {reference}"] = lab.gap(found.beyond, row, reference)
        line["beyond less within"] = lab.gap(found.beyond.minus(found.within), row, reference)
        line[f"beyond, minus {CROPPED}"] = lab.gap(found.beyond, row, CROPPED)
        lines.append(line)
    return lines


def answers(config, facts: lab.Facts, folder: Path, cells) -> list[dict[str, Any]]:
    """One line per task, length and method, with the numbers of all finished samples."""
    lines, texts = [], labels(config)
    for group in (group for group in groups(config) if "task" in group.settings):
        key = group.length, group.settings
        chosen = [c for c in cells if (c.what[2].length, c.what[3]) == key]
        exact, share, nll = (lab.scores(folder, chosen, k) for k in ("exact", "share", "nll"))
        same = rows_at(config, facts, group.length) | {CROPPED: (None, CROPPED)}
        wanted = {config.reference, None, *group.methods}
        for label, row in ((k, row) for k, (_, row) in same.items() if texts.get(k) in wanted):
            if row in exact.rows:
                right, n = int(exact.values[row].sum()), exact.values[row].size
                limits = stats.binomtest(right, n).proportion_ci()
                line = {"task": group.settings["task"], "method": label, "length": group.length}
                line |= {"samples": n, "exact": right, "low": limits.low, "high": limits.high}
                lines.append(line | {"share": share.mean(row), "nll": nll.mean(row)})
    return lines


def loss_claim(found: Losses, trained: str) -> str:
    """What the numbers of one length bear out."""
    (lowest, *_), beyond, further = found.ordered, found.beyond, found.beyond.minus(found.within)
    methods = [row for row in beyond.rows if row not in (found.reference, CROPPED)]
    said = [f"At {trained} to {found.length:,} tokens {lowest} has the lowest loss"]
    said[0] += f", {beyond.mean(lowest):.3f} nats"
    for row in (found.reference, CROPPED):
        if row in beyond.rows:
            there, within = float(beyond.mean(row)), float(found.within.mean(row))
            said.append(f"{row} has {there:.3f} there and {within:.3f} within {trained}")
            said.append(f"of the other methods {lab.counted(beyond, methods, row)}")
        else:
            said.append(f"{row} is not measured yet")
    said.append(f"beyond less within {lab.counted(further, methods, found.reference)}")
    return "; ".join(said) + "."


def passkey_claim(length: int, lines: Iterable[Mapping]) -> str:
    """How many pass keys each method finds at a length."""
    found = [x for x in lines if (x["task"], x["length"]) == (PASSKEY, length)]
    said = ", ".join(f"{x['method']} {x['exact']} of {x['samples']}" for x in found)
    return f"Pass keys found at {length:,} tokens: {said}."


def publish(config, facts: lab.Facts, folder: Path, cells, command: str) -> lab.Report:
    """Writes tables, figures and claims of the cells there are."""
    found, asked = losses(config, facts, folder, cells), answers(config, facts, folder, cells)
    records = {x.length: loss_records(x) for x in found}
    tables = [_loss_table(length, lines) for length, lines in records.items()]
    figures = [_beyond(found, config), _by_position(found, config)] if found else []
    options = [[k, x.length, repr(m)] for x in found for k, (m, _) in x.rows.items()]
    methods = lab.Table(["method", "length", "options"], options, "The methods, written out")
    trained = config.trained_length
    beyond = {x["length"] for x in asked if x["task"] == PASSKEY and x["length"] > trained}
    claims = [loss_claim(x, f"{trained:,}") for x in found]
    claims += [passkey_claim(length, asked) for length in sorted(beyond)]
    means = {x.length: {row: x.blocks.mean(row) for row in x.blocks.rows} for x in found}
    return lab.publish(
        folder,
        command,
        config,
        title=f"Zero-shot extension of {config.model}",
        claims=claims,
        sections=[
            lab.Section("Loss", [*figures[:1], *tables, *figures[1:]]),
            lab.Section("Retrieval", _retrieval(asked, config) if asked else []),
            lab.Section("How it was measured", [_explained(config, facts), methods]),
        ],
        results={"loss": records, "retrieval": asked, "loss by position": means},
        cells=cells,
    )


def _loss_table(length: int, lines: Sequence[Mapping[str, Any]]) -> lab.Table:
    shown = [
        {k: v if isinstance(v, str | int) else lab.show(v) for k, v in x.items()} for x in lines
    ]
    return lab.table(shown, f"Loss in nats, windows of {length:,} tokens", f"loss_{length}")


@lab.style()
def _beyond(found: Sequence[Losses], config: ConfigDict) -> lab.Figure:
    """Cost within the trained length beside the loss beyond it, for every method."""
    counts, trained = [len(x.ordered) for x in found], f"{config.trained_length:,}"
    size = (11, 1.3 * len(counts) + 0.26 * sum(counts))
    grid = {"squeeze": False, "sharey": "row", "height_ratios": [n + 1 for n in counts]}
    fig, axes = lab.subplots(len(counts), 2, size=size, **grid)
    for (left, right), x in zip(axes, found, strict=True):
        for y, row in enumerate(x.ordered):
            look = {"color": "#D55E00" if row in (x.reference, CROPPED) else "#0072B2"}
            left.plot(lab.mean_gap(x.within, row, x.reference), y, "o", **look)
            single = x.beyond.values[row][0]
            right.plot(single, [y] * len(single), "x", markersize=5 * (len(single) > 1), **look)
            right.plot(single.mean(), y, "o", **look)
            if row == CROPPED:
                right.axvline(single.mean(), linestyle="--", linewidth=0.8, **look)
        left.set_yticks(range(len(x.ordered)), x.ordered)
        left.set(title=f"cost within {trained} tokens", xlabel=f"nats, minus {x.reference}")
        left.set_ylim(len(x.ordered) - 0.4, -0.6)
        right.set(title=f"loss at {trained} to {x.length:,}", xlabel="nats per token")
    caption = "Lowest loss beyond the trained length on top. Crosses: documents; dashed: cropped."
    return lab.Figure("beyond", fig, caption)


@lab.style()
def _by_position(found: Sequence[Losses], config: ConfigDict) -> lab.Figure:
    """Differences from the reference by position, where the text's own ups and downs cancel."""
    first = [sorted(x.ordered, key=lambda row: row not in (x.reference, CROPPED)) for x in found]
    best = [rows[:6] for rows in first]
    named = list(dict.fromkeys(itertools.chain(*best)))
    colour = dict(zip(named, lab.colours(named), strict=True))
    size = (8, 1 + 3.4 * len(found))
    fig, axes = lab.subplots(len(found), 1, size=size, squeeze=False)
    for ax, x, chosen in zip(axes[:, 0], found, best, strict=True):
        for row in sorted(x.blocks.rows, key=chosen.__contains__):  # those in colour on top
            look = {"color": colour.get(row), "label": row}
            look = look if row in chosen else {"color": "#BBBBBB", "linewidth": 0.8}
            curve = lab.mean_gap(x.blocks, row, x.reference)
            ax.plot((np.arange(len(curve)) + 0.5) * x.length / len(curve), curve, **look)
        ax.axvline(config.trained_length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=f"windows of {x.length:,} tokens", ylabel=f"loss minus {x.reference}, nats")
        ax.set(xlabel="position, tokens", xlim=(0, x.length))
        ax.legend()
    caption = "Loss by position on the same text. Dotted: the trained length. Grey: other methods."
    return lab.Figure("loss_by_position", fig, caption)


@lab.style()
def _retrieval(lines: Sequence[Mapping[str, Any]], config: ConfigDict) -> list:
    """Answers by length: a panel for each task, and a table."""
    shown, methods = (list(dict.fromkeys(x[k] for x in lines)) for k in ("task", "method"))
    panels = [task for task in shown if task != REMOVED]
    fig, axes = lab.subplots(1, len(panels), size=(4.6 * len(panels), 4.2), squeeze=False)
    for ax, task in zip(axes[0], panels, strict=True):
        for i, (method, colour) in enumerate(zip(methods, lab.colours(methods), strict=True)):
            of = [x for x in lines if (x["task"], x["method"]) == (task, method)]
            # Rings of many sizes, since points often coincide.
            look = {"color": colour, "markersize": 5 + 2 * i, "fillstyle": "none"}
            ax.plot([x["length"] for x in of], [x["share"] for x in of], "o-", label=method, **look)
        for x in lines:
            if x["task"] == REMOVED and task == SENTENCE:
                ax.axhline(x["share"], color="#7F7F7F", linewidth=1, linestyle="--")
        ax.axvline(config.trained_length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=task, xlabel="length, tokens", ylim=(-0.08, 1.08))
    axes[0, 0].set_ylabel("share of answer tokens right")
    axes[0, 0].legend()
    caption = "Answers by length. Dotted: the trained length; dashed: the sentence is removed."
    order = sorted(lines, key=lambda x: (shown.index(x["task"]), methods.index(x["method"])))
    header = ["task", "method", "length", "samples", "whole answers", "tokens right", "loss"]
    rows = [
        [
            *(x[k] for k in header[:4]),
            f"{x['exact']} [{x['low']:.2f}, {x['high']:.2f}]",
            f"{x['share']:.0%}",
            lab.show(x["nll"]),
        ]
        for x in order
    ]
    title = "Answers; each method's short lengths stand above its long ones"
    return [lab.Figure("retrieval", fig, caption), lab.Table(header, rows, title, "retrieval")]


def _explained(config: ConfigDict, facts: lab.Facts) -> lab.Paragraphs:
    r, trained = config.retrieval, f"{config.trained_length:,}"
    return lab.Paragraphs(
        f"Model: {facts.method}, trained on {trained} tokens. {' '.join(facts.notes)} Documents: "
        f"{', '.join(config.documents)}, each from its first sentence on, after {config.bos}; if "
        "they are old and public, the model may have read them.\n\n"
        f"Cropped: {config.reference} reads at most the last {trained} tokens, at least seven "
        "eighths of so many where they are there. Beyond less within: the difference of the two "
        "differences, which a method that is worse at every position does not gain by. Intervals: "
        "95%, documents resampled whole, differences paired, each method on its own.\n\n"
        "Methods that depend on the length get that of the whole window; those whose frequencies "
        "are the same numbers are measured once. Nothing was searched: longrope has one factor.\n\n"
        f"Asked, in plain text: {r.fact!r} {r.passkey_prompt!r} {r.first_sentence_prompt!r}. A "
        "whole answer, of which every token is the most likely one, is what greedy decoding would "
        "give; Clopper and Pearson's 95% interval takes samples as independent. Removed: the "
        "sentence asked for is not in the context."
    )


if __name__ == "__main__":
    lab.run(main, "experiments.zero_shot_extension")
