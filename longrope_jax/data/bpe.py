"""LLaMA's tokenizer recipe (2302.13971 section 2.1): a sentencepiece BPE of any text and size."""

import io
from collections.abc import Iterable, Sequence

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


def learn(
    texts: Iterable[str],
    *,
    vocab_size: int,
    coverage: float = 0.99995,
    specials: Sequence[str] = (),
) -> bytes:
    """Returns the `.model` file of a BPE trained on all lines of the texts.

    Digits are split one by one and unknown characters fall back to bytes. The same texts give the
    same file on every machine.

    Args:
        texts: what to train on.
        vocab_size: number of pieces, special ones and bytes among them.
        coverage: share of characters that get a piece of their own.
        specials: names of special tokens beside `<s>` and `</s>`; text never becomes one.

    Raises:
        ValueError: the package sentencepiece is missing, or it refuses (a vocabulary too large for
            the text, or too small for its characters).
    """
    trainer = _package().SentencePieceTrainer
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    # The package silently leaves out lines that are longer.
    longest = max((len(line.encode()) for line in lines), default=0) + 1
    out = io.BytesIO()
    try:
        trainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=vocab_size,
            character_coverage=coverage,
            control_symbols=list(specials),
            max_sentence_length=longest,
            num_threads=1,  # the same model on every machine
            minloglevel=2,
            **_RECIPE,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"no tokenizer of vocab_size={vocab_size}: {error}") from error
    return out.getvalue()


def processor(model: bytes):
    """Returns sentencepiece's own processor of a `.model` file.

    Raises:
        ValueError: the package sentencepiece is missing.
    """
    return _package().SentencePieceProcessor(model_proto=model)


def _package():
    try:
        import sentencepiece
    except ImportError as error:
        hint = "pip install 'longrope_jax[sentencepiece]'"
        raise ValueError(f"training needs the package sentencepiece: {hint}") from error
    return sentencepiece
