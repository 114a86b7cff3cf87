"""S2-Attn is LongLoRA's shifted sparse attention (2309.12307 section 3.2, Algorithm 1).

The first half of the heads attends within groups of G tokens; the other half attends within groups
shifted by G / 2, so that information crosses the group borders of the first half. The cost is
linear in T. S2-Attn is for training only: the trained model is evaluated with full attention.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from longrope_jax.attention import attend
from longrope_jax.shapes import AnyArray


def shifted_sparse(
    q: Float[AnyArray, "B T N H"],
    k: Float[AnyArray, "B S K H"],
    v: Float[AnyArray, "B S K H"],
    *,
    group: int,
    segment_start: Int[AnyArray, "B T"] | None = None,
    leak: bool = False,
    backend: str = "auto",
) -> Float[jax.Array, "B T N H"]:
    """Computes causal S2-Attn over whole sequences.

    The shifted half's groups are [0, G/2), [G/2, 3G/2), ..., [T - G/2, T), as in the released code
    with FlashAttention and in the paper's Variant 2. The paper's Algorithm 1 rolls the sequence
    instead, and so puts the last and the first G/2 tokens into one group, in which the first tokens
    see the last ones, which lie in their future. `leak=True` reproduces that, for comparison with
    models trained by Algorithm 1.

    Args:
        q: [B, T, N, H] queries, already rotated by their global positions.
        k: [B, T, K, H] keys, already rotated; they are repeated to N heads before the split.
        v: [B, T, K, H] values.
        group: the group size G in tokens, an even divisor of T; the paper uses T / 4.
        segment_start: int32 [B, T], the first token of each query's document, see `attend`.
        leak: whether the shifted half's groups wrap around the sequence.
        backend: the back end of the attention within groups, see `attend`.

    Returns:
        [B, T, N, H] in the dtype of q. If N is odd, one head more is shifted than not, as in the
        released code without FlashAttention; the paper's models have an even N.

    Raises:
        ValueError: G is odd, below 2 or does not divide T, there is one head, queries and keys
            differ in length, `leak` is used with packed documents, or `attend` refuses the inputs.
    """
    _check(q, k, group, segment_start, leak)
    repeats = q.shape[2] // k.shape[2]
    q_k_v = q, jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    half = q.shape[2] // 2
    straight = _within_groups([x[:, :, :half] for x in q_k_v], group, segment_start, backend)
    rolled = [jnp.roll(x[:, :, half:], -(group // 2), axis=1) for x in q_k_v]
    starts = None if leak else _shifted_starts(segment_start, q.shape[1], group)
    shifted = _within_groups(rolled, group, starts, backend)
    return jnp.concatenate([straight, jnp.roll(shifted, group // 2, axis=1)], axis=2)


def _within_groups(q_k_v, group: int, segment_start, backend: str) -> jax.Array:
    """Calls `attend` with each group as a row of the batch."""
    B, T, N, H = q_k_v[0].shape
    rows = [x.reshape(B * T // group, group, *x.shape[2:]) for x in q_k_v]
    if segment_start is not None:
        first = jnp.arange(0, T, group, dtype=jnp.int32)[None, :, None]
        segment_start = segment_start.reshape(-1, T // group, group)
        starts = jnp.maximum(segment_start - first, 0)
        segment_start = jnp.broadcast_to(starts, (B, *starts.shape[1:])).reshape(-1, group)
    out = attend(*rows, segment_start=segment_start, backend=backend)
    return out.reshape(B, T, N, H)


def _shifted_starts(segment_start, T: int, group: int) -> jax.Array:
    """Returns segment starts [B or 1, T] of the rolled sequence.

    The wrapped tokens at its end, which are the first of the sequence, form a segment of their own.
    """
    if segment_start is None:
        segment_start = jnp.zeros((1, T), jnp.int32)
    half = group // 2
    rolled = jnp.roll(segment_start, -half, axis=1) - half
    wrapped = jnp.arange(T) >= T - half
    return jnp.where(wrapped, rolled + T, rolled)


def _check(q, k, group: int, segment_start, leak: bool) -> None:
    T, N = q.shape[1:3]
    if group < 2 or group % 2 or T % group:
        raise ValueError(f"group of S2-Attn must be even and divide the {T} tokens, got {group}")
    if k.shape[1] != T:
        raise ValueError(f"S2-Attn needs as many queries as keys, got {T} and {k.shape[1]}")
    if N < 2:
        raise ValueError(f"S2-Attn shifts half of the heads: it needs 2 or more, got {N}")
    if N % k.shape[2]:
        raise ValueError(f"{N} query heads in q are not a multiple of {k.shape[2]} key heads in k")
    if leak and segment_start is not None:
        raise ValueError("leak=True takes no packed documents (segment_start): use leak=False")
