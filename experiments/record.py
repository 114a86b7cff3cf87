"""What a run was trained with, beside its checkpoints, which hold numbers alone."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from experiments import files
from longrope_jax import rotary
from longrope_jax.data import tokenizers
from longrope_jax.llama import LlamaConfig
from longrope_jax.weights.files import read_json

NAME = "run.json"


class Record(NamedTuple):
    """Shape, method and tokenizer of a run."""

    model: LlamaConfig
    method: rotary.Method
    tokenizer: tokenizers.Tokenizer


def save(folder: Path, record: Record) -> None:
    """Writes the record, and a tokenizer that lies in no file of its own, into a run's folder."""
    tokenizer = record.tokenizer
    file = str(getattr(tokenizer, "path", "bytes"))
    if getattr(tokenizer, "json", ""):
        file = "tokenizer.json"
        files.write(folder / file, tokenizer.text().encode())
    elif file != "bytes":
        file = str(Path(file).absolute())
    entries = {"model": record.model, "rotary": rotary.notation(record.method), "tokenizer": file}
    entries["special_tokens"] = getattr(tokenizer, "special_tokens", tokenizers.SpecialTokens())
    files.save_json(folder / NAME, entries)


def load(folder: Path) -> Record | None:
    """The record of a run's folder, None where there is none.

    Raises:
        ValueError: damaged, of another version, or its tokenizer is gone.
    """
    if not (folder / NAME).is_file():
        return None
    entries = read_json(folder / NAME)
    try:
        model, method = LlamaConfig(**entries["model"]), rotary.parse(entries["rotary"])
        name, special = entries["tokenizer"], tokenizers.SpecialTokens(**entries["special_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / NAME} is damaged or of another version: {error}") from error
    tokenizer = tokenizers.load(name if name == "bytes" else folder / name)
    if not isinstance(tokenizer, tokenizers.ByteTokenizer):
        tokenizer = dataclasses.replace(tokenizer, special_tokens=special)
    return Record(model, method, tokenizer)
