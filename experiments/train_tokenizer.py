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

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, files, report
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


def main(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Trains, writes the model and the report into `workdir`, and returns the measurements.

    Raises:
        ValueError: the package missing, a text without words, or a vocabulary that does not fit it.
    """
    workdir = Path(workdir)
    if not config.corpus:
        raise ValueError("this preset needs your own text: --config.corpus=DIR")
    train, held_out = corpora.split(corpora.load(config.corpus), config.held_out)
    data = learn(train, vocab_size=config.vocab_size, coverage=config.character_coverage)
    files.write(workdir / "tokenizer.model", data)
    measured = measure(data, held_out)
    versions = report.versions()
    result = {"command": command, "config": config, "versions": versions, **measured}
    report.save_json(workdir / "results.json", result)
    header = ["document", "bytes per token", "tokens", "byte pieces", "same text"]
    rows = [
        [d["name"], round(d["bytes_per_token"], 3), d["tokens"], d["byte_pieces"], d["same"]]
        for d in measured["documents"]
    ]
    title = f"Tokenizer of {config.vocab_size:,} pieces"
    sections = [
        report.Section("Held-out documents", [report.Table(header, rows)]),
        report.Section("Round trips", [report.Text(_round_trip(measured))]),
    ]
    report.write_html(workdir / "report.html", title, command, sections, versions)
    report.print_table(title, header, rows)
    print(_round_trip(measured), f"Written: {workdir / 'tokenizer.model'}", sep="\n")
    return measured


def learn(documents: tuple[Document, ...], *, vocab_size: int, coverage: float) -> bytes:
    """The `.model` file of a BPE trained on all lines of the documents.

    Raises:
        ValueError: the package missing, or what it refuses (a vocabulary too large for the text).
    """
    spm = _package()
    lines = [line for d in documents for line in d.text.split("\n") if line.strip()]
    out = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=vocab_size,
            character_coverage=coverage,
            # The package silently leaves out lines that are longer.
            max_sentence_length=max(len(line.encode()) for line in lines) + 1,
            num_threads=1,  # the same model on every machine
            minloglevel=2,
            **_RECIPE,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"no tokenizer of {vocab_size} pieces: {error}") from error
    return out.getvalue()


def measure(data: bytes, documents: tuple[Document, ...]) -> dict:
    """Compression, use of the byte fallback and round trips of a `.model`."""
    model = _package().SentencePieceProcessor(model_proto=data)
    measured = []
    for document in documents:
        ids = model.encode(document.text)
        measured.append(
            {
                "name": document.name,
                "tokens": len(ids),
                "bytes_per_token": len(document.text.encode()) / len(ids),
                "byte_pieces": int(np.sum([model.is_byte(i) for i in ids])),
                "same": model.decode(ids) == document.text,
            }
        )
    probes = {text: model.decode(model.encode(text)) == text for text in PROBES}
    return {"documents": measured, "probes": probes}


def _round_trip(measured: dict) -> str:
    probes, documents = measured["probes"], measured["documents"]
    lost = [repr(text) for text, same in probes.items() if not same]
    whole = sum(d["same"] for d in documents)
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
    cli.run(main, "train_tokenizer")
