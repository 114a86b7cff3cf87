"""The cross-entropy is computed in chunks and never holds logits of shape [T, V].

The output table is gathered along D once per pass, and the vocabulary stays divided over `tensor`.
Each device processes its own tokens chunk by chunk; sums over devices follow after the loop.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from longrope_jax import llama, sharding
from longrope_jax.shapes import AnyArray

CHUNK = 512  # tokens of each row whose logits exist at the same time


def chunk_of(rows: int) -> int:
    """Returns the chunk with which a batch of `rows` holds as many logits as one row of CHUNK."""
    each = -(-rows // sharding.axis_size("data", "fsdp"))
    return max(CHUNK // each, 1)


class TokenScores(NamedTuple):
    """Scores of each target token [B, T].

    Attributes:
        nll: negative log-likelihood in nats, float32.
        correct: whether the target is the most likely token, bool.
    """

    nll: Float[jax.Array, "B T"]
    correct: Bool[jax.Array, "B T"]


def token_scores(
    config: llama.LlamaConfig,
    params: dict,
    hidden: Float[AnyArray, "B T D"],
    targets: Int[AnyArray, "B T"],
    *,
    chunk: int = CHUNK,
) -> TokenScores:
    """Scores every target token, `chunk` positions at a time, forward and backward.

    Args:
        config: the architecture.
        params: the parameters, of which only the output head is read.
        hidden: [B, T, D], the hidden states from `Llama`.
        targets: int32 [B, T], the token after each position.
        chunk: positions whose logits [B, chunk, V] each device holds at the same time.
    """
    T = targets.shape[1]
    padding = -T % sharding.axis_size("sequence", "tensor")
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    table = sharding.padded(llama.output_table(config, params), axis=1)
    scores = _scores(chunk, config.vocab_size, table, hidden, targets)
    nll, correct = cast(tuple[jax.Array, jax.Array], scores)  # custom_vjp declares no result types
    return TokenScores(nll[:, :T], correct[:, :T])


_TABLE, _TOKENS = ("embed", "vocab"), ("batch", "sequence")
_HIDDEN = ("batch", "residual_sequence", "residual")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scores(chunk, V, table, hidden, targets):
    return _scores_rule(chunk, V, table, hidden, targets)[0]


def _scores_rule(chunk, V, table, hidden, targets):
    run = sharding.per_device(
        partial(_forward, chunk, V), (_TABLE, _HIDDEN, _TOKENS), (_TOKENS, _TOKENS, _TOKENS)
    )
    nll, correct, lse = run(table, hidden, targets)
    return (nll, correct), (table, hidden, targets, lse)


def _gradient_rule(chunk, V, saved, d_scores):
    run = sharding.per_device(
        partial(_backward, chunk, V),
        (_TABLE, _HIDDEN, _TOKENS, _TOKENS, _TOKENS),
        (_TABLE, _HIDDEN),
    )
    return *run(*saved, d_scores[0]), None


_scores.defvjp(_scores_rule, _gradient_rule)


def _forward(chunk, vocab_size, table, hidden, targets):
    """Returns nll, whether the target is the argmax, and the log normaliser; [b, t] on a device."""
    table, hidden = _gathered(table, hidden)

    def one(inputs):
        logits, column = _logits(vocab_size, table, *inputs)
        tensor, V = sharding.manual_axes("tensor"), logits.shape[-1]
        top = lax.pmax(logits.max(-1), tensor)
        lse = top + jnp.log(lax.psum(jnp.exp(logits - top[..., None]).sum(-1), tensor))
        here = (column >= 0) & (column < V)
        picked = jnp.take_along_axis(logits, column.clip(0, V - 1)[..., None], axis=-1)[..., 0]
        picked = lax.psum(jnp.where(here, picked, 0), tensor)
        # argmax takes the first of equal logits, so no logit before the target may equal it.
        before = jnp.where(_ids(logits) < column[..., None], logits, -jnp.inf).max(-1)
        greedy = (picked == top) & (lax.pmax(before, tensor) < top)
        return lse - picked, greedy, lse

    return _by_chunk(one, chunk, hidden, targets)


def _backward(chunk, vocab_size, table, hidden, targets, lse, d_nll):
    """Returns one device's cotangents of the table, summed in float32, and of the hidden states."""
    low, whole = _gathered(table, hidden)

    def one(d_table, inputs):
        hidden, targets, lse, d_nll = inputs
        logits, column = _logits(vocab_size, low, hidden, targets)
        weights = jnp.exp(logits - lse[..., None])
        here = _ids(logits) == column[..., None]
        d_logits = weights - here.astype(weights.dtype)
        d_logits = (d_logits * d_nll[..., None]).astype(hidden.dtype)
        d_table += _dot("BTD,BTV->DV", hidden, d_logits)
        return d_table, _dot("BTV,DV->BTD", d_logits, low).astype(hidden.dtype)

    T = targets.shape[1]
    parts = jax.tree.map(partial(_split, chunk), (whole, targets, lse, d_nll))
    d_table, d_hidden = lax.scan(one, jnp.zeros(low.shape, jnp.float32), parts)
    axes = sharding.manual_axes
    d_hidden = lax.psum_scatter(
        _joined(d_hidden, T), axes("tensor"), scatter_dimension=1, tiled=True
    )
    divided = sharding.PARAMETER_AXES
    d_table = lax.psum_scatter(d_table, axes(*divided), scatter_dimension=0, tiled=True)
    rest = [axis for axis in ("data", "fsdp", "sequence") if axis not in divided]
    d_table = lax.psum(d_table, axes(*rest))
    return d_table.astype(table.dtype), d_hidden


def _gathered(table, hidden):
    """Gathers the table along D, in the model's dtype, and the tokens over the tensor axis."""
    axes = sharding.manual_axes
    divided = axes(*sharding.PARAMETER_AXES)
    table = lax.all_gather(table.astype(hidden.dtype), divided, axis=0, tiled=True)
    return table, lax.all_gather(hidden, axes("tensor"), axis=1, tiled=True)


def _logits(vocab_size, table, hidden, targets):
    """Returns float32 logits of this device's vocabulary, and the targets' columns in them.

    Columns that pad the vocabulary to what the mesh divides have a logit of minus infinity.
    """
    width = table.shape[1]
    first = lax.axis_index(sharding.manual_axes("tensor")) * width
    logits = _dot("BTD,DV->BTV", hidden, table)
    if width * sharding.axis_size("tensor") > vocab_size:
        logits = jnp.where(first + jnp.arange(width) < vocab_size, logits, -jnp.inf)
    return logits, targets - first


def _ids(logits):
    """Returns this device's columns of the vocabulary, [1, 1, V]."""
    return jnp.arange(logits.shape[-1])[None, None]


def _dot(spec: str, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _by_chunk(f, chunk, *arrays):
    """Maps f over chunks along T of arrays [B, T, ...] by lax.map."""
    T = arrays[0].shape[1]
    out = lax.map(f, tuple(_split(chunk, x) for x in arrays))
    return jax.tree.map(lambda x: _joined(x, T), out)


def _split(chunk, x):
    """Splits [B, T, ...] into [chunks, B, chunk, ...], padded with zeros at the end."""
    B, T = x.shape[:2]
    chunk = min(chunk, T)
    x = jnp.pad(x, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _joined(x, T):
    """Inverts `_split` and removes the padding."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :T]
