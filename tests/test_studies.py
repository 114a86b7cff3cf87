"""What every study promises: numbers that are there stay where they are, whatever is added.

A study stands here with a tiny config, the override that adds seeds, and one that measures
otherwise; None where the study has no such thing.
"""

import dataclasses
import importlib
from pathlib import Path

import pytest

from experiments import lab
from experiments.lab import cli

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Study:
    """A module with `plan`, and what is asked of it.

    Attributes:
        module: of the study.
        config: its file, with a tiny preset.
        seeds: field that counts seeds.
        evaluation: field and value that measure otherwise.
        committed: folders of docs/results, each with the preset whose cells it holds.
        unmeasured: rows that those folders do not hold, as their reports say.
    """

    module: str
    config: str
    seeds: str | None = "seeds"
    evaluation: tuple[str, str] | None = None
    committed: tuple[tuple[str, str], ...] = ()
    unmeasured: tuple[str, ...] = ()

    def plan(self, folder, preset="tiny", **changes) -> list[lab.Cell]:
        """Its cells under a preset with some fields changed."""
        file = (
            f"{ROOT / self.config}:{preset}" if self.config.startswith("configs") else self.config
        )
        config = cli.load_config(file)
        for field, value in changes.items():
            cli.override(config, field, value)
        return importlib.import_module(self.module).plan(config, folder)


_WINDOWS = ("evaluation.windows_per_document", "2")
STUDIES = {
    "base_bound": Study(
        "experiments.base_bound",
        "configs/base_bound.py",
        seeds=None,
        committed=(("base_bound", "full"),),
    ),
    "base_frequency_ablation": Study(
        "experiments.base_frequency_ablation",
        "configs/base_frequency_ablation.py",
        seeds="rows.RoPE.seeds",
        evaluation=("evaluation.windows_per_document", "3"),
    ),
    "two_methods": Study(
        "docs.examples.two_methods",
        "docs/examples/two_methods.py",
        evaluation=("evaluation.windows", "1"),
    ),
    "continual_pretraining": Study(
        "experiments.continual_pretraining",
        "configs/continual_pretraining.py",
        evaluation=_WINDOWS,
        committed=(("continual_pretraining", "smollm2_cpu"),),
        unmeasured=("cropped",),
    ),
    "extension_suite": Study(
        "experiments.extension_suite",
        "configs/extension_suite.py",
        seeds=None,
        evaluation=("blocks", "8"),
        committed=(("extension_suite/quick", "quick"),),
    ),
    "curriculum": Study("experiments.curriculum", "configs/curriculum.py", evaluation=_WINDOWS),
    "data_mix": Study("experiments.data_mix", "configs/data_mix.py", evaluation=_WINDOWS),
    "filter_gain": Study(
        "experiments.filter_gain",
        "configs/filter_gain.py",
        evaluation=("windows_per_document", "2"),
        committed=(("filter_gain", "cpu"),),
    ),
    "instruction_tuning": Study(
        "experiments.instruction_tuning",
        "configs/instruction_tuning.py",
        evaluation=_WINDOWS,
    ),
    "giraffe": Study("experiments.giraffe", "configs/giraffe.py", evaluation=_WINDOWS),
    "longlora": Study(
        "experiments.longlora",
        "configs/longlora.py",
        evaluation=_WINDOWS,
        committed=(("longlora", "smollm2"),),
    ),
    "longrope_search": Study(
        "experiments.longrope_search",
        "configs/longrope_search.py",
        seeds="seeds",
        evaluation=("test_windows_per_document", "2"),
        committed=(("longrope_search", "cpu"),),
        unmeasured=("cropped",),
    ),
}


@pytest.fixture(params=STUDIES)
def study(request, monkeypatch):
    monkeypatch.chdir(ROOT)
    return STUDIES[request.param]


def every(cells) -> dict[str, lab.Cell]:
    """The cells and all that they stand on, by name."""
    found = {cell.name: cell for cell in cells}
    for cell in cells:
        found |= every(cell.after)
    return found


_TRAIN = ("train", "prolonged", "search")


def trained(cells) -> set[str]:
    return {name for name, cell in every(cells).items() if cell.kind in _TRAIN}


def test_more_seeds_add_their_own_cells_alone(study, tmp_path):
    if study.seeds is None:
        pytest.skip("no seed enters this study")
    two, three = (every(study.plan(tmp_path, **{study.seeds: n})) for n in ("2", "3"))
    assert two.keys() < three.keys()
    assert {three[name].seed for name in three.keys() - two.keys()} == {2}


def test_another_evaluation_trains_nothing_again(study, tmp_path):
    if study.evaluation is None:
        pytest.skip("this study has one way to measure")
    field, value = study.evaluation
    once, other = study.plan(tmp_path), study.plan(tmp_path, **{field: value})
    assert trained(once) == trained(other)
    names = [{cell.name for cell in plan if cell.kind not in _TRAIN} for plan in (once, other)]
    assert names[0] - names[1] and names[1] - names[0]


def test_another_machine_renames_nothing(study, tmp_path):
    machine = {"machine.fsdp": "2", "machine.data": "2", "machine.remat": "full"}
    machine |= {"machine.tokens_per_batch": "64", "machine.log_every": "3"}
    machine |= {"machine.accumulation": "2", "machine.checkpoint_every": "7"}
    once, other = study.plan(tmp_path), study.plan(tmp_path, **machine)
    assert every(once).keys() == every(other).keys()


def test_committed_results_are_drawn_again_without_work(study):
    for folder, preset in study.committed:
        path = ROOT / "docs" / "results" / folder
        cells = study.plan(path, preset)
        rows = {cell.row for cell in cells if not lab.path(path, cell).is_file()}
        assert rows <= set(study.unmeasured)


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("curriculum", "rows.long throughout.switch", 1.5, "switch must lie in 0..1"),
        ("curriculum", "corpus", "", "needs your own text"),
        ("curriculum", "training.batch", 3, "does not divide over"),
        ("data_mix", "rows.cut.pieces", 5, "pieces must divide a window of 128 tokens, got 5"),
        ("data_mix", "rows.cut.long", 1.5, "long must be a share"),
        ("data_mix", "corpus", "", "needs your own text"),
        ("giraffe", "rows.scale 1.method", "pi:factor={scales}", "did you mean"),
        ("giraffe", "rows.progressive.stages", ((0.5, 3), (1.0, 8)), "must divide the longest"),
        ("giraffe", "rows.randomised.positions", "rous:max_length=256", "did you mean"),
        ("giraffe", "corpus", "", "needs your own text"),
        ("instruction_tuning", "arms.short.short", 1.5, "must be shares"),
        ("instruction_tuning", "bases.PI", "pie:factor=2", "unknown rotary method"),
        ("instruction_tuning", "asked.shortest", 8, "do not hold a question"),
        ("instruction_tuning", "corpus", "", "needs your own text"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_trained(tmp_path, name, field, value, words):
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=words):
        importlib.import_module(f"experiments.{name}").main(config, tmp_path)
    assert not (tmp_path / "runs").exists()
