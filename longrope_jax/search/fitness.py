"""Fitness of a whole population, and its slope in the frequencies: one compiled program each.

Dimensions: P individuals, B sequences, T predictions, R pairs.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Int

from longrope_jax import llama, rotary, sharding
from longrope_jax.search.individuals import Individual, Target
from longrope_jax.shapes import AnyArray
from longrope_jax.training.loss import token_scores


@functools.partial(jax.jit, static_argnames=("config", "at_once"))
def population_nll(
    config: llama.LlamaConfig,
    params: dict,
    rotaries: rotary.Rotary,
    tokens: Int[AnyArray, "B T1"],
    weights: Float[AnyArray, "B T"],
    *,
    at_once: int = 1,
) -> Float32[jax.Array, " P"]:
    """Weighted mean loss of each rotary in nats, float32 [P].

    Args:
        config: of the model.
        params: of the model, frozen.
        rotaries: stacked on a first axis of P.
        tokens: int32 [B, T+1].
        weights: float32 [B, T], of the targets tokens[:, 1:].
        at_once: how many are vmapped together; the groups follow each other, which bounds memory.
    """

    def one(rotary):
        return _nll(config, params, rotary, tokens, weights)

    return jax.lax.map(one, rotaries, batch_size=at_once)


@functools.partial(jax.jit, static_argnames="config")
def nll_and_slope(
    config: llama.LlamaConfig,
    params: dict,
    rotary: rotary.Rotary,
    tokens: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(mean loss in nats, its derivative by each frequency, float32 [R]), for one rotary.

    The derivative is exact: phases are differentiable in `Rotary.delta`, whose value stays 0.
    Arguments as in `population_nll`.
    """

    def loss(delta):
        return _nll(config, params, dataclasses.replace(rotary, delta=delta), tokens, weights)

    return jax.value_and_grad(loss)(rotary.delta)


def _nll(config, params, rotary, tokens, weights):
    hidden, _ = llama.Llama(config).apply({"params": params}, tokens[:, :-1], rotary=rotary)
    nll = token_scores(config, params, hidden, tokens[:, 1:]).nll
    return (nll * weights).sum() / weights.sum()


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """Mean loss of a frozen model on fixed sequences, as a function of the individual.

    Attributes:
        config: of the model.
        params: of the model, on `mesh`.
        target: of the extension.
        tokens: int32 [B, T+1]; B over the mesh's data and fsdp axes.
        weights: float32 [B, T]; 1 on text, or the mask of the answers (needle-driven).
        mesh: devices.
        group: individuals per call of the compiled program; others are filled up to it.
        at_once: of them vmapped together.
    """

    config: llama.LlamaConfig
    params: dict
    target: Target
    tokens: np.ndarray
    weights: np.ndarray
    mesh: Mesh
    group: int
    at_once: int = 1

    @functools.cached_property
    def _batch(self):
        return sharding.shard_batch(self.mesh, (self.tokens, self.weights))

    def _rotary(self, individual: Individual) -> rotary.Rotary:
        rot = self.target.rotary(individual)
        rotary.check_length(rot, self.tokens.shape[1] - 1)
        return rot

    def fitness(self, individuals: Sequence[Individual]) -> np.ndarray:
        """Loss of each, float64 [P] on the host."""
        found = []
        for start in range(0, len(individuals), self.group):
            part = [self._rotary(i) for i in individuals[start : start + self.group]]
            stacked = rotary.stack_rotaries(part + part[-1:] * (self.group - len(part)))
            with jax.set_mesh(self.mesh):
                nll = population_nll(
                    self.config, self.params, stacked, *self._batch, at_once=self.at_once
                )
            found.append(np.asarray(nll, np.float64)[: len(part)])
        return np.concatenate(found)

    def slope(self, individual: Individual) -> tuple[float, np.ndarray]:
        """(loss, its derivative by each frequency in nats per (radian per token), float64 [R]).

        Raises:
            ValueError: start tokens, whose frequencies do not follow the factors.
        """
        if individual.start_count:
            raise ValueError("a gradient needs start_count 0: start tokens keep their frequencies")
        with jax.set_mesh(self.mesh):
            loss, slope = nll_and_slope(
                self.config, self.params, self._rotary(individual), *self._batch
            )
        return float(loss), np.asarray(slope, np.float64)

    @property
    def tokens_per_evaluation(self) -> int:
        """Tokens of one forward pass."""
        return self.tokens[:, 1:].size
