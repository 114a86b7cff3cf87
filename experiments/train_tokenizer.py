"""LLaMA's tokenizer recipe on your own text (2302.13971 section 2.1): sentencepiece BPE.

    pip install 'longrope_jax[sentencepiece]'
    python -m experiments.train_tokenizer --config=configs/train_tokenizer.py:llama \
        --config.corpus=DIR_OF_TEXT --workdir=DIR

Digits are split one by one and unknown characters fall back to bytes. Writes DIR/tokenizer.model,
which `data.tokenizers.load` and every sentencepiece program read, and a report on documents that
were held out: bytes per token, how often the fallback is used, and whether decoding gives back the
text. Presets: llama (32,000 pieces), small (4,096, for small models), tiny.
"""

import io
from pathlib import Path

from ml_collections import ConfigDict

from experiments import lab
from longrope_jax.data import corpora
from longrope_jax.data.corpora import Document

# Beside what the paper states, settings that third parties read from the released tokenizer.model.
_RECIPE = {
    "model_type": "bpe",
    "split_digits": True,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "add_dummy_prefix": True,
    "max_sentencepiece_length": 16,  # characters
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
}
# What a tokenizer must give back whatever it was trained on.
PROBES = (
    "In 1923, 3.14159 and 00042.",
    "  two blanks, a\ttab,\n\na blank line \n",
    "naïve façade Ω жизнь 漢字 العربية",
    "family 👩‍👩‍👧‍👦 flag 🇺🇦 rare 𐍈",
    "def f(x):\n    return {x: [x ** 2]}  # code\r\n",
    "control \x01\x7f characters",
)


def main(config: ConfigDict, folder: Path, command: str = "") -> lab.Report:
    """Trains a tokenizer, writes it and a report on held-out documents into `folder`.

    Raises:
        ValueError: the package missing, a text without words, or a vocabulary that does not fit it.
    """
    if not config.corpus:
        raise ValueError("this preset needs your own text: --config.corpus=DIR")
    train, held_out = corpora.split(corpora.load(config.corpus), config.held_out)
    data = learn(train, vocab_size=config.vocab_size, coverage=config.character_coverage)
    lab.write(folder / "tokenizer.model", data)
    documents, probes = measure(data, held_out)
    title = f"Tokenizer of {config.vocab_size:,} pieces"
    blocks = [lab.table(documents, title, "documents", {"bytes per token": "{:.3f}".format})]
    return lab.publish(
        folder,
        command,
        config,
        title=title,
        claims=[_claim(documents, probes), f"Written: {folder / 'tokenizer.model'}."],
        sections=[lab.Section("Held-out documents", blocks)],
        results={"documents": documents, "probes": probes},
    )


def learn(documents: tuple[Document, ...], *, vocab_size: int, coverage: float) -> bytes:
    """The `.model` file of a BPE trained on all lines of the documents.

    Raises:
        ValueError: the package missing, or what it refuses (a vocabulary too large for the text).
    """
    spm = _package()
    lines = [line for d in documents for line in d.text.split("\n") if line.strip()]
    # The package silently leaves out lines that are longer.
    longest = max((len(line.encode()) for line in lines), default=0) + 1
    out = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=vocab_size,
            character_coverage=coverage,
            max_sentence_length=longest,
            num_threads=1,  # the same model on every machine
            minloglevel=2,
            **_RECIPE,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"no tokenizer of --config.vocab_size={vocab_size}: {error}") from error
    return out.getvalue()


def measure(data: bytes, documents: tuple[Document, ...]) -> tuple[list[dict], dict[str, bool]]:
    """What a `.model` does to each document, and whether each probe comes back unchanged."""
    model = _package().SentencePieceProcessor(model_proto=data)
    measured = []
    for document in documents:
        ids = model.encode(document.text)
        measured.append(
            {
                "document": document.name,
                "bytes per token": len(document.text.encode()) / len(ids),
                "tokens": len(ids),
                "byte pieces": sum(model.is_byte(i) for i in ids),
                "same text": model.decode(ids) == document.text,
            }
        )
    return measured, {text: model.decode(model.encode(text)) == text for text in PROBES}


def _claim(documents: list[dict], probes: dict[str, bool]) -> str:
    lost = [repr(text) for text, same in probes.items() if not same]
    whole = sum(document["same text"] for document in documents)
    text = (
        f"{whole} of {len(documents)} held-out documents and {len(probes) - len(lost)} of "
        f"{len(probes)} probes (digits, blanks, scripts, emoji, code, control characters) come "
        "back unchanged."
    )
    return text + (f" Not: {', '.join(lost)}." if lost else "")


def _package():
    try:
        import sentencepiece
    except ImportError as error:
        hint = "pip install 'longrope_jax[sentencepiece]'"
        raise ValueError(f"training needs the package sentencepiece: {hint}") from error
    return sentencepiece


if __name__ == "__main__":
    lab.run(main, "experiments.train_tokenizer")
