"""A Rotary is used for lengths that it was made for, and a method makes its own."""

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, numbers

from longrope_jax import generate, llama, rotary
from longrope_jax.evaluation import retrieval
from longrope_jax.evaluation.attention_statistics import query_key_moments
from longrope_jax.evaluation.by_position import nll_by_position
from longrope_jax.evaluation.perplexity import perplexity, score_tokens
from longrope_jax.evaluation.windowing import OnePass
from longrope_jax.tasks import Samples

LONG = np.random.default_rng(1).integers(0, 40, (2, 65)).astype(np.int32)
DYNAMIC = rotary.DynamicNTK(original_length=8, base=100.0)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jax.numpy.asarray, numbers(CONFIG))


def make(spec, length):
    return rotary.make(spec, head_dim=8, seq_len=length)


def test_a_rotary_is_right_at_every_length_or_refuses_it(spec, params):
    """No method gives another's numbers: made for 16 tokens, used on 64."""
    expected = llama.logits(CONFIG, params, LONG[:, :64], make(spec, 64))
    try:
        found = llama.logits(CONFIG, params, LONG[:, :64], make(spec, 16))
    except ValueError as error:
        assert "made for 16 tokens" in str(error) and "seq_len=64" in str(error)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("spec", "made", "longest"),
    [
        (rotary.RoPE(), 16, None),
        (rotary.YaRN(4.0, 8), 16, None),
        (DYNAMIC, 4, 4),
        (DYNAMIC, 16, 16),
        (rotary.XPos(), 16, 16),
        (rotary.LongRoPE(4.0, 8, 4.0), 4, 4),
        (rotary.LongRoPE(4.0, 8, 4.0), 16, None),  # beyond the switch nothing changes
        (rotary.LogN(DYNAMIC, 8), 16, 16),
        (rotary.SelfExtend(4, 2, DYNAMIC), 16, 16),
    ],
)
def test_it_remembers_how_far_its_frequencies_hold(spec, made, longest):
    found = make(spec, made)
    assert found.max_length == (longest or rotary.MAX_POSITION)
    rotary.check_length(found, made)
    if longest:
        with pytest.raises(ValueError, match=rf"for {longest} tokens .*seq_len={longest + 1}"):
            rotary.check_length(found, longest + 1)


def test_positions_that_are_known_are_checked():
    rot = make(DYNAMIC, 16)
    rotary.phases(rot, np.arange(16))
    rotary.phases(rot, np.float32([15.9]))
    for positions in (np.arange(17), np.float32([16.0]), np.array([[0, 16], [1, 2]])):
        with pytest.raises(ValueError, match="made for 16 tokens"):
            rotary.phases(rot, positions)
    stacked = rotary.make(DYNAMIC, head_dim=8, seq_len=[16, 32])
    rotary.phases(stacked, np.array([[15], [31]]))
    with pytest.raises(ValueError, match="made for 16 tokens"):
        rotary.phases(stacked, np.array([[31], [15]]))


def test_a_static_length_is_checked_under_jit(params):
    """Where the Rotary is a constant of the program; as an argument its numbers are unknown."""
    rot = make(DYNAMIC, 16)

    @jax.jit
    def run(tokens):
        return llama.Llama(CONFIG).apply({"params": params}, tokens, rotary=rot)[0]

    assert np.isfinite(run(LONG[:, :16])).all()
    with pytest.raises(ValueError, match="made for 16 tokens"):
        run(LONG[:, :17])


def test_packed_documents_count_from_their_own_beginning(params):
    """A row may be longer than what the Rotary was made for, where no document is."""
    starts = np.repeat(np.arange(0, 64, 16), 16)[None].repeat(2, 0).astype(np.int32)
    apply = llama.Llama(CONFIG).apply
    rot = make(DYNAMIC, 16)
    apply({"params": params}, LONG[:, :64], rotary=rot, segment_start=starts)
    with pytest.raises(ValueError, match="made for 16 tokens"):
        apply({"params": params}, LONG[:, :64], rotary=rot, segment_start=0 * starts)


def calls(params):
    """Every function that takes a method, by name: what it makes of 64 tokens."""
    answer = np.zeros(LONG.shape, bool)
    answer[:, 60:] = True
    samples = Samples(LONG, answer, 60, np.array(["a", "b"]))
    end = np.zeros(0, np.int32)
    return {
        "logits": lambda m: llama.logits(CONFIG, params, LONG[:, :64], m),
        "generate": lambda m: generate.generate(CONFIG, params, m, LONG[:, :60], 4).tokens,
        "score_tokens": lambda m: score_tokens(CONFIG, params, m, LONG).nll,
        "perplexity": lambda m: perplexity(CONFIG, params, m, list(LONG), OnePass(64)).nll,
        "nll_by_position": lambda m: nll_by_position(CONFIG, params, m, LONG),
        "moments": lambda m: query_key_moments(CONFIG, params, m, LONG[:, :64]),
        "teacher_forced": lambda m: retrieval.teacher_forced(CONFIG, params, m, samples),
        "answers": lambda m: retrieval.answers(CONFIG, params, m, samples, end=end)[:1],
    }


@pytest.mark.parametrize("name", calls(None))
def test_a_method_or_its_text_is_taken_wherever_a_rotary_is(params, name):
    """And a Rotary that was made for less is refused there."""
    call = calls(params)[name]
    # generate counts the last token too, which it never feeds
    rot = make(DYNAMIC, 65 if name == "answers" else 64)
    texts = ("dynamic_ntk:original_length=8,base=100.0", DYNAMIC, rot)
    results = [jax.tree.map(np.asarray, call(method)) for method in texts]
    for found in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, found, results[0])
    with pytest.raises(ValueError, match="made for 32 tokens"):
        call(make(DYNAMIC, 32))
    with pytest.raises(ValueError, match="did you mean 'dynamic_ntk'"):
        call("dynamic_ntl")


def test_a_method_where_only_arrays_do_is_one_line(params):
    message = r"rotary\.make\(RoPE\(base=10000\.0\), head_dim=8, seq_len=LENGTH\)"
    with pytest.raises(ValueError, match=message):
        llama.Llama(CONFIG).apply({"params": params}, LONG, rotary=rotary.RoPE())
    with pytest.raises(ValueError, match=r"phases takes a Rotary, got RoPE"):
        rotary.phases(rotary.RoPE(), np.arange(4))


def test_a_cache_is_made_for_a_method_too():
    spec = rotary.SelfExtend(4, 2)
    shapes = {llama.init_cache(CONFIG, 1, 8, m).k.shape for m in (spec, make(spec, 8))}
    assert shapes == {(2, 1, 8, 2, 16)}
    assert llama.init_cache(CONFIG, 1, 8, "rope").k.shape == (2, 1, 8, 2, 8)


def test_token_ids_outside_the_vocabulary_are_refused(params):
    for wrong in (40, -1):
        with pytest.raises(ValueError, match=rf"token {wrong}, the vocabulary is 0\.\.39"):
            llama.logits(CONFIG, params, np.array([[1, wrong]]), "rope")
