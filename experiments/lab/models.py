"""Chains of trainings: the models that cells start from, one at a time on the devices."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.lab import training
from experiments.lab.cells import Cell, run_folder
from experiments.lab.corpus import Text
from experiments.lab.machine import Machine
from longrope_jax.model import Model


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The checkpoint of a study, and what the trainings after it came to.

    A training is a cell with a Recipe in its `what`; it starts from the checkpoint, or from the
    training that is first in its `after`. Only one model is held at a time, beside the model that
    adapters were trained on.

    Attributes:
        source: the checkpoint, as `training.model` takes it.
        folder: of the study.
        machine: where the parameters go.
        types: `dtype` and `param_dtype` of the checkpoint.
        fresh: makes the new model that a training starts from where `source` is "".
        again: makes a finished training's cell once more, where its numbers came from another
            machine without its parameters; None: that is an error.
    """

    source: str
    folder: Path
    machine: Machine
    types: Mapping[str, str]
    fresh: Callable[[Cell], Model] | None = None
    again: Callable[[Cell], object] | None = None
    _held: dict[Cell | None, Model] = dataclasses.field(default_factory=dict)

    def start(self, cell: Cell) -> Model:
        """The model that a cell starts from: it trains that model further or measures it."""
        return self._after(_before(cell))

    def train(self, cell: Cell, text: Text) -> dict[str, np.ndarray]:
        """Trains a cell's recipe; see `training.train`."""
        recipe, before = _recipe(cell), _before(cell)
        new = self.fresh is not None and not (before or self.source)
        model = self.fresh(cell) if new else self._after(before)
        # Without adapters the model's buffers are used up.
        self._keep({before: model} if recipe.lora else {})
        run = run_folder(self.folder, cell)
        return training.train(model, recipe, text, run, self.machine)

    def _after(self, trained: Cell | None) -> Model:
        if trained not in self._held:
            if trained and self.again and not self._is_here(trained):
                print(f"{trained.name}: its parameters are not here, so it is trained again")
                self.again(trained)
            recipe = None if trained is None else _recipe(trained)
            base = self.start(trained) if recipe and recipe.lora else None
            self._keep({_before(trained): base} if base else {})
            self._held[trained] = self._loaded(trained, recipe, base)
        return self._held[trained]

    def _is_here(self, trained: Cell) -> bool:
        """Whether the run's last parameters are there: one that is trained again may be cut off."""
        return training.has_parameters(run_folder(self.folder, trained), _recipe(trained).steps)

    def _loaded(self, trained: Cell | None, recipe, base: Model | None) -> Model:
        if trained is None:
            return training.model(self.source, self.machine, **self.types)
        run = run_folder(self.folder, trained)
        return training.trained(run, self.machine, base=base, recipe=recipe)

    def _keep(self, models: dict[Cell | None, Model]) -> None:
        self._held.clear()
        self._held.update(models)


def _before(cell: Cell) -> Cell | None:
    return cell.after[0] if cell.after else None


def _recipe(cell: Cell) -> training.Recipe:
    return next(value for value in cell.what if isinstance(value, training.Recipe))
