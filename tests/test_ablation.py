"""The base-frequency ablation: sizes, quantities, verdicts, and a whole tiny study."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
from checkpoints import tokenizer_json, write

import longrope_jax
from configs import base_frequency_ablation as configs
from configs import reproduce as reproduce_configs
from experiments import base_frequency_ablation as study
from experiments import base_frequency_cells as cells
from experiments import base_frequency_report as report
from experiments import base_frequency_results as results
from experiments import base_frequency_tables as tables
from experiments import lab, reproduce
from experiments.lab import cli
from longrope_jax import llama, rotary, weights
from longrope_jax.data import tokenizers

YARN = "yarn:factor=8,original_length=64"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of random documents, each with sentences of its own."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in range(6):
        sentences = (
            " ".join(rng.choice(words, size=2)).capitalize() + f" {name} {i}." for i in range(400)
        )
        (folder / f"doc{name}.txt").write_text("\n\n".join(sentences))
    return folder


def changed(text, preset="tiny", **changes):
    """A preset on the text, with fields changed as a command line does it."""
    config = configs.get_config(preset)
    with config.unlocked():
        config.machine = {"checkpoint_every": 2} | config.machine.to_dict()
    for path, value in ({"corpus": str(text)} | changes).items():
        cli.override(config, path, value)
    return config


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny study."""
    folder = tmp_path_factory.mktemp("study")
    study.main(changed(text), folder, "the command")
    return folder


def found_in(folder, config):
    config, _ = cells.filled(config, folder)
    return results.Found(config, folder, cells.plan(config, folder), 64)


def cell_of(config, folder, kind, **fields):
    """The one measuring cell with these fields of itself or of its setting."""
    (cell,) = (
        cell
        for cell in cells.plan(config, folder)
        if cell.kind == kind
        and all(
            getattr(cell, name, getattr(cell.what[0], name, None)) == value
            for name, value in fields.items()
        )
    )
    return cell


# Sizes


def rows_of(config, folder):
    plan = cells.plan(config, folder)
    return {cell.row: cell.what[0].method for cell in plan if cell.kind == "loss"}


def test_the_overnight_presets_have_the_protocol_s_sizes(tmp_path):
    config = configs.get_config("small_prose")
    methods = rows_of(config, tmp_path)
    assert methods["RoPE"] == rotary.RoPE(base=156.25)
    assert methods["RoPE ABF"] == rotary.RoPE(base=7812.5)
    assert methods["RoPE PI"] == rotary.PositionInterpolation(factor=8, base=156.25)
    assert (methods["xPos ABF"].scale_base, methods["xPos ABF"].gamma) == (64, 0.8)
    assert methods["base x500"].base == 78_125
    assert all(config.rows[r].seeds == 3 for r in ("RoPE", "RoPE PI", "RoPE ABF", "xPos ABF"))
    assert sum(not settings.taught for settings in config.rows.values()) == 1
    rates = {s.rate for row, s in config.rows.items() if row.startswith("RoPE PI, rate")}
    assert rates == {0.5, 1, 2}
    others = [configs.get_config(name) for name in ("small_code", "large_prose", "large_code")]
    assert len({(o.model.d_model, o.corpus) for o in [config, *others]}) == 4
    for one in (config, *others):
        assert one.continuation.batch * one.length * one.factor == 2048


def test_the_tpu_preset_has_the_paper_s_sizes(tmp_path):
    config = configs.get_config("tpu_7b")
    assert cells.sizes(config) == {"base": 10_000, "abf": 500_000, "length": 4096, "factor": 8}
    assert rows_of(config, tmp_path)["xPos ABF"].scale_base == 4096
    assert config.continuation.batch * config.length * config.factor == 2**22
    assert cells.shape(config, vocab=32_000) == llama.preset("llama2_7b", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"32000 .*--config\.tokenizer.* 50000"):
        cells.shape(config, vocab=50_000)


