"""Curves of loss by position: means over blocks, and bins are plain means of the nll."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import llama, rotary
from longrope_jax.evaluation.by_position import (
    context_bins,
    nll_by_position,
    position_blocks,
    whole_windows,
)
from longrope_jax.evaluation.perplexity import perplexity, score_tokens
from longrope_jax.evaluation.power_law import PowerLaw, fit
from longrope_jax.evaluation.windowing import OnePass

CONFIG = llama.LlamaConfig(
    vocab_size=67, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48
)
SPEC = rotary.RoPE(base=10_000.0)
TOKENS = np.random.default_rng(0).integers(0, 67, (5, 21))


@pytest.fixture(scope="module")
def params():
    return llama.init_params(CONFIG, jax.random.key(0))


def losses(n, T):
    return np.random.default_rng(1).uniform(1, 5, (n, T)).astype(np.float32)


def test_batches_do_not_change_the_losses(params):
    rot = rotary.make(SPEC, head_dim=CONFIG.head_dim, seq_len=20)
    whole = np.asarray(score_tokens(CONFIG, params, rot, TOKENS.astype(np.int32)).nll)
    for method, size in ((SPEC, 1), (SPEC, 2), (rot, 5), (SPEC, 8)):
        found = nll_by_position(CONFIG, params, method, TOKENS, batch_size=size)
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        np.testing.assert_allclose(found, whole, rtol=1e-5)


def test_the_mean_over_positions_is_the_loss_of_one_pass(params):
    nll = nll_by_position(CONFIG, params, SPEC, TOKENS, batch_size=2)
    result = perplexity(CONFIG, params, SPEC, list(TOKENS), OnePass(20))
    np.testing.assert_allclose(nll.sum(1), result.document_nll, rtol=1e-5)


def test_figure_9a_has_66_points_with_a_short_last_block():
    nll = losses(2, 32_768)
    blocks = position_blocks(nll, 500)
    assert blocks.shape == (2, 66)
    np.testing.assert_allclose(blocks[:, 1], nll[:, 500:1000].mean(1), rtol=1e-6)
    np.testing.assert_allclose(blocks[:, -1], nll[:, 32_500:].mean(1), rtol=1e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 50), st.data())
def test_blocks_bins_and_prefixes_are_plain_means(T, data):
    nll = losses(3, T)
    block = data.draw(st.integers(1, T))
    wanted = [nll[:, i : i + block].mean(1, dtype=np.float64) for i in range(0, T, block)]
    np.testing.assert_allclose(position_blocks(nll, block), np.stack(wanted, 1))
    edges = sorted(data.draw(st.sets(st.integers(1, T + 1), min_size=2, max_size=6)))
    contexts = np.arange(1, T + 1)
    bins = context_bins(nll, edges)
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = (low <= contexts) & (contexts < high)
        np.testing.assert_allclose(bins.nll[:, i], nll[:, inside].mean(1, dtype=np.float64))
        assert bins.lengths[i] == pytest.approx(np.exp(np.log(contexts[inside]).mean()))


@pytest.mark.parametrize("bos", [None, 9])
def test_whole_windows_are_the_documents_in_order_without_what_is_left(bos):
    found = whole_windows([np.arange(7), np.arange(2), np.arange(10, 16)], 2, bos=bos)
    each = {None: [[0, 1, 2], [2, 3, 4], [4, 5, 6], [10, 11, 12], [12, 13, 14]]}
    each[9] = [[9, a, a + 1] for a in (0, 2, 4, 0, 10, 12, 14)]
    np.testing.assert_array_equal(found, each[bos])


def test_bins_give_a_power_law_of_the_context_back():
    law = PowerLaw(25.4, 0.45, 1.56)  # 7B, Llama 2 Long, Figure 1
    edges = np.unique(np.geomspace(1, 4097, 40).astype(int))
    bins = context_bins(law(np.arange(1, 4097))[None], edges)
    found = fit(bins.lengths, bins.nll[0])
    triple = (found.alpha, found.beta, found.gamma)
    np.testing.assert_allclose(triple, (25.4, 0.45, 1.56), rtol=2e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: position_blocks(losses(2, 8), 0), r"block must lie in 1\.\.8 positions, got 0"),
        (lambda: position_blocks(losses(2, 8), 9), "got 9"),
        (lambda: position_blocks(losses(2, 8)[0], 2), r"must be \[n, T\], got shape \(8,\)"),
        (lambda: context_bins(losses(2, 8), [1]), r"rising integers in 1\.\.9, got \[1\]"),
        (lambda: context_bins(losses(2, 8), [0, 4]), "rising integers"),
        (lambda: context_bins(losses(2, 8), [1, 10]), "rising integers"),
        (lambda: context_bins(losses(2, 8), [1, 4, 4]), "rising integers"),
        (lambda: context_bins(losses(2, 8), [1.0, 4.5]), "rising integers"),
        (lambda: whole_windows([[1, 2]], 0), "length must be at least 1"),
        (lambda: whole_windows([[1, 2]], 2), "window of 3 tokens, the longest has 2"),
        (lambda: whole_windows([], 2), "the longest has 0"),
        (lambda: by_position([[1, 2], [3, 67]]), r"a sample has token 67, .* 0\.\.66"),
        (lambda: by_position([[1], [3]]), r"got int64 \(2, 1\)"),
        (lambda: by_position([1, 3]), r"got int64 \(2,\)"),
        (lambda: by_position([[1.0, 3.0]]), r"got float64 \(1, 2\)"),
        (lambda: by_position([[1, 3]], batch_size=0), "batch_size must be at least 1"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def by_position(tokens, **options):
    return nll_by_position(CONFIG, {}, SPEC, tokens, **options)
