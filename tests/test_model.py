"""A Model is one record of what can be run, and its methods are the free functions they call."""

import dataclasses

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, TOKENS, assert_same, numbers, tokenizer_json, write, write_meta

import longrope_jax
from longrope_jax import Model, generate, llama, model, rotary, sharding, weights
from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SpecialTokens
from longrope_jax.evaluation.perplexity import perplexity
from longrope_jax.evaluation.windowing import OnePass, Sliding

SPECIAL = SpecialTokens(0, 3, True, (5,))
TOKENIZER = HuggingFaceTokenizer("random", tokenizer_json())
TEXT = "the cat sat on the mat and the dog sat on the cat "


@pytest.fixture(scope="module")
def tiny():
    params = jax.tree.map(jax.numpy.asarray, numbers(CONFIG))
    return Model(CONFIG, params, rotary.RoPE(100.0), TOKENIZER, 32, SPECIAL)


def test_repr_fits_one_line(tiny):
    text = repr(tiny)
    assert "\n" not in text and len(text) <= 160
    assert "RoPE(base=100.0)" in text and "trained on 32 tokens" in text and "parameters" in text
    assert len(repr(tiny.with_rotary(rotary.LongRoPE(tuple(range(1, 33)), 32, 4)))) <= 160
    assert "parameters" not in repr(dataclasses.replace(tiny, params=None))


def test_logits_are_those_of_the_model(tiny):
    """Of text with its beginning token, of ids, of rows; under any method."""
    for given, spec in (
        (None, tiny.method),
        ("abf", rotary.RoPE(500_000.0)),
        ("yarn:factor=4", rotary.YaRN(base=100.0, factor=4, original_length=32)),
        (rotary.RoPE(7.0), rotary.RoPE(7.0)),
        (rotary.make(rotary.RoPE(7.0), head_dim=8, seq_len=12), rotary.RoPE(7.0)),
    ):
        rot = rotary.make(spec, head_dim=8, seq_len=12)
        expected = np.asarray(llama.logits(CONFIG, tiny.params, TOKENS, rot))
        np.testing.assert_array_equal(tiny.logits(TOKENS, given), expected)
        np.testing.assert_array_equal(tiny.logits(TOKENS[0].tolist(), given), expected[0])
    ids = tiny.encode("the cat")
    assert ids[0] == SPECIAL.bos
    np.testing.assert_array_equal(tiny.logits("the cat"), tiny.logits(ids))
    np.testing.assert_array_equal(tiny.logits("the cat", bos=False), tiny.logits(ids[1:]))


def test_text_in_is_text_out_and_ids_in_are_ids_out(tiny):
    """What is new, as `generate` has it: the prompt is not repeated."""
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1, "rotary": "abf"}
    prompts = ["the cat", "a dog sat"]
    rows = [tiny.encode(text) for text in prompts]
    expected = generate.generate(
        CONFIG,
        tiny.params,
        rotary.RoPE(500_000.0),
        rows,
        12,
        sampling=generate.Sampling(1.0, seed=1),
        stop=[(3,), (5,)],
    ).tokens
    texts = [tiny.decode(ids) for ids in expected]
    assert tiny.generate(prompts, **options) == texts
    assert tiny.generate(prompts[0], **options) == texts[0]
    for found, ids in zip(tiny.generate(rows, **options), expected, strict=True):
        np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(tiny.generate(rows[0], **options), expected[0])
    np.testing.assert_array_equal(tiny.generate(rows[0].tolist(), **options), expected[0])
    whole = tiny.generate(prompts[0], **options | {"bos": False})
    assert whole == tiny.decode(tiny.generate(rows[0][1:], **options))


def test_stops_are_strings_and_ids_in_any_mixture(tiny):
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 4}
    whole = tiny.generate("the cat", **options)
    ids = tiny.generate(tiny.encode("the cat"), **options)
    assert len(whole) > 8
    assert tiny.generate("the cat", stop=whole[3:5], **options) == whole.split(whole[3:5])[0]
    stop = [whole[6:8], int(ids[2])]
    first = tiny.decode(ids[: ids.tolist().index(ids[2])]).split(stop[0])[0]
    assert tiny.generate("the cat", stop=stop, **options) == first
    found = tiny.generate(tiny.encode("the cat"), stop=[ids[3:5].tolist()], **options)
    np.testing.assert_array_equal(found, ids[:3])
    with pytest.raises(ValueError, match="stop='x' needs a text"):
        tiny.generate([1, 2], stop="x")
    with pytest.raises(ValueError, match="empty string"):
        tiny.generate("the", stop=["a", ""])


@pytest.mark.parametrize("prompt", ["the cat", ["the cat", "dog"], [1, 2, 3], [[1, 2, 3], [4]]])
def test_streamed_pieces_are_the_result(tiny, prompt):
    one, pieces = isinstance(prompt, str) or isinstance(prompt[0], int), []
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 4}
    found = tiny.generate(prompt, stream=pieces.append, **options)
    rows = [found] if one else found
    streamed = [[piece] for piece in pieces] if one else pieces
    assert pieces
    for i, row in enumerate(rows):
        parts = [piece[i] for piece in streamed]
        same = "".join(parts) if isinstance(row, str) else np.concatenate(parts)
        np.testing.assert_array_equal(same, row)


