"""LLaMA's tokenizer recipe: digits one by one, bytes for the unknown, text that comes back."""

import importlib.util
import json
import sys

import pytest

from configs import train_tokenizer as configs
from experiments import train_tokenizer
from longrope_jax.data import bpe, tokenizers

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None,
    reason="sentencepiece is not installed: pip install 'longrope_jax[sentencepiece]'",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Three documents with words, numbers and a line longer than the package's usual limit."""
    folder = tmp_path_factory.mktemp("text")
    for name in range(3):
        lines = [f"The year {1900 + i} saw the river rise {name} times." for i in range(90)]
        (folder / f"doc{name}.txt").write_text("\n".join(lines) + "\n" + "zebra " * 1500)
    return folder


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """(processor, folder, results) of a tiny tokenizer."""
    import sentencepiece

    workdir = tmp_path_factory.mktemp("tokenizer")
    config = configs.get_config("tiny")
    config.update({"corpus": str(text), "held_out": 1, "vocab_size": 320})
    report = train_tokenizer.main(config, workdir, "the command")
    file = str(workdir / "tokenizer.model")
    return sentencepiece.SentencePieceProcessor(model_file=file), workdir, report.results


@needs_package
def test_it_has_llamas_layout(trained):
    model, *_ = trained
    assert model.get_piece_size() == 320
    assert [model.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert [model.is_byte(i) for i in range(3, 259)] == [True] * 256
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, -1)


@needs_package
def test_digits_are_pieces_of_their_own(trained):
    model, *_ = trained
    pieces = model.encode("river 1945 rise 314", out_type=str)
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("1945314")
    whole = [model.id_to_piece(i) for i in range(259, 320)]
    assert not [p for p in whole if sum(c.isdigit() for c in p) > 1]


@needs_package
def test_what_it_never_saw_comes_back_through_bytes(trained):
    model, _, measured = trained
    for text in train_tokenizer.PROBES:
        assert model.decode(model.encode(text)) == text
        assert 0 not in model.encode(text)
    assert all(measured["probes"].values())


@needs_package
def test_long_lines_are_not_left_out(trained):
    model, *_ = trained
    assert "▁zebra" in model.encode("a zebra", out_type=str)


@needs_package
def test_the_same_text_gives_the_same_model_and_the_report_tells_of_held_out_text(trained, text):
    _, workdir, measured = trained
    train, held_out = train_tokenizer.corpora.split(train_tokenizer.corpora.load(text), 1)
    data = bpe.learn((document.text for document in train), vocab_size=320)
    assert data == (workdir / "tokenizer.model").read_bytes()
    (document,) = measured["documents"]
    assert document["document"] == held_out[0].name
    assert document["same text"]
    assert document["bytes per token"] > 2
    assert json.loads((workdir / "results.json").read_text())["documents"] == [document]
    assert "1 of 1 held-out documents" in (workdir / "report.html").read_text()


@needs_package
@pytest.mark.skipif(
    not hasattr(tokenizers, "SentencePieceTokenizer"), reason="no reader of .model files yet"
)
def test_our_own_reader_gives_the_same_ids(trained):
    model, workdir, _ = trained
    tokenizer = tokenizers.load(workdir / "tokenizer.model")
    for text in train_tokenizer.PROBES:
        assert tokenizer.encode(text).tolist() == model.encode(text)


@needs_package
def test_a_vocabulary_that_the_text_cannot_fill_is_one_line(text):
    config = configs.get_config("llama")
    config.update({"corpus": str(text), "held_out": 1})
    with pytest.raises(ValueError, match="vocab_size=32000") as error:
        train_tokenizer.main(config, text)
    assert "\n" not in str(error.value).strip()


def test_a_missing_corpus_or_package_is_one_line(text, monkeypatch, tmp_path):
    config = configs.get_config("llama")
    with pytest.raises(ValueError, match=r"--config.corpus"):
        train_tokenizer.main(config, tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    config.corpus = str(text)
    with pytest.raises(ValueError, match=r"longrope_jax\[sentencepiece\]"):
        train_tokenizer.main(config, tmp_path)
    with pytest.raises(ValueError, match=r"'tinny'.*'tiny'"):
        configs.get_config("tinny")
