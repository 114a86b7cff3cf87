"""Continual pretraining and LongLoRA's table: tiny runs, cut off and resumed, exported, refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import tokenizer_json
from experiments.progress import StudyProgress
from ml_collections import ConfigDict

from configs import continual_pretraining as configs
from configs import longlora as longlora_configs
from experiments import continual_pretraining, longlora
from experiments.continual import base as bases
from experiments.continual import page, train
from experiments.continual.project import Project
from longrope_jax import llama, rotary, weights
from longrope_jax import model as model_lib
from longrope_jax.data import tokenizers
from longrope_jax.training import lora, metrics

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture
def tiny(text):
    config = configs.get_config("tiny")
    config.corpus = str(text)
    return config


def blocks(workdir):
    """Every measurement of a folder."""
    return {p.stem: np.load(p)["blocks"] for p in sorted((workdir / "scores").glob("*.npz"))}


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """The folder of a whole tiny run, and what it returned."""
    workdir = tmp_path_factory.mktemp("run")
    config = configs.get_config("tiny")
    config.corpus = str(text)
    return workdir, continual_pretraining.main(config, workdir, "the command")


# A whole run


@pytest.mark.slow
def test_training_lowers_the_held_out_loss_and_the_report_says_so(finished):
    workdir, result = finished
    found = blocks(workdir)
    assert set(found) == {"unchanged", "zero-shot", "after-stage1"}
    gain = found["zero-shot"].mean() - found["after-stage1"].mean()
    assert gain > 0.2
    assert f"lower than zero-shot by {gain:.4f}" in result["claim"]
    assert json.loads((workdir / "results.json").read_text())["claim"] == result["claim"]
    page = (workdir / "report.html").read_text()
    assert result["claim"] in page
    assert "the command" in page
    assert "http" not in page.replace("http-equiv", "")
    for name in ("loss_by_position.png", "training.png", "loss.csv", "results.json"):
        assert (workdir / name).stat().st_size < 300_000


@pytest.mark.slow
def test_intervals_are_paired_over_documents_and_split_at_the_trained_length(finished, tiny):
    workdir, _ = finished
    project = Project(tiny, workdir)
    assert page.parts(project) == {
        "all positions": slice(None),
        "trained length": slice(4),
        "beyond it": slice(4, None),
    }
    found = blocks(workdir)
    difference = (found["zero-shot"] - found["after-stage1"]).astype(float)
    gain = page.gain(project, "zero-shot", "after-stage1", slice(4, None))
    assert gain.estimate == pytest.approx(difference[:, 4:].mean())
    assert gain.low < gain.estimate < gain.high
    extra = page.extra_gain(project, "zero-shot", "after-stage1")
    assert extra.estimate == pytest.approx(difference[:, 4:].mean() - difference[:, :4].mean())


@pytest.mark.slow
def test_done_again_it_only_redraws(finished, tiny, monkeypatch, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "runs" / "stage1" / "checkpoints")
    monkeypatch.setattr(continual_pretraining, "execute", None)
    monkeypatch.setattr(bases, "load", None)
    before = (workdir / "results.json").read_bytes()
    continual_pretraining.main(tiny, workdir, "the command")
    assert (workdir / "results.json").read_bytes() == before


@pytest.mark.slow
def test_cut_off_at_any_piece_of_work_it_ends_the_same(finished, tiny, monkeypatch, tmp_path):
    """Interrupted while the base is scored, in training, and while the result is scored."""
    advance, left = StudyProgress.advance, [2]

    def cut_off(self, flops, tokens):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        advance(self, flops, tokens)

    monkeypatch.setattr(StudyProgress, "advance", cut_off)
    cuts = 0
    while cuts < 9:
        try:
            continual_pretraining.main(tiny, tmp_path, "the command")
            break
        except KeyboardInterrupt:
            cuts, left[0] = cuts + 1, 3
    assert cuts >= 3
    found, expected = blocks(tmp_path), blocks(finished[0])
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.slow
def test_killed_in_training_and_started_again_it_ends_the_same(text, tmp_path):
    """SIGKILL twice, at another step each time: same losses, step by step, and same report."""
    steps = 80
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(workdir):
        command = [sys.executable, "-m", "experiments.continual_pretraining"]
        command += [f"--config={ROOT / 'configs' / 'continual_pretraining.py'}:tiny"]
        command += [f"--config.corpus={text}", f"--config.stages.stage1.steps={steps}"]
        command += [f"--workdir={workdir}"]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache)

    def logged(workdir):
        file = workdir / "runs" / "stage1" / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    assert start(tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed"
    for at in (steps // 8, steps // 2):
        process = start(killed)
        while logged(killed) < at and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert at <= logged(killed) < steps
    assert not (killed / "results.json").exists()
    assert start(killed).wait() == 0

    def told(workdir):
        lines = metrics.read(workdir / "runs" / "stage1")
        return [{k: v for k, v in x.items() if k not in metrics.WALL_CLOCK} for x in lines]

    whole = tmp_path / "whole"
    assert told(killed) == told(whole) and len(told(whole)) == steps
    one, other = (json.loads((x / "results.json").read_text()) for x in (whole, killed))
    assert all(one[key] == other[key] for key in ("losses", "gains", "claim"))
    found, expected = blocks(killed), blocks(whole)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.slow
def test_a_folder_of_other_settings_is_refused(finished, tiny):
    tiny.stages.stage1.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"stages.stage1.learning_rate=0.01, not 0.5: choose"):
        continual_pretraining.main(tiny, finished[0])


@pytest.mark.slow
def test_our_own_checkpoint_continues_in_two_stages_with_adapters_and_is_exported(
    finished, tiny, monkeypatch, tmp_path
):
    """Stage 2 begins where stage 1 ended; the export holds the merged parameters."""
    saved = []

    def save(path, config, params, spec, tokenizer, *, format, context_length, special_tokens):
        path.mkdir()
        saved.append((config, params, spec, tokenizer, format, context_length))

    monkeypatch.setattr(weights, "save", save)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8}
    tiny.update(
        {
            "model": str(finished[0] / "runs" / "stage1"),
            "shape": shape | {"d_ff": 32},
            "base_method": "pi:factor=2",
            "tokenizer": "bytes",
            "trainable": "lora_plus",
            "export": "hf",
        }
    )
    first = tiny.stages.stage1
    first.update({"steps": 2, "method": "yarn:factor=2,base={base},original_length={trained}"})
    with tiny.unlocked():
        tiny.stages.stage2 = ConfigDict(first.to_dict())
        tiny.stages.stage2.update({"method": "yarn:factor=4,base={base},original_length=32"})
    result = continual_pretraining.main(tiny, tmp_path, "")
    found = blocks(tmp_path)
    np.testing.assert_array_equal(found["unchanged"], blocks(finished[0])["after-stage1"])
    assert set(found) == {"unchanged", "zero-shot", "after-stage1", "after-stage2"}
    assert result["base"]["trainable"] < result["base"]["parameters"]

    (config, params, spec, *others), *rest = saved
    assert not rest
    assert others == [None, "hf", 64]
    assert (tmp_path / "export").is_dir()
    assert config == llama.LlamaConfig(260, 16, 1, 2, 1, 8, 32)
    assert spec == rotary.YaRN(factor=4, original_length=32)
    project = Project(tiny, tmp_path)
    project.score("again", params, spec)
    np.testing.assert_allclose(blocks(tmp_path)["again"], found["after-stage2"], rtol=1e-6)


def test_an_external_checkpoint_comes_through_weights(tiny, monkeypatch, tmp_path):
    model = llama.LlamaConfig(260, 16, 1, 2, 1, 8, 32)
    loaded = types.SimpleNamespace(
        config=model,
        params={},
        method=rotary.RoPE(base=1e5),
        tokenizer=tokenizers.ByteTokenizer(),
        notes=("what was found",),
        special_tokens=tokenizers.SpecialTokens(bos=256),
        trained_length=None,
    )
    asked = {}

    def load(path, **options):
        asked.update(options, path=path)
        return loaded

    monkeypatch.setattr(model_lib, "load", load)
    tiny.update({"model": "checkpoint", "dtype": "bfloat16", "remat": "full"})
    project = Project(tiny, tmp_path)
    base = project.base
    assert asked["path"] == "checkpoint"
    assert (asked["dtype"], asked["param_dtype"]) == ("bfloat16", "float32")
    assert (base.model.dtype, base.model.remat) == ("bfloat16", "full")
    assert base.notes == ("what was found",)
    assert base.special_tokens.bos == 256
    assert project.method("pi:factor=2,base={base}") == rotary.build("pi", base=1e5, factor=2)
    assert project.method("") == rotary.RoPE(base=1e5)


@pytest.mark.parametrize(
    ("spec", "context_length", "declared"),
    [
        (rotary.RoPE(), 32, None),
        (rotary.RoPE(), None, None),
        (rotary.RoPE(), 64, 64),
        (rotary.YaRN(factor=4, original_length=32), 128, None),
        (rotary.YaRN(factor=4, original_length=16), 32, 16),
    ],
)
def test_another_trained_length_than_the_checkpoints_is_refused(
    spec, context_length, declared, tiny, monkeypatch, tmp_path
):
    """The method's original length where it has one, else the context that is declared."""
    loaded = types.SimpleNamespace(
        config=llama.LlamaConfig(260, 16, 1, 2, 1, 8, 32),
        params={},
        method=spec,
        tokenizer=tokenizers.ByteTokenizer(),
        notes=(),
        special_tokens=tokenizers.SpecialTokens(),
        trained_length=context_length,
    )
    monkeypatch.setattr(model_lib, "load", lambda *_, **__: loaded)
    tiny.model = "checkpoint"
    if declared is None:
        assert Project(tiny, tmp_path / "run").base.method == spec
        return
    message = f"trained length of {declared} tokens, the config says 32: --config.trained_length="
    with pytest.raises(ValueError, match=f"^checkpoint .*{message}{declared}$"):
        continual_pretraining.main(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_documents_begin_with_the_token_that_is_named_or_that_the_checkpoint_puts_first(tiny):
    """One rule for continual pretraining and zero-shot extension."""
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    base = bases.Base(None, None, None, tokenizer)

    def begins(bos, adds):
        tiny.bos = bos
        special = tokenizers.SpecialTokens(0, None, adds)
        return bases.beginning(tiny, dataclasses.replace(base, special_tokens=special))

    assert begins("", True) == begins("<eos>", False) == "<eos>"
    with pytest.raises(ValueError, match=r"begins no text .*--config\.bos='<eos>'"):
        begins("", False)
    with pytest.raises(ValueError, match="unknown special token '<boss>'"):
        begins("<boss>", True)
    tiny.bos = ""
    with pytest.raises(ValueError, match=r"--config\.bos='<bos>'"):
        bases.beginning(tiny, dataclasses.replace(base, tokenizer=tokenizers.ByteTokenizer()))


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
    "together_7b_32k": (1000 * 64 * 32_768, 64, 32_768, 2e-5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_their_numbers_and_fit_llama_2(name, tmp_path):
    config = configs.get_config(name)
    tokens, windows, length, rate = PUBLISHED[name]
    stages = list(config.stages.values())
    assert sum(s.steps * s.batch * s.length for s in stages) == tokens
    assert {(s.batch, s.length, s.learning_rate) for s in stages} == {(windows, length, rate)}
    base = bases.Base(llama.preset("llama2_7b"), {}, rotary.RoPE(), tokenizers.ByteTokenizer())
    project = Project(config, tmp_path)
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 8})
    vars(project).update(base=base, mesh=mesh)  # in place of the cached properties
    page.check_blocks(project)
    for stage in stages:
        train.check(project, stage)
        rotary.to_hf(project.method(stage.measured_with or stage.method))
    lora.trainable(config.trainable, rank=config.rank, alpha=config.alpha)


