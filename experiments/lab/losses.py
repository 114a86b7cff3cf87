"""Loss of a model on held-out windows."""

import numpy as np

from experiments.lab.machine import Machine
from longrope_jax import rotary, sharding
from longrope_jax.evaluation.by_position import cropped_nll, nll_by_position, position_blocks
from longrope_jax.model import Model


def losses(
    model: Model,
    method: rotary.Method,
    tokens: np.ndarray,
    machine: Machine,
    *,
    block: int,
    reads: int = 0,
) -> np.ndarray:
    """Mean loss of each block of positions in nats per token, float64 [n, blocks].

    Attention is full, whatever the model was trained with.

    Args:
        model: what is measured.
        method: the rotary method, made for the windows' length.
        tokens: windows int [n, T + 1].
        machine: says how many windows go through at a time.
        block: positions of a block.
        reads: tokens that the model reads at most, the last ones (see `cropped_nll`); 0: all.
    """
    length = reads or tokens.shape[1] - 1
    score, options = (cropped_nll, {"length": reads}) if reads else (nll_by_position, {})
    options["batch_size"] = machine.rows(length)
    with sharding.mesh_of(model.params):
        nll = score(model.config, model.params, method, tokens, **options)
    return position_blocks(nll, block)
