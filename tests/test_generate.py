"""Greedy decoding against full forwards, and the scoring of retrieval samples against both."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from longrope_jax import generate, llama, rotary, sharding
from longrope_jax.data import passages, tasks, tokenizers
from longrope_jax.data.corpora import Document
from longrope_jax.evaluation import retrieval

V, T, NEW, B = 64, 12, 6, 3
TINY = llama.LlamaConfig(
    vocab_size=V, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32
)
METHODS = [rotary.RoPE(100.0), rotary.PositionInterpolation(4), rotary.build("xpos_abf")]
PROMPTS = np.random.default_rng(5).integers(0, V, (B, T), dtype=np.int32)

NOTHING = np.zeros(0, np.int32)  # no end token: answers keep their whole length


def make(spec):
    return rotary.make(spec, head_dim=8, seq_len=64)


@partial(jax.jit, static_argnums=0)
def full_logits(config, params, tokens, rot):
    return llama.logits(config, params, tokens, rot)


def grow(config, params, rot, prompts, n):
    """One full forward over the whole text per token, and the smallest lead of a choice."""
    tokens = np.pad(prompts, ((0, 0), (0, n)))
    lead = np.inf
    for t in range(prompts.shape[1], tokens.shape[1]):
        logits = np.asarray(full_logits(config, params, tokens, rot))[:, t - 1]
        tokens[:, t] = logits.argmax(-1)
        first, second = np.sort(logits)[:, :-3:-1].T
        lead = min(lead, (first - second).min())
    return tokens[:, prompts.shape[1] :], lead


@pytest.mark.parametrize("layout", rotary.LAYOUTS)
def test_greedy_equals_full_forwards(layout, random_params):
    """Grouped queries, three methods, one compilation."""
    config = dataclasses.replace(TINY, rotary_layout=layout)
    params = random_params(config)
    before = generate.greedy._cache_size()
    found = []
    for rot in map(make, METHODS):
        tokens = generate.greedy(config, params, rot, PROMPTS, NEW)
        expected, lead = grow(config, params, rot, PROMPTS, NEW)
        assert lead > 1e-4  # no choice that rounding could turn
        np.testing.assert_array_equal(tokens, expected)
        assert tokens.dtype == np.int32
        found.append(expected)
    assert generate.greedy._cache_size() == before + 1
    assert not np.array_equal(found[0], found[1])


# Scoring, on samples whose answers are the model's own


def test_greedy_on_a_mesh_equals_one_device(random_params):
    """Prompts of a length that a tensor axis does not divide; a sequence axis is refused."""
    params, rot, prompts = random_params(TINY), make(rotary.RoPE(100.0)), PROMPTS[:2, :11]
    alone = generate.greedy(TINY, params, rot, prompts, 4)
    four = partial(sharding.make_mesh, devices=jax.devices()[:4])
    with jax.set_mesh(four(fsdp=2, tensor=2)):
        np.testing.assert_array_equal(generate.greedy(TINY, params, rot, prompts, 4), alone)
    with (
        jax.set_mesh(four(sequence=4)),
        pytest.raises(ValueError, match="no decoding with a cache"),
    ):
        jax.eval_shape(lambda x: generate.greedy(TINY, params, rot, x, 4), prompts)


@pytest.fixture(scope="module")
def own(random_params):
    """Params, rotary, samples that the model answers itself; every other answer spoilt."""
    params, rot = random_params(TINY), make(METHODS[0])
    rng = np.random.default_rng(0)
    n = 10
    prompts = rng.integers(0, V, (n, T), dtype=np.int32)
    answers = grow(TINY, params, rot, prompts, NEW)[0]
    lengths = rng.integers(3, NEW + 1, n)
    mask = np.arange(NEW) < lengths[:, None]
    tokens = np.where(mask, answers, 0)
    for i in range(0, n, 2):
        at = rng.integers(lengths[i])
        tokens[i, at] = (tokens[i, at] + 1) % V
    samples = tasks.Samples(
        tokens=np.concatenate([prompts, tokens], axis=1),
        answer=np.pad(mask, ((0, 0), (T, 0))),
        prompt_length=T,
        documents=np.arange(n),
    )
    return params, rot, samples, answers


@pytest.mark.parametrize("batch", [4, 16])
def test_teacher_forcing_equals_greedy_decoding(batch, own):
    """In one pass or generated: the same verdict, whatever the batch. Shares token by token."""
    params, rot, samples, _ = own
    exact, share = retrieval.teacher_forced(TINY, params, rot, samples, batch=batch)
    assert exact.dtype == bool and exact.tolist() == [False, True] * 5
    found = retrieval.answers(TINY, params, rot, samples, end=NOTHING, batch=batch)
    pairs = zip(found, samples.references(), strict=True)
    assert [np.array_equal(a[: len(r)], r) for a, r in pairs] == exact.tolist()

    choices = np.asarray(full_logits(TINY, params, samples.tokens, rot)).argmax(-1)
    for i, reference in enumerate(samples.references()):
        right = choices[i, T - 1 : T - 1 + len(reference)] == reference
        np.testing.assert_allclose(share[i], right.mean(), rtol=1e-6)
    assert share.dtype == np.float32 and len(set(share.tolist())) > 2


def test_answers_are_cut_before_the_end_token(own):
    params, rot, samples, answers = own
    end = int(answers[0, 2])
    found = retrieval.answers(TINY, params, rot, samples, end=np.asarray([end]))
    for row, answer in zip(found, answers.tolist(), strict=True):
        assert row.tolist() == (answer[: answer.index(end)] if end in answer else answer)
    assert len(found[0]) < NEW
    # An end of several tokens cuts where all of them stand, and only there.
    pair = answers[0, 2:4]
    found = retrieval.answers(TINY, params, rot, samples, end=pair)
    first = next(i for i in range(NEW) if answers[0, i : i + 2].tolist() == pair.tolist())
    assert found[0].tolist() == answers[0, :first].tolist()
    whole = retrieval.answers(TINY, params, rot, samples, end=NOTHING)
    np.testing.assert_array_equal(whole, answers)


def test_rouge_l_of_answers():
    pytest.importorskip("rouge_score")
    tokenizer = tokenizers.ByteTokenizer()
    text = "".join(f"The {n} of {n[::-1]} was {n * 2}. " for n in ("abba", "cdef", "ghij", "klmn"))
    documents = [passages.passages(Document("a", text), tokenizer, min_tokens=4, max_tokens=40)]
    samples = tasks.first_sentence_samples(
        tasks.FirstSentence(), documents, tokenizer, length=70, count=4, seed=0, bos="<bos>"
    )
    perfect = [reference[:-1] for reference in samples.references()]  # cut before the end token
    scores = retrieval.rouge_l_of_answers(perfect, samples, tokenizer.decode)
    np.testing.assert_array_equal(scores, 100.0)
    # Half of the words, all of them right: precision 1, recall 3 in 6.
    half = [tokenizer.encode(" ".join(tokenizer.decode(a).split()[:3])) for a in perfect]
    scores = retrieval.rouge_l_of_answers(half, samples, tokenizer.decode)
    lengths = [len(tokenizer.decode(a).split()) for a in perfect]
    np.testing.assert_allclose(scores, [100 * 2 * 3 / (3 + n) for n in lengths])
    wrong = [tokenizer.encode("xyz")] * 4
    assert not retrieval.rouge_l_of_answers(wrong, samples, tokenizer.decode).any()
