"""Differences with intervals, claims and what the searches spent, computed from arrays."""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.search import measure, plan
from longrope_jax import rotary
from longrope_jax.evaluation import statistics
from longrope_jax.evaluation.statistics import Interval

_CLAIM = "difference < -margin"
# Searches that lowered the same loss with the same budget.
_EQUAL = (
    ("gradient", "LongRoPE", "text"),
    ("gradient, monotone", "LongRoPE, no start tokens", "text"),
    ("gradient, needle", "LongRoPE2", "needle"),
)


def rows(arrays: dict, factor: float, kind: str) -> list[str]:
    """Labels measured at this target, in order."""
    prefix = f"x{factor:g}/{kind}/"
    found = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    return [label for label in found if label != "documents"]


def mean(arrays: dict, factor: float, kind: str, label: str) -> float:
    """Over seeds and samples."""
    return float(arrays[f"x{factor:g}/{kind}/{label}"].mean())


def difference(arrays: dict, factor: float, kind: str, a: str, b: str) -> Interval:
    """Row a minus row b on the same samples; seeds of a search and documents are resampled."""
    left, right = (arrays[f"x{factor:g}/{kind}/{label}"] for label in (a, b))
    shape = (max(len(left), len(right)), left.shape[1])
    documents = arrays[f"x{factor:g}/{kind}/documents"]
    return statistics.paired_difference(
        np.broadcast_to(left, shape), np.broadcast_to(right, shape), documents
    )


def claims(config: ConfigDict, arrays: dict) -> list[dict]:
    """In the loss that it lowered, a search beats each published method; gradient the evolution."""
    found = []
    for factor in config.factors:
        pairs = [
            (method, baseline, kind)
            for method, kind in plan.METHODS.items()
            for baseline in measure.BASELINES
        ]
        for a, b, kind in [*pairs, *_EQUAL]:
            interval = difference(arrays, factor, kind, a, b)
            verdict = statistics.verdict(interval, _CLAIM)
            found.append(
                {
                    "claim": f"{kind} at {factor:g}x: {a} below {b}",
                    "difference": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "verdict": verdict,
                }
            )
    return found


def spent(config: ConfigDict, workdir: Path) -> list[dict]:
    """Budget, start and result of every search."""
    found = []
    for search in plan.searches(config):
        history = measure.history(workdir / "searches" / f"{search.slug}.npz")
        scored = len(history.fitness)
        descent = search.method not in plan.EVOLUTIONS
        tokens = config.windows * round(config.study.length * search.factor)
        forwards = plan.STARTS + plan.FORWARDS_PER_GRADIENT * scored if descent else scored
        first = scored if descent else config.evolution.population
        found.append(
            {
                "search": search.method,
                "target": f"{search.factor:g}x",
                "seed": None if descent else search.seed,
                "forward passes": plan.STARTS + scored if descent else scored,
                "backward passes": scored if descent else 0,
                "forward equivalents": forwards,
                "tokens": forwards * tokens,
                "loss at start": min(history.fitness[: 1 if descent else first]),
                "loss found": min(history.fitness),
                "start tokens": history.best.start_count,
                "critical pair": history.best.critical or None,
            }
        )
    return found


def progress(config: ConfigDict, workdir: Path, search: plan.Search):
    """(forward equivalents, lowest loss so far) of a search, arrays [n]."""
    history = measure.history(workdir / "searches" / f"{search.slug}.npz")
    cost = np.arange(1, len(history.fitness) + 1)
    if search.method not in plan.EVOLUTIONS:
        cost = plan.STARTS + plan.FORWARDS_PER_GRADIENT * cost
    return cost, np.minimum.accumulate(history.fitness)


def specs(config: ConfigDict, workdir: Path) -> list[dict]:
    """The best individual of every method by its fitness, as code and as Hugging Face's JSON.

    Hugging Face has no start tokens: where the winner has some, its JSON is that of the same
    factors without them.
    """
    found: dict[tuple, dict] = {}
    for search in plan.searches(config):
        history = measure.history(workdir / "searches" / f"{search.slug}.npz")
        loss, best, key = min(history.fitness), history.best, (search.factor, search.method)
        if key in found and found[key]["loss found"] <= loss:
            continue
        head_dim = 2 * len(best.factors)
        spec = plan.target(config, search.factor, head_dim).spec(best)
        plain = dataclasses.replace(spec, start_count=0)
        found[key] = {
            "search": search.method,
            "target": f"{search.factor:g}x",
            "loss found": loss,
            "spec": f"rotary.{spec!r}",
            "hf": rotary.to_hf(plain, head_dim=head_dim),
            "hf leaves out start tokens": spec.start_count,
        }
    return list(found.values())
