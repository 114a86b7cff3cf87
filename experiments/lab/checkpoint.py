"""What a study must know of a checkpoint, kept in a cell so that a report needs no checkpoint."""

import dataclasses
import json
from pathlib import Path

import jax

from experiments.lab.cells import Cell, complete, needed
from experiments.lab.files import plain
from experiments.lab.machine import Machine
from experiments.lab.training import opened
from longrope_jax import llama, rotary
from longrope_jax.llama import LlamaConfig
from longrope_jax.model import Model
from longrope_jax.training import lora


@dataclasses.dataclass(frozen=True)
class Facts:
    """A checkpoint without its parameters.

    Attributes:
        config: the architecture.
        method: the rotary method that it was trained with.
        trained_length: tokens, as the checkpoint declares it; None where it does not.
        bos: name of the token that its own software puts before a text; "" for none.
        parameters: how many numbers it has.
        notes: what was recognised in it, in words.
    """

    config: LlamaConfig
    method: rotary.Method
    trained_length: int | None
    bos: str
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


def check_length(found: Facts, source: str, trained_length: int) -> None:
    """Refuses a config that says another trained length than the checkpoint.

    Raises:
        ValueError: they differ; the message names the field to change.
    """
    declared = getattr(found.method, "original_length", None) or found.trained_length
    if declared is not None and declared != trained_length:
        raise ValueError(
            f"{source} declares a trained length of {declared:g} tokens, the config says "
            f"{trained_length}: --config.trained_length={declared:g}"
        )


def check_bos(found: Facts, source: str, bos: str) -> str:
    """Name of the token that begins every document: `bos`, or the checkpoint's own.

    Raises:
        ValueError: neither is there.
    """
    if bos or found.bos:
        return bos or found.bos
    raise ValueError(
        f"{source} puts no token of its own before a text: name the one that begins a document, "
        "e.g. --config.bos='<|endoftext|>'"
    )


def _facts(source: str) -> dict:
    model = opened(source)
    shapes = jax.eval_shape(lambda: llama.init_params(model.config, jax.random.key(0)))
    return plain(
        {
            "config": model.config,
            "method": rotary.notation(model.method),
            "trained_length": model.trained_length,
            "bos": beginning(model),
            "parameters": lora.count(shapes),
            "notes": model.notes,
        }
    )
