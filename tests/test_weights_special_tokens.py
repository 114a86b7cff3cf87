"""Which tokens begin and end a text, where the files of a folder disagree; tokens that are added.

Truth is transformers live, on the same folder.
"""

import dataclasses
import json
import warnings

import pytest
from checkpoints import CONFIG, numbers

import longrope_jax
from longrope_jax import rotary, weights
from longrope_jax.data import tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def transformers():
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    module = pytest.importorskip("transformers", reason=why)
    module.logging.set_verbosity_error()
    return module


def llama_json(template=True):
    """A tokenizer.json of LLaMA's ids: <unk> 0, <s> 1, </s> 2; the template is `<s> $A`."""
    vocab = {token: at for at, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": at, "content": name, "special": True} | plain for name, at in list(vocab.items())[:3]
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}
    text["Sequence"]["type_id"] = 0
    named = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    cut = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text]}
    after = cut | {"special_tokens": named} if template else None
    parts = {"version": "1.0", "added_tokens": added, "model": model, "post_processor": after}
    return json.dumps(parts)


def folder_of(path, tokenizer="", declared=None, raw=None, config=CONFIG, **files):
    """A Hugging Face folder with these files; `raw` changes its config.json."""
    weights.save(path, config, numbers(config), rotary.RoPE())
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files["tokenizer_config"] = json.dumps(named | (declared or {}))
    if tokenizer:
        files["tokenizer"] = tokenizer
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)
    edited = json.loads((path / "config.json").read_text()) | (raw or {})
    (path / "config.json").write_text(json.dumps(edited))
    return path


