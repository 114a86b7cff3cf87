"""An evolution keeps a history of scored individuals and proposes children of the best.

The history is the whole state. Parents are the best of everything scored so far, which equals the
paper's top k of the old top k and the new population. Each generation draws from its own random
stream, so an interrupted search continues exactly.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from longrope_jax import folders
from longrope_jax.search.individuals import Individual
from longrope_jax.search.longrope import LongRoPESpace
from longrope_jax.search.longrope2 import LongRoPE2Space

Space = LongRoPESpace | LongRoPE2Space
Fitness = Callable[[Sequence[Individual]], np.ndarray]  # lower is better


@dataclasses.dataclass(frozen=True)
class Evolution:
    """An Evolution holds the sizes of a search; defaults are LongRoPE's (Algorithm 1).

    Attributes:
        population: individuals of the first generation.
        mutants: mutants in each later generation.
        crossovers: crossovers in each later generation.
        parents: how many of the best individuals have children.
        generations: number of generations after the first.

    Raises:
        ValueError: a size is too small to search.
    """

    population: int = 64
    mutants: int = 16
    crossovers: int = 16
    parents: int = 32
    generations: int = 40

    def __post_init__(self):
        for name in ("population", "parents"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.mutants < 0 or self.crossovers < 0 or self.mutants + self.crossovers < 1:
            raise ValueError(
                "mutants and crossovers must be at least 0 and not both 0, got "
                f"{self.mutants} and {self.crossovers}"
            )
        if self.generations < 0:
            raise ValueError(f"generations must be at least 0, got {self.generations}")

    @property
    def evaluations(self) -> int:
        """Number of individuals that the whole search scores."""
        return self.population + self.generations * (self.mutants + self.crossovers)


@dataclasses.dataclass(frozen=True)
class History:
    """A History is everything scored so far, in order.

    Attributes:
        individuals: the individuals [n].
        fitness: the fitness of each [n]; lower is better.
    """

    individuals: tuple[Individual, ...] = ()
    fitness: tuple[float, ...] = ()

    @property
    def best(self) -> Individual:
        """The individual with the lowest fitness, the earliest one if several have it."""
        return self.ranked(1)[0]

    def ranked(self, count: int) -> list[Individual]:
        """Returns the best `count` individuals, best first; of equal ones the earlier first."""
        order = np.argsort(self.fitness, kind="stable")[:count]
        return [self.individuals[i] for i in order]

    def extended(self, individuals: Sequence[Individual], fitness: np.ndarray) -> "History":
        """Returns a history with another generation; NaN counts as the worst fitness."""
        scores = np.nan_to_num(np.asarray(fitness, np.float64), nan=np.inf, posinf=np.inf)
        return History((*self.individuals, *individuals), (*self.fitness, *scores.tolist()))


def generation(settings: Evolution, history: History) -> int:
    """Returns how many generations are complete, including the first."""
    done = len(history.individuals) - settings.population
    return 0 if done < 0 else 1 + done // (settings.mutants + settings.crossovers)


def propose(space: Space, settings: Evolution, history: History, *, seed: int) -> list[Individual]:
    """Returns the new individuals of the next generation, none of them scored before.

    Raises:
        ValueError: the space has too few new individuals.
    """
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
    """Runs the generations that are not yet in the file at `path`, and saves each of them.

    Args:
        space: the space to search.
        settings: sizes of the search.
        fitness: scores a list of individuals; lower is better.
        path: .npz file of the history.
        seed: seed of the whole search.
        on_generation: called after each generation with the number of individuals just scored.

    Returns:
        The history of all generations.

    Raises:
        ValueError: the file holds another search, or the space has too few individuals.
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
        raise ValueError(
            f"{path} holds {n} individuals of a search with other settings: remove the file"
        )


def to_arrays(history: History) -> dict[str, np.ndarray]:
    """Returns the history as small arrays, one entry per individual."""
    individuals = history.individuals
    return {
        "factors": np.asarray([i.factors for i in individuals], np.float64),
        "start_count": np.asarray([i.start_count for i in individuals], np.int32),
        "critical": np.asarray([i.critical for i in individuals], np.int32),
        "fitness": np.asarray(history.fitness, np.float64),
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> History:
    """Returns the history that `to_arrays` gave; start tokens and critical pairs may be missing.

    Factors in float32 are read through their shortest decimal, so that 1.01 stays 1.01.
    """
    fitness = np.asarray(arrays["fitness"], np.float64).tolist()
    none = np.zeros(len(fitness), np.int32)
    counts = [np.asarray(arrays.get(name, none)) for name in ("start_count", "critical")]
    factors = (tuple(float(str(x)) for x in row) for row in arrays["factors"])
    rows = zip(factors, *(each.tolist() for each in counts), strict=True)
    return History(tuple(Individual(*row) for row in rows), tuple(fitness))


def save(path: Path, history: History) -> None:
    """Writes a history as an .npz file, atomically."""
    save_arrays(path, to_arrays(history))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file atomically, and creates its folder."""
    buffer = io.BytesIO()
    # The type stub mistakes a name of an array for numpy's own option.
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    folders.write(path, buffer.getvalue())


def load(path: Path) -> History:
    """Reads a history that `save` wrote."""
    with np.load(io.BytesIO(path.read_bytes())) as file:
        return from_arrays(dict(file))
