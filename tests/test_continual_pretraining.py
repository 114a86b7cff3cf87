"""Continual pretraining and LongLoRA's tables: the numbers, the export, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, tokenizer_json, write

import longrope_jax
from configs import continual_pretraining as configs
from configs import longlora as longlora_configs
from experiments import continual_pretraining, lab, longlora
from experiments.lab import checkpoint, cli
from longrope_jax import llama, rotary
from longrope_jax.data import tokenizers
from longrope_jax.training import lora


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of random documents, each with sentences of its own."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for name in range(6):
        sentences = (
            " ".join(rng.choice(words, size=2)).capitalize() + f" {name} {i}." for i in range(60)
        )
        (folder / f"doc{name}.txt").write_text("\n\n".join(sentences))
    return folder


def config_of(study, text, **changes):
    config = cli.load_config(f"configs/{study}.py:tiny")
    config.corpus = str(text)
    for field, value in changes.items():
        cli.override(config, field, value)
    return config


def tiny(text, **changes):
    return config_of("continual_pretraining", text, **changes)


def arrays(folder, cells):
    """By row, what the first seed's cells measured."""
    return {c.row: lab.read(folder, c)["blocks"].astype(float) for c in cells if c.kind == "loss"}


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny run, its cells, and the report."""
    folder = tmp_path_factory.mktemp("run")
    report = continual_pretraining.main(tiny(text), folder, "the command")
    return folder, continual_pretraining.plan(tiny(text), folder), report


# A whole run


@pytest.mark.slow
def test_training_lowers_the_held_out_loss_and_the_report_says_so(finished):
    folder, cells, report = finished
    found = arrays(folder, cells)
    assert list(found) == ["unchanged", "cropped", "zero-shot", "after stage1"]
    gain = found["zero-shot"].mean() - found["after stage1"].mean()
    assert gain > 0.2
    assert f"lower than that of zero-shot: gain {gain:.4f}" in report.claims[0]
    assert report.claims[1] == "training lowers the loss at the target length: holds."
    assert json.loads((folder / "results.json").read_text())["claims"] == list(report.claims)
    page = (folder / "report.html").read_text()
    assert all(claim in page for claim in report.claims) and "the command" in page
    for name in ("loss_by_position.png", "training.png", "loss.csv", "gain.csv"):
        assert (folder / name).stat().st_size < 300_000


@pytest.mark.slow
def test_gains_are_paired_over_documents_and_split_at_the_trained_length(finished, text):
    folder, cells, _ = finished
    config, _ = continual_pretraining.filled(tiny(text), folder)
    parts = continual_pretraining.quantities(config, lab.scores(folder, cells, "blocks"))
    found = arrays(folder, cells)
    difference = found["zero-shot"] - found["after stage1"]
    within, beyond = difference[:, :4].mean(1), difference[:, 4:].mean(1)
    for name, values in (("within", within), ("beyond", beyond)):
        gain = lab.difference(parts[name], "zero-shot", "after stage1")
        assert gain.estimate == pytest.approx(values.mean())
        assert gain.low < gain.estimate < gain.high
    extra = lab.difference(parts["beyond minus within"], "zero-shot", "after stage1")
    assert extra.estimate == pytest.approx((beyond - within).mean())


@pytest.mark.slow
def test_cropping_changes_nothing_within_the_trained_length(finished):
    found = arrays(*finished[:2])
    np.testing.assert_allclose(found["cropped"][:, :4], found["unchanged"][:, :4], rtol=1e-5)
    assert (found["cropped"][:, 4:] != found["unchanged"][:, 4:]).all()


@pytest.mark.slow
def test_a_run_of_our_own_is_a_base_that_needs_nothing_said(finished, text, tmp_path):
    """Its run.json says shape, method, tokenizer and length; unchanged it is what it was."""
    folder, cells, _ = finished
    run = lab.run_folder(folder, *cells[-1].after)
    changes = {"trained_length": "0", "stages.stage1.length": "128", "evaluation.length": "64"}
    config = tiny(text, model=str(run), **changes)
    filled, facts = continual_pretraining.filled(config, tmp_path)
    assert filled.trained_length == 64 and facts.method == rotary.build("pi", factor=2)
    work = continual_pretraining.Work(filled, tmp_path, lab.Machine())
    unchanged = continual_pretraining.plan(config, tmp_path)[0]
    found = work.loss(unchanged)["blocks"]
    np.testing.assert_allclose(found, arrays(folder, cells)["after stage1"], rtol=1e-5)


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    """A Hugging Face folder with a tokenizer, trained on 32 tokens."""
    tokenizer = tokenizers.HuggingFaceTokenizer("made here", tokenizer_json())
    folder = tmp_path_factory.mktemp("base")
    path, _ = write(folder, "hf", tokenizer=tokenizer, context_length=32)
    return path


def from_checkpoint(text, path, **changes):
    config = tiny(text, model=str(path), bos="<eos>", trained_length="0", **changes)
    second = config.stages.stage1.copy_and_resolve_references()
    with config.unlocked():
        config.stages.stage2 = second
    config.stages.stage1.update({"steps": 2, "method": "yarn:factor=2"})
    second.update({"steps": 2, "method": "yarn:factor=4"})
    return config


@pytest.mark.slow
def test_two_stages_of_adapters_are_exported_as_they_were_measured(
    text, checkpoint_folder, tmp_path
):
    """The second stage begins where the first ended; what is read back has the measured loss."""
    config = from_checkpoint(text, checkpoint_folder, trainable="lora_plus", export="hf")
    continual_pretraining.main(config, tmp_path, "")
    config.export = "gguf"
    cells = continual_pretraining.plan(config, tmp_path)
    assert [cell.kind for cell in lab.missing(tmp_path, cells)] == ["export"]
    continual_pretraining.main(config, tmp_path, "")
    found = arrays(tmp_path, cells)
    rows = [found[row].mean() for row in ("zero-shot", "after stage1", "after stage2")]
    assert rows[0] > rows[1] > rows[2]

    config, _ = continual_pretraining.filled(config, tmp_path)
    tokens, _ = continual_pretraining.Work(config, tmp_path, lab.Machine()).text.windows(64, 1)
    exported = sorted((tmp_path / "export").iterdir())
    assert [path.name.partition("-")[0] for path in exported] == ["gguf", "hf"]
    for model in map(longrope_jax.load, exported):
        assert dataclasses.replace(model.config, rotary_layout="half") == CONFIG
        assert isinstance(model.method, rotary.YaRN) and model.method.factor == 4
        again = lab.losses(model, model.method, tokens, lab.Machine(), block=8)
        np.testing.assert_allclose(again, found["after stage2"], rtol=1e-4)


# Published recipes

PUBLISHED = {
    # tokens in all, windows, target length, peak learning rate
    "llama2_long_7b": (100_000 * 2**22, 128, 32_768, 2e-5),
    "llama2_long_13b": (100_000 * 2**22, 128, 32_768, 2e-5),
    "llama2_long_34b": (100_000 * 2**22, 256, 16_384, 1e-5),
    "llama2_long_70b": (100_000 * 2**22, 256, 16_384, 1e-5),
    "pi_1000": (1000 * 64 * 8192, 64, 8192, 2e-5),
    "yarn_400_200": (600 * 64 * 65_536, 64, 65_536, 2e-5),
    "longlora_1000": (1000 * 64 * 32_768, 64, 32_768, 2e-5),
    "giraffe_4k_16k": (1000 * 32 * 4096, 32, 4096, 2e-5),
    "giraffe_v2_32k": (1000 * 32 * 32_768, 32, 32_768, 2e-5),
    "together_7b_32k": (1000 * 64 * 32_768, 64, 32_768, 2e-5),
}


def llama_2(trained_length):
    specials = ("<s>", "</s>")
    shape = llama.preset("llama2_7b")
    return lab.Facts(shape, rotary.RoPE(), trained_length, "<s>", specials, 6_738_415_616, ())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_their_numbers_and_fit_llama_2(name, tmp_path, monkeypatch):
    config = cli.load_config(f"configs/continual_pretraining.py:{name}")
    trained_length = 2048 if name in ("pi_1000", "giraffe_4k_16k") else 4096
    monkeypatch.setattr(checkpoint, "facts", lambda *_: llama_2(trained_length))
    config.update({"model": "CKPT", "corpus": "DIR"})
    cells = continual_pretraining.plan(config, tmp_path)
    trainings = [c for c in lab.missing(tmp_path, cells) if c.kind == "train"]
    recipes = [cell.what[1] for cell in trainings]
    tokens, windows, length, rate = PUBLISHED[name]
    assert sum(recipe.tokens for recipe in recipes) == tokens
    assert {(r.batch, r.length, r.learning_rate) for r in recipes} == {(windows, length, rate)}
    for recipe in recipes:
        lab.check_recipe(recipe, llama.preset("llama2_7b"), lab.Machine(**config.machine))
    (exported,) = (cell for cell in cells if cell.kind == "export")
    rotary.to_hf(exported.what[1])
    assert cells[-2].row == f"after {trainings[-1].row}"


def test_every_preset_is_published_or_ours():
    assert set(configs.PRESETS) == {*PUBLISHED, "tiny", "smollm2_cpu"}
    methods = {n: [s.method for s in configs.get_config(n).stages.values()] for n in PUBLISHED}
    assert methods["llama2_long_70b"] == ["abf:base=500_000"]
    assert methods["yarn_400_200"] == ["yarn:factor=16", "yarn:factor=32"]
    sparse = configs.get_config("longlora_1000")
    assert (sparse.trainable, sparse.rank, sparse.alpha) == ("lora_plus", 8, 16.0)
    assert sparse.stages.stage1.sparse_group * 4 == sparse.stages.stage1.length


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ""}, ("--config.model",)),
        ({"corpus": ""}, ("--config.corpus",)),
        ({"trainable": "lora_pluss"}, ("--config.trainable", "'lora_plus'")),
        ({"rank": "0", "trainable": "lora"}, ("--config.trainable", "rank")),
        ({"seeds": "0"}, ("--config.seeds=0",)),
        ({"trained_length": "0"}, ("--config.trained_length",)),
        ({"bos": "<boss>"}, ("--config.bos", "'<boss>'", "'<bos>'")),
        ({"evaluation.blocks": "7"}, ("--config.evaluation.blocks=7", "64", "32")),
        ({"evaluation.windows_per_document": "99"}, ("99", "64 tokens", "held_out")),
        ({"stages.stage1.method": "yarnn"}, ("--config.stages.stage1.method", "'yarn'")),
        ({"stages.stage1.measured_with": "pi"}, ("stages.stage1.measured_with", "factor")),
        ({"machine.accumulation": "3"}, ("batch of 8", "3 microbatches")),
        ({"stages.stage1.sparse_group": "24"}, ("stages.stage1", "sparse_group", "64", "24")),
        ({"stages.stage1.warmup_steps": "6"}, ("stages.stage1", "warmup_steps")),
        ({"export": "hff"}, ("--config.export='hff'", "'hf'")),
        ({"export": "hf"}, ("--config.export='hf'", "ByteTokenizer")),
        (
            {"hypotheses.H1.checks": "('loss: zero - {last} > 0',)"},
            ("hypotheses.H1", "'zero-shot'"),
        ),
    ],
)
def test_a_bad_config_is_one_line_before_anything_is_trained(changes, words, text, tmp_path):
    with pytest.raises(ValueError) as error:
        continual_pretraining.main(tiny(text, **changes), tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("export", "method", "words"),
    [
        ("gguf", "dynamic_ntk:factor=2", ("--config.export='gguf'", "dynamic_ntk")),
        ("hf", "giraffe_power:factor=2", ("--config.export='hf'", "giraffe")),
    ],
)
def test_a_method_that_a_format_cannot_say_is_refused_before_loading(
    export, method, words, text, checkpoint_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(longrope_jax, "load", lambda *_, **__: pytest.fail("loaded"))
    config = from_checkpoint(text, checkpoint_folder, export=export)
    config.stages.stage2.measured_with = method
    with pytest.raises(ValueError) as error:
        continual_pretraining.main(config, tmp_path)
    assert all(word in str(error.value) for word in words), error.value


def test_a_folder_of_messy_documents_works_at_the_first_attempt(tmp_path, capsys):
    """Documents that are empty, doubled, short or without words are left out, with the reason."""
    rng = np.random.default_rng(0)
    prose = [" ".join(rng.choice(["oak", "elm", "fir"], 5)).capitalize() + "." for _ in range(600)]
    documents = {f"{i}.txt": "\n\n".join(prose[100 * i : 100 * i + 80]) for i in range(6)}
    documents |= {f"copy of {i}.txt": documents[f"{i}.txt"] for i in (0, 1)}
    documents |= {"empty.txt": "", "chinese.txt": "这是中文。" * 100, "short.md": "Hello there."}
    documents |= {"numbers.txt": "1 2 3\n" * 100}
    folder = tmp_path / "text"
    folder.mkdir()
    for name, content in documents.items():
        (folder / name).write_text(content)
    config, facts = continual_pretraining.filled(tiny(folder, held_out="3"), tmp_path)
    work = continual_pretraining.Work(config, tmp_path, lab.Machine())
    continual_pretraining.check(work, facts, continual_pretraining.plan(config, tmp_path))
    names = {one.name for one in work.text.training}, {one.name for one in work.text.held_out}
    assert len(names[1]) == 3 and not names[0] & names[1]
    texts = [{documents[name] for name in part} for part in names]
    assert not texts[0] & texts[1]
    said = capsys.readouterr().out
    assert all(word in said for word in ("empty.txt", "numbers.txt"))


# LongLoRA's tables


@pytest.fixture(scope="module")
def compared(text, tmp_path_factory):
    """A tiny comparison of four rows: its folder, its config and the report."""
    changes = {"subsets": "('full', 'lora_plus')", "seeds": "1"}
    config = config_of("longlora", text, **changes)
    folder = tmp_path_factory.mktemp("longlora")
    return folder, config, longlora.main(config, folder, "the command")


@pytest.mark.slow
def test_rows_are_compared_on_the_same_windows_from_the_same_checkpoint(compared):
    folder, config, report = compared
    cells = longlora.plan(config, folder)
    found = arrays(folder, cells)
    trained = ["full, full attention", "lora_plus, full attention", "full, S2-Attn"]
    assert list(found) == ["unchanged", "zero-shot", *trained, "lora_plus, S2-Attn"]
    full = found[longlora.FULL]
    above = lab.against(
        lab.scores(folder, cells, "blocks").map(lambda b: b.mean(-1)), longlora.FULL
    )
    for row in list(found)[2:]:
        assert (found[row].mean(1) < found["zero-shot"].mean(1)).all()
        if row != longlora.FULL:
            assert (found[row] != full).any()
            assert above[row].estimate == pytest.approx((found[row] - full).mean())
    sparse = f"{(found['full, S2-Attn'] - full).mean():.4f}"
    assert len(report.claims) == 4 and sparse in report.claims[2]
    table = (folder / "longlora.csv").read_text().splitlines()
    assert len(table) == 7 and table[1].startswith("unchanged,")


@pytest.mark.slow
def test_each_row_trains_what_its_name_says(compared):
    folder, config, _ = compared
    cells = [cell for cell in longlora.plan(config, folder) if cell.after]
    trained = {cell.row: lab.read(folder, *cell.after) for cell in cells}
    shape = lab.facts(folder, "random", lab.Machine()).config
    shapes = jax.eval_shape(lambda: llama.init_params(shape, jax.random.key(0)))
    assert trained[longlora.FULL]["trainable"] == lora.count(shapes)
    names = ("full, S2-Attn", "lora_plus, S2-Attn", "lora_plus, full attention")
    sparse, both, plus = (int(trained[name]["trainable"]) for name in names)
    assert both == plus < sparse == trained[longlora.FULL]["trainable"]
    one, other = (trained[name]["loss"] for name in ("full, S2-Attn", longlora.FULL))
    assert one[0] != other[0]  # S2-Attn is another forward


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subsets": "('lora',)"}, ("--config.subsets", "'full'")),
        ({"subsets": "('full', 'lora_')"}, ("--config.subsets", "'lora_'", "'lora'")),
        ({"attentions": "('sparse',)"}, ("--config.attentions", "'full'")),
        ({"attentions": "('full', 'sparce')"}, ("--config.attentions", "sparce", "sparse")),
        ({"seeds": "0"}, ("--config.seeds=0",)),
        ({"stage.sparse_group": "24"}, ("--config.stage", "sparse_group", "24")),
        ({"evaluation.blocks": "7"}, ("--config.evaluation.blocks=7", "64")),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(changes, words, text, tmp_path):
    with pytest.raises(ValueError) as error:
        longlora.main(config_of("longlora", text, **changes), tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "runs").exists()


def test_the_smollm2_preset_is_the_papers_setting_in_small():
    config = longlora_configs.get_config()
    assert config.subsets == lora.TRAINABLE and len(config.attentions) == 2
    assert config.stage.sparse_group * 4 == config.stage.length
    assert (config.rank, config.alpha) == (8, 16.0)
