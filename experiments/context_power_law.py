"""Loss against context of a real model: Figure 1 of Llama 2 Long (2309.16039), equation 1.

    python -m experiments.context_power_law --workdir=DIR

The last 64 tokens of windows of text are scored under contexts of 1, 2, 4, ... tokens, cut from the
left: the same targets each time, so what differs between contexts is the context. To the curve the
law L(c) = (alpha/c)^beta + gamma is fitted; since its parameters trade against each other, the
exponent is judged by its profile likelihood, and the law by how far the curve lies from it. Beside
it stand the points of the paper's Figure 1, read from the picture, and their refit.

In the paper, beta is 0.45 at 7B, 0.48 at 13B, 0.50 at 34B and 0.51 at 70B.

Presets: smollm2 (SmolLM2-135M, 120 windows of 40 documents, to its 8,192 tokens; 2.5 million
tokens, resumable by context), tiny.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import sharding
from longrope_jax.evaluation import power_law
from longrope_jax.evaluation.by_position import nll_under_context
from longrope_jax.evaluation.statistics import Interval

# Loss at contexts of 1, 2, 4, ..., 32768 tokens, read from Figure 1 of Llama 2 Long.
FIGURE_1 = {
    "7B": (
        *(5.657, 4.701, 3.971, 3.342, 2.745, 2.473, 2.254, 2.060),
        *(1.855, 1.780, 1.810, 1.747, 1.659, 1.651, 1.637, 1.583),
    ),
    "13B": (
        *(5.502, 4.496, 3.724, 3.063, 2.491, 2.184, 2.011, 1.843),
        *(1.698, 1.614, 1.656, 1.640, 1.530, 1.511, 1.533, 1.471),
    ),
    "34B": (
        *(5.405, 4.456, 3.663, 2.993, 2.417, 2.120, 1.946, 1.766),
        *(1.644, 1.557, 1.598, 1.571, 1.469, 1.457, 1.469, 1.444),
    ),
    "70B": (
        *(5.377, 4.440, 3.655, 2.965, 2.367, 2.058, 1.885, 1.702),
        *(1.576, 1.504, 1.537, 1.511, 1.416, 1.405, 1.407, 1.371),
    ),
}
FIGURE_1_LENGTHS = 2.0 ** np.arange(16)
# The triples (alpha, beta, gamma) printed in it.
PRINTED = {
    "7B": (25.4, 0.45, 1.56),
    "13B": (19.5, 0.48, 1.45),
    "34B": (17.7, 0.50, 1.41),
    "70B": (17.9, 0.51, 1.35),
}
_BETAS = np.geomspace(0.02, 5, 401)
_REJECTED = 0.05  # a curve less probable under the law than this does not follow it


def plan(config: ConfigDict, folder: Path) -> list[lab.Cell]:
    """One cell per context length."""
    return _cells(*lab.filled(config, folder))


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Measures what is missing, fits, writes the report.

    Raises:
        ValueError: a bad config or text, before anything is measured.
    """
    machine = lab.Machine(**config.machine)
    lab.start(machine)
    config, facts = lab.filled(config, folder)
    cells = _cells(config, facts)
    models = lab.Models(config.model, folder, machine, {"dtype": config.dtype})
    windows = None
    if machine.measure and lab.missing(folder, cells):
        length = max(config.contexts) + config.targets - 1
        size = {"length": length, "windows": config.windows_per_document}
        text = lab.text(config, lab.opened(config.model).tokenizer, **size)
        windows = text.windows(length, config.windows_per_document)

    def under(cell: lab.Cell) -> dict[str, np.ndarray]:
        *_, context, targets = cell.what
        model = models.start(cell)
        tokens, documents = windows
        batch = min(machine.rows(context), len(tokens))
        options = {"context": context, "targets": targets, "batch_size": batch}
        with sharding.mesh_of(model.params):
            found = nll_under_context(model.config, model.params, model.method, tokens, **options)
        return {"length": found.lengths[0], "nll": found.nll.mean(1), "documents": documents}

    lab.complete(folder, cells, {"under": under}, machine)
    return _publish(config, folder, cells, command)


def _cells(config: ConfigDict, facts: lab.Facts) -> list[lab.Cell]:
    if min(config.contexts) < 1 or max(config.contexts) > config.trained_length:
        raise ValueError(
            f"--config.contexts={config.contexts} must lie in 1 to {config.trained_length}, the "
            "length that the model was trained for: beyond it another effect sets in"
        )
    text = (config.corpus, config.held_out, config.bos, config.sentence_tokens)
    size = (max(config.contexts), config.windows_per_document)
    start = (config.model, config.dtype, facts.method)
    return [
        lab.Cell("under", f"{context:,} tokens", what=(start, text, size, context, config.targets))
        for context in config.contexts
    ]


