"""Tokenizers of checkpoints: ids, beginning, ends and chat template come back or are refused."""

import dataclasses
import json

import pytest
from checkpoints import CONFIG, assert_same, numbers, tokenizer_json, write

import longrope_jax
from longrope_jax import rotary, weights
from longrope_jax.data import tokenizers
from longrope_jax.weights import gguf_vocabulary

pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")
FORMS = weights.FORMATS


@pytest.mark.parametrize("form", FORMS)
def test_the_tokenizer_comes_back(tmp_path, form):
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    path, _ = write(
        tmp_path, form, tokenizer=tokenizer, special_tokens=tokenizers.SpecialTokens(eos=0)
    )
    loaded = longrope_jax.load(path)
    text = "the cat sat on the mat 42"
    assert_same(tokenizer.encode(text), loaded.tokenizer.encode(text))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    assert loaded.tokenizer.specials == ("<eos>",) and loaded.special_tokens.ids() == {"eos": 0}


@pytest.mark.parametrize("form", FORMS)
def test_all_that_a_checkpoint_declares_is_kept_without_a_word(tmp_path, form):
    """Beginning, every end (Llama 3 Instruct has three), and chat template, from file to file."""
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    chat = "{% for m in messages %}<|user|>\r\n{{ m['content'] }} é{% endfor %}\n"
    for at, special in enumerate(
        [
            tokenizers.SpecialTokens(0, 3, False),
            tokenizers.SpecialTokens(0, 3, True),
            tokenizers.SpecialTokens(0, 3, False, (5, 7), chat),
        ]
    ):
        options = {"tokenizer": tokenizer, "special_tokens": special}
        path, _ = write(tmp_path / str(at), form, **options)
        one = longrope_jax.load(path)
        assert one.special_tokens == special
        for other in FORMS:
            again = path.with_name("again.gguf" if other == "gguf" else "again")
            one.save(again)
            assert weights.open_checkpoint(again).special_tokens == special
    special = tokenizers.SpecialTokens(None, 6, None, [8])
    path, _ = write(tmp_path / "none", form, special_tokens=special)
    assert weights.open_checkpoint(path).special_tokens.stops == (6, 8)


