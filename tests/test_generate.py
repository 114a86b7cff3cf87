"""Generation against full forwards: one forward over the whole text per token, no cache."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import generate, llama, rotary, sharding, tasks
from longrope_jax.data import documents, tokenizers
from longrope_jax.data.corpora import Document
from longrope_jax.evaluation import retrieval
from longrope_jax.generate import Sampling
from longrope_jax.sampling import choose, nucleus, row_keys

V, T, NEW, B = 64, 12, 6, 3
TINY = llama.LlamaConfig(
    vocab_size=V, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32
)
METHODS = [rotary.RoPE(100.0), rotary.PositionInterpolation(4), rotary.build("xpos_abf")]
PROMPTS = np.random.default_rng(5).integers(0, V, (B, T), dtype=np.int32)
RAGGED = [PROMPTS[0], PROMPTS[1][:5], PROMPTS[2][:1]]
# The frequencies change within the text: at each token, and once at 14 tokens.
DYNAMIC = rotary.DynamicNTK(original_length=9, factor=4.0, base=100.0)
LONGROPE = rotary.LongRoPE(long_factor=6.0, original_length=14, factor=4.0, base=100.0)

NOTHING = np.zeros(0, np.int32)  # no end token: answers keep their whole length


SMOLLM2 = llama.preset("smollm2_135m")


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


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(TINY)


def new(params, method, prompts, n=NEW, config=TINY, **options):
    rows = generate.generate(config, params, method, prompts, n, **options).tokens
    return [row.tolist() for row in rows]


@pytest.fixture(scope="module")
def seen():
    """Logits [B, V] of every step of `generate`, by the position of the token they chose."""
    logits = {}

    def record(at, rows):
        for row, (position, value) in enumerate(zip(at.tolist(), rows, strict=True)):
            logits[row, position] = value

    def choose_and_tell(rows, sampling, keys, at):
        jax.debug.callback(record, at, rows)
        return choose(rows, sampling, keys, at)

    with pytest.MonkeyPatch.context() as patch:
        generate._decode.clear_cache()
        patch.setattr(generate, "choose", choose_and_tell)
        yield logits
    generate._decode.clear_cache()


def check_steps(seen, params, method, rotary_length, rot):
    """Every step's logits against a full forward over the text so far under rot(length)."""
    seen.clear()
    tokens = new(params, method, PROMPTS, rotary_length=rotary_length)
    jax.effects_barrier()
    text = np.concatenate([PROMPTS, tokens], axis=1)
    for length in range(T, T + NEW):
        full = np.asarray(full_logits(TINY, params, text, rot(length)))[:, length - 1]
        found = [seen[row, length] for row in range(B)]
        np.testing.assert_allclose(found, full, atol=2e-5)


# Greedy decoding


def test_layers_are_unstacked_where_the_text_is_long_for_the_model():
    model = jax.eval_shape(partial(llama.init_params, SMOLLM2), jax.random.key(0))
    pays = partial(generate._unstacking_pays, SMOLLM2, model)
    assert pays(1024) and not pays(128)  # measured: 13 ms a token, 6 seconds to compile


@pytest.mark.parametrize("unstacked", [False, True])
@pytest.mark.parametrize("layout", rotary.LAYOUTS)
def test_greedy_equals_full_forwards(layout, unstacked, random_params, monkeypatch, compilations):
    """Grouped queries, three methods, one compilation; layers stacked or each on its own."""
    jax.clear_caches()  # a test that ran before may have compiled the same program
    monkeypatch.setattr(generate, "_unstacking_pays", lambda *_: unstacked)
    config = dataclasses.replace(TINY, rotary_layout=layout)
    params = random_params(config)
    found = []
    for method in METHODS:
        tokens = new(params, method, PROMPTS, config=config)
        rot = rotary.make(method, head_dim=8, seq_len=T + NEW)
        expected, lead = grow(config, params, rot, PROMPTS, NEW)
        assert lead > 1e-4  # no choice that rounding could turn
        assert tokens == expected.tolist()
        found.append(tokens)
    assert compilations.count("jit(_decode)") == 1
    assert found[0] != found[1]


