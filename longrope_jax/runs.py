"""A run of our own training: `run.json` says what the numbers in its checkpoints are.

Checkpoints hold parameters alone. The file beside them says the shape, the rotary method, the
tokenizer and the length of training, so that `longrope_jax.load("WORKDIR/runs/NAME")` asks for
nothing.
"""

import dataclasses
import json
from dataclasses import field
from pathlib import Path

from longrope_jax import folders, rotary
from longrope_jax.data import tokenizers
from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer
from longrope_jax.llama import LlamaConfig
from longrope_jax.weights.files import read_json

NAME = "run.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What `run.json` says of a run.

    Attributes:
        config: the architecture that was trained.
        method: the rotary method that it was trained under.
        tokenizer: the tokenizer of its text.
        trained_length: tokens per training sequence; None where an older record does not say it.
        special_tokens: ids that begin and end a text, and the chat template.
    """

    config: LlamaConfig
    method: rotary.Method
    tokenizer: Tokenizer
    trained_length: int | None
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)


def save(folder: str | Path, record: RunRecord) -> None:
    """Writes the record into a run's folder, and a tokenizer that lies in no file of its own.

    Raises:
        ValueError: The method's class is not registered, so no text names it.
    """
    folder, tokenizer = folders.located(folder), record.tokenizer
    file = str(getattr(tokenizer, "path", "bytes"))
    if isinstance(tokenizer, tokenizers.HuggingFaceTokenizer) and tokenizer.json:
        file = "tokenizer.json"
        folders.write(folder / file, tokenizer.text().encode())
    elif file != "bytes":
        file = str(Path(file).absolute())
    found = {
        "model": dataclasses.asdict(record.config),
        "rotary": rotary.notation(record.method),
        "tokenizer": file,
        "trained_length": record.trained_length,
        "special_tokens": dataclasses.asdict(record.special_tokens),
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    folders.write(folder / NAME, text.encode())


def load(folder: str | Path) -> RunRecord | None:
    """The record in a run's folder, or None where the folder has none.

    Raises:
        ValueError: The record is damaged or of another version, or its tokenizer is gone.
    """
    path = folders.located(folder) / NAME
    if not path.is_file():
        return None
    found = read_json(folders.fetched(path))
    try:
        config, method = LlamaConfig(**found["model"]), rotary.parse(found["rotary"])
        special = SpecialTokens(**found["special_tokens"])
        name, length = found["tokenizer"], found.get("trained_length")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version: {error}") from error
    tokenizer = tokenizers.load(name if name == "bytes" else _beside(path, name))
    return RunRecord(config, method, tokenizer, length, special)


def checkpoints_folder(path: str | Path) -> Path | None:
    """The folder of checkpoints that `path` is or holds, or None where it is no run.

    Raises:
        ValueError: The path is a study's folder, which holds several runs; they are named.
    """
    if folders.is_url(path) and not str(path).startswith("gs://"):
        return None  # no run is written there
    path = folders.located(path)
    for folder in (path, path / CHECKPOINTS):
        if folder.is_dir() and any(p.name.isdecimal() and p.is_dir() for p in folder.iterdir()):
            return folder
    if (path / NAME).is_file():
        raise ValueError(f"{path} has a {NAME} but no checkpoint yet: train it further first")
    within = sorted((path / "runs").iterdir()) if (path / "runs").is_dir() else []
    if found := ", ".join(p.name for p in within if (p / NAME).is_file()):
        raise ValueError(f"{path} holds runs: give {path}/runs/NAME, where NAME is one of {found}")
    return None


def record_of(checkpoints: Path) -> RunRecord:
    """The record beside a folder of checkpoints, or in it.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    record = load(checkpoints.parent) or load(checkpoints)
    if record is None:
        raise ValueError(
            f"{checkpoints} has no {NAME} beside it, so its method and tokenizer are unknown: "
            "write one with longrope_jax.runs.save(folder, RunRecord(...))"
        )
    return record


def _beside(record: Path, name: str) -> str:
    """The tokenizer that a record names: beside it, or at an absolute path or a URL."""
    return name if folders.is_url(name) else str(record.parent / name)
