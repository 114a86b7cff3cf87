"""The base-frequency ablation: sizes, quantities, verdicts, and a whole tiny study."""

import json
import os
import re

import numpy as np
import pytest
from checkpoints import tokenizer_json, write

import longrope_jax
from configs import base_frequency_ablation as configs
from configs import reproduce as reproduce_configs
from experiments import base_frequency_ablation as study
from experiments import base_frequency_report as report
from experiments import base_frequency_results as results
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
    config, _ = study.filled(config, folder)
    return results.Found(config, folder, study.plan(config, folder), 64)


def cell_of(config, folder, kind, **fields):
    """The one measuring cell with these fields of itself or of its setting."""
    (cell,) = (
        cell
        for cell in study.plan(config, folder)
        if cell.kind == kind
        and all(
            getattr(cell, name, getattr(cell.what[0], name, None)) == value
            for name, value in fields.items()
        )
    )
    return cell


# Sizes


def rows_of(config, folder):
    plan = study.plan(config, folder)
    return {cell.row: cell.what[0].method for cell in plan if cell.kind == "loss"}


def test_the_laptop_preset_has_the_protocol_s_sizes(tmp_path):
    config = configs.get_config("laptop")
    methods = rows_of(config, tmp_path)
    assert methods["RoPE"] == rotary.RoPE(base=625)
    assert methods["RoPE ABF"] == rotary.RoPE(base=31_250)
    assert methods["RoPE PI"] == rotary.PositionInterpolation(factor=8, base=625)
    assert (methods["xPos ABF"].scale_base, methods["xPos ABF"].gamma) == (256, 0.8)
    assert methods["base x500"].base == 312_500
    assert all(config.rows[r].seeds == 3 for r in ("RoPE", "RoPE PI", "RoPE ABF", "xPos ABF"))
    assert sum(not settings.taught for settings in config.rows.values()) == 1


def test_the_tpu_preset_has_the_paper_s_sizes(tmp_path):
    config = configs.get_config("tpu_7b")
    assert study.sizes(config) == {"base": 10_000, "abf": 500_000, "length": 4096, "factor": 8}
    assert rows_of(config, tmp_path)["xPos ABF"].scale_base == 4096
    assert config.continuation.batch * config.length * config.factor == 2**22
    assert study.shape(config, vocab=32_000) == llama.preset("llama2_7b", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"32000 .*--config\.tokenizer.* 50000"):
        study.shape(config, vocab=50_000)


def test_bases_keep_the_turns_of_the_slowest_pair_of_the_paper(finished, text):
    config = changed(text, length="256")
    found = results.Found(config, finished, study.plan(config, finished), 64)
    known = {"RoPE": rotary.RoPE(base=625), "RoPE ABF": rotary.RoPE(base=31_250)}
    object.__setattr__(found, "methods", known)
    ours, paper = zip(*((row[1], row[3]) for row in results.turns_table(found).rows), strict=True)
    np.testing.assert_allclose(ours, [0.080, 0.638, 0.014], atol=6e-4)
    np.testing.assert_allclose(paper, [0.075, 0.602, 0.013], atol=6e-4)


def test_methods_of_one_seed_share_pretraining_and_data_order(text, tmp_path):
    plan = study.plan(changed(text), tmp_path)
    runs = {c.after[0] for c in plan if c.seed == 0 and c.kind == "passkey" and c.row != "chance"}
    trained = [run for run in runs if run.after]
    recipes = [run.what[0] for run in trained]
    assert {run.row for run in trained} == {"RoPE", "RoPE ABF"}
    assert len({run.after for run in trained}) == 1 and len({r.seed for r in recipes}) == 1
    assert recipes[0].seed != trained[0].after[0].what[0].seed


# What cells hold


