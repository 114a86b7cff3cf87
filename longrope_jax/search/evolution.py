"""The evolution itself: history of what was scored, children of the best, files.

The history is the whole state. Parents are the best of everything scored so far, which is the
paper's top k of the old top k and the new population, and each generation draws from its own
random stream, so a search that was cut off continues as if it had not been.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from longrope_jax.search.individuals import Individual
from longrope_jax.search.longrope import LongRoPESpace
from longrope_jax.search.longrope2 import LongRoPE2Space

Space = LongRoPESpace | LongRoPE2Space
Fitness = Callable[[Sequence[Individual]], np.ndarray]  # lower is better


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Sizes of a search; defaults are LongRoPE's (Algorithm 1)."""

    population: int = 64  # of the first generation
    mutants: int = 16  # of each later generation
    crossovers: int = 16
    parents: int = 32
    generations: int = 40  # after the first

    def __post_init__(self):
        for name in ("population", "parents"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.mutants < 0 or self.crossovers < 0 or self.mutants + self.crossovers < 1:
            raise ValueError("mutants and crossovers must be at least 0, and one of them above")
        if self.generations < 0:
            raise ValueError(f"generations must be at least 0, got {self.generations}")

    @property
    def evaluations(self) -> int:
        """Individuals scored in all."""
        return self.population + self.generations * (self.mutants + self.crossovers)


@dataclasses.dataclass(frozen=True)
class History:
    """Everything scored so far, in order: individuals [n], fitness float64 [n]."""

    individuals: tuple[Individual, ...] = ()
    fitness: tuple[float, ...] = ()

    @property
    def best(self) -> Individual:
        """The first of those with the lowest fitness."""
        return self.ranked(1)[0]

    def ranked(self, count: int) -> list[Individual]:
        """The best `count`, best first; ties in order of age."""
        order = np.argsort(self.fitness, kind="stable")[:count]
        return [self.individuals[i] for i in order]

    def extended(self, individuals: Sequence[Individual], fitness: np.ndarray) -> "History":
        """With another generation; fitness that is not a number counts as the worst."""
        scores = np.nan_to_num(np.asarray(fitness, np.float64), nan=np.inf, posinf=np.inf)
        return History((*self.individuals, *individuals), (*self.fitness, *scores.tolist()))


def generation(settings: Evolution, history: History) -> int:
    """How many generations are complete, the first included."""
    done = len(history.individuals) - settings.population
    return 0 if done < 0 else 1 + done // (settings.mutants + settings.crossovers)


def propose(space: Space, settings: Evolution, history: History, *, seed: int) -> list[Individual]:
    """The next generation's new individuals, none of them scored before."""
    rng = np.random.default_rng([seed, generation(settings, history)])
    if not history.individuals:
        return space.initial(settings.population, rng)
    parents = history.ranked(settings.parents)
    seen, children = set(history.individuals), []
    for i in range(settings.mutants + settings.crossovers):
        if i < settings.mutants:
            child = space.mutate(parents[rng.integers(len(parents))], rng, seen)
        else:
            better, other = sorted(rng.choice(len(parents), 2, replace=False))
            child = space.cross(parents[better], parents[other], rng, seen)
        children.append(child)
        seen.add(child)
    return children


def search(
    space: Space,
    settings: Evolution,
    fitness: Fitness,
    path: Path,
    *,
    seed: int,
    on_generation: Callable[[int], None] | None = None,
) -> History:
    """Runs the generations that `path` does not hold yet, saving each; returns all of them.

    Args:
        space: what is searched.
        settings: sizes.
        fitness: of a list of individuals, lower is better.
        path: .npz of the history.
        seed: of the whole search.
        on_generation: called with the number of individuals just scored.

    Raises:
        ValueError: a file of another search.
    """
    history = load(path) if path.exists() else History()
    _check(space, settings, history, path)
    while generation(settings, history) <= settings.generations:
        children = propose(space, settings, history, seed=seed)
        history = history.extended(children, fitness(children))
        save(path, history)
        if on_generation:
            on_generation(len(children))
    return history


def _check(space: Space, settings: Evolution, history: History, path: Path) -> None:
    n, per = len(history.individuals), settings.mutants + settings.crossovers
    pairs = {len(individual.factors) for individual in history.individuals}
    whole = n == 0 or (n >= settings.population and (n - settings.population) % per == 0)
    if not whole or pairs - {space.target.pairs}:
        raise ValueError(f"{path} holds {n} individuals of another search: remove it")


def to_arrays(history: History) -> dict[str, np.ndarray]:
    """The history as small arrays, one entry per individual."""
    individuals = history.individuals
    return {
        "factors": np.asarray([i.factors for i in individuals], np.float64),
        "start_count": np.asarray([i.start_count for i in individuals], np.int32),
        "critical": np.asarray([i.critical for i in individuals], np.int32),
        "fitness": np.asarray(history.fitness, np.float64),
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> History:
    """Inverse of `to_arrays`; start tokens and critical pairs may be left out.

    Factors in float32 are read from their shortest text, so that 1.01 is 1.01 again.
    """
    fitness = np.asarray(arrays["fitness"], np.float64).tolist()
    none = np.zeros(len(fitness), np.int32)
    counts = [np.asarray(arrays.get(name, none)) for name in ("start_count", "critical")]
    factors = (tuple(float(str(x)) for x in row) for row in arrays["factors"])
    rows = zip(factors, *(each.tolist() for each in counts), strict=True)
    return History(tuple(Individual(*row) for row in rows), tuple(fitness))


def save(path: Path, history: History) -> None:
    """Writes the history, whole or not at all."""
    save_arrays(path, to_arrays(history))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        # The stub takes the names of arrays for its own option.
        np.savez_compressed(temporary, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> History:
    """Inverse of `save`."""
    with np.load(path) as file:
        return from_arrays(dict(file))