def test_a_chat_template_is_read_from_each_place_that_software_writes_it_to(tmp_path):
    """What is no text is refused."""
    chat = "{% for m in messages %}{{ m['content'] }} é{% endfor %}\n"
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    special = tokenizers.SpecialTokens(0, 3, False, chat_template=chat)
    path, _ = write(tmp_path / "old", "hf", tokenizer=tokenizer, special_tokens=special)
    (path / "chat_template.jinja").unlink()
    for declared, expected in (
        (None, None),
        (chat, chat),
        ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": chat}], chat),
        ([{"name": "tool_use", "template": "x"}], None),
    ):
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": declared}))
        assert weights.open_checkpoint(path).special_tokens.chat_template == expected
    for declared in (7, [{"name": "default", "template": ["x"]}]):
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": declared}))
        with pytest.raises(ValueError, match="chat_template must be a text, got"):
            weights.open_checkpoint(path)
    (path / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(ValueError, match="surrogates not allowed"):
        weights.open_checkpoint(path)
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        weights.open_checkpoint(path)


def pieces_json(**changes):
    """A tokenizer.json of sentencepiece's kind: bytes, letters, a few merges; and its size."""
    merges = [["▁", "t"], ["h", "e"], ["▁t", "he"]]
    tokens = ["<unk>", *(f"<0x{at:02X}>" for at in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    vocab = {token: at for at, token in enumerate([*tokens, *("".join(pair) for pair in merges)])}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>"}
    model |= {"byte_fallback": True, "fuse_unk": True} | changes.pop("model", {})
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    parts = {"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder}
    return json.dumps(parts | changes), len(vocab)


def kept_by_gguf(folder, text, size):
    """The tokenizer, and what becomes of it in a GGUF file."""
    config = dataclasses.replace(CONFIG, vocab_size=size)
    one = tokenizers.HuggingFaceTokenizer("random", text)
    folder.mkdir(exist_ok=True)
    weights.save(folder / "m.gguf", config, numbers(config), rotary.RoPE(), one, format="gguf")
    return one, weights.open_checkpoint(folder / "m.gguf").tokenizer


METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


@pytest.mark.parametrize("scheme, prefix", [("first", True), ("always", True), ("never", False)])
def test_gguf_keeps_the_first_blank_that_transformers_5_writes_as_metaspace(
    tmp_path, scheme, prefix
):
    text, size = pieces_json(pre_tokenizer=METASPACE | {"prepend_scheme": scheme})
    one, other = kept_by_gguf(tmp_path, text, size)
    for text in ("the cat", "cat the  the", "Cat é 42"):
        assert_same(one.encode(text), other.encode(text))
        assert (one.encode(text)[0] in one.encode(" ")) == (prefix and text != "the cat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"normalizer": {"type": "Lowercase"}},
            "splits text in a way that this package cannot write into GGUF",
        ),
        ({"normalizer": {"type": "NFKC"}}, "splits text in a way"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "splits text in a way"),
        ({"model": {"merges": [["▁", "t"], ["h", "e"]]}}, "never merges '▁t' and 'he', but llama"),
    ],
)
def test_tokenizers_that_llama_cpp_would_cut_otherwise_are_refused(tmp_path, change, message):
    plain = {"pre_tokenizer": METASPACE | {"prepend_scheme": "first"}}
    kept_by_gguf(tmp_path / "plain", *pieces_json(**plain))
    with pytest.raises(ValueError, match=message + ".*: pass tokenizer=None$"):
        kept_by_gguf(tmp_path / "changed", *pieces_json(**plain | change))


@pytest.mark.parametrize("change", [{"normalizer": {"type": "Lowercase"}}, {"whole words": True}])
def test_byte_level_tokenizers_that_llama_cpp_would_cut_otherwise_are_refused(tmp_path, change):
    parts = json.loads(tokenizer_json())
    parts["model"]["ignore_merges"] = change.pop("whole words", False)
    with pytest.raises(
        ValueError, match="splits text in a way that this package cannot write into GGUF"
    ):
        kept_by_gguf(tmp_path, json.dumps(parts | change), 40)


def test_gguf_has_names_for_three_ends(tmp_path):
    with pytest.raises(
        ValueError, match=r"GGUF can hold 3 tokens that end a text, got \(1, 2, 3, 4\)"
    ):
        write(tmp_path, "gguf", special_tokens=tokenizers.SpecialTokens(None, 1, None, [2, 3, 4]))


@pytest.mark.parametrize(
    ("config", "generation", "eos", "stops"),
    [
        ([5, 6], None, 5, (5, 6)),
        ([5, 6], {}, 5, (5, 6)),
        (6, {"eos_token_id": [5, 6]}, 6, (6, 5)),
        ([5], {"eos_token_id": [8, 9]}, 8, (8, 9)),
        (5, {"eos_token_id": 9}, 9, (9,)),
        (None, {"eos_token_id": [9, 9]}, 9, (9,)),
        (None, None, None, ()),
    ],
)
def test_a_text_ends_where_transformers_generate_ends_it(tmp_path, config, generation, eos, stops):
    """generation_config.json before config.json, one id or a list."""
    path, _ = write(tmp_path, "hf")
    raw = json.loads((path / "config.json").read_text()) | {"eos_token_id": config}
    (path / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    found = weights.open_checkpoint(path).special_tokens
    assert (found.eos, found.stops) == (eos, stops)


def test_whether_a_prompt_begins_with_a_token_is_read_as_each_software_does(tmp_path):
    """tokenizer_config.json before the post-processor; GGUF's key before its kind's default."""
    parts = json.loads(tokenizer_json())
    special = {"<eos>": {"id": "<eos>", "ids": [0], "tokens": ["<eos>"]}}
    begin, text = {"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A"}}
    text["Sequence"]["type_id"] = 0
    cut = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text]}
    template = json.dumps(parts | {"post_processor": cut | {"special_tokens": special}})
    path, _ = write(tmp_path, "hf", special_tokens=tokenizers.SpecialTokens(bos=0))
    cases = (
        (tokenizer_json(), {}, False),
        (tokenizer_json(), {"add_bos_token": True}, True),
        (template, {}, True),
        (template, {"add_bos_token": False}, False),
    )
    for case, (written, declared, expected) in enumerate(cases):
        path = path.rename(tmp_path / str(case))  # opened tokenizers are kept by path
        (path / "tokenizer.json").write_text(written)
        (path / "tokenizer_config.json").write_text(json.dumps(declared))
        assert weights.open_checkpoint(path).special_tokens.adds_bos is expected
    (path / "tokenizer_config.json").write_text('{"add_bos_token": 1}')
    with pytest.raises(ValueError, match="add_bos_token must be true or false, got 1"):
        weights.open_checkpoint(path)
    key = "tokenizer.ggml."
    for kind, pre, declared, expected in (
        ("llama", None, None, True),
        ("gpt2", "smollm", None, False),
        ("gpt2", "llama-bpe", None, True),
        ("gpt2", "smollm", True, True),
        ("llama", None, False, False),
    ):
        metadata = {key + "model": kind, key + "pre": pre, key + "add_bos_token": declared}
        assert gguf_vocabulary.adds_bos(metadata, "here") is expected
    with pytest.raises(ValueError, match=r"^here: .*add_bos_token must be true or false, got 1$"):
        gguf_vocabulary.adds_bos({key + "add_bos_token": 1}, "here")


def test_a_beginning_token_is_put_first_beside_another_post_processor(tmp_path):
    """Not by tokenizer_config.json alone, whose word transformers 5 passes over."""
    cut = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    cut |= {"use_regex": True}
    for at, before in enumerate((cut, {"type": "Sequence", "processors": [cut, cut]})):
        text = json.dumps(json.loads(tokenizer_json()) | {"post_processor": before})
        tokenizer = tokenizers.HuggingFaceTokenizer("random", text)
        special = tokenizers.SpecialTokens(0, 0, True)
        path, _ = write(tmp_path / str(at), "hf", tokenizer=tokenizer, special_tokens=special)
        (path / "tokenizer_config.json").unlink()
        assert weights.open_checkpoint(path).special_tokens.adds_bos
