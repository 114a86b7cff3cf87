"""What the study consists of: searches with a fingerprint each, budgets; no model needed."""

import dataclasses
import hashlib
import json

from ml_collections import ConfigDict

from experiments.ablation import plan as ablation
from longrope_jax.search.evolution import Evolution
from longrope_jax.search.individuals import Target
from longrope_jax.search.longrope import LongRoPESpace
from longrope_jax.search.longrope2 import LongRoPE2Space

# Method to what it lowers: loss of text, or of the answers to needles.
METHODS = {
    "LongRoPE": "text",
    "LongRoPE2": "needle",
    "gradient": "text",
    "gradient, monotone": "text",
    "gradient, needle": "needle",
}
EVOLUTIONS = ("LongRoPE", "LongRoPE2")
STARTS = 3  # published methods among which a gradient chooses where to begin
FORWARDS_PER_GRADIENT = 3  # forward and backward, the backward counted as two forwards


@dataclasses.dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        method: of METHODS.
        factor: target over trained length.
        seed: of the evolution; a gradient has none and says 0.
        slug: name of its file, with a fingerprint of all that decides its numbers.
    """

    method: str
    factor: float
    seed: int
    slug: str

    @property
    def objective(self) -> str:
        """ "text" or "needle"."""
        return METHODS[self.method]


def searches(config: ConfigDict) -> list[Search]:
    """All searches, first seeds first."""
    mark = fingerprint(config)
    found = []
    for seed in range(config.evolution.seeds):
        for factor in config.factors:
            for method in METHODS if seed == 0 else EVOLUTIONS:
                name = method.lower().replace(", ", "-")
                slug = f"x{factor:g}-{name}-seed{seed}-{mark}"
                found.append(Search(method, factor, seed, slug))
    return found


def fingerprint(config: ConfigDict, *more: str) -> str:
    """Of what decides a search's numbers, and of the fields `more`."""
    fields = ("factors", "search_documents", "windows", "start_counts", "learning_rate", *more)
    plain = json.loads(config.to_json_best_effort())
    parts = {name: plain[name] for name in fields}
    parts["evolution"] = {k: v for k, v in plain["evolution"].items() if k != "seeds" or more}
    parts["model"] = model_slug(config)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def model_slug(config: ConfigDict) -> str:
    """Name of the pretraining's folder, shared with the ablation of the same settings."""
    return ablation.pretraining_slug(config.study, config.model_seed, taught=True)


def model_run(config: ConfigDict) -> ablation.Run:
    """The pretraining as the ablation's code wants it named."""
    method = ablation.pretraining_method(config.study)
    return ablation.Run("search", method, config.model_seed, True, 1.0, "", model_slug(config))


def target(config: ConfigDict, factor: float, head_dim: int) -> Target:
    """The extension of the pretrained model by `factor`."""
    base = ablation.bases(config.study)["base"]
    return Target(base, head_dim, config.study.length, factor)


def space(config: ConfigDict, method: str, target: Target) -> LongRoPESpace | LongRoPE2Space:
    """What an evolution searches; start tokens below the trained length only."""
    p = config.evolution.probability
    if method == "LongRoPE2":
        return LongRoPE2Space(target, p)
    counts = tuple(n for n in config.start_counts if n < target.length)
    return LongRoPESpace(target, counts, p)


def evolution(config: ConfigDict) -> Evolution:
    """Sizes of the evolutions."""
    fields = {k: v for k, v in config.evolution.items() if k not in ("seeds", "probability")}
    return Evolution(**fields)


def forwards(config: ConfigDict) -> int:
    """Budget of every search: forward passes over its sequences."""
    return evolution(config).evaluations


def gradient_steps(config: ConfigDict) -> int:
    """Steps that cost a gradient no more than the evolution's budget, its starts included."""
    return (forwards(config) - STARTS) // FORWARDS_PER_GRADIENT