def test_final_length_equals_full_forwards_for_every_method(spec, params, seen):
    """Prefill and each step: the frequencies of prompt + new tokens, throughout."""
    spec = _short(spec)
    rot = rotary.make(spec, head_dim=8, seq_len=T + NEW)
    check_steps(seen, params, spec, "final", lambda _: rot)


def test_current_length_equals_full_forwards_for_every_method(spec, params, seen):
    """Each step is a full forward at the length that the text has just then."""
    spec = _short(spec)

    def rot(length):
        f = spec.frequencies(head_dim=8, seq_len=length)
        return rotary.from_frequencies(f, seq_len=T + NEW)

    check_steps(seen, params, spec, "current", rot)


def _short(spec):
    """The method with a trained length that the generated text passes."""
    if hasattr(spec, "inner"):
        spec = dataclasses.replace(spec, inner=_short(spec.inner))
    if getattr(spec, "original_length", None) is None:
        return spec
    window = {"window": 2} if hasattr(spec, "window") else {}
    return dataclasses.replace(spec, original_length=14, **window)


@pytest.mark.parametrize("method", [DYNAMIC, LONGROPE])
def test_current_and_final_length_differ_where_the_frequencies_change(method, params):
    """So that the tests above could have seen one in place of the other."""
    current = new(params, method, PROMPTS, 12, rotary_length="current")
    assert current != new(params, method, PROMPTS, 12)


def test_prefix_is_computed_again_only_where_frequencies_change(params):
    """Once for plain RoPE, twice across LongRoPE's switch, every `n` tokens for dynamic NTK."""
    prompt = PROMPTS[:1, :10]
    run = partial(generate.generate, TINY, params, prompts=prompt, max_new_tokens=8)
    counts = {
        "rope": run(METHODS[0], rotary_length="current").prefilled,
        "longrope": run(LONGROPE, rotary_length="current").prefilled,
        "dynamic": run(DYNAMIC, rotary_length="current").prefilled,
        "every 4": run(DYNAMIC, rotary_length="current", refresh_every=4).prefilled,
        "final": run(DYNAMIC).prefilled,
    }
    assert counts == {
        "rope": 9,
        "longrope": 9 + 14,  # the switch is at 15 tokens, the last of which is decoded
        "dynamic": sum(range(9, 17)),
        "every 4": 9 + 13,
        "final": 9,
    }


# Batches, caches, chunks


@pytest.mark.parametrize("mode", generate.ROTARY_LENGTHS)
@pytest.mark.parametrize("method", [METHODS[2], DYNAMIC, LONGROPE])
def test_a_row_does_not_depend_on_its_batch(method, mode, params):
    """Prompts of 12, 5 and 1 tokens; frequencies that depend on each row's own length."""
    together = new(params, method, RAGGED, 12, rotary_length=mode)
    alone = [new(params, method, [row], 12, rotary_length=mode)[0] for row in RAGGED]
    assert together == alone


@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, T), min_size=B, max_size=B), seed=st.integers(0, 99))
def test_sampled_rows_do_not_depend_on_their_batch(params, lengths, seed):
    prompts = [row[:n] for row, n in zip(PROMPTS, lengths, strict=True)]
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=seed)
    together = new(params, METHODS[0], prompts, sampling=sampling)
    for i, prompt in enumerate(prompts):
        alone = dataclasses.replace(sampling, seed=seed + i)
        assert new(params, METHODS[0], [prompt], sampling=alone) == [together[i]]


@pytest.mark.parametrize("chunk", [1, 4, 8])
def test_prefill_in_chunks_equals_one_pass(chunk, params):
    """Remainders too: 11 tokens are no multiple of 4 or 8."""
    whole = new(params, METHODS[2], RAGGED)
    assert new(params, METHODS[2], RAGGED, prefill_chunk=chunk) == whole