def test_bases_keep_the_turns_of_the_slowest_pair_of_the_paper(finished, text):
    config = changed(text, length="256")
    found = results.Found(config, finished, cells.plan(config, finished), 64)
    known = {"RoPE": rotary.RoPE(base=625), "RoPE ABF": rotary.RoPE(base=31_250)}
    object.__setattr__(found, "methods", known)
    ours, paper = zip(*((row[1], row[3]) for row in tables.turns_table(found).rows), strict=True)
    np.testing.assert_allclose(ours, [0.080, 0.638, 0.014], atol=6e-4)
    np.testing.assert_allclose(paper, [0.075, 0.602, 0.013], atol=6e-4)


def test_methods_of_one_seed_share_pretraining_and_data_order(text, tmp_path):
    plan = cells.plan(changed(text), tmp_path)
    runs = {c.after[0] for c in plan if c.seed == 0 and c.kind == "passkey" and c.row != "chance"}
    trained = [run for run in runs if run.kind == "train"]
    recipes = [run.what[0] for run in trained]
    assert {run.row for run in trained} == {"RoPE", "RoPE ABF"}
    assert len({run.after for run in trained}) == 1 and len({r.seed for r in recipes}) == 1
    (prolonged,) = trained[0].after
    assert recipes[0].seed != prolonged.after[0].what[0].seed


# What cells hold


def test_a_run_says_all_about_itself_and_its_loss_is_that_of_its_logits(finished, text):
    """Two columns of blocks, computed again from the logits of the run's own folder."""
    config = changed(text)
    cell = cell_of(config, finished, "loss", row="RoPE ABF", seed=1, step=4)
    model = longrope_jax.load(lab.run_folder(finished, cell.after[0]))
    assert model.method == rotary.RoPE(base=64 * 10_000 / 4096 * 50)
    assert model.trained_length == 512 and model.beginning() == model.tokenizer.special("<bos>")
    whole, _ = cells.filled(config, finished)
    tokens, documents = study.Work(whole, finished, lab.Machine(), None).windows(cell)
    arrays = lab.read(finished, cell)
    rows = np.flatnonzero(documents == arrays["documents"][1])
    assert len(rows) == 2
    logits = np.asarray(model.logits(tokens[rows, :-1]))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, tokens[rows, 1:, None], -1)[..., 0].mean(0)
    np.testing.assert_allclose(arrays["blocks"][1], nll.reshape(64, 16).mean(1), rtol=1e-4)
    np.testing.assert_allclose(arrays["bins"][1, 0], nll[0], rtol=1e-4)


def test_at_another_scale_rope_is_position_interpolation(finished, text):
    config = changed(text)
    cell = cell_of(config, finished, "mean_loss", row="RoPE", seed=0, scales=(0.5, 0.75, 2.0))
    model = lab.trained(lab.run_folder(finished, cell.after[0]), lab.Machine())
    whole, _ = cells.filled(config, finished)
    tokens, _ = study.Work(whole, finished, lab.Machine(), None).windows(cell)
    method = rotary.PositionInterpolation(base=64 * 10_000 / 4096, factor=2)
    blocks = lab.losses(model, method, tokens[:2, :513], lab.Machine(), block=512)
    np.testing.assert_allclose(lab.read(finished, cell)["loss"][0, 2], blocks.mean(), rtol=1e-5)


def test_a_branch_is_a_shorter_run_that_is_annealed_itself(finished, text):
    """It has the data of the whole run, its rate falls at its own end, and it is measured there."""
    config = changed(text)
    short, whole = (
        cell_of(config, finished, kind, row="RoPE", seed=0, step=step).after[0]
        for kind, step in (("mean_loss", 3), ("loss", 4))
    )
    recipes = [cell.what[0] for cell in (short, whole)]
    assert recipes[0] == dataclasses.replace(recipes[1], steps=3) and short.after == whole.after
    assert recipes[0].decay > 0 and recipes[0].optimizer.total_steps == 3
    curve = results.by_step(found_in(finished, config), "loss")["RoPE"]
    assert curve[0] == [3, 4] and len(set(curve[1])) == 2