def _publish(config: ConfigDict, folder: Path, cells: Sequence[lab.Cell], command: str):
    found = [lab.needed(folder, cell) for cell in cells]
    lengths = np.array([float(f["length"]) for f in found])
    losses = np.stack([f["nll"] for f in found], -1).astype(np.float64)
    documents = found[0]["documents"]
    mean = losses.mean(0)
    try:
        profile = power_law.profile(lengths, losses, documents, _BETAS)
    except ValueError as error:
        raise ValueError(f"no power law can be fitted to this curve: {error}") from error
    refits = {
        size: power_law.fit(FIGURE_1_LENGTHS, np.array(points)) for size, points in FIGURE_1.items()
    }
    name = Path(config.model).name
    sections = [
        lab.Section("Result", [lab.Figure("law", _draw(name, lengths, mean, profile), _CAPTION)]),
        lab.Section("The exponent", [lab.Figure("profile", _draw_profile(profile), _PROFILE)]),
        lab.Section("Figure 1 of the paper, refitted", [_table(refits)]),
        lab.Section("Loss by context", [_loss_table(config.contexts, lengths, losses, profile)]),
    ]
    results = {
        "lengths": lengths,
        "loss": mean,
        "windows": len(losses),
        "documents": len(np.unique(documents)),
        "law": profile.law,
        "beta": profile.beta,
        "p_value": profile.p_value,
        "figure_1": refits,
    }
    return lab.publish(
        folder,
        command,
        config,
        title=f"Loss against context, {name}",
        claims=_claims(name, profile),
        sections=sections,
        results=results,
        cells=cells,
    )


_CAPTION = (
    "Mean loss of the same tokens under contexts cut from the left, and the best power law "
    "L(c) = (alpha/c)^beta + gamma; dots: the points of Figure 1 of Llama 2 Long."
)
_PROFILE = (
    "How much worse each exponent describes the curve than the best one; below the line at 1 it "
    "cannot be excluded at 95%. Right axis: the irreducible loss that goes with it."
)


def _claims(name: str, profile: power_law.Profile) -> list[str]:
    law, beta = profile.law, profile.beta
    follows = profile.p_value >= _REJECTED
    said = "does not contradict the law" if follows else "does not follow the law"
    first = (
        f"{name}: the best law has alpha {law.alpha:.3g} tokens, beta {law.beta:.3f} "
        f"{_range(beta)}, gamma {law.gamma:.3f} nats."
    )
    return [first, f"The curve {said} (p = {profile.p_value:.2g})."]


def _range(beta: Interval) -> str:
    low = "no lower bound" if beta.low <= _BETAS[0] else f"{beta.low:.3f}"
    high = "no upper bound" if beta.high >= _BETAS[-1] else f"{beta.high:.3f}"
    return f"[{low} to {high}]"


def _table(refits: dict[str, power_law.PowerLaw]) -> lab.Table:
    header = ["model", "alpha", "beta", "gamma", "printed alpha", "printed beta", "printed gamma"]
    lines = [[s, law.alpha, law.beta, law.gamma, *PRINTED[s]] for s, law in refits.items()]
    formats = dict.fromkeys(header[1:], "{:.3g}".format)
    return lab.Table(header, lines, "Points read from the picture, refitted", "figure_1", formats)


def _loss_table(contexts, lengths, losses, profile: power_law.Profile) -> lab.Table:
    header = ["context", "seen on average", "loss", "law"]
    lines = [
        [context, length, loss, float(profile.law(length))]
        for context, length, loss in zip(contexts, lengths, losses.mean(0), strict=True)
    ]
    formats = {"context": "{:,}", "seen on average": "{:,.1f}", "loss": "{:.4f}", "law": "{:.4f}"}
    return lab.Table(
        header, lines, "Nats per token", "loss", {key: f.format for key, f in formats.items()}
    )


@lab.style()
def _draw(name: str, lengths, mean, profile: power_law.Profile):
    fig, ax = lab.subplots()
    colours = dict(zip([name, *FIGURE_1], lab.colours([name, *FIGURE_1]), strict=True))
    at = np.geomspace(lengths[0], lengths[-1], 200)
    ax.plot(at, profile.law(at), color=colours[name])
    ax.plot(lengths, mean, "o", color=colours[name], label=name)
    for size, points in FIGURE_1.items():
        label = f"Llama 2 Long {size}"
        ax.plot(FIGURE_1_LENGTHS, points, ".", color=colours[size], label=label)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("context, tokens")
    ax.set_ylabel("loss, nats per token")
    ax.legend()
    return fig


@lab.style()
def _draw_profile(profile: power_law.Profile):
    fig, ax = lab.subplots()
    shown = profile.excess < 6
    ax.plot(profile.betas[shown], profile.excess[shown], color="black")
    ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel("beta")
    ax.set_ylabel("worse than the best, in limits")
    right = ax.twinx()
    right.plot(profile.betas[shown], profile.gammas[shown], color="black", linestyle="--")
    right.set_ylabel("gamma (dashed), nats")
    return fig


if __name__ == "__main__":
    lab.run(main, "experiments.context_power_law")
