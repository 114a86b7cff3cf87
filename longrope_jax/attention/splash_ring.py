"""Ring attention whose step is the splash kernel: keys travel as in `ring`, a TPU's units work.

Each device holds an early and a late half chunk (the zigzag order of `context`). Its early queries
see the early keys of the devices before it, its late queries see the early keys of all devices and
the late keys of the devices behind it. So but for each half chunk with itself, which is causal, a
kernel multiplies whole squares of half chunks without a mask, two in each step on every device, and
no product is computed in vain. Outputs merge by the logs of their normalisers in float32, and the
cotangents of keys and values travel in float32 (Liu, Zaharia, Abbeel 2310.01889); what one kernel
returns is rounded to the inputs' data type.

Documents are compared, not skipped: a packed row takes as long as one document.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from longrope_jax.attention import ring, splash_kernel
from longrope_jax.shapes import AnyArray

_EARLY, _LATE = 0, 1


def attention(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T K H"],
    v: Float[jax.Array, "B T K H"],
    first_key: Int[AnyArray, "_ T"],
    last_key: Int[AnyArray, "_ T"],
    scale,
) -> Float[jax.Array, "B T N H"]:
    """Returns this device's part [B, t, N, H] of the output.

    first_key [B or 1, t] is the same for all queries of a document, an index in the whole sequence.
    The shards are in zigzag order: an even half chunk, then an odd one.
    """
    del last_key  # causal
    B, t = q.shape[:2]
    late_first = lax.axis_index(ring.AXIS) % 2 == 1

    def by_time(x):
        """Orders [2, ...] from even and odd to early and late, or back."""
        return jnp.where(late_first, x[::-1], x)

    def halves(x):
        return by_time(jnp.stack(jnp.split(x.swapaxes(1, 2), 2, axis=2)))

    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    document = jnp.broadcast_to(first_key, (B, t)).reshape(B, 2, t // 2).swapaxes(0, 1)
    out = by_time(_attention(halves(q), halves(k), halves(v), by_time(document)))
    return jnp.concatenate([*out], axis=2).swapaxes(1, 2)


def refusal(tokens: int, parts: int) -> str | None:
    """Returns the reason why these tokens on so many devices are not supported, or None."""
    unit = 2 * parts * splash_kernel.LANES
    if tokens % unit:
        return (
            f"a ring of splash kernels over a sequence axis of {parts} needs a multiple of {unit} "
            f"tokens, got {tokens}"
        )
    return None


@jax.custom_vjp
def _attention(q, k, v, document):
    """Computes q [2, B, N, h, H], k and v [2, B, K, h, H], document [2, B, h], early halves first.

    Args and result have two half chunks of this device, the early one first.
    """
    return _forward(q, k, v, document)[0].astype(q.dtype)


def _kernels(q):
    N, h = q.shape[2:4]
    return tuple(splash_kernel.square(N, h, causal=causal) for causal in (True, False))


def _squares(step):
    """Returns which halves of the queries and of the keys meet in a step after the first.

    Late queries meet early keys; and early meet early if the keys come from a device before this
    one, otherwise late meet late.
    """
    me = lax.axis_index(ring.AXIS)
    before = (me - step) % lax.axis_size(ring.AXIS) < me
    other = jnp.where(before, _EARLY, _LATE)
    return (_LATE, other), (_EARLY, other)


def _take(tree, halves):
    return jax.tree.map(lambda x: jnp.stack([x[half] for half in halves]), tree)


def _add(x, halves, parts):
    for half, part in zip(halves, parts, strict=True):
        x = x.at[half].add(part)
    return x


def _forward(q, k, v, document):
    """Returns the output and the log of each row's normaliser, both float32."""
    causal, whole = _kernels(q)
    mine = q, document

    def merged(sofar, half, part):
        now = ring._merge(*(x[half] for x in sofar), *part)
        return tuple(x.at[half].set(new) for x, new in zip(sofar, now, strict=True))

    def attend(queries, keys, rows, columns):
        (q, q_document), (k, v, k_document) = _take(queries, rows), _take(keys, columns)
        return splash_kernel.forward(whole, q, k, v, q_document, k_document)

    def step(i, carry):
        sofar, keys = carry
        coming = ring._pass_on(keys)  # while the kernel works
        rows, columns = _squares(i)
        out, lse = attend(mine, keys, rows, columns)
        for n, half in enumerate(rows):
            sofar = merged(sofar, half, (out[n], lse[n]))
        return sofar, coming

    keys = k, v, document
    coming = ring._pass_on(keys)
    sofar = splash_kernel.forward(causal, q, k, v, document, document)
    out, lse = attend(mine, keys, [_LATE], [_EARLY])
    sofar = merged(sofar, _LATE, (out[0], lse[0]))
    return lax.fori_loop(1, lax.axis_size(ring.AXIS), step, (sofar, coming))[0]


def _forward_rule(q, k, v, document):
    out, lse = _forward(q, k, v, document)
    out = checkpoint_name(out.astype(q.dtype), "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, document, out, lse)


def _backward_rule(saved, d_out):
    q, k, v, document, out, lse = saved
    causal, whole = _kernels(q)
    mine = q, document, out, lse, d_out

    def gradients(kernel, queries, keys):
        (q, q_document, *rows), (k, v, k_document) = queries, keys
        return splash_kernel.backward(kernel, q, k, v, q_document, k_document, *rows)

    def added(grads, rows, columns, keys):
        new = gradients(whole, _take(mine, rows), _take(keys, columns))
        return tuple(map(_add, grads, (rows, columns, columns), new))

    def step(i, carry):
        d_q, d_kv, keys = carry
        coming, d_kv = ring._pass_on(keys), ring._pass_on(d_kv)
        d_q, *d_kv = added((d_q, *d_kv), *_squares(i), keys)
        return d_q, tuple(d_kv), coming

    keys = k, v, document
    coming = ring._pass_on(keys)
    grads = gradients(causal, mine, keys)
    d_q, *d_kv = added(grads, [_LATE], [_EARLY], keys)
    start = d_q, tuple(d_kv), coming
    d_q, d_kv, _ = lax.fori_loop(1, lax.axis_size(ring.AXIS), step, start)
    d_k, d_v = ring._pass_on(d_kv)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attention.defvjp(_forward_rule, _backward_rule)