def test_pretraining_goes_on_only_where_its_criterion_is_not_met(finished, text, tmp_path):
    """Prolonged, its parameters are new; met at once, they are those of the training before."""

    def ends(folder, config):
        cell = cell_of(config, folder, "loss", row="RoPE", seed=0, step=0).after[0]
        runs = [lab.run_folder(folder, one) for one in (cell, cell.after[0])]
        params = [lab.trained(run, lab.Machine()).params["embed"] for run in runs]
        return lab.read(folder, cell), np.abs(np.asarray(params[0]) - np.asarray(params[1])).max()

    arrays, moved = ends(finished, changed(text))
    assert arrays["prolonged"] and arrays["passkey"].mean() < 0.95 and moved > 0
    few = {"rows.RoPE.seeds": "1", "rows.RoPE ABF.seeds": "0", "criterion.share": "1e-9"}
    config = changed(text, **few)
    config.criterion.share = -1.0  # whatever a model can do is enough
    every = cells.plan(config, tmp_path)
    start = next(c for c in every if c.kind == "loss" and c.what[0].step == 0)
    filled, _ = cells.filled(config, tmp_path)
    work = study.Work(filled, tmp_path, lab.Machine(), None)
    lab.complete(tmp_path, [start], work.functions, lab.Machine())
    arrays, moved = ends(tmp_path, config)
    assert not arrays["prolonged"] and moved == 0


def test_a_study_goes_on_from_scores_alone(finished, text, tmp_path):
    """Of another machine there are cells and no parameters: the training is done once more."""
    os.symlink(finished / "cells", tmp_path / "cells")
    config = changed(text)
    cell = cell_of(config, finished, "passkey", row=results.START, seed=0)
    filled, _ = cells.filled(config, tmp_path)
    work = study.Work(filled, tmp_path, lab.Machine(checkpoint_every=2), None)
    assert not (tmp_path / "runs").exists()
    # Such a training was begun here and cut off: what it left is not taken for its end.
    (first,) = cell.after[0].after
    run = lab.run_folder(tmp_path, first)
    recipe = dataclasses.replace(first.what[0], steps=2, decay=0.0)
    lab.train(work.fresh(first), recipe, work.text, run, work.machine)
    assert not work.models._is_here(first)
    shutil.rmtree(run)
    again, kept = work.asked(cell), lab.read(finished, cell)
    np.testing.assert_array_equal(again["answer_tokens"], kept["answer_tokens"])


