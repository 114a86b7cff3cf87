"""The report of the base-frequency ablation: figures, text, and the order of it all.

Numbers and tables come from experiments/base_frequency_results.py. Every row that is `drawn` stands
in every figure.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import NullFormatter

from experiments import base_frequency_results as results
from experiments import base_frequency_tables as tables
from experiments import lab
from experiments.base_frequency_results import Found
from longrope_jax import rotary
from longrope_jax.evaluation import power_law
from longrope_jax.evaluation.statistics import PowerNeeded, cluster_bootstrap

_TITLE = "Base-frequency ablation"
_QUESTION = (
    "Llama 2 Long extends a model by continuing its pretraining at a longer length, and compares "
    "position encodings for it: RoPE, position interpolation (PI), RoPE with an adjusted base "
    "frequency (ABF) and xPos with that base. This is the comparison in miniature. Gates say "
    "whether a hypothesis can be tested here at all: whether loss gains from long context, whether "
    "the pretrained model can do the task at its own length, whether answers come from the context."
)
_VERDICTS = (
    "Hypotheses. The checks of one hypothesis together are wrong at most once in 20 times (Holm); "
    "each shows the interval at which it is decided. A gate that fails makes its hypothesis not "
    "testable, whatever the checks say."
)
_PAIR = ("loss", "answer tokens")  # of the figures with two panels


def publish(found: Found, command: str) -> lab.Report:
    """Writes the report and all its files.

    Raises:
        ValueError: no row is finished.
    """
    if not found.rows:
        raise ValueError(
            f"{found.folder} has no finished row to show: leave out --config.machine.measure=False"
        )
    tables.save_documents(found)
    judged = lab.judged(found.config.hypotheses, found.quantities)
    parts = sections(found, judged)
    every = [b for part in parts for b in part.blocks if isinstance(b, lab.Table)]
    numbers = {t.name: [dict(zip(t.header, line, strict=True)) for line in t.rows] for t in every}
    numbers |= {"hypotheses": judged, "power_laws": found.laws, "power": results.power(found)}
    numbers |= {"rho": results.ratio(found), "repair": results.repair(found)}
    numbers |= {"left_out": found.left_out}
    return lab.publish(
        found.folder,
        command,
        found.config,
        title=_TITLE,
        claims=claims(found, judged),
        sections=parts,
        results=numbers | {"seeds": found.rows, "taught": results.taught(found)},
        cells=found.cells,
    )


def claims(found: Found, judged: Sequence[lab.Hypothesis]) -> list[str]:
    """What came out, in sentences: retrieval, loss, each hypothesis, repair, power."""
    sentences = []
    ranked = (("passkey area", 2, -1), ("first sentence area", 2, -1), (results.BEYOND, 3, 1))
    asked = found.config.retrieval.taught_first_sentence or found.config.init_checkpoint
    for name, digits, sign in ranked:
        if name == "first sentence area" and not asked:
            continue
        means = {row: sign * float(found.quantities[name].mean(row)) for row in found.drawn}
        best = sorted(means, key=means.get)
        shown = ", ".join(f"{row} {abs(means[row]):.{digits}f}" for row in best)
        sentences.append(f"{name[0].upper()}{name[1:]}, best first: {shown}.")
    sentences += [f"{h.name}, {h.claim}: {h.verdict}." for h in judged]
    if rho := results.ratio(found):
        sentences.append(
            f"What PI loses at long range is {lab.show(rho, 2)} of what plain RoPE loses (rho; the "
            "paper's perplexities: 0.08 on Books, 0.17 on CC, 0.13 on Wikipedia)."
        )
    if law := results.repair(found):
        sentences.append(_repair_sentence(law))
    if found.left_out:
        rows: dict[str, list[str]] = {}
        for label in found.left_out:
            row, _, seed = label.rpartition(", seed ")
            rows.setdefault(seed, []).append(row)
        each = "; ".join(f"seed {seed} of {', '.join(names)}" for seed, names in rows.items())
        budget = f"the budget of {found.config.minutes:g} minutes"
        sentences.append(f"Left out for {budget}: {each}.")
    return sentences + _power_sentences(results.power(found))


def sections(found: Found, judged: Sequence[lab.Hypothesis]) -> list[lab.Section]:
    """The report, its headline and the verdicts first."""
    lines = lab.verdict_lines(judged)
    verdicts = lab.Table(lab.VERDICT_HEADER, lines, _VERDICTS, "verdicts")
    retrieval = [table(found) for table in tables.RETRIEVAL_TABLES]
    perplexity, summary = tables.perplexity_table(found), tables.summary_table(found)
    table5 = [tables.paper_table(found), perplexity, summary, draw_positions(found)]
    parts = {
        "What came out": [draw_retrieval(found), lab.Paragraphs(_QUESTION), verdicts],
        "Table 5 in miniature": table5,
        "Steps of continuation": [draw_steps(found), tables.repair_table(found)],
        "Retrieval": [tables.criterion_table(found), *retrieval],
        "Power law of the context": [draw_laws(found), tables.laws_table(found)],
        "Other scales than its own": [draw_scales(found), tables.scales_table(found)],
        "Bases": [draw_bases(found), tables.turns_table(found)],
        "Departures from the paper": [lab.Paragraphs("\n\n".join(departures(found)))],
    }
    return [
        lab.Section(title, [block for block in blocks if block is not None])
        for title, blocks in parts.items()
    ]


def _repair_sentence(law: results.Repair) -> str:
    """How PI's excess falls, and what that says of the paper's steps if it still falls so."""
    if law.stalls:
        return (
            "PI's excess over ABF no longer falls as a power of the steps: after "
            f"{law.steps[-1]:,} it is {lab.show(law.excess[-1], 4)} nats, where the earlier points "
            f"let expect {lab.show(law.expected, 4)}; nothing is carried on to the paper's steps."
        )
    return (
        f"PI's excess over ABF falls as steps^-{lab.show(law.exponent, 2)}; carried on to the "
        f"paper's {results.PAPER_STEPS:,} steps it is {lab.show(law.at_paper, 4)} nats (the "
        "paper: 0.0028 on Books, 0.0009 on CC, 0.0011 on Wikipedia), and it passes "
        f"{results.REPAIRED} after {law.reaches.estimate:,.0f} steps "
        f"[{law.reaches.low:,.0f}, {law.reaches.high:,.0f}]."
    )


def _power_sentences(needed: PowerNeeded | None) -> list[str]:
    """What `results.power` found, in words."""
    if needed is None:
        return []
    ways = [f"{needed.documents} documents with these seeds"] if needed.documents else []
    ways += [f"{needed.seeds} seeds with these documents"] if needed.seeds else []
    if needed.balanced:
        ways.append("{} documents and {} seeds together".format(*needed.balanced))
    gap = f"To resolve the paper's gap of {results.PAPER_GAP} nats between PI and ABF"
    if not ways:
        return [f"{gap}: not to be said from one seed, or out of reach."]
    return [f"{gap}, with power 0.8, it would take {', or '.join(ways)}."]


def departures(found: Found) -> list[str]:
    """How this run differs from the paper's, with its numbers."""
    config, start = found.config, f"Size: {dict(found.config.model)}"
    trained = {"pretraining": config.length, "continuation": found.full}
    if config.init_checkpoint:
        start = f"Start: {config.init_checkpoint}"
        trained.pop("pretraining")
    budget = [f"{config[p].steps * config[p].batch * n:,} of {p}" for p, n in trained.items()]
    documents = {name for names in found.quantities["loss"].documents.values() for name in names}
    teaching = [
        f"Retrieval is taught in {phase}, to all rows but those marked 'not taught' alike: answers "
        f"are {share['answer_tokens']:.1%} of the tokens and carry "
        f"{share['answer_loss_weight']:.1%} of the loss weight. The paper's model needed none."
        for phase, share in results.taught(found).items()
    ]
    return [
        f"{start}; the paper's model has 7 billion parameters.",
        f"Lengths: {config.length:,} continued at {found.full:,} tokens; the paper has 4,096 and "
        "32,768.",
        f"Budget in tokens, per row: {' and '.join(budget)}; the paper has 2 trillion and 80 "
        "billion.",
        f"Tokens: {config.tokenizer or 'of the checkpoint'}; text: {config.corpus}, "
        f"{len(documents)} documents held out.",
        *teaching,
        "A document is a passage that begins at a sentence of a held-out text; a test passage's "
        "first sentence occurs nowhere in the training text.",
        *results.text_notes(found),
    ]


