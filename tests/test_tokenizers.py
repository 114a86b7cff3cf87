"""Tokenizers: bytes come back exactly, text never becomes a special token, both kinds agree."""

import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope_jax.data import tokenizers
from longrope_jax.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer

TEXT = "To be, or not to be: <bos> that is </s> the question — naïve 漢 🐋"


@pytest.fixture(scope="module")
def json_file(tmp_path_factory):
    """A tiny byte-level BPE that also asks for truncation, padding and added tokens."""
    hf = pytest.importorskip("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "</s>"],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["to be or not to be, that is the question"], trainer)
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="<bos> $A </s>", special_tokens=[("<bos>", 0), ("</s>", 1)]
    )
    tokenizer.add_tokens(["to be"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=["bytes", "hf"])
def tokenizer(request):
    """Both kinds: what is tested with this holds for either."""
    spec = "bytes" if request.param == "bytes" else request.getfixturevalue("json_file")
    return tokenizers.load(spec)


@given(st.text())
def test_bytes_come_back_as_the_same_text(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
def test_byte_ids_are_the_bytes_of_utf8(text):
    ids = ByteTokenizer().encode(text)
    assert bytes(ids.tolist()) == text.encode()
    assert ids.dtype == np.int32


@given(st.lists(st.integers(0, 259)))
def test_any_byte_ids_decode_with_specials_skipped(ids):
    expected = bytes(i for i in ids if i < 256).decode(errors="replace")
    assert ByteTokenizer().decode(ids) == expected
    assert ByteTokenizer().decode(np.array(ids, np.int64)) == expected


def test_byte_specials_follow_the_bytes_in_their_order():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 260
    assert [tokenizer.special(n) for n in tokenizer.specials] == [256, 257, 258, 259]
    assert tokenizer.special("<retrieve>") == 258
    assert ByteTokenizer(specials=()).vocab_size == 256


@pytest.mark.parametrize("specials", ["<bos>", ("a", "a"), ("",), (1,)])
def test_bad_byte_specials_are_refused(specials):
    with pytest.raises(ValueError, match="specials="):
        ByteTokenizer(specials=specials)


def test_text_never_becomes_a_special_token(tokenizer):
    ids = tokenizer.encode("".join(tokenizer.specials) + TEXT)
    assert not set(ids.tolist()) & {tokenizer.special(name) for name in tokenizer.specials}
    assert tokenizer.decode(ids) == "".join(tokenizer.specials) + TEXT


def test_text_is_never_cut_padded_or_framed(tokenizer):
    ids = tokenizer.encode(TEXT * 50)
    assert ids.ndim == 1
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == TEXT * 50
    assert tokenizer.encode("").size == 0
    assert tokenizer.decode([]) == ""


def test_specials_are_skipped_in_decoding(tokenizer):
    ids = [tokenizer.special("<bos>"), *tokenizer.encode(TEXT).tolist()]
    assert tokenizer.decode(ids) == TEXT


def test_every_id_is_below_the_vocabulary_size(tokenizer):
    assert max(tokenizer.special(name) for name in tokenizer.specials) < tokenizer.vocab_size
    tokenizer.decode([tokenizer.vocab_size - 1])


@pytest.mark.parametrize("ids", [[-1], [10_000], [1.5], ["a"], [[1, 2]], [True]])
def test_ids_that_are_not_tokens_are_refused(tokenizer, ids):
    with pytest.raises(ValueError, match="token ids") as error:
        tokenizer.decode(ids)
    assert "\n" not in str(error.value)


def test_an_unknown_special_gets_the_nearest_name(tokenizer):
    with pytest.raises(ValueError, match="did you mean '<bos>'"):
        tokenizer.special("<boss>")


def test_an_ordinary_token_is_not_a_special_one(json_file):
    with pytest.raises(ValueError, match="unknown special token"):
        tokenizers.load(json_file).special("t")
    assert tokenizers.load(json_file).specials == ("<bos>", "</s>")


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"UTF-8 cannot hold|cannot encode the text"):
        tokenizer.encode("a\ud800")


def test_a_pattern_that_does_not_end_is_refused(json_file, tmp_path):
    raw = json.loads(json_file.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    raw["pre_tokenizer"] = pattern | {"invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    hostile = HuggingFaceTokenizer(str(tmp_path / "tokenizer.json"))
    for call in (hostile.encode, hostile.spans):
        with pytest.raises(ValueError, match="cannot encode the text"):
            call("a" * 40 + "!")


def test_a_tokenizer_is_a_value_that_workers_can_be_given(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_the_vocabulary_covers_an_id_beyond_a_gap(json_file, tmp_path):
    hf = pytest.importorskip("tokenizers")
    sparse = hf.Tokenizer(hf.models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    sparse.save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.load(tmp_path).vocab_size == 10


def test_a_folder_with_a_tokenizer_json_may_be_named(json_file):
    assert tokenizers.load(json_file.parent) == tokenizers.load(str(json_file))


def test_an_unknown_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 'bytes' or the path"):
        tokenizers.load("byts")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a readable tokenizer\.json"):
        tokenizers.load(tmp_path)
    with pytest.raises(ValueError, match=r"not a readable tokenizer\.json"):
        HuggingFaceTokenizer(str(tmp_path / "none.json"))


def test_a_missing_tokenizers_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"longrope_jax\[tokenizers\]"):
        tokenizers.load(tmp_path)