def test_the_context_gain_is_the_loss_of_the_same_tokens_read_short_and_long(finished, text):
    """Long is the full window; short lies between 3/4 of the pretraining length and all of it."""
    config = changed(text)
    cell = cell_of(config, finished, "context_gain", row="RoPE ABF", seed=0, step=4)
    model = longrope_jax.load(lab.run_folder(finished, cell.after[0]))
    whole, _ = cells.filled(config, finished)
    tokens, documents = study.Work(whole, finished, lab.Machine(), None).windows(cell)
    arrays, tokens = lab.read(finished, cell), tokens[documents == documents[0]][:, :513]

    def nll(ids):
        logits = np.asarray(model.logits(ids[None, :-1]))[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -log_p[np.arange(len(ids) - 1), ids[1:]]

    long = [nll(row)[-128:].mean() for row in tokens]
    np.testing.assert_allclose(arrays["long"][0], np.mean(long), rtol=1e-4)
    # Windows of 64 tokens begin every 16 with BOS and score the 16 that no earlier one has scored.
    short = []
    for row in tokens:
        for end in range(400, 513, 16):
            window = np.concatenate([row[:1], row[end - 63 : end + 1]])
            short.append(nll(window)[-16:].mean())
    np.testing.assert_allclose(arrays["short"][0], np.mean(short), rtol=1e-4)


def test_the_cropped_row_asks_the_pretrained_model_with_its_last_tokens(finished, text):
    config = changed(text)
    kept = {"row": results.CROPPED, "seed": 0, "reads": 64}
    cell = cell_of(config, finished, "first_sentence", **kept)
    assert cell.after == cell_of(config, finished, "loss", row="RoPE", seed=0, step=0).after
    assert lab.read(finished, cell)["exact"].shape == (4, 2)
    found = found_in(finished, config)
    assert found.quantities["passkey area"].mean(results.CROPPED) >= 0
    beyond = found.quantities[results.BEYOND]
    assert set(beyond.rows) == {"RoPE", "RoPE ABF", results.CROPPED}


def test_quantities_are_means_over_parts_of_the_window(finished, text):
    config = changed(text)
    found = found_in(finished, config)
    for step, names in ((4, ("loss", results.WITHIN)), (0, (results.UNTRAINED,))):
        every = [cell_of(config, finished, "loss", row="RoPE", seed=s, step=step) for s in (0, 1)]
        blocks = np.stack([lab.read(finished, cell)["blocks"] for cell in every])
        for name in names:
            low, high = {results.WITHIN: (2, 4)}.get(name, (0, 32))
            values = found.quantities[name].values["RoPE"]
            np.testing.assert_allclose(values, blocks[..., low:high].mean(-1), rtol=1e-6)


def made_up(config, gains, keys):
    """Findings of 3 seeds and 8 documents, in which rows gain and find keys as told."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e-3, (3, 8))

    class Made(results.Found):
        rows = dict.fromkeys(gains, 3)

        def at_end(self, key):
            values = {row: noise + (gain if key == "short" else 0) for row, gain in gains.items()}
            return lab.Scores(values, dict.fromkeys(gains, np.arange(8)))

        def cropped(self, kind, key, column=None):
            return lab.Scores({}, {})

        def at(self, kind, key, length=0, **column):
            place = results.lengths(self.config).index(length or self.full)
            values = {row: np.full((3, 8), share[place]) for row, share in keys.items()}
            return lab.Scores(values, dict.fromkeys(keys, np.arange(8)))

    return Made(config, None, (), 64)


def test_rho_and_areas_are_those_of_the_definition():
    """Computed by hand from gains and curves that are told."""
    config = configs.get_config("small_prose")
    gains = {"RoPE": 0.02, "RoPE PI": 0.045, "RoPE ABF": 0.05}
    # At L, 2L, 4L, 6L, 8L and 10L.
    pi = [0.9, 0.9, 0.8, 0.7, 0, 0]
    keys = {"RoPE": [1, 0.5, 0, 0, 0, 0], "RoPE ABF": [1] * 6, "RoPE PI": pi}
    found = made_up(config, gains, keys)
    assert results.ratio(found).estimate == pytest.approx(0.005 / 0.03)
    excess = found.excess()
    assert float(excess.mean("RoPE PI")) == pytest.approx(0.005 - 0.015)
    area = found.area("passkey")
    assert float(area.mean("RoPE")) == pytest.approx((0.75 + 0.25) / np.log2(10))
    assert float(area.mean("RoPE ABF")) == pytest.approx(1)
    assert found.reach("passkey") == {
        "RoPE": [64] * 3,
        "RoPE ABF": [640] * 3,
        "RoPE PI": [256] * 3,
    }
    ceiling = found.of_ceiling("passkey", 0.9)
    assert float(ceiling.mean("RoPE")) == pytest.approx(-0.9)


def test_repair_finds_the_exponent_that_is_there(monkeypatch):
    """PI's excess is 0.8 t^-0.7 in every seed and document, so every number follows."""
    config = configs.get_config("small_prose")
    steps = [38, 150, 600, 2400]
    noise = np.random.default_rng(1).normal(2, 0.1, (3, 8))
    every = [
        lab.Scores(
            {"RoPE ABF": noise, "RoPE PI": noise + 0.8 * t**-0.7},
            dict.fromkeys(("RoPE ABF", "RoPE PI"), np.arange(8)),
        )
        for t in steps
    ]
    monkeypatch.setattr(results, "at_steps", lambda *_: (steps, every))
    rows = dict.fromkeys(("RoPE PI", "RoPE ABF"), 0.0)
    law = results.repair(made_up(config, rows, {}))
    assert law.exponent.estimate == pytest.approx(0.7)
    assert law.at_paper.estimate == pytest.approx(0.8 * 19_073**-0.7)
    assert law.reaches.estimate == pytest.approx((0.01 / 0.8) ** (-1 / 0.7))
    assert not law.stalls and law.expected.estimate == pytest.approx(0.8 * 2400**-0.7)
    # An excess that stays where it was after a quarter of the steps follows no power.
    every[-1] = every[-2]
    stalled = results.repair(made_up(config, rows, {}))
    assert stalled.stalls and stalled.expected.estimate == pytest.approx(0.8 * 2400**-0.7)


def test_a_budget_leaves_out_the_last_rows_and_says_which(tmp_path):
    """Four parts of one seed share its pretraining; the second seed does not fit."""
    config = configs.get_config("cpu")
    every = list(cells.parts(cells.filled(config, tmp_path)[0]))
    tokens = sum(part.trained + part.scored / 3 for part in every[:4]) + every[0].pretrained
    kept, left_out = cells.within(config, every, 600 / tokens * 0.999)
    assert [part.label for part in kept] == [f"{row}, seed 0" for row in config.rows]
    assert left_out == [f"{row}, seed {seed}" for seed in (1, 2) for row in config.rows]
    kept, left_out = cells.within(config, every, 1.0)
    assert len(kept) == 4 and len(left_out) == len(every) - 4


def altered(folder, copy, cell, **arrays):
    """A copy of the cells, one of them with other arrays."""
    (copy / "cells").mkdir(exist_ok=True)
    for file in (folder / "cells").iterdir():
        if not (copy / "cells" / file.name).exists():
            os.symlink(file, copy / "cells" / file.name)
    path = lab.path(copy, cell)
    kept = dict(np.load(path)) | arrays
    path.unlink()
    np.savez(path, **kept)


def test_a_diverged_run_is_left_out_and_the_rest_reported(finished, text, tmp_path):
    config = changed(text)
    cell = cell_of(config, finished, "loss", row="RoPE", seed=1, step=4)
    blocks = lab.read(finished, cell)["blocks"]
    altered(finished, tmp_path, cell, blocks=np.where(blocks == blocks[0, 0], np.nan, blocks))
    found = found_in(tmp_path, config)
    assert found.rows == {"RoPE": 1, "RoPE ABF": 2}
    assert found.quantities["passkey"].values["RoPE"].shape[0] == 1


def test_controls_are_judged_against_chance(finished, text, tmp_path):
    config = changed(text)
    for seed in (0, 1):
        fields = {"row": "RoPE ABF", "seed": seed, "controls": results.CONTROLS}
        cell = cell_of(config, finished, "answers", **fields)
        altered(finished, tmp_path, cell, rouge=np.asarray([[40.0, 1.0], [41.0, 1.0]]))
    found = found_in(tmp_path, config)
    verdicts = {row[0]: (row[3], row[5]) for row in tables.controls_table(found).rows}
    assert verdicts["RoPE ABF"] == ("reversed", "holds")
    gain = found.quantities["gain from the sentence"].mean("RoPE ABF")
    assert gain == pytest.approx(found.quantities["ROUGE-L"].mean("RoPE ABF") - 40.5)


# Hypotheses


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_the_hypotheses_of_every_preset_can_be_read(preset):
    results.check_hypotheses(configs.get_config(preset))


def test_the_committed_scores_give_the_committed_verdicts():
    """Every cell of the rows that are shown is there, under the name that the config gives it."""
    folder = study.Path(__file__).parents[1] / "docs/results/base_frequency_ablation/cpu"
    config = configs.get_config("cpu")
    config.machine.measure = False
    found = study.found(config, folder)
    written = json.loads((folder / "results.json").read_text())
    assert found.rows == written["seeds"] and list(found.left_out) == written["left_out"]
    judged = lab.judged(config.hypotheses, found.quantities)
    assert {h.name: h.verdict for h in judged} == {
        "H3": "indistinguishable",
        "H5": "indistinguishable",
        "H6": "holds",
        "H8": "holds",
    }
    for own, kept in zip(judged, written["hypotheses"], strict=True):
        for check, line in zip(own.checks, kept["checks"], strict=True):
            assert check.difference.estimate == pytest.approx(line["difference"]["estimate"])


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("loss RoPE better than PI", "cannot read the check"),
        ("los: RoPE - RoPE ABF > 0", "unknown quantity 'los'; did you mean 'loss'?"),
        ("loss: RoPE - chance > 0", "unknown row 'chance'"),
        ("loss: RoPE - RoPE ABC > 0", "unknown row 'RoPE ABC'; did you mean 'RoPE ABF'?"),
    ],
)
def test_a_bad_check_is_refused_before_anything_is_trained(text, tmp_path, check, words):
    config = changed(text)
    config.hypotheses.H1.checks = (check,)
    with pytest.raises(ValueError, match=rf"--config\.hypotheses\.H1.*{re.escape(words)}"):
        study.main(config, tmp_path)
    assert not list(tmp_path.iterdir())


