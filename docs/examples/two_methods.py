"""An example of a study: one small Llama trained twice, with stock RoPE and with a larger base.

    python -m docs.examples.two_methods --workdir=DIR

Both rows see the same windows in the same order; the table and the figure compare their loss on
documents that neither has seen. With the default config it takes two minutes on 2 CPU cores. More
seeds, or another length of evaluation, are added in the same folder and train nothing again:

    python -m docs.examples.two_methods --workdir=DIR --config.seeds=3
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import llama, rotary, sharding
from longrope_jax.data import tokenizers
from longrope_jax.evaluation.by_position import nll_by_position, position_blocks

SHAPE = llama.LlamaConfig(260, 64, 2, 2, 2, 32, 192)  # 260 ids: bytes and four special tokens


def get_config() -> ConfigDict:
    """Everything that a command line can change."""
    return ConfigDict(
        {
            "rows": {"RoPE": "rope:base=625", "larger base": "rope:base=31_250"},
            "seeds": 2,
            "length": 256,
            "steps": 200,
            "corpus": "plays",
            "held_out": 6,
            "bos": "<bos>",
            "sentence_tokens": (8, 60),
            "evaluation": {"length": 512, "windows": 2},
            "machine": {"checkpoint_every": 50},
        }
    )


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """A cell that trains and one that measures, for every row and seed."""
    del folder  # other studies keep facts of a checkpoint there
    return list(_cells(config))


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    text = (config.corpus, config.held_out, config.bos, config.sentence_tokens)
    for seed in range(config.seeds):
        for row, method in config.rows.items():
            recipe = lab.Recipe(
                rotary.parse(method), config.length, config.steps, 8, 3e-3, seed=seed
            )
            trained = lab.Cell("train", row, seed, (SHAPE, recipe, text))
            yield lab.Cell("loss", row, seed, (text, config.evaluation), after=(trained,))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report."""
    machine, cells = lab.Machine(**config.machine), plan(config, folder)
    tokenizer = tokenizers.load("bytes")

    @functools.cache
    def text() -> lab.Text:
        return lab.text(
            config, tokenizer, length=config.evaluation.length, windows=config.evaluation.windows
        )

    def train(cell: lab.Cell):
        recipe = cell.what[1]
        model = lab.fresh(SHAPE, tokenizer, recipe.method, machine, seed=cell.seed)
        return lab.train(model, recipe, text(), lab.run_folder(folder, cell), machine)

    def loss(cell: lab.Cell):
        (before,) = cell.after
        model = lab.trained(lab.run_folder(folder, before), machine)
        tokens, documents = text().windows(config.evaluation.length, config.evaluation.windows)
        with sharding.mesh_of(model.params):
            nll = nll_by_position(model.config, model.params, model.method, tokens)
        return {"blocks": position_blocks(nll, 32), "documents": documents}

    lab.complete(folder, cells, {"train": train, "loss": loss}, machine)
    found = lab.scores(folder, cells, "blocks")
    means = found.map(lambda blocks: blocks.mean(-1))
    reference, *_ = found.rows
    differences = lab.against(means, reference)
    lines = [
        [row, lab.show(means.interval(row)), lab.show(differences.get(row))] for row in found.rows
    ]
    table = lab.Table(["row", "loss", f"minus {reference}"], lines, "Loss in nats", name="loss")
    figure = lab.Figure("loss_by_position", _draw(found), "Mean loss by position.")
    claims = [f"{row} minus {reference}: {lab.show(d)} nats." for row, d in differences.items()]
    section = lab.Section("Two methods", [figure, table])
    title = "Two methods compared"
    return lab.publish(
        folder, command, config, title=title, claims=claims, sections=[section], cells=cells
    )


@lab.style()
def _draw(found: lab.Scores):
    fig, ax = lab.subplots()
    for row in found.rows:
        ax.plot(found.mean(row), label=row)
    ax.set(xlabel="block of 32 tokens", ylabel="loss, nats per token")
    ax.legend()
    return fig


if __name__ == "__main__":
    lab.run(main, "docs.examples.two_methods")
