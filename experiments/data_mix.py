"""Long documents or long windows? (Llama 2 Long 2309.16039 section 4.2, Tables 7 and 8, Figure 7).

    python -m experiments.data_mix --config=configs/data_mix.py:cpu --workdir=DIR

The paper finds that a model learns long contexts from a mix without long documents nearly as well
as from one with more of them: what helps is good text. Here one thing is changed at a time. A model
is pretrained at L/8 tokens; then it is continued at L under an adjusted base on as many tokens of

    natural            the corpus as it is
    cut                the same documents in pieces of L/4 tokens, each a document of its own
    long upsampled     long documents at 80 % of the tokens
    short documents    the others alone

Documents in a window do not see each other, and questions for keys keep to their document: after
`cut` a model has met no distance above L/4. Windows are as long in every arm. In the paper texts
are packed without such walls, so its distances, though not its texts, are long in every mix. A
document is long from 32 L tokens on, which splits this corpus in halves; few of the others are
shorter than a window, so the last arm is the paper's "long data removed", and `cut` alone is a test
of length.

Measured on whole held-out documents: loss by position with the whole window read and with the last
L/8 tokens (cropped), and keys by length. Presets: overnight (3 seeds of 4 million tokens after
10 million; about 5 hours on 2 cores), cpu (one seed; 6 minutes of processor time), tiny, and
pod_7b, whose text is a folder of `longrope tokenize`.
"""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from experiments import lab
from experiments.lab import reach, scratch
from longrope_jax.data import mixtures
from longrope_jax.data.mixtures import Mixture, Source, Stage

BEFORE = "before"  # the pretrained model, under its own method
OVER, SHORT = "loss over natural", "short loss over natural"
LESS = "keys, less 0.9 of natural's gain"
QUANTITIES = (*reach.QUANTITIES, OVER, SHORT, LESS)


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains and measures what is missing, then writes the report.

    Raises:
        ValueError: a bad config or text, before anything is trained.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    lab.check_hypotheses(config.hypotheses, QUANTITIES, (BEFORE, *config.rows))
    cells = plan(config, folder)
    work = scratch.Scratch(config, folder, machine, config.short * config.factor)
    if machine.measure and lab.missing(folder, cells):
        work.check(cells)
    lab.complete(folder, cells, work.functions, machine)
    return publish(config, folder, cells, command)


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """The cells that measure, each after its trainings."""
    del folder
    return list(_cells(config))


def _cells(config: ConfigDict) -> Iterator[lab.Cell]:
    sizes = reach.read(config.evaluation, config.short * config.factor, config.short)
    for seed in range(config.seeds):
        before = scratch.pretraining(config, lab.read_method(config.before, **_known(config)), seed)
        yield from scratch.measured(config, BEFORE, before, sizes)
        for row in config.rows:
            what = recipe_of(config, row, seed), *scratch.identity(config)
            trained = lab.Cell("train", row, seed, what, (before,))
            yield from scratch.measured(config, row, trained, sizes)


def _known(config: ConfigDict) -> dict[str, float]:
    """Values of the placeholders in a method's text."""
    base = config.base_per_token * config.short
    return {"base": base, "adjusted": base * config.adjusted_factor}


def recipe_of(config: ConfigDict, row: str, seed: int) -> lab.Recipe:
    """The continuation of an arm.

    Raises:
        ValueError: a share or a cut that cannot be, or a method that cannot be read.
    """
    length = config.short * config.factor
    with lab.naming(f"rows.{row}"):
        own = sources(config.rows[row], length, config.long_document * length)
        blend = Mixture(own, (Stage(1.0, length),))
    return lab.Recipe(
        lab.read_method(config.method, **_known(config)),
        length,
        **config.training,
        **scratch.questions(config.asked),
        seed=seed,
        blend=blend,
    )