@partial(jax.jit, static_argnums=0)
def extend(config, params, tokens, cache):
    rot = make(METHODS[0])
    return llama.Llama(config).apply({"params": params}, tokens, rotary=rot, cache=cache)


def cached(params, dtype, backend="auto"):
    """Hidden states of the last 4 of 12 tokens after a prefill of 8."""
    config = dataclasses.replace(TINY, attention=backend)
    _, cache = extend(config, params, PROMPTS[:, :8], llama.init_cache(config, B, T, dtype=dtype))
    return extend(config, params, PROMPTS[:, 8:], cache)


def test_a_bfloat16_cache_is_close(params):
    exact, cache = cached(params, "float32")
    rounded, small = cached(params, "bfloat16")
    assert small.k.nbytes == cache.k.nbytes // 2
    error = np.abs(exact - rounded).max()
    assert 1e-4 < error < 0.05  # rounding of 2^-9, seen and small
    reference, _ = cached(params, "bfloat16", "reference")
    np.testing.assert_allclose(reference, rounded, atol=1e-5)


def test_a_full_cache_is_an_error(params):
    _, cache = cached(params, "float32")
    with pytest.raises(ValueError, match="no room for 4 tokens after 12 in a cache of 12"):
        llama.Llama(TINY).apply(
            {"params": params}, PROMPTS[:, :4], rotary=make(METHODS[0]), cache=cache
        )
    with pytest.raises(ValueError, match="unknown cache dtype 'bf16'; did you mean"):
        llama.init_cache(TINY, 1, 4, dtype="bf16")


def test_stacked_rotaries_need_a_row_each():
    rot = rotary.make(METHODS[0], head_dim=8, seq_len=[8, 16])
    for positions in (np.arange(4), np.zeros((3, 4), int)):
        with pytest.raises(ValueError, match="2 stacked rotaries, positions of shape"):
            rotary.phases(rot, positions)


# Sampling


jitted_nucleus = jax.jit(nucleus)


def numpy_nucleus(p, top_p):
    """The set by its definition: sort, and add tokens until there is enough."""
    order = np.argsort(-p, kind="stable")
    count = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    inside = np.zeros(len(p), bool)
    inside[order[:count]] = True
    return inside


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top_p=st.floats(0.01, 0.99), scale=st.floats(0.1, 8.0))
def test_nucleus_is_the_smallest_set_with_enough_probability(seed, top_p, scale):
    x = np.random.default_rng(seed).normal(size=40) * scale
    p = np.exp(x - x.max())
    p /= p.sum()
    edge = np.abs(np.cumsum(np.sort(p)[::-1]) - top_p).min()
    found = np.asarray(jitted_nucleus(jnp.asarray(p[None], jnp.float32), top_p))[0]
    if edge > 1e-6:  # not where rounding decides
        np.testing.assert_array_equal(found, numpy_nucleus(p, top_p))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_draws_have_the_right_distribution(temperature, top_p):
    n, logits = 20_000, np.random.default_rng(0).normal(size=8) * 1.5
    sampling = Sampling(temperature, top_p)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, 8))
    keys = row_keys(Sampling(seed=1), n)
    drawn = jax.jit(choose)(rows, sampling.data(), keys, jnp.zeros(n, jnp.int32))
    p = np.exp(logits / temperature)
    p /= p.sum()
    p = np.where(numpy_nucleus(p, top_p), p, 0)
    p /= p.sum()
    share = np.bincount(drawn, minlength=8) / n
    assert not share[p == 0].any()
    np.testing.assert_array_less(np.abs(share - p), 5 * np.sqrt(p * (1 - p) / n) + 1e-12)


