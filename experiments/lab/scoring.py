"""Loss of a model on held-out windows and on answers."""

import numpy as np

from experiments.lab.machine import Machine
from longrope_jax import rotary, sharding
from longrope_jax.evaluation.by_position import cropped_nll, nll_by_position, position_blocks
from longrope_jax.evaluation.perplexity import score_tokens
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


def scored(
    model: Model,
    method: rotary.Method | rotary.Rotary,
    tokens: np.ndarray,
    weights: np.ndarray,
    machine: Machine,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss in nats and share of tokens predicted rightly of each sequence, float32 [n] each.

    Both are means weighted by `weights`: with those of an answer's tokens alone they score an
    answer given the right tokens before each; it is found whole where the share is 1.

    Args:
        model: what is measured.
        method: the rotary method, made for T tokens, or a Rotary.
        tokens: sequences int [n, T + 1].
        weights: of the targets `tokens[:, 1:]`, float [n, T].
        machine: says how many sequences go through at a time.
    """
    n, T = weights.shape
    rot = rotary.as_rotary(method, head_dim=model.config.head_dim, seq_len=T)
    batch, nll, right = machine.rows(T), [], []
    with sharding.mesh_of(model.params):
        for start in range(0, n, batch):
            rows = np.minimum(np.arange(start, start + batch), n - 1)  # the last is repeated
            found = score_tokens(model.config, model.params, rot, tokens[rows])
            for into, values in ((nll, found.nll), (right, found.correct)):
                into.append((np.asarray(values) * weights[rows]).sum(1) / weights[rows].sum(1))
    return tuple(np.concatenate(parts)[:n].astype(np.float32) for parts in (nll, right))
