"""What studies of training data measure of a row: loss at long range, and keys that are found."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.lab.corpus import Text
from experiments.lab.machine import Machine
from experiments.lab.quantities import Scores
from experiments.lab.scoring import losses
from longrope_jax import rotary, sharding
from longrope_jax.evaluation import retrieval
from longrope_jax.model import Model
from longrope_jax.tasks import Passkey

QUANTITIES = ("loss", "loss at short range", "gain from long context", "keys", "keys when short")


@dataclasses.dataclass(frozen=True)
class Reach:
    """What is measured of a row.

    Attributes:
        length: tokens of a long window.
        short: tokens of a short one, which divides `length`.
        windows: of each held-out document.
        samples: keys that are asked for at each length.
        crops: whether the loss is measured with the last `short` tokens read as well.
    """

    length: int
    short: int
    windows: int
    samples: int
    crops: bool = True

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths at which keys are asked for: the short one, doubled up to the long one."""
        count = (self.length // self.short).bit_length()
        return tuple(self.short * 2**i for i in range(count))


def loss(model: Model, text: Text, reach: Reach, machine: Machine) -> dict[str, Any]:
    """Loss of each short block of long windows, whole and with the last `short` tokens read."""
    tokens, documents = text.windows(reach.length, reach.windows)
    score = functools.partial(losses, model, model.method, tokens, machine, block=reach.short)
    cropped = {"cropped": score(reads=reach.short)} if reach.crops else {}
    return {"blocks": score(), "documents": documents} | cropped


def keys(model: Model, text: Text, task: Passkey, reach: Reach, machine: Machine) -> dict[str, Any]:
    """Whether each key is found, [samples, lengths]; of the short length's documents."""
    right, named = [], None
    for length in reach.lengths:
        options = {"length": length, "count": reach.samples, "seed": length, "bos": text.bos}
        samples = task.samples(text.held_out, text.tokenizer, **options)
        made = rotary.as_rotary(model.method, head_dim=model.config.head_dim, seq_len=length)
        with sharding.mesh_of(model.params):
            found, _ = retrieval.teacher_forced(
                model.config, model.params, made, samples, batch=machine.rows(length)
            )
        right.append(found)
        named = samples.documents if named is None else named
    return {"right": np.stack(right, -1), "documents": np.asarray(named)}


def quantities(blocks: Scores, cropped: Scores, right: Scores) -> dict[str, Scores]:
    """The quantities of rows from what `loss` and `keys` measured."""
    gain = cropped.minus(blocks).map(lambda values: values[..., 1:].mean(-1))
    found = (
        blocks.map(lambda values: values.mean(-1)),
        blocks.map(lambda values: values[..., 0]),
        gain,
        right.map(lambda values: values.mean(-1)),
        right.map(lambda values: values[..., 0]),
    )
    return dict(zip(QUANTITIES, found, strict=True))


def over(found: Scores, reference: str) -> Scores:
    """The scores less those of the row `reference`, sample by sample; a check compares with 0."""
    if reference not in found.values:
        return Scores({}, {})
    alone = Scores(
        dict.fromkeys(found.rows, found.values[reference]),
        dict.fromkeys(found.rows, found.documents[reference]),
    )
    return found.minus(alone)


def read(settings: ConfigDict | Mapping, length: int, short: int) -> Reach:
    """The measurement of a config's `evaluation`: windows per document, and samples."""
    return Reach(length, short, settings["windows_per_document"], settings["samples"])


def lines(parts: Mapping[str, Scores], show) -> tuple[Sequence[str], list[list]]:
    """Header and lines of a table of all rows and quantities."""
    rows = parts["loss"].rows
    return ["row", *parts], [
        [
            row,
            *(show(part.interval(row)) if row in part.values else None for part in parts.values()),
        ]
        for row in rows
    ]
