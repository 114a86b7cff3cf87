r"""LLaMA's tokenizer recipe on your own text (2302.13971 section 2.1): sentencepiece BPE.

    pip install 'longrope_jax[sentencepiece]'
    python -m experiments.train_tokenizer --config=configs/train_tokenizer.py:llama \
        --config.corpus=DIR_OF_TEXT --workdir=DIR

Digits are split one by one and unknown characters fall back to bytes. Writes DIR/tokenizer.model,
which `data.tokenizers.load` and every sentencepiece program read, and a report on documents that
were held out: bytes per token, how often the fallback is used, and whether decoding gives back the
text. Presets: llama (32,000 pieces), small (4,096, for small models), tiny.
"""

from pathlib import Path

from ml_collections import ConfigDict

from experiments import lab
from longrope_jax.data import bpe, corpora
from longrope_jax.data.corpora import Document

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
    sizes = {"vocab_size": config.vocab_size, "coverage": config.character_coverage}
    with lab.naming("vocab_size"):
        data = bpe.learn((document.text for document in train), **sizes)
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


def measure(data: bytes, documents: tuple[Document, ...]) -> tuple[list[dict], dict[str, bool]]:
    """What a `.model` does to each document, and whether each probe comes back unchanged."""
    model = bpe.processor(data)
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


if __name__ == "__main__":
    lab.run(main, "experiments.train_tokenizer")
