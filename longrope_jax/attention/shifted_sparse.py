"""LongLoRA's shifted sparse attention, S2-Attn (2309.12307 section 3.2, Algorithm 1).

The first half of the heads attends within groups of G tokens; the other half within groups moved
by G / 2, so that information crosses the borders of the first. The cost is linear in T. It is for
training: a model so trained is evaluated with full attention.
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
    """S2-Attn of whole sequences, causal.

    The shifted half's groups are [0, G/2), [G/2, 3G/2), ..., [T - G/2, T), as in the released code
    with FlashAttention (and the paper's Variant 2). The paper's Algorithm 1 rolls the sequence
    instead, and so puts the last and the first G/2 tokens into one group in which the first see the
    last: their own future. `leak` asks for that, to compare with models trained so.

    Args:
        q: [B, T, N, H] queries, already rotated by their global positions.
        k: [B, T, K, H] keys, already rotated; repeated to N heads before the heads are split.
        v: [B, T, K, H] values.
        group: G in tokens, even; the paper uses T / 4.
        segment_start: int32 [B, T], as in `attend`.
        leak: wrap the shifted half's groups around the sequence.
        backend: as in `attend`.

    Returns:
        [B, T, N, H] in the dtype of q. Of an odd N the larger part is shifted (the paper has even
        ones; its code without FlashAttention does the same).

    Raises:
        ValueError: G odd, below 2 or no divisor of T, one head, queries and keys of different
            lengths, `leak` with packed documents, or what `attend` refuses.
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
    """attend with each group as a row of the batch."""
    B, T, N, H = q_k_v[0].shape
    rows = [x.reshape(B * T // group, group, *x.shape[2:]) for x in q_k_v]
    if segment_start is not None:
        first = jnp.arange(0, T, group, dtype=jnp.int32)[:, None]
        segment_start = segment_start.reshape(-1, T // group, group)
        starts = jnp.maximum(segment_start - first, 0)
        segment_start = jnp.broadcast_to(starts, (B, *starts.shape[1:])).reshape(-1, group)
    out = attend(*rows, segment_start=segment_start, backend=backend)
    return out.reshape(B, T, N, H)


def _shifted_starts(segment_start, T: int, group: int) -> jax.Array:
    """Segment starts [B or 1, T] of the rolled sequence, whose end (its first tokens) is one."""
    if segment_start is None:
        segment_start = jnp.zeros((1, T), jnp.int32)
    half = group // 2
    rolled = jnp.roll(segment_start, -half, axis=1) - half
    wrapped = jnp.arange(T) >= T - half
    return jnp.where(wrapped, rolled + T, rolled)


def _check(q, k, group: int, segment_start, leak: bool) -> None:
    T, N = q.shape[1:3]
    if group < 2 or group % 2 or T % group:
        raise ValueError(f"a group of S2-Attn must be even and divide the {T} tokens, got {group}")
    if k.shape[1] != T:
        raise ValueError(f"S2-Attn takes whole sequences, got {T} queries and {k.shape[1]} keys")
    if N < 2:
        raise ValueError("S2-Attn shifts half of the heads: a model with one head has none")
    if N % k.shape[2]:
        raise ValueError(f"{N} query heads are no multiple of {k.shape[2]} key heads")
    if leak and segment_start is not None:
        raise ValueError("leak=True wraps one document around: pack none, or use leak=False")
