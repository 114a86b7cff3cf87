"""Cross-entropy that never holds [T, V] logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from longrope_jax import llama

CHUNK = 512  # tokens per row of the batch whose logits exist at one time


class TokenScores(NamedTuple):
    """Per token: negative log-likelihood in nats, float32 [B, T]; greedy choice right, bool."""

    nll: jax.Array
    correct: jax.Array


def token_scores(
    config: llama.LlamaConfig,
    params: dict,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    chunk: int = CHUNK,
) -> TokenScores:
    """Scores every target token, `chunk` positions at a time, forward and backward.

    Args:
        config: of the model.
        params: of the model; only the output head is read.
        hidden: [B, T, D] from Llama.
        targets: int32 [B, T], the token after each position.
        chunk: positions whose logits [B, chunk, V] are held at one time.
    """
    B, T = targets.shape
    chunk = min(chunk, T)
    padding = -T % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))

    @jax.checkpoint
    def one(inputs):
        hidden, targets = inputs
        logits = llama.unembed(config, params, hidden)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - picked
        return TokenScores(nll, logits.argmax(-1) == targets)

    def split(x):
        return x.reshape(B, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    scores = jax.lax.map(one, (split(hidden), split(targets)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, -1)[:, :T], scores)