def test_perplexity_is_that_of_the_documents_under_the_method(tiny):
    ids = [TOKENIZER.encode(TEXT), TOKENIZER.encode(TEXT[::-1].lower())]
    for documents in ([TEXT, TEXT[::-1].lower()], ids):
        found = tiny.perplexity(documents, "pi:factor=2", windowing=Sliding(16, 4))
        spec = rotary.PositionInterpolation(base=100.0, factor=2)
        expected = perplexity(CONFIG, tiny.params, spec, ids, Sliding(16, 4), bos=0)
        assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
        assert found.tokens == sum(map(len, ids))
    plain = tiny.perplexity(TEXT, bos=False)
    assert plain.windowing == "one-pass-32" and plain.tokens == len(ids[0]) - 1
    unknown = dataclasses.replace(tiny, trained_length=None)
    with pytest.raises(ValueError, match="declares no trained length"):
        unknown.perplexity(TEXT)


def test_the_mean_of_the_loss_by_position_is_one_pass_over_whole_windows(tiny):
    ids = TOKENIZER.encode(TEXT)
    found = tiny.loss_by_position([TEXT, "the"], "abf", length=16)
    assert found.shape == (len(ids) // 16, 16)
    whole = [ids[: len(found) * 16]]
    expected = tiny.perplexity(whole, "abf", windowing=OnePass(16))
    assert found.mean() == pytest.approx(expected.nll, rel=1e-5)
    assert tiny.loss_by_position(TEXT, length=16, bos=False).shape == ((len(ids) - 1) // 16, 16)
    with pytest.raises(ValueError, match="no document fills a window"):
        tiny.loss_by_position("the", length=16)


def test_with_rotary_fills_open_options_from_the_checkpoint_and_says_so():
    """Base and trained length, not factor; what the text says, wins."""
    plain = Model(CONFIG, None, rotary.RoPE(100_000.0), None, 8192)

    def read(text, of=plain):
        return of.with_rotary(text).method

    found = plain.with_rotary("yarn:factor=4")
    assert found.method == rotary.YaRN(base=100_000.0, factor=4, original_length=8192)
    assert found.notes[-1].endswith("from the checkpoint: base=100000.0, original_length=8192")
    found = plain.with_rotary("yarn:factor=4,base=5e5")
    assert found.method == rotary.YaRN(base=500_000.0, factor=4, original_length=8192)
    assert found.notes[-1].endswith("from the checkpoint: original_length=8192")
    # ABF is another base by its name; a context that was extended is no trained length.
    assert read("abf") == rotary.RoPE(500_000.0)
    extended = dataclasses.replace(
        plain, method=rotary.PositionInterpolation(factor=4, base=100_000.0)
    )
    with pytest.raises(ValueError, match="yarn needs original_length"):
        read("yarn:factor=4", extended)
    llama3 = dataclasses.replace(
        plain, method=rotary.build("llama3", factor=8, original_length=4096)
    )
    assert read("dynamic_ntk", llama3).original_length == 4096
    assert read("log_n").inner == rotary.RoPE(100_000.0)
    assert read("partial:inner=(rope),fraction=0.5").inner.base == 100_000.0
    assert read(rotary.NoPE()) == rotary.NoPE()


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_saved_loaded_and_saved_again_is_the_same(tiny, form, tmp_path):
    """Parameters, method, ids, declared length and template; whatever it came from."""
    special = dataclasses.replace(SPECIAL, chat_template="{{ messages }}")
    first = dataclasses.replace(tiny, special_tokens=special, trained_length=48)
    paths = [tmp_path / f"{i}{'.gguf' if form == 'gguf' else ''}" for i in range(2)]
    for path in paths:
        first.save(path)
        again = longrope_jax.load(path)
        assert (again.method, again.special_tokens) == (first.method, special)
        assert again.trained_length == 48
        assert again.encode(TEXT).tolist() == tiny.encode(TEXT).tolist()
        expected = tiny.logits(TEXT)
        np.testing.assert_allclose(again.logits(TEXT), expected, rtol=1e-4, atol=1e-5)
        first = again
    assert_same(*(longrope_jax.load(path).params for path in paths))


def test_an_extended_model_declares_what_its_method_reaches(tiny, tmp_path, recwarn):
    tiny.with_rotary("yarn:factor=4").save(tmp_path / "out")
    found = longrope_jax.load(tmp_path / "out")
    assert (found.method.original_length, found.trained_length) == (32, 128)
    tiny.with_rotary("yarn:factor=4").save(tmp_path / "b", context_length=96)
    assert model.open_model(tmp_path / "b").trained_length == 96
    assert [str(w.message) for w in recwarn if "declared" in str(w.message)] == []


LLAMA3 = {"factor": 32.0, "original_length": 64, "base": 500_000.0}
DECLARED = {  # rotary method, tokens that the checkpoint declares
    "plain": (rotary.RoPE(), 8192),
    "Llama 3.1": (rotary.Llama3(**LLAMA3 | {"factor": 8.0}), 1024),
    "Llama 3.2": (rotary.Llama3(**LLAMA3), 1024),
    "linear": (rotary.PositionInterpolation(4.0), 16384),
}


@pytest.mark.parametrize("form", weights.FORMATS)
@pytest.mark.parametrize("case", DECLARED)
def test_a_declared_context_is_carried_from_file_to_file(tiny, tmp_path, form, case):
    """What a file declares is neither factor times original length nor a default."""
    spec, length = DECLARED[case]
    path = tmp_path / ("m.gguf" if form == "gguf" else "m")
    params = numbers(CONFIG)
    weights.save(path, CONFIG, params, spec, format=form, context_length=length)
    for other in weights.FORMATS:
        again = path.with_name("again.gguf" if other == "gguf" else "again")
        longrope_jax.load(path).save(again)
        assert model.open_model(again).trained_length == length


def test_meta_folders_are_saved_as_others(tiny, tmp_path):
    pytest.importorskip("torch", reason="LOUD SKIP: pip install torch to test Meta's folders")
    config = dataclasses.replace(CONFIG, rotary_layout="interleaved", d_ff=96)
    source = write_meta(tmp_path / "meta", config, numbers(config))
    found = longrope_jax.load(source)
    found.save(tmp_path / "out")
    again = longrope_jax.load(tmp_path / "out")
    np.testing.assert_allclose(again.logits(TOKENS), found.logits(TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["again", "again.gguf"])
def test_saving_a_second_time_says_how_to(tiny, tmp_path, name):
    tiny.save(tmp_path / name)
    with pytest.raises(ValueError, match=r"again.*(delete|remove).*another"):
        tiny.save(tmp_path / name)


def test_a_hub_id_says_how_to_download_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"hf download Some-Org/Llama-3\.2_1B --local-dir Llama"):
        longrope_jax.load("Some-Org/Llama-3.2_1B")
    with pytest.raises(ValueError, match=r"no checkpoint at .*expected a folder"):
        longrope_jax.load(tmp_path / "a" / "b")


@pytest.mark.parametrize("axes", [{"tensor": 2}, {"data": 1, "fsdp": 4}], ids=str)
def test_on_a_mesh_it_computes_the_same(axes, tmp_path):
    """One text as well, which four devices do not divide."""
    path, _ = write(tmp_path, "hf", tokenizer=TOKENIZER, special_tokens=SPECIAL)
    mesh = sharding.make_mesh(devices=jax.devices()[: max(axes.values())], **axes)
    one, two = longrope_jax.load(path), longrope_jax.load(path, mesh=mesh)
    np.testing.assert_allclose(one.logits(TOKENS), two.logits(TOKENS), rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 8}
    assert one.generate("the cat", **options) == two.generate("the cat", **options)
    pair = [m.perplexity(TEXT, windowing=OnePass(8)).nll for m in (one, two)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-5)
    pair = [m.loss_by_position(TEXT, length=8) for m in (one, two)]
    np.testing.assert_allclose(*pair, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate("", bos=False), "prompt is empty"),
        (lambda m: m.generate([]), "no prompts"),
        (lambda m: m.generate([[]]), "prompt 0"),
        (lambda m: m.generate([40]), "tokens 40 to 40: expected 0 to 39"),
        (lambda m: m.generate([1], bos=True), "bos=True is for text"),
        (lambda m: m.generate("the", max_new_tokens=0), "max_new_tokens"),
        (lambda m: m.generate("the", rotary="yarm"), "did you mean 'yarn'"),
        (lambda m: m.logits([]), "tokens must be"),
        (lambda m: m.logits([0.5]), "tokens must be"),
        (lambda m: m.logits([[[1]]]), "tokens must be"),
        (lambda m: m.perplexity([]), "1 document, got none"),
        (lambda m: m.with_rotary(3), "must be a method or its text, got 3"),
        (lambda m: m.save("x", format="ggml"), "did you mean 'gguf'"),
        (lambda m: dataclasses.replace(m, params=None).logits([1]), r"longrope_jax\.load reads"),
        (lambda m: dataclasses.replace(m, tokenizer=None).encode("a"), "no tokenizer"),
        (
            lambda m: dataclasses.replace(m, special_tokens=SpecialTokens()).encode("a", bos=True),
            "no beginning token",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tiny, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(tiny)
    assert "\n" not in str(error.value)


def test_open_model_reads_everything_but_the_parameters(tmp_path):
    path, _ = write(tmp_path, "hf", tokenizer=TOKENIZER, special_tokens=SPECIAL)
    header, whole = model.open_model(path), longrope_jax.load(path)
    for field in ("config", "method", "tokenizer", "trained_length", "special_tokens"):
        assert getattr(header, field) == getattr(whole, field)
    assert header.params is None and set(header.notes) <= set(whole.notes)