def test_temperature_towards_zero_is_greedy(params):
    cold = new(params, METHODS[0], RAGGED, sampling=Sampling(temperature=1e-6))
    assert cold == new(params, METHODS[0], RAGGED)


def test_seeds_repeat_and_differ(params):
    """The same seed the same tokens; another seed, another row and another step others."""
    prompts = [PROMPTS[0]] * 4
    sample = partial(new, params, METHODS[0], prompts, 24)
    first = sample(sampling=Sampling(1.0, seed=7))
    assert first == sample(sampling=Sampling(1.0, seed=7))
    assert first[1:] == sample(sampling=Sampling(1.0, seed=8))[:3]
    assert first == sample(sampling=Sampling(1.0, seed=(7, 8, 9, 10)))
    assert len({tuple(row) for row in first}) == 4
    assert len(set(first[0])) > 4


# Ends and streaming


def test_rows_end_before_their_first_stop_sequence(params):
    whole = new(params, METHODS[0], RAGGED, 40)
    single, pair = whole[0][20], whole[1][30:32]
    found = new(params, METHODS[0], RAGGED, 40, stop=[(single,), pair])
    for row, all_of_it in zip(found, whole, strict=True):
        ends = [i for i, token in enumerate(all_of_it) if token == single]
        ends += [i for i in range(39) if all_of_it[i : i + 2] == pair]
        assert row == all_of_it[: min(ends, default=40)]
    assert len(found[0]) <= 20 and len(found[1]) <= 30


def test_streamed_pieces_are_the_result(params):
    """A stop sequence of which only the beginning is there yet is held back."""
    whole = new(params, METHODS[0], RAGGED, 40)
    stop = [whole[0][14:18]]  # is cut by the end of the first 16 tokens
    pieces = []
    found = new(params, METHODS[0], RAGGED, 40, stop=stop, stream=pieces.append)
    assert len(found[0]) <= 14
    streamed = [np.concatenate(row).tolist() for row in zip(*pieces, strict=True)]
    assert streamed == found
    assert len(pieces) > 1 and len(pieces[0][1])


# What cannot be done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[1, 2], []]}, "prompt 1 is .*at least one integer token"),
        ({"prompts": [[1, V]]}, f"prompt 0 has tokens 1 to {V}: expected 0 to {V - 1}"),
        ({"prompts": ["text"]}, "prompt 0 is "),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"rotary_length": "curent"}, "unknown rotary_length 'curent'; did you mean 'current'"),
        ({"refresh_every": 0, "rotary_length": "current"}, "refresh_every must be at least 1"),
        ({"refresh_every": 2}, "refresh_every needs rotary_length='current'"),
        ({"prefill_chunk": 3}, "prefill_chunk must be a power of two"),
        ({"stop": [()]}, r"stop sequence \[\]"),
        ({"stop": [5]}, "stop sequence 5: expected at least one token"),
        ({"stop": [(V,)]}, rf"stop sequence \[{V}\]: expected tokens 0 to {V - 1}"),
        ({"stop": [(1.0,)]}, r"stop sequence \[1.0\]"),
        (
            {"sampling": Sampling(1.0, seed=-1)},
            "seed must be an integer .*, got -1",
        ),
        ({"sampling": Sampling(1.0, seed=2**70)}, "seed must be .*, got 1180591620717411303424"),
        ({"sampling": Sampling(1.0, seed=(1, 2))}, "2 seeds for 1 rows"),
    ],
)
def test_what_cannot_be_done_is_refused(change, message, params):
    options = {"prompts": [[1, 2, 3]], "max_new_tokens": 2} | change
    with pytest.raises(ValueError, match=message):
        generate.generate(TINY, params, METHODS[0], **options)


