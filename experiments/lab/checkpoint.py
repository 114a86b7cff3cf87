"""What a study must know of a checkpoint, kept in a cell so that a report needs no checkpoint."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.lab.cells import Cell, complete, needed
from experiments.lab.fail import naming
from experiments.lab.files import plain
from experiments.lab.machine import Machine
from experiments.lab.training import opened
from longrope_jax import llama, rotary
from longrope_jax.errors import unknown_name
from longrope_jax.llama import LlamaConfig
from longrope_jax.model import Model
from longrope_jax.training import lora

BETWEEN_DOCUMENTS = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Facts:
    """A checkpoint without its parameters.

    Attributes:
        config: the architecture.
        method: the rotary method that it was trained with.
        trained_length: tokens, as the checkpoint declares it; None where it does not.
        bos: name of the token that its own software puts before a text; "" for none.
        specials: names of its tokenizer's special tokens; none without a tokenizer.
        parameters: how many numbers it has.
        notes: what was recognised in it, in words.
    """

    config: LlamaConfig
    method: rotary.Method
    trained_length: int | None
    bos: str
    specials: tuple[str, ...]
    parameters: int
    notes: tuple[str, ...]

    @property
    def base(self) -> float | None:
        """The base of its method; None for a method without one."""
        return getattr(self.method, "base", None)


def facts(folder: Path, source: str, machine: Machine) -> Facts:
    """The facts of the checkpoint `source`, from the study's folder or read from it once.

    Only headers are read: a wrong name is found before minutes of loading.

    Raises:
        ValueError: the checkpoint cannot be read, or `machine.measure` is off and the folder does
            not know it.
    """
    cell = Cell("model", source, what=(source,))
    complete(folder, [cell], {"model": lambda _: {"facts": json.dumps(_facts(source))}}, machine)
    found = json.loads(str(needed(folder, cell)["facts"]))
    return Facts(
        config=LlamaConfig(**found["config"]),
        method=rotary.parse(found["method"]),
        trained_length=found["trained_length"],
        bos=found["bos"],
        specials=tuple(found["specials"]),
        parameters=found["parameters"],
        notes=tuple(found["notes"]),
    )


def beginning(model: Model) -> str:
    """Name of the token that the checkpoint's own software puts before a text; "" for none."""
    special = model.special_tokens
    if model.tokenizer is None or not special.adds_bos:
        return ""
    known = model.tokenizer
    return next((name for name in known.specials if known.special(name) == special.bos), "")


def check_length(found: Facts, source: str, trained_length: int = 0) -> int:
    """The length that a checkpoint was trained for: `trained_length`, or where that is 0 its own.

    Raises:
        ValueError: the two differ, or there is neither; the message names the field to change.
    """
    declared = getattr(found.method, "original_length", None) or found.trained_length
    if not (declared or trained_length):
        raise ValueError(
            f"{source} declares no trained length: say it, e.g. --config.trained_length=4096"
        )
    if declared and trained_length and declared != trained_length:
        raise ValueError(
            f"{source} declares a trained length of {declared:g} tokens, the config says "
            f"{trained_length}: --config.trained_length={declared:g}"
        )
    return int(trained_length or declared)


def check_bos(found: Facts, source: str, bos: str = "") -> str:
    """Name of the token that begins every document: `bos`, or where that is "" the checkpoint's.

    Where the checkpoint puts none before a text, it is the one that usually stood between the
    documents of its training, if its tokenizer has it.

    Raises:
        ValueError: there is none, `bos` is no token of the checkpoint, or it has no tokenizer.
    """
    if not found.specials:
        raise ValueError(f"{source} brings no tokenizer: put its tokenizer.json into that folder")
    if bos and bos not in found.specials:
        raise ValueError(unknown_name("special token in --config.bos", bos, found.specials))
    if not (bos or found.bos or BETWEEN_DOCUMENTS in found.specials):
        raise ValueError(
            f"{source} puts no token of its own before a text: name the one that begins a "
            f"document, e.g. --config.bos={found.specials[0]!r}"
        )
    return bos or found.bos or BETWEEN_DOCUMENTS


def filled(config: ConfigDict, folder: Path) -> tuple[ConfigDict, Facts]:
    """A copy of the config with `trained_length` and `bos` filled, and the facts they come from.

    Raises:
        ValueError: no seed, or as `facts`, `check_length` and `check_bos`.
    """
    if config.get("seeds", 1) < 1:
        raise ValueError(f"--config.seeds={config.seeds}: there is nothing to train without a seed")
    found = facts(folder, config.model, Machine(**config.machine))
    config = config.copy_and_resolve_references()
    config.trained_length = check_length(found, config.model, config.trained_length)
    config.bos = check_bos(found, config.model, config.bos)
    return config, found


def method(
    text: str, found: Facts, trained_length: int, field: str, **values: Any
) -> rotary.Method:
    """A method whose open options are the checkpoint's, such as "yarn:factor={factor}".

    Args:
        text: as `rotary.parse` reads it, with placeholders.
        found: of the checkpoint.
        trained_length: tokens that the checkpoint was trained for.
        field: of the config, for the message of an error.
        **values: of the placeholders, beside `trained`, the trained length.

    Raises:
        ValueError: the text cannot be read; the message names the field.
    """
    values["trained"] = trained_length
    with naming(field):
        try:
            text = text.format(**values)
        except (KeyError, IndexError) as error:
            name = str(error).strip("'")
            raise ValueError(unknown_name("placeholder", name, values)) from error
        return rotary.parse_for_checkpoint(text, found.method, trained_length)[0]


def _facts(source: str) -> dict:
    model = opened(source)
    known, ids = model.tokenizer, model.config.vocab_size
    if known is not None and known.vocab_size > ids:
        raise ValueError(f"{source}: its tokenizer has {known.vocab_size:,} ids, its model {ids:,}")
    shapes = jax.eval_shape(lambda: llama.init_params(model.config, jax.random.key(0)))
    return plain(
        {
            "config": model.config,
            "method": rotary.notation(model.method),
            "trained_length": model.trained_length,
            "bos": beginning(model),
            "specials": tuple(known.specials) if known else (),
            "parameters": lora.count(shapes),
            "notes": model.notes,
        }
    )
