"""The study of data mixes: the same text, of another length, and nothing of it held out."""

import itertools

import numpy as np
import pytest

from configs import data_mix as presets
from experiments import data_mix as study
from experiments import lab
from experiments.lab import scratch
from longrope_jax.data import token_cache
from longrope_jax.data.streams import Stream

SHARED = 200  # tokens, bytes here, that no two plays have in common


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_mix")
    config = presets.get_config("tiny")
    return config, folder, study.main(config, folder)


@pytest.fixture(scope="module")
def work(finished):
    config, folder, _ = finished
    return scratch.Scratch(config, folder, lab.Machine(**config.machine), 128)


def planned(work, row):
    return lab.blended(study.recipe_of(work.config, row, 0), work.text)


def documents(work, row, part):
    """Begin and end of the documents that a source has, as bytes of their tokens."""
    source = dict(study.sources(work.config.rows[row], 128, 960 * 128))[part]
    cache = token_cache.open_cache(work.folder / "tokens")
    bounds = source.least, source.greatest, source.cut
    stream = Stream(cache, work.tokenizer.special("<bos>"), *bounds, work.text.without)
    tokens, first = stream.read(0, len(stream))
    edges = np.append(np.flatnonzero(first), len(tokens))
    pairs = itertools.pairwise(edges)
    return [tokens[a + 1 : b].astype(np.uint8).tobytes() for a, b in pairs]


def test_cut_documents_are_the_natural_ones_in_pieces(work):
    whole, pieces = documents(work, "natural", "text"), documents(work, "cut", "text")
    assert b"".join(whole) == b"".join(pieces)
    assert max(map(len, pieces)) == 128 // 4 < min(map(len, whole))


def test_long_and_short_documents_are_all_documents(work):
    whole = documents(work, "natural", "text")
    long, short = (documents(work, "long upsampled", part) for part in ("long", "short"))
    assert sorted(long + short) == sorted(whole)
    assert min(map(len, long)) >= 960 * 128 > max(map(len, short))
    blocks = 4 * 8  # of the whole run
    shares = planned(work, "long upsampled").seen(4)
    assert shares["share/long"] == pytest.approx(0.8, abs=1 / blocks)
    assert planned(work, "short documents").seen(4)["share/long"] == 0


@pytest.mark.parametrize("row", presets.get_config("tiny").rows)
def test_no_arm_trains_on_what_is_held_out(work, row):
    """No passage of 200 bytes of the training windows is in the held-out plays."""
    kept = {
        document.tokens.astype(np.uint8).tobytes()[at : at + SHARED]
        for document in work.text.held_out
        for at in range(len(document.tokens) - SHARED)
    }
    assert len(kept) > 100_000  # what is looked for would be seen
    plan = planned(work, row)
    for step in range(plan.steps):
        for window in plan.batch(step)["tokens"]:
            text = window[window < 256].astype(np.uint8).tobytes()
            parts = {text[at : at + SHARED] for at in range(len(text) - SHARED)}
            assert not parts & kept


def test_arms_train_on_equal_numbers_of_tokens(work):
    sizes = {planned(work, row).batch(0)["tokens"].shape for row in work.config.rows}
    assert sizes == {(8, 129)}


def test_nine_tenths_of_the_gain_is_level_with_nothing_left():
    values = {"before": [[0.2, 0.2]], "natural": [[1.0, 0.6]], "cut": [[0.92, 0.56]]}
    named = {row: np.array(["a", "b"]) for row in values}
    found = study.less(lab.Scores({k: np.array(v) for k, v in values.items()}, named), "natural")
    np.testing.assert_allclose(found.values["cut"], 0, atol=1e-12)
    np.testing.assert_allclose(found.values["natural"], [[0.08, 0.04]])
    np.testing.assert_allclose(found.values["before"], [[-0.72, -0.36]])


def test_the_report_has_every_row(finished):
    config, folder, report = finished
    cells = study.plan(config, folder)
    assert not lab.missing(folder, cells)
    parts = study.quantities(config, folder, cells)
    assert all(set(parts[name].rows) == {"before", *config.rows} for name in study.QUANTITIES)
    assert len(report.claims) == len(config.hypotheses)
    seen = study.epochs(config, folder, cells).rows
    assert {row[0]: row[2] for row in seen if row[1] == "long"}["long upsampled"] > 0.7


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_hypotheses_of_every_preset_can_be_read(preset):
    config = presets.get_config(preset)
    rows = (study.BEFORE, *config.rows)
    lab.check_hypotheses(config.hypotheses, study.QUANTITIES, rows)
    cells = study.plan(config, None)
    assert len({cell.name for cell in cells}) == len(cells)