# Figures.


def _lines(ax, found: Found, curves: Mapping[str, tuple[Sequence, Sequence]], **axis) -> None:
    """A line with markers for every drawn row."""
    for row, colour in found.drawn.items():
        if row in curves:
            ax.plot(*curves[row], "o-", color=colour, label=row, markersize=4)
    ax.set(**axis)


@lab.style()
def draw_retrieval(found: Found) -> lab.Figure:
    """FIRST-SENTENCE-RETRIEVAL, share of right answer tokens, and passkey by length."""
    fig, axes = lab.subplots(1, 3, size=(12, 4.2))
    panels = (
        ("passkey", "exact", "passkey, exact matches", 1),
        ("answers", "rouge", "first sentence, ROUGE-L", 100),
        ("first_sentence", "answer_tokens", "first sentence, answer tokens right", 1),
    )
    for ax, (kind, key, title, top) in zip(axes, panels, strict=True):
        look = {"title": title, "xlabel": "length, tokens", "ylim": (-0.03 * top, 1.03 * top)}
        _lines(ax, found, results.by_length(found, kind, key), **look)
    chance = found.quantities["ROUGE-L"].mean("chance")
    axes[1].axhline(chance, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes[1].legend()
    return lab.Figure("retrieval_by_length", fig, "Figure 5b of Llama 2 Long in miniature.")


@lab.style()
def draw_positions(found: Found) -> lab.Figure:
    """Loss against position before and after training, with a band over documents."""
    fig, axes = lab.subplots(1, 2, size=(10, 4.5), sharey=True)
    tops = []
    for ax, step, stage in zip(axes, (0, None), ("untrained", "trained"), strict=True):
        scores = found.scores("loss", "blocks", step)
        for row, colour in found.drawn.items():
            band = cluster_bootstrap(scores.values[row].mean(0), scores.documents[row])
            count = len(band.estimate)
            at = (np.arange(count) + 0.5) * 2 * found.full / count
            ax.plot(at, band.estimate, color=colour, label=row)
            ax.fill_between(at, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
            tops.append(np.median(band.estimate))
        for length in (found.config.length, found.full):
            ax.axvline(length, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=f"{stage} at {found.full:,} tokens", xlabel="position, tokens")
    axes[0].set(ylabel="loss, nats per token", ylim=(None, max(tops, default=1) * 1.3))
    axes[1].legend()
    caption = "Mean over seeds; shade: 95 % band over documents. Dotted: the two trained lengths."
    return lab.Figure("loss_by_position", fig, caption)


@lab.style()
def draw_steps(found: Found) -> lab.Figure:
    """Loss and retrieval during the continuation."""
    fig, axes = lab.subplots(1, 2, size=(10, 4.2))
    for ax, name in zip(axes, ("loss", "passkey"), strict=True):
        look = {"xlabel": "steps of continuation", "ylabel": f"{name} at the long length"}
        _lines(ax, found, results.by_step(found, name), xscale="log", **look)
    axes[1].legend()
    caption = (
        "Figure 5a of Llama 2 Long in miniature. Each point is a run of its own whose learning "
        "rate was brought down at its end, so that the points show steps and not the schedule."
    )
    return lab.Figure("loss_against_steps", fig, caption)


@lab.style()
def draw_laws(found: Found) -> lab.Figure:
    """Loss against context with the fit of each row."""
    fig, ax = lab.subplots(size=(7, 4.5))
    known = results.contexts(found)
    for row, colour in found.drawn.items():
        at, losses, _ = known[row]
        ax.plot(at, losses.mean(0), "o", color=colour, label=row)
        if law := found.laws[row]:
            triple = (law.alpha.estimate, law.beta.estimate, law.gamma.estimate)
            ax.plot(at, power_law.PowerLaw(*triple)(at), color=colour)
    ax.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="loss, nats per token")
    ax.legend()
    caption = (
        "Fit of L(c) = (alpha/c)^beta + gamma, as in Figure 1 of Llama 2 Long, to the loss of "
        "tokens that see about c tokens, from the end of the windows' first sentence on."
    )
    return lab.Figure("power_law", fig, caption)


@lab.style()
def draw_scales(found: Found) -> lab.Figure:
    """Each trained model evaluated at other scales than its own."""
    fig, axes = lab.subplots(1, 2, size=(10, 4.2))
    scales = found.config.evaluation.scales
    for ax, name in zip(axes, _PAIR, strict=True):
        look = {"xscale": "log", "xlabel": "scale, times the method's own"}
        look["ylabel"] = f"{name} at the long length"
        _lines(ax, found, results.by_scale(found, name), **look)
        ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
        ax.minorticks_off()
    axes[0].legend()
    caption = "Frequencies divided by the scale, as in Giraffe's evaluation."
    return lab.Figure("scale_matrix", fig, caption)


@lab.style()
def draw_bases(found: Found) -> lab.Figure:
    """Loss and retrieval at the long length against the base of the continuation.

    Taught RoPE rows at the common learning rate are joined; drawn rows of other methods are squares
    at their own base, or lines where they have none.
    """
    fig, axes = lab.subplots(1, 2, size=(10, 4.2))
    common = {row for row, s in found.config.rows.items() if s.taught and s.rate == 1}
    swept = {row: m.base for row, m in found.methods.items() if isinstance(m, rotary.RoPE)}
    sweep = sorted(common & swept.keys(), key=swept.get)
    for ax, name in zip(axes, _PAIR, strict=True):
        means = {row: float(found.quantities[name].mean(row)) for row in found.rows}
        points = [swept[row] for row in sweep], [means[row] for row in sweep]
        ax.plot(*points, "o-", color=lab.colours(["abf"])[0], label="RoPE")
        for row in (row for row in found.drawn if row not in sweep):
            look = {"color": found.drawn[row], "label": row}
            if base := getattr(found.methods[row], "base", None):
                ax.plot(base, means[row], "s", **look)
            else:
                ax.axhline(means[row], linestyle="--", **look)
        ax.set(xscale="log", xlabel="base", ylabel=f"{name} at the long length")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].legend()
    caption = "Taught RoPE rows; the pretraining base is the smallest. Squares: other methods."
    return lab.Figure("bases", fig, caption)
