"""Reading the last tokens alone: every prediction against one computed by itself."""

import jax
import numpy as np
import pytest

from longrope_jax import llama, rotary
from longrope_jax.evaluation.by_position import cropped_nll, nll_by_position

CONFIG = llama.LlamaConfig(
    vocab_size=67, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48
)
SPEC = rotary.RoPE()
TOKENS = np.random.default_rng(0).integers(0, 67, (3, 21))


@pytest.fixture(scope="module")
def params():
    return llama.init_params(CONFIG, jax.random.key(0))


@pytest.mark.parametrize(("length", "stride"), [(8, 2), (8, 8), (16, None), (20, 5), (30, 3)])
def test_a_prediction_sees_the_last_tokens_behind_the_first(params, length, stride):
    """From the earliest window that reaches it: `length - stride` to `length` tokens."""
    found = cropped_nll(CONFIG, params, SPEC, TOKENS, length=length, stride=stride, batch_size=3)
    steps = stride or length // 8
    rot = rotary.make(SPEC, head_dim=CONFIG.head_dim, seq_len=length)
    for at in range(20):
        start = max(0, -(-(at + 1 - length) // steps) * steps)
        assert at + 1 - start <= length and (start == 0 or at + 1 - start > length - steps)
        rows = np.zeros((3, length + 1), int)
        rows[:, 0], rows[:, 1 : at - start + 2] = TOKENS[:, 0], TOKENS[:, start + 1 : at + 2]
        alone = nll_by_position(CONFIG, params, rot, rows, batch_size=3)[:, at - start]
        np.testing.assert_allclose(found[:, at], alone, rtol=1e-4)


def test_within_its_length_it_is_the_loss_of_the_whole(params):
    whole = nll_by_position(CONFIG, params, SPEC, TOKENS)
    found = cropped_nll(CONFIG, params, SPEC, TOKENS, length=12)
    np.testing.assert_allclose(found[:, :12], whole[:, :12], rtol=1e-4)
    assert (found[:, 12:] != whole[:, 12:]).any()
