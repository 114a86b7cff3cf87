"""The study of Giraffe's bases: what each row trains with, at which scales it is read."""

import numpy as np
import pytest

from configs import giraffe as presets
from experiments import giraffe as study
from experiments import lab
from experiments.lab import scratch
from longrope_jax import rotary

OVERNIGHT = presets.get_config("overnight")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("giraffe")
    config = presets.get_config("tiny")
    return config, folder, study.main(config, folder)


def test_linear_rows_are_read_from_half_to_twice_their_scale():
    found = study.read_at(OVERNIGHT, "linear 16")
    assert list(found.values()) == [16, 8, 12, 24, 32]
    assert "linear 16 at 12" in found
    assert list(study.read_at(OVERNIGHT, "scale 1").values()) == [1, 1.5, 2]


def test_a_row_is_read_as_it_says_and_trained_once():
    cells = [c for c in study.plan(OVERNIGHT, None) if c.kind == "loss" and c.seed == 0]
    methods = {cell.row: cell.what[2] for cell in cells}
    base = 10_000 / 4096 * 64
    assert methods["linear 16 at 12"] == rotary.PositionInterpolation(base=base, factor=12)
    assert methods["ABF"] == rotary.RoPE(base=50 * base)
    trained = {cell.row: cell.after[0] for cell in cells}
    assert trained["linear 16 at 12"] == trained["linear 16"] != trained["linear 8"]
    assert trained["linear 16"].what[0].method.factor == 16


@pytest.mark.parametrize("row", OVERNIGHT.rows)
def test_every_row_trains_on_as_many_tokens(row):
    recipe = study.recipe_of(OVERNIGHT, row, 0)
    assert recipe.tokens == 2400 * 16 * 128


def test_stages_of_length_and_of_rotation():
    progressive, dropped = (study.recipe_of(OVERNIGHT, x, 0) for x in ("progressive", "DroPE"))
    assert [stage.length for stage in progressive.blend.stages] == [128, 512]
    assert (progressive.first_method.factor, progressive.method.factor) == (4, 16)
    assert dropped.blend.stages[0].until == 7 / 8 and dropped.method == rotary.NoPE()
    assert type(dropped.first_method) is rotary.RoPE


def test_randomised_positions_reach_the_longest_text():
    recipe = study.recipe_of(OVERNIGHT, "randomised", 3)
    assert (recipe.length, recipe.reach) == (128, 1024)
    assert study.recipe_of(OVERNIGHT, "ABF", 3).reach == 128


def test_rnope_swa_is_pretrained_with_its_own_windows(finished):
    config, folder, _ = finished
    cells = {c.row: c for c in study.plan(config, folder) if c.kind == "loss"}
    work = scratch.Scratch(config, folder, lab.Machine(**config.machine), 128)
    model = work.models.start(cells["RNoPE-SWA"])
    assert model.config.windows == (32, 0)
    assert [type(m) for m in model.method.methods] == [rotary.RoPE, rotary.NoPE]
    assert work.models.start(cells["scale 1"]).config.windows == ()


def test_keys_at_the_scale_are_those_of_its_length():
    config = presets.get_config("tiny")
    config.rows["scale 1"].scale = 4.0
    keys = lab.Scores(
        {"scale 1": np.asarray([[[0.9, 0.7, 0.4]]]), "scale 1 at 6": np.zeros((1, 1, 3))},
        {"scale 1": np.array(["a"]), "scale 1 at 6": np.array(["a"])},
    )
    found = study.kept(config, keys)
    assert found.rows == ["scale 1"]  # 6 times is no length that is read
    np.testing.assert_allclose(found.values["scale 1"], [[0.4 - 0.9]])


def test_no_row_trains_on_what_is_held_out(finished):
    """No passage of 200 bytes of the training windows is in the held-out plays."""
    config, folder, _ = finished
    work = scratch.Scratch(config, folder, lab.Machine(**config.machine), 128)
    kept = {
        document.tokens.astype(np.uint8).tobytes()[at : at + 200]
        for document in work.text.held_out
        for at in range(len(document.tokens) - 200)
    }
    assert len(kept) > 100_000  # what is looked for would be seen
    plan = lab.blended(study.recipe_of(config, "progressive", 0), work.text)
    for step in range(2, plan.steps):  # of the windows that are long enough
        for window in plan.batch(step)["tokens"]:
            text = window[window < 256].astype(np.uint8).tobytes()
            assert not {text[at : at + 200] for at in range(len(text) - 200)} & kept


def test_the_report_has_every_row_and_scale(finished):
    config, folder, report = finished
    cells = study.plan(config, folder)
    assert not lab.missing(folder, cells)
    parts = study.quantities(config, folder, cells)
    names = {"scale 1 at 1.5", "scale 1 at 2", *config.rows}
    for name in study.QUANTITIES[:-1]:
        assert set(parts[name].rows) == names, name
    table = study.matrix(config, parts[study.BEYOND])
    assert table.header == ["trained", "read at 1", "read at 1.5", "read at 2"]
    assert [row[0] for row in table.rows] == ["scale 1"] and None not in table.rows[0]
    assert len(report.claims) == 1


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_hypotheses_of_every_preset_can_be_read(preset):
    config = presets.get_config(preset)
    cells = study.plan(config, None)
    lab.check_hypotheses(config.hypotheses, study.QUANTITIES, (cell.row for cell in cells))
    assert len({cell.name for cell in cells}) == len(cells)
