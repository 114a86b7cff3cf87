"""Both back ends equal float64; blockwise in memory linear in T, and only where something shows."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax.attention import attend, blockwise, to_cache

BACKENDS = ["blockwise", "reference"]


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK_Q", 8)
        patch.setattr(blockwise, "BLOCK_K", 4)
        yield


def inputs(B, T, S, K, G, H, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = (B, T, K * G, H), (B, S, K, H), (B, S, K, H)
    return [jnp.asarray(rng.normal(size=s).astype(np.float32), dtype) for s in shapes]


def segments(rng, B, T, start):
    """A random packing [B, T]: the index of the first key of each query's document."""
    index = start[:, None] + np.arange(T)
    begins = np.where(rng.random((B, T)) < 0.3, index, 0)
    begins[:, 0] = rng.integers(0, start + 1)
    return np.maximum.accumulate(begins, axis=1).astype(np.int32)


def truth(q, k, v, first, last):
    """Softmax attention in float64, one query of one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    G = N // k.shape[2]
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        seen = slice(first[b, t], last[b, t] + 1)
        scores = k[b, seen, n // G] @ q[b, t, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, seen, n // G] / weights.sum()
    return out


def value_and_gradients(args, *, backend="auto", **where):
    """Output, and gradients of a fixed random linear function of it."""
    args = [jnp.asarray(x) for x in args]
    d_out = jnp.asarray(np.random.default_rng(9).normal(size=args[0].shape), jnp.float32)

    @jax.jit
    def run(q, k, v, segment_start, query_start):
        fixed = where.get("query_start", 0)  # an int stays one, an array is traced
        start = fixed if isinstance(fixed, int) else query_start

        def f(*x):
            return attend(*x, backend=backend, segment_start=segment_start, query_start=start)

        out, back = jax.vjp(f, q, k, v)
        return out, back(d_out.astype(out.dtype))

    return run(*args, where.get("segment_start"), where.get("query_start"))


def check_against_truth(B, T, S, K, G, H, packed, per_row, seed=0):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, S - T + 1, B if per_row else 1) + np.zeros(B, int)
    where = {"query_start": jnp.asarray(start) if per_row else int(start[0])}
    last = start[:, None] + np.arange(T)
    first = np.zeros((B, T), np.int32)
    if packed:
        first = segments(rng, B, T, start)
        where["segment_start"] = jnp.asarray(first)
    args = inputs(B, T, S, K, G, H, seed)
    ours = value_and_gradients(args, **where)
    plain = value_and_gradients(args, backend="reference", **where)
    right = truth(*args, first, last)
    np.testing.assert_allclose(ours[0], right, atol=3e-6)
    np.testing.assert_allclose(plain[0], right, atol=3e-6)
    for mine, theirs in zip(ours[1], plain[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


# Values and gradients


@pytest.mark.parametrize(
    "B, T, S, K, G, H, packed, per_row",
    [
        (2, 16, 16, 2, 1, 8, False, False),
        (2, 13, 13, 1, 3, 6, True, False),
        (3, 9, 22, 2, 2, 4, False, True),
        (2, 17, 23, 1, 2, 8, True, True),
        (2, 1, 19, 2, 2, 8, False, True),
    ],
)
def test_values_and_gradients(B, T, S, K, G, H, packed, per_row):
    check_against_truth(B, T, S, K, G, H, packed, per_row)


@pytest.mark.slow
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 21),
    extra=st.integers(0, 11),
    K=st.integers(1, 2),
    G=st.integers(1, 3),
    H=st.sampled_from([2, 5, 8]),
    packed=st.booleans(),
    per_row=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=5, deadline=None)
def test_values_and_gradients_anywhere(B, T, extra, K, G, H, packed, per_row, seed):
    check_against_truth(B, T, T + extra, K, G, H, packed, per_row, seed)


def test_reference_gradients_equal_finite_differences():
    args, first = inputs(1, 5, 5, 1, 2, 4), np.array([[0, 0, 2, 2, 2]])
    d_out = np.random.default_rng(9).normal(size=args[0].shape)
    grads = value_and_gradients(args, backend="reference", segment_start=jnp.asarray(first))[1]
    rng = np.random.default_rng(3)
    for i, grad in enumerate(grads):
        step = rng.normal(size=grad.shape) * 1e-4

        def value(sign, i=i, step=step):
            moved = [np.asarray(x, np.float64) for x in args]
            moved[i] = moved[i] + sign * step
            return (truth(*moved, first, np.arange(5)[None]) * d_out).sum()

        slope = (value(1) - value(-1)) / 2
        np.testing.assert_allclose((np.asarray(grad) * step).sum(), slope, rtol=1e-4, atol=1e-9)


def test_bfloat16_inputs():
    args = inputs(2, 19, 19, 2, 2, 16, dtype=jnp.bfloat16)
    out, grads = value_and_gradients(args)
    exact, exact_grads = value_and_gradients([x.astype(jnp.float32) for x in args])
    assert out.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in grads)
    np.testing.assert_allclose(np.float32(out), exact, atol=0.02)
    for mine, right in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(np.float32(mine), right, atol=0.03 * np.abs(right).max())


def test_huge_scores_do_not_overflow():
    q, k, v = inputs(1, 12, 12, 1, 1, 8)
    out, grads = value_and_gradients([300 * q, 300 * k, v])
    last = np.arange(12)[None]
    np.testing.assert_allclose(out, truth(300 * q, 300 * k, v, 0 * last, last), atol=1e-3)
    assert all(np.isfinite(g).all() for g in grads)


# What a query may see


@pytest.mark.parametrize("backend", BACKENDS)
def test_causality_by_gradient(backend):
    args = inputs(1, 20, 20, 1, 2, 4)

    def future(q, k, v, t):
        out = attend(q, k, v, backend=backend)
        return jnp.where(jnp.arange(20)[:, None, None] <= t, out, 0).sum()

    grads = jax.jit(jax.grad(future, argnums=(0, 1, 2)))
    for t in (0, 6, 7, 13, 19):
        for grad in grads(*args, t):
            assert not np.asarray(grad)[:, t + 1 :].any()
        assert np.asarray(grad)[:, t].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_row_equals_its_documents_alone(backend):
    lengths = [5, 11, 1, 6]
    starts = np.cumsum([0, *lengths[:-1]])
    args = inputs(2, 23, 23, 2, 2, 8)
    packing = np.broadcast_to(np.repeat(starts, lengths), (2, 23))
    out, grads = value_and_gradients(args, backend=backend, segment_start=jnp.asarray(packing))
    for start, length in zip(starts, lengths, strict=True):
        part = slice(start, start + length)
        last = np.broadcast_to(np.arange(length), (2, length))
        alone = truth(*(x[:, part] for x in args), 0 * last, last)
        np.testing.assert_allclose(out[:, part], alone, atol=3e-6)
    part = slice(5, 16)
    d_out = jnp.asarray(np.random.default_rng(9).normal(size=args[0].shape)[:, part], jnp.float32)
    alone = jax.jit(lambda *x: jax.vjp(attend, *x)[1](d_out))(*(x[:, part] for x in args))
    for mine, theirs in zip(grads, alone, strict=True):
        np.testing.assert_allclose(mine[:, part], theirs, atol=5e-6)


def test_key_blocks_that_no_query_sees_are_not_computed():
    q, k, v = inputs(2, 8, 40, 1, 2, 4)
    where = {"query_start": 16, "segment_start": jnp.full((2, 8), 12)}
    hidden = (np.arange(40) < 12) | (np.arange(40) >= 24)  # whole blocks of 4
    planted = [jnp.where(hidden[:, None, None], jnp.nan, x) for x in (k, v)]
    clean, clean_grads = value_and_gradients([q, k, v], **where)
    out, grads = value_and_gradients([q, *planted], **where)
    np.testing.assert_array_equal(out, clean)
    jax.tree.map(np.testing.assert_array_equal, grads, clean_grads)
    assert not np.asarray(grads[1])[:, hidden].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_nothing_give_zero(backend):
    args = inputs(2, 11, 11, 1, 2, 4)
    first = np.zeros((2, 11), np.int32)
    first[:, 3] = 4
    first[1] = 99
    out, grads = value_and_gradients(args, backend=backend, segment_start=jnp.asarray(first))
    assert not np.asarray(out)[0, 3].any() and not np.asarray(out)[1].any()
    assert np.abs(np.asarray(out)[0, 4]).min() > 0
    for grad in grads:
        assert np.isfinite(grad).all() and not np.asarray(grad)[1].any()
    assert not np.asarray(grads[0])[0, 3].any()


@pytest.mark.parametrize("cache", ["float32", "uint16"])  # uint16: the bits of bfloat16
@pytest.mark.parametrize("K", [1, 2, 8, 9])
@pytest.mark.parametrize("block", [5, 1024])
def test_one_token_reads_its_layer_of_a_cache(K, cache, block, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK_ONE", block)
    q, k, v = inputs(3, 1, 23, K, 2, 4, seed=K)
    stacked = [jnp.stack([x + 1, x, x - 1]).astype(jnp.bfloat16) for x in (k, v)]
    stacked = [to_cache(x.astype(jnp.float32), jnp.dtype(cache)) for x in stacked]
    first, last = np.array([[0], [7], [20]], np.int32), np.array([0, 21, 22])
    out = jax.jit(partial(attend, segment_start=jnp.asarray(first)))(
        q, *stacked, query_start=jnp.asarray(last), layer=1
    )
    k, v = (np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (k, v))
    np.testing.assert_allclose(out, truth(q, k, v, first, last[:, None]), atol=2e-6)


# Memory, transformations, refusals


@pytest.mark.parametrize(
    "backend, lengths, low, high",
    [("blockwise", (2048, 4096, 8192, 16_384), 1.5, 2.3), ("reference", (2048, 4096), 3, 5)],
)
def test_memory_of_gradients_by_length(backend, lengths, low, high, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK_Q", 256)
    monkeypatch.setattr(blockwise, "BLOCK_K", 256)

    def loss(q, k, v):
        return attend(q, k, v, backend=backend).sum()

    def temporary(T):
        q, k = (jax.ShapeDtypeStruct((1, T, n, 16), jnp.float32) for n in (4, 2))
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        return step.lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

    sizes = [temporary(T) for T in lengths]
    ratios = [b / a for a, b in itertools.pairwise(sizes)]
    assert low < ratios[-1] and max(ratios) < high, sizes


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_equals_a_loop(backend):
    args = [jnp.stack(x) for x in zip(*(inputs(2, 9, 13, 1, 2, 4, s) for s in (1, 2)), strict=True)]
    starts = jnp.array([[0, 4], [3, 1]])

    def run(q, k, v, start):
        out, back = jax.vjp(lambda *x: attend(*x, query_start=start, backend=backend), q, k, v)
        return out, back(out)

    together = jax.jit(jax.vmap(run))(*args, starts)
    for i in range(2):
        alone = jax.jit(run)(*(x[i] for x in args), starts[i])
        part = jax.tree.map(lambda x, i=i: x[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), part, alone)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


Q, KV = shape(2, 4, 6, 8), shape(2, 10, 3, 8)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    "args, where, message",
    [
        ((Q, KV, KV), {"backend": "blokwise"}, "did you mean 'blockwise'"),
        ((Q, KV, shape(2, 9, 3, 8)), {}, "do not fit together"),
        ((Q, shape(2, 10, 3, 4), shape(2, 10, 3, 4)), {}, "do not fit together"),
        ((Q, shape(1, 10, 3, 8), shape(1, 10, 3, 8)), {}, "do not fit together"),
        (
            (Q, shape(2, 10, 4, 8), shape(2, 10, 4, 8)),
            {},
            "6 query heads .* multiple of 4",
        ),
        ((Q, KV, KV), {"query_start": 7}, "4 queries from query_start=7 do not lie within 10 keys"),
        ((Q, KV, KV), {"query_start": np.int64(7)}, "do not lie within 10 keys"),
        ((Q, KV, KV), {"query_start": -1}, "do not lie within 10 keys"),
        ((Q, shape(2, 3, 3, 8), shape(2, 3, 3, 8)), {}, "do not lie within 3 keys"),
        (
            (Q, shape(2, 3, 3, 8), shape(2, 3, 3, 8)),
            {"query_start": np.zeros(2, int)},
            "do not lie within 3 keys",
        ),
        ((Q, KV, KV), {"segment_start": np.zeros((2, 10), int)}, "segment_start must have shape"),
        ((Q, KV, KV), {"query_start": np.zeros(3, int)}, "query_start must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(args, where, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *x: attend(*x, **where), *args)