WRONG = {"bos_token_id": 0, "eos_token_id": 1}
GENERATION = {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("raw", [WRONG, {"bos_token_id": None, "eos_token_id": None}])
@pytest.mark.parametrize("generation", [GENERATION, None])
def test_the_beginning_and_the_ends_come_from_the_tokenizer_not_from_config_json(
    transformers, tmp_path, raw, generation
):
    """Ids equal transformers', here and after an export."""
    files = {} if generation is None else {"generation_config": json.dumps(generation)}
    path = folder_of(tmp_path / "in", llama_json(), {"add_bos_token": True}, raw, **files)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    model = longrope_jax.load(path)
    assert model.encode("abc").tolist() == theirs("abc").input_ids == [1, 3, 4, 5]
    assert model.special_tokens.ids() == {"bos": 1, "eos": 2}
    assert model.special_tokens.stops == (2,)
    model.save(tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("abc").input_ids == [1, 3, 4, 5]
    assert weights.open_checkpoint(tmp_path / "out").special_tokens == model.special_tokens


def test_what_the_tokenizer_files_leave_open_is_read_from_the_next_one(tmp_path):
    """The template, tokenizer_config.json, special_tokens_map.json, config.json, in that order."""
    silent = {"bos_token": None, "eos_token": None}
    cases = (
        (llama_json(), {"bos_token": "</s>"}, {}, 1),
        (llama_json(False), {"bos_token": {"content": "</s>"}}, {}, 2),
        (llama_json(False), silent, {"special_tokens_map": '{"bos_token": "</s>"}'}, 2),
        (llama_json(False), silent, {}, 0),
        (llama_json(False), {"bos_token": "<none>"}, {}, 0),
    )
    for at, (tokenizer, declared, files, bos) in enumerate(cases):
        path = folder_of(tmp_path / str(at), tokenizer, declared, WRONG, **files)
        found = weights.open_checkpoint(path)
        assert found.special_tokens.bos == bos
        said = any("bos_token_id of config.json is [0]" in note for note in found.notes)
        assert said == (bos != 0)


def test_add_bos_token_that_transformers_4_and_5_read_differently_is_noted(tmp_path):
    for at, (template, declared) in enumerate([(True, False), (False, True)]):
        path = folder_of(tmp_path / str(at), llama_json(template), {"add_bos_token": declared})
        found = weights.open_checkpoint(path)
        assert found.special_tokens.adds_bos is declared
        assert any("transformers 5 follows tokenizer.json" in note for note in found.notes)


def test_an_export_never_begins_a_text_twice(tmp_path):
    tokenizer = tokenizers.HuggingFaceTokenizer("random", llama_json())
    special = tokenizers.SpecialTokens(0, 2, True)
    with pytest.raises(ValueError, match="begins a text with 1, special_tokens with 0"):
        weights.check_save(CONFIG, rotary.RoPE(), tokenizer, special_tokens=special, format="hf")


@pytest.mark.parametrize(
    "raw", [{"eos_token_id": [2, 40]}, {"eos_token_id": 2**32 - 1}, {"bos_token_id": -1}]
)
def test_an_id_that_the_model_has_no_row_for_is_left_out_with_a_warning(tmp_path, raw):
    path = folder_of(tmp_path / "m", raw=raw)
    with pytest.warns(UserWarning, match="must be ids below 40, got .*: left out"):
        found = weights.open_checkpoint(path).special_tokens
    assert all(0 <= at < 40 for at in (*found.ids().values(), *found.stops))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """LLaMA's recipe: BPE, bytes for what is unknown, no normalisation; 320 pieces."""
    why = "LOUD SKIP: pip install sentencepiece to test its models"
    package = pytest.importorskip("sentencepiece", reason=why)
    folder = tmp_path_factory.mktemp("pieces")
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog 1984"] * 50),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def with_model(path, model_file, extra, **options):
    """A folder with tokenizer.model whose model has `extra` more rows than the file pieces."""
    size = tokenizers.load(model_file).vocab_size
    config = dataclasses.replace(CONFIG, vocab_size=size + extra)
    path = folder_of(path, config=config, **options)
    (path / "tokenizer.model").write_bytes(model_file.read_bytes())
    return path, size


def test_a_sentencepiece_model_names_its_beginning_itself(tmp_path, model_file):
    silent = {"bos_token": None, "eos_token": None}
    path, _ = with_model(tmp_path / "m", model_file, 0, declared=silent, raw=WRONG)
    found = weights.open_checkpoint(path).special_tokens
    assert (found.ids(), found.stops, found.adds_bos) == ({"bos": 1, "eos": 2}, (2,), True)


def test_tokens_added_to_a_sentencepiece_model_are_kept(transformers, tmp_path, model_file):
    """By added_tokens.json and by tokenizer_config.json; they decode, end a text, are exported."""
    size = tokenizers.load(model_file).vocab_size
    names = {"<|im_start|>": size, "<|im_end|>": size + 1}
    decoder = {
        str(at): {"content": name, "special": True, "lstrip": False, "rstrip": False}
        for name, at in names.items()
    }
    ways = (
        {"added_tokens": json.dumps(names), "declared": {"eos_token": "<|im_end|>"}},
        {"declared": {"eos_token": "<|im_end|>", "added_tokens_decoder": decoder}},
    )
    for at, options in enumerate(ways):
        path, _ = with_model(tmp_path / f"in{at}", model_file, 2, **options)
        model = longrope_jax.load(path)
        assert model.tokenizer.vocab_size == size + 2
        assert model.tokenizer.special("<|im_end|>") == size + 1
        assert model.tokenizer.decode([size + 1]) == ""
        assert model.special_tokens.ids() == {"bos": 1, "eos": size + 1}
        assert model.special_tokens.adds_bos
        plain = tokenizers.load(model_file)
        for text in ("the fox 1984", "  two  blanks ñ", "<|im_end|>"):
            assert model.tokenizer.encode(text).tolist() == plain.encode(text).tolist()
        model.save(tmp_path / f"out{at}")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / f"out{at}")
        assert theirs("the fox<|im_end|>").input_ids == [1, *plain.encode("the fox"), size + 1]
        assert theirs.eos_token_id == size + 1 and len(theirs) == size + 2


def test_added_tokens_that_cannot_be_kept_are_said_aloud(tmp_path, monkeypatch, model_file):
    def refuse(self):
        raise ValueError("odd")

    monkeypatch.setattr(tokenizers.SentencePieceTokenizer, "check_plain", refuse)
    size = tokenizers.load(model_file).vocab_size
    path, _ = with_model(
        tmp_path / "m", model_file, 1, added_tokens=json.dumps({"<|im_end|>": size})
    )
    with pytest.warns(UserWarning, match="odd; its 1 added tokens are left out"):
        assert weights.open_checkpoint(path).tokenizer.vocab_size == size


def test_a_tokenizer_whose_added_tokens_exceed_the_model_is_exported_without_them(tmp_path):
    """A pad token was added, but the embedding was never made longer."""
    pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
    from test_weights_tokenizers import METASPACE, pieces_json

    text, size = pieces_json(pre_tokenizer=METASPACE | {"prepend_scheme": "first"})
    parts = json.loads(text)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parts["added_tokens"] = [{"id": size, "content": "<pad>", "special": True} | plain]
    tokenizer = tokenizers.HuggingFaceTokenizer("random", json.dumps(parts))
    config = dataclasses.replace(CONFIG, vocab_size=size)
    with pytest.warns(UserWarning, match="<pad>.*has no row in the model"):
        weights.save(
            tmp_path / "m.gguf", config, numbers(config), rotary.RoPE(), tokenizer, format="gguf"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights.open_checkpoint(tmp_path / "m.gguf").tokenizer.vocab_size == size
