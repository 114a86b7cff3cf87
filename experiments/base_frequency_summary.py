"""The first page of `make reproduce`: several ablations beside each other, the answer first.

What is measured live stands beside the committed scores of the overnight study, each with its gates
and each redrawn from its cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import base_frequency_ablation as ablation
from experiments import base_frequency_results as results
from experiments import lab
from experiments.base_frequency_results import Found

_QUESTION = (
    "Llama 2 Long continues a model at 8 times its length under four position encodings and finds "
    "that an adjusted base frequency (ABF) serves loss and retrieval best, that position "
    "interpolation (PI) is close behind, and that plain RoPE fails. The same study in miniature, "
    "{count}: a claim is judged only where its gates show that the run could have seen it."
)
_PAPER_GAPS = (0.0009, 0.0028)  # nats between PI and ABF: CC and Books in the paper's Table 5


def committed(configs: Mapping[str, ConfigDict], folder: Path) -> dict[str, Found]:
    """The ablations whose finished cells lie in FOLDER/NAME, redrawn without training."""
    found = {}
    for name, config in configs.items():
        if not (Path(folder) / name / "cells").is_dir():
            continue
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.machine = dict(config.machine) | {"measure": False}
        one = ablation.found(config, Path(folder) / name)
        if one.rows:
            found[name] = one
    return found


def publish(parts: Mapping[str, Found], folder: Path, command: str, config: ConfigDict):
    """Writes the summary of several ablations and returns its lab.Report."""
    judged = {
        name: lab.judged(one.config.hypotheses, one.quantities) for name, one in parts.items()
    }
    count = f"{len(parts)} run{'s' if len(parts) > 1 else ''}"
    blocks = [
        _verdicts(judged),
        draw(parts),
        _numbers(parts),
        lab.Paragraphs(_QUESTION.format(count=count)),
        _answers(parts, judged),
    ]
    return lab.publish(
        folder,
        command,
        config,
        title="The base-frequency study, all runs",
        claims=_claims(judged),
        sections=[lab.Section("What came out", blocks)],
    )


def _claims(judged: Mapping[str, Sequence[lab.Hypothesis]]) -> list[str]:
    """One sentence for each hypothesis: what it came to in how many runs."""
    claims, sentences = {}, []
    for part, hypotheses in judged.items():
        for h in hypotheses:
            claims.setdefault((h.name, h.claim), {}).setdefault(h.verdict, []).append(_title(part))
    for (name, claim), verdicts in sorted(claims.items()):
        shown = "; ".join(f"{word} ({', '.join(where)})" for word, where in verdicts.items())
        sentences.append(f"{name}, {claim}: {shown}.")
    return sentences


def _title(part: str) -> str:
    return part.replace("_", " ")


def _verdicts(judged: Mapping[str, Sequence[lab.Hypothesis]]) -> lab.Table:
    """Hypotheses by runs."""
    claims = {h.name: h.claim for hypotheses in judged.values() for h in hypotheses}
    words = {part: {h.name: h.verdict for h in every} for part, every in judged.items()}
    lines = [
        [f"{name}: {claim}", *(words[part].get(name) for part in judged)]
        for name, claim in sorted(claims.items())
    ]
    return lab.Table(["hypothesis", *map(_title, judged)], lines, "Verdicts", "summary_verdicts")


def _numbers(parts: Mapping[str, Found]) -> lab.Table:
    """The registered quantities of every run."""
    lines = []
    for part, one in parts.items():
        gains = one.quantities[results.GAIN]
        rho, law = results.ratio(one), results.repair(one)
        model = one.config.model
        lines.append(
            [
                _title(part),
                f"{model.n_layers} x {model.d_model}",
                max(one.rows.values()),
                lab.show(gains.interval("RoPE ABF")) if "RoPE ABF" in gains.values else None,
                lab.show(lab.gap(gains, "RoPE", "RoPE ABF")),
                lab.show(rho, 2),
                ("stalls" if law.stalls else lab.show(law.exponent, 2)) if law else None,
                *(
                    lab.show(float(one.quantities["passkey area"].mean(row)), 2)
                    if row in one.rows
                    else None
                    for row in results.PAPER_PERPLEXITY
                ),
            ]
        )
    header = ["run", "layers x width", "seeds", "context gain of ABF", "that of RoPE less ABF's"]
    header += ["rho", "exponent of repair", *(f"keys: {row}" for row in results.PAPER_PERPLEXITY)]
    caption = (
        "Context gain in nats: what the last quarter of the long window loses where only as many "
        "tokens are read as in pretraining. rho: what PI gains less than ABF over what plain RoPE "
        "gains less. Repair: PI's excess in loss falls as a power of the steps. Keys: area under "
        "whole keys found over the logarithm of the length, 0 to 1."
    )
    return lab.Table(header, lines, caption, "summary_numbers")


def _answers(parts: Mapping[str, Found], judged) -> lab.Table:
    """What a reviewer asks of the study, answered from the runs."""
    passed = {
        part
        for part, every in judged.items()
        if all(h.verdict not in (lab.NOT_TESTABLE, lab.NOT_RUN) for h in every)
    }
    sizes = {f"{parts[p].config.model.n_layers} x {parts[p].config.model.d_model}" for p in passed}
    texts = {parts[p].config.corpus for p in passed}
    lines = [
        ["All gates passed", _yes(passed == set(parts)), ", ".join(map(_title, sorted(passed)))],
        ["Two sizes, gates passed", _yes(len(sizes) > 1), ", ".join(sorted(sizes))],
        ["Two texts, gates passed", _yes(len(texts) > 1), ", ".join(sorted(texts))],
    ]
    for part, one in parts.items():
        law, rho = results.repair(one), results.ratio(one)
        carried = law if law and not law.stalls else None
        meets = (
            carried
            and carried.at_paper.low <= _PAPER_GAPS[1]
            and carried.at_paper.high >= _PAPER_GAPS[0]
        )
        lines.append(
            [
                f"{_title(part)}: PI's excess, carried on to the paper's steps, meets its gap",
                _yes(meets) if law else "not measured",
                f"{lab.show(carried.at_paper, 4)} nats"
                if carried
                else (f"it stalls at {lab.show(law.excess[-1], 4)} nats" if law else None),
            ]
        )
        lines.append(
            [
                f"{_title(part)}: rho lies within 0 to 0.3",
                _yes(0 <= rho.estimate <= 0.3) if rho else "not measured",
                lab.show(rho, 2),
            ]
        )
        rates = {row: s for row, s in one.config.rows.items() if row.startswith("RoPE, rate")}
        area = one.quantities["passkey area"]
        swept = {row: float(area.mean(row)) for row in rates if row in one.rows}
        if swept and "RoPE ABF" in one.rows:
            best, abf = max(swept, key=swept.get), float(area.mean("RoPE ABF"))
            lines.append(
                [
                    f"{_title(part)}: RoPE finds fewer keys than ABF at the best of its rates",
                    _yes(swept[best] < abf),
                    f"area {swept[best]:.2f} ({best}) against {abf:.2f}",
                ]
            )
    return lab.Table(["what a reviewer asks", "answer", "numbers"], lines, "Check list", "answers")


def _yes(true: object) -> str:
    return "yes" if true else "no"


@lab.style()
def draw(parts: Mapping[str, Found]) -> lab.Figure:
    """Whole keys found by length, a panel for each run."""
    fig, axes = lab.panels(len(parts), 3, each=(3.6, 3.0), margin=(0.2, 0.4))
    for ax, (part, one) in zip(axes, parts.items(), strict=True):
        curves = results.by_length(one, "passkey", "exact")
        for row, colour in one.drawn.items():
            at, means = curves[row]
            shares = [n / one.config.length for n in at]
            ax.plot(shares, means, "o-", color=colour, label=row, markersize=4)
        ax.axvline(one.config.factor, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=_title(part), xscale="log", ylim=(-0.03, 1.03))
        ax.set_xticks([1, 2, 4, 8], ["L", "2L", "4L", "8L"])
        ax.minorticks_off()
    axes[0].set(ylabel="keys found whole")
    axes[0].legend()
    caption = (
        "Share of keys found whole against the length of the text, L being the pretraining length "
        "and the dotted line that of the continuation; means over seeds and samples."
    )
    return lab.Figure("keys_by_length", fig, caption)
