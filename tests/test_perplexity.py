"""Windows score each token once, and perplexity is what the model's own logits say it is."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import llama, rotary
from longrope_jax.evaluation import perplexity as perplexity_lib
from longrope_jax.evaluation.perplexity import perplexity, perplexity_from, score_tokens
from longrope_jax.evaluation.windowing import OnePass, Sliding, score_windows
from longrope_jax.sharding import make_mesh

# peer_numbers.json, text_metrics_executed.sliding_window_synthetic: YaRN's and LongRoPE's script
# run on nll = 2 + 3/sqrt(c+1), c the tokens that are visible before the target, BOS included.
# N, max_length, stride, BOS, windows, tokens scored, window-mean and token-weighted perplexity.
SYNTHETIC = [
    (1000, 256, 64, True, 13, 1000, 9.138027476319023, 9.378952556867498),
    (1000, 256, 64, False, 13, 999, 9.138190185825598, 9.379346232856951),
    (1000, 256, 255, True, 4, 1000, 10.498458095291934, 10.49635716731946),
    (4096, 1024, 256, True, 14, 4096, 8.221259735294423, 8.3348899188762),
    (4096, 4096, 256, True, 2, 4096, 7.926337493975535, 8.100821873015521),
]

# peer_numbers.json, lm_eval_rolling_windows (EleutherAI/lm-evaluation-harness@4e7e0d4, MIT) on
# tokens 0..33 after a BOS, written here as token -1, max_seq_len 10: context_len, then the first
# and the last token of the inputs and of the targets of each window.
ROLLING = [
    (1, [(-1, 8, 0, 9), (9, 18, 10, 19), (19, 28, 20, 29), (23, 32, 30, 33)]),
    (8, [(-1, 8, 0, 9), *[(i, i + 9, i + 8, i + 10) for i in range(2, 24, 3)]]),
    (10, [(-1, 8, 0, 9), *[(i, i + 9, i + 10, i + 10) for i in range(24)]]),
]

CONFIG = llama.LlamaConfig(
    vocab_size=67, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48
)
SPEC = rotary.RoPE(base=10_000.0)
lengths = st.integers(1, 40)


@pytest.fixture(scope="module")
def params():
    # Four times the usual scale of the head: predictions differ enough for a mix-up to show.
    params = llama.init_params(CONFIG, jax.random.key(0))
    return params | {"unembed": 4 * params["unembed"]}


def documents(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, size) for size in sizes]


def by_visible_context(tokens):
    T = tokens.shape[1] - 1
    return np.broadcast_to(2 + 3 / np.sqrt(np.arange(T) + 2), (len(tokens), T))


def by_pair(tokens):
    """Depends on the target and the token before it, and on no position; padding counts too."""
    return 1.0 + tokens[:, 1:] + 1000 * tokens[:, :-1]


whole_logits = jax.jit(llama.logits, static_argnums=0)


def direct_nll(params, tokens):
    """Float64 nll [T] of tokens [T+1] from whole logits, those of the window alone."""
    # One shape for one compilation; other padding than what is tested pads with.
    inputs = np.full((1, 48), 66, np.int32)
    inputs[0, : len(tokens) - 1] = tokens[:-1]
    rot = rotary.make(SPEC, head_dim=CONFIG.head_dim, seq_len=48)
    logits = np.asarray(whole_logits(CONFIG, params, inputs, rot)[0], np.float64)
    picked = logits[np.arange(len(tokens) - 1), tokens[1:]]
    return np.log(np.exp(logits).sum(-1))[: len(picked)] - picked


@pytest.mark.parametrize("case", SYNTHETIC)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_both_averages_reproduce_the_original_script(case, batch_size):
    N, max_length, stride, bos, n_windows, scored, window_mean, token_weighted = case
    result = perplexity_from(
        by_visible_context,
        [np.zeros(N, int)],
        Sliding(max_length - 1, stride),
        bos=0 if bos else None,
        batch_size=batch_size,
    )
    assert (result.windows, result.tokens) == (n_windows, scored)
    assert result.window_mean_perplexity == pytest.approx(window_mean, rel=1e-7)
    assert result.perplexity == pytest.approx(token_weighted, rel=1e-7)


@pytest.mark.parametrize(("context_len", "gold"), ROLLING)
def test_layouts_of_the_evaluation_harness_are_reproduced(context_len, gold):
    tokens = range(-1, 34)
    layout = score_windows(35, Sliding(10, 11 - context_len, full_last=True), bos=False)
    found = [(tokens[a], tokens[b - 2], tokens[first], tokens[b - 1]) for a, b, first in layout]
    assert found == gold


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 150), lengths, st.data(), st.booleans(), st.booleans())
def test_every_token_is_scored_exactly_once_with_the_context_promised(
    n, length, data, bos, full_last
):
    stride = data.draw(st.integers(1, length))
    found = score_windows(n, Sliding(length, stride, full_last), bos=bos)
    scored = [i for _, end, first in found for i in range(first, end)]
    assert scored == list(range(0 if bos else 1, n))
    for start, end, first in found:
        assert 1 <= end - start - (not bos) <= length
        assert first >= start + (not bos)
    for start, _, first in found[1:]:
        assert first - start >= length - stride + (not bos)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=5), lengths, st.data(), st.booleans(),
    st.integers(1, 5),
)  # fmt: skip
def test_sums_hold_each_documents_own_tokens(sizes, length, data, bos, batch_size):
    stride = data.draw(st.integers(1, length))
    texts = documents(*sizes)
    result = perplexity_from(
        lambda tokens: 1.0 + tokens[:, 1:],
        texts,
        Sliding(length, stride),
        bos=5 if bos else None,
        batch_size=batch_size,
    )
    wanted = [text[0 if bos else 1 :] for text in texts]
    np.testing.assert_array_equal(result.document_tokens, [len(text) for text in wanted])
    np.testing.assert_array_equal(result.document_nll, [(1 + text).sum() for text in wanted])
    assert result.nll == result.document_nll.sum() / result.tokens


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 150), lengths, st.booleans())
def test_stride_equal_to_length_is_one_pass(n, length, bos):
    sliding = score_windows(n, Sliding(length, length), bos=bos)
    assert sliding == score_windows(n, OnePass(length), bos=bos)


def test_every_window_of_one_pass_starts_with_its_own_bos():
    seen = []

    def score(tokens):
        seen.append(tokens)
        return np.zeros((len(tokens), tokens.shape[1] - 1))

    perplexity_from(score, [np.arange(1, 8)], OnePass(3), bos=66, batch_size=4)
    wanted = [[66, 1, 2, 3], [66, 4, 5, 6], [66, 7, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(seen, [wanted])


def test_each_prediction_is_paired_with_the_token_before_it():
    (text,) = documents(50)
    with_bos = np.concatenate([[5], text])
    sliding = perplexity_from(by_pair, [text], Sliding(10, 3))
    assert sliding.document_nll == by_pair(text[None]).sum()
    # With stride below length only the first window scores a token right after its BOS.
    sliding = perplexity_from(by_pair, [text], Sliding(10, 3), bos=5)
    assert sliding.document_nll == by_pair(with_bos[None]).sum()


def test_a_document_in_one_window_agrees_with_direct_log_softmax(params):
    (text,) = documents(24)
    for bos, tokens in ((None, text), (1, np.concatenate([[1], text]))):
        nll = direct_nll(params, tokens)
        result = perplexity(CONFIG, params, SPEC, [text], Sliding(32, 8), bos=bos)
        assert (result.windows, result.tokens) == (1, len(nll))
        assert result.nll == pytest.approx(nll.mean(), rel=1e-6)
        assert result.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-6)
        assert result.window_mean_perplexity == pytest.approx(result.perplexity, rel=1e-12)


def test_sliding_windows_agree_with_scoring_each_window_alone(params):
    (text,) = documents(45)
    windowing = Sliding(16, 6)
    alone = [
        direct_nll(params, np.concatenate([[1], text[start:end]]))[first - start :]
        for start, end, first in score_windows(len(text), windowing, bos=True)
    ]
    result = perplexity(CONFIG, params, SPEC, [text], windowing, bos=1, batch_size=2)
    assert result.windowing == "sliding-16-stride-6"
    assert result.document_nll[0] == pytest.approx(np.concatenate(alone).sum(), rel=1e-6)
    window_mean = np.exp(np.mean([nll.mean() for nll in alone]))
    assert result.window_mean_perplexity == pytest.approx(window_mean, rel=1e-6)


def test_batch_size_and_padding_do_not_change_the_result(params):
    texts = documents(3, 40, 17)
    results = [
        perplexity(CONFIG, params, SPEC, texts, OnePass(16), batch_size=size) for size in (1, 3, 16)
    ]
    alone = [perplexity(CONFIG, params, SPEC, [text], OnePass(16)) for text in texts]
    sums = [result.document_nll for result in results]
    sums.append(np.concatenate([result.document_nll for result in alone]))
    for other in sums[1:]:
        np.testing.assert_allclose(other, sums[0], rtol=1e-6)


def test_a_rotary_made_in_advance_gives_what_its_method_gives(params):
    texts = documents(30)
    rot = rotary.make(rotary.XPos(base=10_000.0), head_dim=CONFIG.head_dim, seq_len=16)
    made = perplexity(CONFIG, params, rot, texts, OnePass(16))
    assert (
        made.nll == perplexity(CONFIG, params, rotary.XPos(base=10_000.0), texts, OnePass(16)).nll
    )
    assert made.nll != perplexity(CONFIG, params, SPEC, texts, OnePass(16)).nll


def test_another_rotary_other_parameters_or_other_documents_do_not_recompile(params, monkeypatch):
    windowing, traces = OnePass(12), []
    scores = perplexity_lib.token_scores
    monkeypatch.setattr(
        perplexity_lib, "token_scores", lambda *a, **k: traces.append(1) or scores(*a, **k)
    )
    perplexity(CONFIG, params, SPEC, documents(20), windowing)
    assert len(traces) == 1
    for spec in (
        rotary.RoPE(base=500_000.0),
        rotary.XPos(),
        rotary.PositionInterpolation(factor=4),
    ):
        perplexity(CONFIG, params, spec, documents(5, 33, seed=1), windowing)
    perplexity(CONFIG, jax.tree.map(lambda x: 2 * x, params), SPEC, documents(20), windowing)
    assert len(traces) == 1


def test_a_mesh_does_not_change_the_result(params):
    texts = documents(40, 17)
    alone = perplexity(CONFIG, params, SPEC, texts, Sliding(16, 8))
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        shared = perplexity(CONFIG, params, SPEC, texts, Sliding(16, 8))
        rot = rotary.make(SPEC, head_dim=CONFIG.head_dim, seq_len=16)
        scores = score_tokens(CONFIG, params, rot, np.zeros((8, 17), np.int32))
    np.testing.assert_allclose(shared.document_nll, alone.document_nll, rtol=1e-6)
    assert scores.nll.is_fully_replicated and len(scores.nll.devices()) == 8


def test_greedy_choices_are_reported_with_the_losses(params):
    (text,) = documents(20)
    rot = rotary.make(SPEC, head_dim=CONFIG.head_dim, seq_len=20)
    best = whole_logits(CONFIG, params, jnp.asarray(text[None, :-1]), rot)[0].argmax(-1)
    tokens = jnp.asarray(np.concatenate([text[:-1], best[-1:]]))[None]
    scores = score_tokens(CONFIG, params, rot, tokens)
    np.testing.assert_array_equal(scores.correct[0], best == tokens[0, 1:])
    assert scores.correct[0, -1]


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "sequence": 2}])
def test_predictions_left_out_change_no_other(params, axes):
    rot = rotary.make(SPEC, head_dim=16, seq_len=16)
    tokens = np.random.default_rng(0).integers(0, 67, (4, 17)).astype(np.int32)
    whole = score_tokens(CONFIG, params, rot, tokens)
    with jax.set_mesh(make_mesh(**axes)) if axes else contextlib.nullcontext():
        last = score_tokens(CONFIG, params, rot, tokens, first=11)
    np.testing.assert_allclose(last.nll, whole.nll[:, 11:], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(last.correct, whole.correct[:, 11:])


@pytest.mark.parametrize(("B", "T"), [(1, 8192), (16, 512)])
def test_memory_of_scoring_does_not_hold_logits_of_all_tokens(B, T):
    V = 32_768
    config = llama.LlamaConfig(
        vocab_size=V, d_model=16, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=16, d_ff=16
    )
    rot = rotary.make(SPEC, head_dim=16, seq_len=T)
    shapes = jax.eval_shape(lambda: llama.init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((B, T + 1), jnp.int32)
    program = jax.jit(score_tokens, static_argnums=0).lower(config, shapes, rot, tokens)
    memory = program.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * B * T * V / 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sliding(8, 9), r"stride must lie in 1\.\.8 .*got 9"),
        (lambda: Sliding(8, 0), r"stride must lie in 1\.\.8 .*got 0"),
        (lambda: OnePass(0), "length must be at least 1 token, got 0"),
        (lambda: score_windows(0, OnePass(8), bos=True), "the document is empty"),
        (lambda: score_windows(1, OnePass(8), bos=False), "1 token and nothing .* BOS"),
        (lambda: evaluate([[]], bos=1), "document 0 is empty"),
        (lambda: evaluate([[1, 2], [3]]), "document 1 has 1 token .* BOS"),
        (lambda: evaluate([]), "at least 1 document"),
        (lambda: evaluate([[1, 2]], batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: evaluate([[1, 2], [0, 67]]), r"document 1 has token 67, .* 0\.\.66"),
        (lambda: evaluate([[1, -2]]), "document 0 has token -2"),
        (lambda: evaluate([[1, 2]], bos=67), "bos has token 67"),
        (lambda: evaluate([[1.0, 2.0]]), "document 0 must be a 1-D array .* float64"),
        (lambda: evaluate([[[1, 2]]]), r"document 0 must be a 1-D array .*\(1, 2\)"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def evaluate(texts, **options):
    return perplexity(CONFIG, {}, SPEC, texts, OnePass(8), **options)


def test_a_broken_model_is_not_hidden():
    for value in (np.nan, np.inf, 800.0):
        result = perplexity_from(lambda t, v=value: by_pair(t) * 0 + v, [[1, 2, 3]], OnePass(2))
        assert result.perplexity == pytest.approx(np.inf if value > 700 else np.nan, nan_ok=True)