def test_a_run_says_all_about_itself_and_its_loss_is_that_of_its_logits(finished, text):
    """Two columns of blocks, computed again from the logits of the run's own folder."""
    config = changed(text)
    cell = cell_of(config, finished, "loss", row="RoPE ABF", seed=1, step=4)
    model = longrope_jax.load(lab.run_folder(finished, cell.after[0]))
    assert model.method == rotary.RoPE(base=64 * 10_000 / 4096 * 50)
    assert model.trained_length == 512 and model.beginning() == model.tokenizer.special("<bos>")
    whole, _ = study.filled(config, finished)
    tokens, documents = study.Work(whole, finished, lab.Machine(), None).windows(cell)
    logits = np.asarray(model.logits(tokens[1:2, :-1]))[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -log_p[np.arange(1024), tokens[1, 1:]]
    arrays = lab.read(finished, cell)
    np.testing.assert_allclose(arrays["blocks"][1], nll.reshape(64, 16).mean(1), rtol=1e-4)
    np.testing.assert_array_equal(arrays["documents"], documents)
    np.testing.assert_allclose(arrays["bins"][1, 0], nll[0], rtol=1e-4)


def test_at_another_scale_rope_is_position_interpolation(finished, text):
    config = changed(text)
    cell = cell_of(config, finished, "mean_loss", row="RoPE", seed=0, scales=(0.5, 0.75, 2.0))
    model = lab.trained(lab.run_folder(finished, cell.after[0]), lab.Machine())
    whole, _ = study.filled(config, finished)
    tokens, _ = study.Work(whole, finished, lab.Machine(), None).windows(cell)
    method = rotary.PositionInterpolation(base=64 * 10_000 / 4096, factor=2)
    blocks = lab.losses(model, method, tokens[:, :513], lab.Machine(), block=512)
    np.testing.assert_allclose(lab.read(finished, cell)["loss"][:, 2], blocks[:, 0], rtol=1e-5)


def test_snapshots_are_the_parameters_of_their_steps(finished, text):
    """A step between has another loss than the ends, and its own parameters are kept."""
    config = changed(text)
    cell = cell_of(config, finished, "mean_loss", row="RoPE", seed=0, step=2)
    run = lab.run_folder(finished, cell.after[0])
    between, last = (lab.trained(run, lab.Machine(), snapshot=s).params["embed"] for s in (2, None))
    assert np.abs(np.asarray(between) - np.asarray(last)).max() > 0
    curve = results.by_step(found_in(finished, config), "loss")["RoPE"]
    assert curve[0] == [0, 2, 4] and len(set(curve[1])) == 3


def test_quantities_are_means_over_parts_of_the_window(finished, text):
    config = changed(text)
    found = found_in(finished, config)
    for step, names in ((4, ("loss", results.WITHIN, results.BEYOND)), (0, (results.UNTRAINED,))):
        cells = [cell_of(config, finished, "loss", row="RoPE", seed=s, step=step) for s in (0, 1)]
        blocks = np.stack([lab.read(finished, cell)["blocks"] for cell in cells])
        parts = {"loss": (0, 32), results.WITHIN: (2, 4), results.BEYOND: (24, 32)}
        for name in names:
            low, high = parts.get(name, (0, 32))
            values = found.quantities[name].values["RoPE"]
            np.testing.assert_allclose(values, blocks[..., low:high].mean(-1), rtol=1e-6)
    gain = found.quantities[results.GAIN].mean("RoPE")
    ends = [found.quantities[name].mean("RoPE") for name in (results.WITHIN, results.BEYOND)]
    assert gain == pytest.approx(ends[0] - ends[1])


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
    verdicts = {row[0]: (row[3], row[5]) for row in results.controls_table(found).rows}
    assert verdicts["RoPE ABF"] == ("reversed", "holds")
    gain = found.quantities["gain from the sentence"].mean("RoPE ABF")
    assert gain == pytest.approx(found.quantities["ROUGE-L"].mean("RoPE ABF") - 40.5)


# Hypotheses


@pytest.mark.parametrize("preset", ["tiny", "cpu", "laptop", "tpu_7b"])
def test_the_hypotheses_of_every_preset_can_be_read(preset):
    results.check_hypotheses(configs.get_config(preset))


def test_a_gate_takes_back_what_cannot_be_seen():
    """The laptop's loss gains nothing from long context, and its passkey is below the ceiling."""
    folder = study.Path(__file__).parents[1] / "docs" / "results" / "base_frequency_ablation"
    config = configs.get_config("laptop")
    found = found_in(folder, config)
    verdicts = {h.name: h.verdict for h in lab.judged(config.hypotheses, found.quantities)}
    assert verdicts == {
        "H1": "not testable here",
        "H2": "not testable here",
        "H3": "holds",
        "H4": "not testable here",
        "H5": "holds",
    }


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
        ("evaluation.at", "(1.5,)", "--config.evaluation.at"),
        ("evaluation.windows_per_document", "1000", "--config.held_out"),
        ("evaluation.lengths", "(1.0, 0.25)", "--config.evaluation.lengths"),
        ("evaluation.lengths", "(0.02, 1.0)", "do not hold"),
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
    with pytest.raises(ValueError, match=r"unknown preset .* did you mean 'laptop'"):
        configs.get_config("labtop")


# Another start


def test_a_study_starts_from_a_run_of_ours(finished, text, tmp_path):
    """Nothing is pretrained, and tokenizer and beginning token are the run's."""
    own = cell_of(changed(text), finished, "loss", row="RoPE", seed=0, step=0)
    run = lab.run_folder(finished, own.after[0])
    start = {"init_checkpoint": str(run), "rows.RoPE.seeds": "1", "rows.RoPE ABF.seeds": "0"}
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
    config, facts = study.filled(
        changed(text, init_checkpoint=str(path), bos="<eos>"), tmp_path / "study"
    )
    work = study.Work(config, tmp_path, lab.Machine(), facts)
    assert work.shape.d_model == 16 and work.shape.norm_eps == pytest.approx(1e-3)
    assert work.tokenizer.specials == ("<eos>",)
    for change, words in (
        ({"length": "32"}, "--config.length=64 --config.base_per_token=2.44140625"),
        ({"base_per_token": "5"}, "--config.length=64 --config.base_per_token=2.44140625"),
    ):
        other = changed(text, init_checkpoint=str(path), bos="<eos>", **change)
        with pytest.raises(ValueError, match=re.escape(words)):
            study.filled(other, tmp_path / "study")


def test_an_extended_checkpoint_is_refused(text, tmp_path):
    path, _ = write(tmp_path, "hf", spec=rotary.YaRN(factor=2, original_length=32))
    with pytest.raises(ValueError, match="plain RoPE"):
        study.filled(changed(text, init_checkpoint=str(path)), tmp_path / "study")


# The report


def test_a_row_of_ones_own_is_added_and_stands_everywhere(finished, text, compilations):
    """It trains and measures its own cells alone, with the programs that are compiled already."""
    before = study.plan(changed(text), finished)
    config = changed(text, **{"rows.YaRN.method": YARN})
    published = study.main(config, finished, "the command")
    plan = study.plan(config, finished)
    new = [cell for cell in plan if cell not in before]
    assert {cell.row for cell in new} == {"YaRN"}
    assert not {"jit(several)", "jit(score_tokens)", "jit(_decode)"} & set(compilations)
    tables = [b for s in published.sections for b in s.blocks if isinstance(b, lab.Table)]
    for table in (t for t in tables if t.name not in ("verdicts", "pretrained")):
        assert any("YaRN" in str(line[0]) for line in table.rows), table.name
    found = found_in(finished, config)
    draws = (getattr(report, name) for name in dir(report) if name.startswith("draw_"))
    figures = [draw(found) for draw in draws]
    assert len(figures) == 6 and len(tables) == 9
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


def test_reproduce_joins_all_reports_into_one(finished, text, tmp_path):
    config = reproduce_configs.get_config("tiny")
    config.ablation = changed(text)
    (tmp_path / "ablation").mkdir()
    os.symlink(finished / "cells", tmp_path / "ablation" / "cells")
    page = reproduce.main(config, tmp_path, "make reproduce").read_text()
    titles = ("Table 5 in miniature", "Score by distance", "Figure 8", "appendix B")
    for title in (*titles, "Smallest base", "Wavelengths of every method"):
        assert title in page