def test_every_preset_is_published_or_ours():
    assert set(configs.PRESETS) == {*PUBLISHED, "tiny", "smollm2_cpu"}
    methods = {n: [s.method for s in configs.get_config(n).stages.values()] for n in PUBLISHED}
    assert methods["llama2_long_70b"] == ["abf:base=500_000"]
    assert [m.partition(",")[0] for m in methods["yarn_400_200"]] == [
        "yarn:factor=16",
        "yarn:factor=32",
    ]
    sparse = configs.get_config("longlora_1000")
    assert (sparse.trainable, sparse.rank, sparse.alpha) == ("lora_plus", 8, 16.0)
    assert sparse.stages.stage1.sparse_group * 4 == sparse.stages.stage1.length


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "--config.model"),
        ({"corpus": ""}, "--config.corpus"),
        ({"trainable": "lora_pluss"}, "'lora_pluss'.*'lora_plus'"),
        ({"rank": 0, "trainable": "lora"}, "rank"),
        ({"model": "somewhere", "shape.d_model": 16}, "--config.tokenizer"),
        ({"held_out": 1}, "at least 2 held-out"),
        ({"bos": "<boss>"}, "'<boss>'.*'<bos>'"),
        ({"evaluation.blocks": 7}, "evaluation.blocks.*got 7"),
        ({"evaluation.windows_per_document": 99}, "windows"),
        ({"stages.stage1.method": "pi:factor=2,base={bass}"}, "'bass'.*'base'"),
        ({"stages.stage1.method": "yarnn"}, "'yarnn'.*'yarn'"),
        ({"stages.stage1.accumulation": 3}, "batch of 8 .* 3 microbatches"),
        ({"stages.stage1.sparse_group": 24}, "sparse_group must be even and divide 64, got 24"),
        ({"stages.stage1.warmup_steps": 6}, "warmup_steps"),
        ({"export": "hff"}, "'hff'.*'hf'"),
        (
            {
                "export": "gguf",
                "stages.stage1.measured_with": "dynamic_ntk:factor=2,original_length=32",
            },
            "GGUF cannot describe dynamic_ntk",
        ),
        ({"export": "hf", "stages.stage1.measured_with": "giraffe_power"}, "."),
    ],
)
def test_a_bad_config_is_one_line_before_anything_is_trained(
    changes, message, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(continual_pretraining, "execute", None)
    tiny.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message) as error:
        continual_pretraining.main(tiny, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()  # the corrected config may have the folder


# LongLoRA's tables


@pytest.fixture(scope="module")
def compared(text, tmp_path_factory):
    """A tiny comparison of four rows, and the folder."""
    config = longlora_configs.get_config("tiny")
    config.update({"corpus": str(text), "subsets": ("full", "lora_plus"), "seeds": 1})
    workdir = tmp_path_factory.mktemp("longlora")
    return config, workdir, longlora.main(config, workdir, "the command")


@pytest.mark.slow
def test_rows_are_compared_on_the_same_windows_from_the_same_checkpoint(compared):
    config, workdir, result = compared
    names = [record["row"] for record in result["rows"]]
    assert names == [
        "unchanged",
        "zero-shot",
        "full, full attention",
        "lora_plus, full attention",
        "full, S2-Attn",
        "lora_plus, S2-Attn",
    ]
    found = blocks(workdir)
    full = found["full-full-attention-seed0"]
    for row in longlora.rows(config):
        other = found[row.run(0)]
        assert (other.mean(1) < found["zero-shot"].mean(1)).all()
        record = next(r for r in result["rows"] if r["row"] == row.name)
        if row.name != longlora.FULL:
            assert (other != full).any()
            difference = (other.astype(float) - full).mean()
            assert record["difference"].estimate == pytest.approx(difference)
    assert len(result["findings"]) == 2
    assert all(line in (workdir / "report.html").read_text() for line in result["findings"])


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_cut_off(compared, monkeypatch, tmp_path):
    config, workdir, _ = compared
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "scores" / "lora-plus-s2-attn-seed0.npz").unlink()
    (copy / "scores" / "zero-shot.npz").unlink()
    trained = []
    monkeypatch.setattr(train, "run", lambda *args, **_: trained.append(args[3].name) or args[2])
    longlora.main(config, copy, "")
    assert trained == ["lora-plus-s2-attn-seed0"]
    found = blocks(copy)
    for name, expected in blocks(workdir).items():
        if name != trained[0]:
            np.testing.assert_array_equal(found[name], expected)
    base = found["zero-shot"]
    np.testing.assert_array_equal(found[trained[0]], base)  # the stand-in trained nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subsets": ("lora",)}, "subsets must hold 'full'"),
        ({"subsets": ("full", "lora_")}, "'lora_'.*'lora'"),
        ({"attentions": ("sparse",)}, "begin with 'full'"),
        ({"seeds": 0}, "seeds"),
        ({"group": 24}, "sparse_group"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(changes, message, compared, tmp_path):
    config = compared[0].copy_and_resolve_references()
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        longlora.main(config, tmp_path)


def test_the_smollm2_preset_is_the_papers_setting_in_small():
    config = longlora_configs.get_config()
    assert config.subsets == lora.TRAINABLE
    assert len(longlora.rows(config)) == 10
    assert config.group * 4 == config.stages.stage1.length
    assert (config.rank, config.alpha) == (8, 16.0)
    assert jax.tree.leaves(config.mesh.to_dict())
