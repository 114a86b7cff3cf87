"""Log-likelihoods of requests: against whole forward passes, against transformers, on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import CONFIG, tokenizer_json, write

import longrope_jax
from longrope_jax import llama, rotary
from longrope_jax.evaluation import requests as requests_lib
from longrope_jax.evaluation.requests import Request, encode, program_length, score
from longrope_jax.sharding import make_mesh

LENGTH = 96


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(CONFIG)


def drawn(seed=0, items=8):
    """Requests of a few-shot prompt, without one, with one and with several choices."""
    rng = np.random.default_rng(seed)
    prompt, found = rng.integers(0, 40, 40), []
    for i in range(items):
        context = rng.integers(0, 40, rng.integers(1, 30))
        if i % 3 == 0:
            context = np.concatenate([prompt, context])
        for _ in range(1 + i % 4):
            continuation = rng.integers(0, 40, rng.integers(1, 20))
            found.append(Request(context.astype(np.int32), continuation.astype(np.int32)))
    return found


def whole(params, spec, requests):
    """Log-likelihood and greediness in float64 of whole forward passes over [context, answer]."""
    rows = np.zeros((len(requests), LENGTH), np.int32)
    for row, request in zip(rows, requests, strict=True):
        row[: sum(map(len, request))] = np.concatenate(request)
    logits = np.asarray(llama.logits(CONFIG, params, rows, spec), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    sums, greedy = [], []
    for one, (context, answer) in zip(logs, requests, strict=True):
        at = np.arange(len(context) - 1, len(context) + len(answer) - 1)
        sums.append(one[at, answer].sum())
        greedy.append((one[at].argmax(-1) == answer).all())
    return np.array(sums), np.array(greedy)


SPECS = ("rope", "yarn:factor=4,original_length=16", "dynamic_ntk:factor=2,original_length=16")


@pytest.mark.parametrize("spec", [*SPECS, "self_extend:group=4,window=8"])
def test_shared_contexts_score_as_whole_forward_passes(params, spec):
    requests = drawn()
    found = score(CONFIG, params, spec, requests, length=LENGTH, batch_tokens=256)
    sums, greedy = whole(params, spec, requests)
    np.testing.assert_allclose(found.log_likelihood, sums, atol=2e-5)
    np.testing.assert_array_equal(found.greedy, greedy)
    np.testing.assert_array_equal(found.tokens, [len(r.continuation) for r in requests])


def test_what_is_greedy_is_said_so(params):
    context = np.arange(5, 17, dtype=np.int32)
    best = np.asarray(llama.logits(CONFIG, params, context[None], "rope"))[0, -1].argsort()[::-1]
    requests = [Request(context, best[i : i + 1].astype(np.int32)) for i in range(2)]
    assert score(CONFIG, params, "rope", requests).greedy.tolist() == [True, False]


def test_one_program_of_each_shape_serves_all_methods(params, compilations):
    def run(spec, seed):
        compilations.clear()
        score(CONFIG, params, spec, drawn(seed), length=LENGTH, batch_tokens=256)
        return [name for name in compilations if name in ("jit(_filled)", "jit(_scored)")]

    jax.clear_caches()
    first = run("rope", 0)
    assert 2 <= len(first) <= 16
    assert not any(run(spec, 0) for spec in (*SPECS, "xpos", "abf"))


def test_a_prefix_is_computed_once(params, monkeypatch):
    fed = []
    filled, scored = requests_lib._filled, requests_lib._scored

    def count_filled(*args):
        fed.append(args[5].size)
        return filled(*args)

    def count_scored(*args):
        fed.append(args[5].size)
        return scored(*args)

    monkeypatch.setattr(requests_lib, "_filled", count_filled)
    monkeypatch.setattr(requests_lib, "_scored", count_scored)
    prompt = np.arange(200, dtype=np.int32) % 40
    shots = [
        Request(np.append(prompt, [i, i + 1, i + 2]).astype(np.int32), np.array([j], np.int32))
        for i in range(16)
        for j in range(2)
    ]
    score(CONFIG, params, "rope", shots)
    assert 200 <= sum(fed) <= 200 + 32 * 16  # 32 requests of 203 tokens would be 6,496


def test_a_mesh_does_not_change_scores(params):
    requests = drawn(items=6)
    alone = score(CONFIG, params, "rope", requests, length=LENGTH, batch_tokens=128)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        shared = score(CONFIG, params, "rope", requests, length=LENGTH, batch_tokens=128)
    np.testing.assert_allclose(shared.log_likelihood, alone.log_likelihood, rtol=1e-5, atol=1e-5)
    with jax.set_mesh(make_mesh(data=2, sequence=4)):  # over which no cache can be divided
        apart = score(CONFIG, params, "rope", requests, length=LENGTH, batch_tokens=128)
    np.testing.assert_allclose(apart.log_likelihood, alone.log_likelihood, rtol=1e-5, atol=1e-5)


def test_program_lengths_are_few_and_waste_little():
    lengths = {n: program_length(n) for n in range(1, 3000)}
    assert all(n <= at <= max(32, 1.5 * n) for n, at in lengths.items())
    assert sorted(set(lengths.values()))[:6] == [16, 32, 48, 64, 96, 128]


def test_blanks_belong_to_the_continuation_and_an_empty_context_is_the_beginning():
    def ids(text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    [one, two] = encode(ids, [("a b ", "c"), ("", "cd")], first=1)
    assert [x.tolist() for x in one] == [[1, *b"a b"], [*b" c"]]
    assert [x.tolist() for x in two] == [[1], [*b"cd"]]
    assert encode(ids, [("", "cd")], alone=7)[0].context.tolist() == [7]
    with pytest.raises(ValueError, match="empty context"):
        encode(ids, [("", "cd")])
    with pytest.raises(ValueError, match="no tokens"):
        encode(ids, [("a", "")], first=1)


def test_bad_requests_are_refused_by_number(params):
    good = Request(np.arange(3, dtype=np.int32), np.arange(2, dtype=np.int32))
    long = Request(np.arange(30, dtype=np.int32), np.arange(10, dtype=np.int32))
    with pytest.raises(ValueError, match=r"request 1 has 39 tokens.*length=32"):
        score(CONFIG, params, "rope", [good, long], length=32)
    with pytest.raises(ValueError, match="continuation of request 0 has token 40"):
        score(CONFIG, params, "rope", [good._replace(continuation=np.array([40], np.int32))])
    with pytest.raises(ValueError, match="request 0: the context"):
        score(CONFIG, params, "rope", [good._replace(context=np.zeros(0, np.int32))])
    assert not len(score(CONFIG, params, "rope", []).greedy)


TEXTS = [
    ("the cat", " sat on the mat"),
    ("the cat", " thought"),
    ("the cat ", "there"),
    ("a much longer context with 123 numbers in it so that buckets differ", " the end"),
    ("a much longer context with 123 numbers in it so that buckets differ", " or not"),
]


def test_texts_score_as_in_transformers(tmp_path):
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    torch = pytest.importorskip("torch", reason=why)
    transformers = pytest.importorskip("transformers", reason=why)
    path, _ = write(tmp_path, "hf")
    (path / "tokenizer.json").write_text(tokenizer_json())
    model = longrope_jax.load(path)
    requests = encode(lambda text: model.encode(text, bos=False), TEXTS)
    found = score(model.config, model.params, rotary.parse("rope"), requests)
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    for i, (context, continuation) in enumerate(TEXTS):
        kept = context.rstrip()
        whole = tokenizer.encode(context + continuation)
        start = len(tokenizer.encode(kept))
        with torch.no_grad():
            logs = peer(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        at = torch.arange(start - 1, len(whole) - 1)
        answer = torch.tensor(whole[start:])
        assert found.log_likelihood[i] == pytest.approx(float(logs[at, answer].sum()), abs=1e-4)
        assert found.greedy[i] == bool((logs[at].argmax(-1) == answer).all())


def test_memory_does_not_hold_the_logits_of_all_answers():
    B, T, V = 64, 64, 32_768
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 16}
    config = llama.LlamaConfig(vocab_size=V, d_ff=16, **sizes)
    rot = rotary.make(rotary.RoPE(), head_dim=16, seq_len=T)
    shapes = jax.eval_shape(lambda: llama.init_params(config, jax.random.key(0)))
    tokens, first = jax.ShapeDtypeStruct((B, T), jnp.int32), jax.ShapeDtypeStruct((B,), jnp.int32)
    scored = requests_lib._scored.lower(config, 0, shapes, rot, None, tokens, first, tokens)
    memory = scored.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * B * T * V / 2