@pytest.mark.parametrize("options", [(-1.0,), (float("nan"),), (1.0, 0.0), (1.0, 1.5), (0.0, 0.9)])
def test_sampling_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"temperature|top_p"):
        Sampling(*options)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_logits_that_are_not_finite_are_no_text(dtype, random_params):
    """Weights at which float16 overflows, and weights that are NaN."""
    config = dataclasses.replace(TINY, dtype=dtype)
    params, scale = random_params(TINY), 1e6 if dtype == "float16" else np.nan
    params["unembed"] = params["unembed"] * scale
    with pytest.raises(ValueError, match=f"not finite with dtype={dtype}.*bfloat16") as error:
        generate.generate(config, params, rotary.RoPE(), PROMPTS, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "mode",
    [jax.enable_x64(True), jax.debug_nans(True), jax.default_matmul_precision("bfloat16")],
    ids=["x64", "debug_nans", "matmul_precision"],
)
def test_modes_of_jax_change_no_tokens(mode, random_params):
    params, rot = random_params(TINY), make(METHODS[0])
    alone = generate.generate(TINY, params, rot, RAGGED, 4).tokens
    with mode:
        found = generate.generate(TINY, params, METHODS[0], RAGGED, 4).tokens
    for a, b in zip(found, alone, strict=True):
        np.testing.assert_array_equal(a, b)


# Scoring, on samples whose answers are the model's own


@pytest.mark.parametrize(("unstacked", "tensor"), [(False, 4), (True, 2)])
def test_greedy_on_a_mesh_equals_one_device(unstacked, tensor, random_params, monkeypatch):
    """Prompts of unequal lengths that a tensor axis does not divide; a sequence axis is refused.

    A tensor axis of 4 copies the two key heads, in the cache too.
    """
    monkeypatch.setattr(generate, "_unstacking_pays", lambda *_: unstacked)
    params, rot = random_params(TINY), make(rotary.RoPE(100.0))
    prompts = [row[:n] for row, n in zip(PROMPTS[:2], (11, 6), strict=True)]
    alone = generate.generate(TINY, params, rot, prompts, 4).tokens
    four = partial(sharding.make_mesh, devices=jax.devices()[:4])
    with jax.set_mesh(four(fsdp=-1, tensor=tensor)):
        np.testing.assert_array_equal(
            generate.generate(TINY, params, rot, prompts, 4).tokens, alone
        )
    with (
        jax.set_mesh(four(sequence=4)),
        pytest.raises(ValueError, match="decoding with a cache"),
    ):
        generate.generate(TINY, params, rot, prompts, 4)


@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 4}], ids=str)
@pytest.mark.parametrize("length", ["final", "current"])
def test_any_number_of_rows_is_divided_over_a_mesh(axes, length, random_params):
    """One prompt, and three of their own seeds and lengths, whose frequencies differ by row."""
    params, method = random_params(TINY), rotary.DynamicNTK(original_length=4)
    drawn = Sampling(temperature=1.0, seed=(5, 3, 9))
    mesh = sharding.make_mesh(devices=jax.devices()[: max(axes.values())], **{"data": 1} | axes)
    for rows, sampling in [(1, Sampling()), (3, drawn)]:
        prompts = [row[:n] for row, n in zip(PROMPTS[:rows], (11, 6, 8), strict=False)]
        options = {"sampling": sampling, "rotary_length": length}
        seen = []
        alone = generate.generate(TINY, params, method, prompts, 5, **options)
        with jax.set_mesh(mesh):
            both = generate.generate(
                TINY,
                params,
                method,
                prompts,
                5,
                **options,
                stream=seen.append,
            )
        assert [row.tolist() for row in both.tokens] == [row.tolist() for row in alone.tokens]
        assert (both.prefilled, both.decoded) == (alone.prefilled, alone.decoded)
        assert seen and {len(new) for new in seen} == {rows}


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
    held_out = [
        documents.tokenize_document(Document("a", text), tokenizer, min_tokens=4, max_tokens=40)
    ]
    samples = tasks.FirstSentence().samples(
        held_out, tokenizer, length=70, count=4, seed=0, bos="<bos>"
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
