"""Factors are learned by gradient, with Adam on log lambda, while the weights stay frozen.

After each update the fixed-point words of the frequencies are rebuilt on the host from float64, so
phases stay exact however far the factors travel.
"""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import isotonic_regression

from longrope_jax.search import evolution
from longrope_jax.search.evolution import History, save_arrays
from longrope_jax.search.fitness import Objective
from longrope_jax.search.individuals import Individual, published

STARTS = 3  # published methods that a descent may begin at
_FORWARDS_PER_STEP = 3  # a backward pass counts as two forward passes


def cost(steps: int | np.ndarray) -> int | np.ndarray:
    """Returns the cost of `from_published` in forward passes: 3 for the start, 3 for each step."""
    return STARTS + _FORWARDS_PER_STEP * steps


def steps_within(forwards: int) -> int:
    """Returns how many steps `forwards` forward passes allow; below 1 if they allow none."""
    return (forwards - STARTS) // _FORWARDS_PER_STEP


@dataclasses.dataclass(frozen=True, eq=False)
class Descent:
    """A Descent is the path of the factors so far, over R pairs.

    Attributes:
        factors: float64 [n, R], the points at which the loss was measured.
        losses: float64 [n], the measured losses in nats.
        position: float64 [R], log lambda of the next point.
        mu, nu: float32 [R], Adam's moments.
    """

    factors: np.ndarray
    losses: np.ndarray
    position: np.ndarray
    mu: np.ndarray
    nu: np.ndarray

    @property
    def best(self) -> Individual:
        """The measured point with the lowest loss."""
        return Individual(tuple(self.factors[int(np.argmin(self.losses))].tolist()))


def begin(start: Individual) -> Descent:
    """Returns a descent that has measured nothing yet and begins at `start`."""
    position = np.log(np.asarray(start.factors, np.float64))
    zeros = np.zeros(position.shape, np.float32)
    return Descent(np.zeros((0, len(position))), np.zeros(0), position, zeros, zeros)


def step(
    descent: Descent, objective: Objective, *, learning_rate: float, monotone: bool = False
) -> Descent:
    """Measures loss and slope at the position and makes one update of Adam.

    With `monotone` the position then moves to the nearest one in LongRoPE's search space, where
    factors never fall from pair to pair and lie between 1 and 1.25 s.

    The frequency theta_j / lambda_j changes by -theta_j / lambda_j for a unit of log lambda_j,
    which turns the slope in the frequencies into a slope in log lambda.

    Raises:
        ValueError: the loss or its slope is not finite.
    """
    factors = np.exp(descent.position)
    loss, slope = objective.slope(Individual(tuple(factors.tolist())))
    if not (np.isfinite(loss) and np.isfinite(slope).all()):
        raise ValueError(
            f"loss {loss} or its slope is not finite at learning_rate={learning_rate}: take a "
            "lower one"
        )
    slope = jnp.asarray(-slope * objective.target.inv_freq / factors, jnp.float32)
    count = jnp.int32(len(descent.losses))
    adam = optax.scale_by_adam()
    state = optax.ScaleByAdamState(count, jnp.asarray(descent.mu), jnp.asarray(descent.nu))
    update, moved = adam.update(slope, state)
    state = cast(optax.ScaleByAdamState, moved)
    position = descent.position - learning_rate * np.asarray(update, np.float64)
    if monotone:
        highest = np.log(1.25 * objective.target.factor)
        position = np.clip(isotonic_regression(position).x, 0, highest)
    return Descent(
        np.concatenate([descent.factors, factors[None]]),
        np.append(descent.losses, loss),
        position,
        np.asarray(state.mu),
        np.asarray(state.nu),
    )


def learn(
    start: Individual,
    objective: Objective,
    path: Path,
    *,
    steps: int,
    learning_rate: float,
    monotone: bool = False,
    on_step: Callable[[], None] | None = None,
) -> Descent:
    """Runs the steps that are not yet in the file at `path`, and saves after each step.

    Args:
        start: the first individual, with start_count 0.
        objective: the loss to lower, on the same sequences at every step.
        path: .npz file of the descent.
        steps: number of measured points, each a forward and a backward pass.
        learning_rate: Adam's learning rate, in log lambda per step.
        monotone: whether factors stay in LongRoPE's search space, without start tokens.
        on_step: called after each step.

    Returns:
        The whole descent.

    Raises:
        ValueError: `steps` is below 1, a slope is not finite, or the file holds another search.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    descent = begin(start)
    if path.exists():
        with np.load(io.BytesIO(path.read_bytes())) as file:
            descent = Descent(**file)
    if len(descent.losses) > steps or len(descent.position) != len(start.factors):
        raise ValueError(
            f"{path} holds {len(descent.losses)} steps of a search with other settings: remove "
            "the file"
        )
    while len(descent.losses) < steps:
        descent = step(descent, objective, learning_rate=learning_rate, monotone=monotone)
        save_arrays(path, {f.name: getattr(descent, f.name) for f in dataclasses.fields(Descent)})
        if on_step:
            on_step()
    return descent


def from_published(
    objective: Objective,
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    monotone: bool = False,
    start: int = 0,
    on_forwards: Callable[[int], None] | None = None,
) -> Descent:
    """Learns factors from the best of PI, NTK-aware and YaRN, and resumes from a folder.

    Args:
        objective: the loss to lower; it also chooses the start.
        folder: the folder of the files `starts.npz` and `descent.npz`.
        steps: number of measured points, each a forward and a backward pass.
        learning_rate: Adam's learning rate, in log lambda per step.
        monotone: whether factors stay in LongRoPE's search space, without start tokens.
        start: which of the three it begins at; 0 is the best for the objective, 2 the worst.
        on_forwards: called with the number of forward passes just spent, see `cost`.

    Returns:
        The whole descent.

    Raises:
        ValueError: `start` is not 0, 1 or 2, or see `learn`.
    """
    if not 0 <= start < STARTS:
        raise ValueError(f"start must be 0 to {STARTS - 1}, got {start}")
    count, file = on_forwards or (lambda _: None), folder / "starts.npz"
    if not file.exists():
        starts = list(published(objective.target).values())
        evolution.save(file, History().extended(starts, objective.fitness(starts)))
    count(STARTS)
    return learn(
        evolution.load(file).ranked(start + 1)[start],
        objective,
        folder / "descent.npz",
        steps=steps,
        learning_rate=learning_rate,
        monotone=monotone,
        on_step=lambda: count(_FORWARDS_PER_STEP),
    )