def sources(settings: ConfigDict, length: int, least: int) -> tuple[tuple[str, Source], ...]:
    """The sources of an arm, parts of the study's own text.

    Args:
        settings: of the arm.
        length: tokens of a window.
        least: tokens of a long document.

    Raises:
        ValueError: a share above 1, or a number of pieces that does not divide a window.
    """
    if settings.long > 1:
        raise ValueError(f"long must be a share of the tokens or -1, got {settings.long}")
    if settings.pieces < 0 or (settings.pieces and length % settings.pieces):
        raise ValueError(f"pieces must divide a window of {length} tokens, got {settings.pieces}")
    if settings.long < 0:
        cut = length // settings.pieces if settings.pieces else 0
        return (("text", Source("", cut=cut)),)
    parts = mixtures.upsampled("", length=least, share=settings.long)
    return tuple((name, Source(**part)) for name, part in parts.items())


# What came out.


def quantities(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> dict[str, lab.Scores]:
    """Every quantity of every row that is finished."""
    losses = [cell for cell in cells if cell.kind == "loss"]
    keys = [cell for cell in cells if cell.kind == "keys"]
    blocks, cropped = (lab.scores(folder, losses, key) for key in ("blocks", "cropped"))
    parts = reach.quantities(blocks, cropped, lab.scores(folder, keys, "right"))
    over, short = (
        reach.over(parts[name], config.reference) for name in ("loss", "loss at short range")
    )
    return parts | {OVER: over, SHORT: short, LESS: less(parts["keys"], config.reference)}


def less(keys: lab.Scores, reference: str, share: float = 0.9) -> lab.Scores:
    """Keys found, less those before training and `share` of what training gave the reference.

    Above 0 a row keeps more than that share of the reference's gain.
    """
    if not {BEFORE, reference} <= keys.values.keys():
        return lab.Scores({}, {})
    before, whole = keys.values[BEFORE], keys.values[reference]
    values = {}
    for row in keys.rows:
        own = keys.values[row]
        n = min(len(own), len(before), len(whole))
        values[row] = own[:n] - before[:n] - share * (whole[:n] - before[:n])
    return lab.Scores(values, keys.documents)


def epochs(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> lab.Table:
    """How often each arm saw its documents, of the first seed."""
    lines = []
    for cell in dict.fromkeys(cell.after[0] for cell in cells if cell.kind == "loss"):
        found = lab.read(folder, cell) if cell.seed == 0 and cell.row in config.rows else None
        for name, values in (found or {}).items():
            if name.startswith("epochs/"):
                part = name.removeprefix("epochs/")
                lines.append([cell.row, part, found[f"share/{part}"][-1], values[-1]])
    header = ["row", "documents", "share of tokens", "epochs"]
    shown = dict.fromkeys(header[2:], "{:.3f}".format)
    return lab.Table(header, lines, "What was trained on", "epochs", shown)


def publish(config: ConfigDict, folder: Path, cells, command: str) -> lab.Report:
    """Writes the tables, figures and claims that the finished cells allow."""
    parts, long = quantities(config, folder, cells), config.short * config.factor
    blocks = [_drawn(config, folder, cells), epochs(config, folder, cells)]
    title = f"Mixes of documents at {long:,} tokens"
    return scratch.publish(folder, command, config, parts, blocks, title=title, cells=cells)


@lab.style()
def _drawn(config: ConfigDict, folder: Path, cells: list[lab.Cell]) -> lab.Figure:
    """Loss over the natural mix by position, and keys by length."""
    fig, axes = lab.subplots(1, 2, size=(11, 4.2))
    losses = lab.scores(folder, [c for c in cells if c.kind == "loss"], "blocks")
    over, short = reach.over(losses, config.reference), config.short
    for row in over.rows:
        if row not in (BEFORE, config.reference):
            curve = over.mean(row)
            axes[0].plot([short * (i + 1) for i in range(len(curve))], curve, label=row)
    axes[0].axhline(0, color="black", linewidth=0.8)
    axes[0].set(xlabel="position", ylabel=f"loss over {config.reference}, nats")
    keys = lab.scores(folder, [c for c in cells if c.kind == "keys"], "right")
    lengths = reach.read(config.evaluation, short * config.factor, short).lengths
    for row in keys.rows:
        axes[1].plot(lengths, keys.mean(row), marker="o", label=row)
    axes[1].set(xlabel="tokens", ylabel="keys found", xscale="log", ylim=(-0.02, 1.02))
    if keys.rows:
        axes[1].legend()
    return lab.Figure("by_length", fig, "Mean over documents and seeds.")


if __name__ == "__main__":
    lab.run(main, "experiments.data_mix")