# Refusals


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("continuation.warmup_steps", "10", "--config.continuation"),
        ("continuation.batch", "6", "--config.continuation: a batch of 6"),
        ("pretraining.steps", "0", "--config.pretraining.steps=STEPS"),
        ("branches", "(1.5,)", "--config.branches"),
        ("evaluation.windows_per_document", "1000", "--config.held_out"),
        ("evaluation.lengths", "(2.5,)", "--config.evaluation.lengths"),
        ("evaluation.lengths", "(0.02,)", "do not hold"),
        ("evaluation.generated", "50", "--config.evaluation.generated=50"),
        ("factor", "6", "--config.factor=6"),
        ("length", "50", "--config.length=50"),
        ("held_out", "1", "--config.held_out=1"),
        ("rows.RoPE.method", "rope:base={bass}", "--config.rows.RoPE.method: unknown placeholder"),
        ("retrieval.passkey_fact", "no key. ", "--config.retrieval.passkey_fact"),
        ("retrieval.answer_weight", "-3", "--config.retrieval: answer_weight"),
        ("bos", "<box>", "--config.bos"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_trained(text, tmp_path, field, value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        study.main(changed(text, **{field: value}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_preset_is_one_line():
    with pytest.raises(ValueError, match=r"unknown preset .* did you mean 'small_prose'"):
        configs.get_config("smal_prose")


# Another start


def test_a_study_starts_from_a_run_of_ours(finished, text, tmp_path):
    """Nothing is pretrained, and tokenizer and beginning token are the run's."""
    own = cell_of(changed(text), finished, "loss", row="RoPE", seed=0, step=0)
    run = lab.run_folder(finished, own.after[0])
    start = {"init_checkpoint": str(run), "tokenizer": ""}
    start |= {"rows.RoPE.seeds": "1", "rows.RoPE ABF.seeds": "0"}
    config = changed(text, **start)
    study.main(config, tmp_path)
    assert not any("pretraining" in path.name for path in (tmp_path / "runs").iterdir())
    again = cell_of(config, tmp_path, "loss", row="RoPE", seed=0, step=0)
    blocks = [lab.read(f, c)["blocks"] for f, c in ((finished, own), (tmp_path, again))]
    np.testing.assert_array_equal(*blocks)


@pytest.mark.parametrize("form", weights.FORMATS)
def test_a_study_starts_from_a_checkpoint_of_other_software(text, tmp_path, form):
    """Its shape and tokenizer count; another length or base says which fields to set."""
    model = llama.LlamaConfig(40, 16, 1, 1, 1, 64, 48, norm_eps=1e-3)
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    known = {"context_length": 64, "tokenizer": tokenizer}
    path, _ = write(tmp_path, form, model, rotary.RoPE(base=64 * 10_000 / 4096), **known)
    config, facts = cells.filled(
        changed(text, init_checkpoint=str(path), tokenizer="", bos="<eos>"), tmp_path / "study"
    )
    work = study.Work(config, tmp_path, lab.Machine(), facts)
    assert work.shape.d_model == 16 and work.shape.norm_eps == pytest.approx(1e-3)
    assert work.tokenizer.specials == ("<eos>",)
    for change, words in (
        ({"length": "32"}, "--config.length=64 --config.base_per_token=2.44140625"),
        ({"base_per_token": "5"}, "--config.length=64 --config.base_per_token=2.44140625"),
    ):
        other = changed(text, init_checkpoint=str(path), tokenizer="", bos="<eos>", **change)
        with pytest.raises(ValueError, match=re.escape(words)):
            cells.filled(other, tmp_path / "study")


def test_an_extended_checkpoint_is_refused(text, tmp_path):
    path, _ = write(tmp_path, "hf", spec=rotary.YaRN(factor=2, original_length=32))
    with pytest.raises(ValueError, match="plain RoPE"):
        cells.filled(changed(text, init_checkpoint=str(path)), tmp_path / "study")


# The report


def test_a_row_of_ones_own_is_added_and_stands_everywhere(finished, text, compilations):
    """It trains and measures its own cells alone, with the programs that are compiled already."""
    before = cells.plan(changed(text), finished)
    config = changed(text, **{"rows.YaRN.method": YARN})
    published = study.main(config, finished, "the command")
    plan = cells.plan(config, finished)
    new = [cell for cell in plan if cell not in before]
    assert {cell.row for cell in new} == {"YaRN"}
    assert not {"jit(several)", "jit(score_tokens)", "jit(_decode)"} & set(compilations)
    shown = [b for s in published.sections for b in s.blocks if isinstance(b, lab.Table)]
    apart = ("verdicts", "pretrained", "criterion", "table5", "repair")
    for table in (t for t in shown if t.name not in apart):
        assert any("YaRN" in str(line[:2]) for line in table.rows), table.name
    found = found_in(finished, config)
    draws = (getattr(report, name) for name in dir(report) if name.startswith("draw_"))
    figures = [draw(found) for draw in draws]
    assert len(figures) == 6 and len(shown) == 12
    for figure in figures:
        for ax in figure.drawing.axes:
            labels = [artist.get_label() for artist in ax.get_lines()]
            assert "YaRN" in labels, (figure.name, labels)


def test_a_study_writes_tables_figures_and_a_report_without_references(finished, text):
    study.main(changed(text), finished, "the command")
    written = json.loads((finished / "results.json").read_text())
    assert [row["row"] for row in written["summary"]] == ["RoPE", "RoPE ABF"]
    assert written["seeds"] == {"RoPE": 2, "RoPE ABF": 2}
    assert 0 < written["taught"]["pretraining"]["answer_tokens"] < 1
    page = (finished / "report.html").read_text()
    for words in ("Departures from the paper", "the command", "not testable here"):
        assert words in page
    assert 'src="http' not in page
    assert all(p.stat().st_size < 300_000 for p in finished.glob("*.png"))
    assert len(list(finished.glob("*.png"))) == 6
    lines = (finished / "per_document.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * 2  # rows, seeds, documents


def test_what_a_budget_left_out_is_said_seed_by_seed(finished, text):
    config = changed(text, minutes="10")
    left = ("RoPE, seed 1", "RoPE ABF, seed 1", "RoPE, seed 2")
    found = dataclasses.replace(found_in(finished, config), left_out=left)
    said = [line for line in report.claims(found, []) if line.startswith("Left out")]
    words = "Left out for the budget of 10 minutes: seed 1 of RoPE, RoPE ABF; seed 2 of RoPE."
    assert said == [words]


def test_reproduce_joins_all_reports_into_one(finished, text, tmp_path):
    config = reproduce_configs.get_config("tiny")
    config.ablations.tiny = changed(text)
    config.committed = {"small_tiny": changed(text)}
    config.scores = str(tmp_path / "scores")
    for folder in (tmp_path / "tiny", tmp_path / "scores" / "small_tiny"):
        folder.mkdir(parents=True)
        os.symlink(finished / "cells", folder / "cells")
    page = reproduce.main(config, tmp_path, "make reproduce").read_text()
    titles = ("Check list", "small tiny", "Table 5 in miniature", "Score by distance", "Figure 8")
    for title in (*titles, "appendix B", "Smallest base", "Wavelengths of every method"):
        assert title in page
