"""A run's record says what its checkpoints hold, and `load` asks for nothing more."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, assert_same, numbers, tokenizer_json

import longrope_jax
from longrope_jax import llama, model, rotary, runs, sharding
from longrope_jax.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SpecialTokens
from longrope_jax.training import checkpoints

SPECIAL = SpecialTokens(0, 3, True, (5, 7), "{{ messages }}")
METHOD = rotary.PositionInterpolation(factor=2, base=100.0)


def record(**changes):
    tokenizer = HuggingFaceTokenizer("a.gguf", tokenizer_json())
    found = runs.RunRecord(CONFIG, METHOD, tokenizer, 64, SPECIAL)
    return dataclasses.replace(found, **changes)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run whose numbers do not tell its layout and epsilon, with a choice of its machine."""
    folder = tmp_path_factory.mktemp("study") / "runs" / "a"
    config = dataclasses.replace(
        CONFIG, rotary_layout="interleaved", norm_eps=1e-3, remat="full", sparse_group=4
    )
    runs.save(folder, record(config=config))
    with checkpoints.RunCheckpoints(folder / "checkpoints") as saved:
        saved.save(3, {"params": jax.tree.map(jax.numpy.asarray, numbers(CONFIG))})
    return folder


def test_a_record_comes_back_whole(tmp_path):
    """With a tokenizer that lies in no file of its own."""
    runs.save(tmp_path, record())
    found = runs.load(tmp_path)
    assert dataclasses.replace(found, tokenizer=None) == record(tokenizer=None)
    assert (
        found.tokenizer.encode("the cat").tolist() == record().tokenizer.encode("the cat").tolist()
    )
    for tokenizer in (ByteTokenizer(), HuggingFaceTokenizer(str(tmp_path / "tokenizer.json"))):
        runs.save(tmp_path / "b", record(tokenizer=tokenizer, special_tokens=SpecialTokens()))
        assert runs.load(tmp_path / "b").tokenizer == tokenizer
    assert runs.load(tmp_path / "nothing") is None


@pytest.mark.parametrize("mesh", [None, {"fsdp": 2}])
def test_a_run_is_loaded_with_nothing_asked(run_folder, mesh):
    """Its own shape, method, tokenizer and length; not how its machine trained it."""
    mesh = mesh and sharding.make_mesh(**mesh, devices=jax.devices()[:2])
    for source in (run_folder, run_folder / "checkpoints"):
        found = longrope_jax.load(source, mesh=mesh)
        assert found.config == dataclasses.replace(
            CONFIG, rotary_layout="interleaved", norm_eps=1e-3
        )
        assert (found.method, found.trained_length) == (METHOD, 64)
        assert found.special_tokens == SPECIAL
        assert_same(numbers(CONFIG), found.params)
    assert (found.params["embed"].sharding.num_devices == 2) is bool(mesh)
    halved = longrope_jax.load(run_folder, dtype="bfloat16", param_dtype="bfloat16")
    assert halved.params["embed"].dtype == halved.config.dtype == "bfloat16"
    assert longrope_jax.load(run_folder, rotary_layout="half").config.rotary_layout == "half"
    header = model.open_model(run_folder)
    assert header.params is None and header.config == found.config


def test_what_is_wrong_with_a_run_is_one_line(run_folder, tmp_path):
    study = run_folder.parents[1]
    with pytest.raises(ValueError, match=r"holds runs: give .*/runs/NAME, .* a$"):
        longrope_jax.load(study)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no run\.json .*RunRecord"):
        longrope_jax.load(tmp_path)
    runs.save(tmp_path / "begun", record())
    with pytest.raises(ValueError, match="no checkpoint yet"):
        longrope_jax.load(tmp_path / "begun")
    (tmp_path / runs.NAME).write_text('{"model": {"widht": 3}, "rotary": "rope"}')
    with pytest.raises(ValueError, match=r"run\.json is damaged or of another version"):
        longrope_jax.load(tmp_path)
    said = json.loads((run_folder / runs.NAME).read_text()) | {"tokenizer": "gone.json"}
    (tmp_path / runs.NAME).write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"unknown tokenizer .*gone\.json"):
        longrope_jax.load(tmp_path)


def test_a_run_of_adapters_alone_is_refused(tmp_path):
    runs.save(tmp_path, record())
    with checkpoints.RunCheckpoints(tmp_path / "checkpoints") as saved:
        saved.save(1, {"params": {"adapters": {"a": np.zeros(3)}}})
    with pytest.raises(ValueError, match="adapters alone: load the run's export"):
        longrope_jax.load(tmp_path)


def test_a_run_of_another_shape_than_its_record_is_refused(run_folder, tmp_path):
    (tmp_path / "checkpoints").symlink_to(run_folder / "checkpoints")
    runs.save(tmp_path, record(config=dataclasses.replace(CONFIG, d_ff=64)))
    with pytest.raises(ValueError, match="another shape"):
        longrope_jax.load(tmp_path)


def test_a_loaded_run_computes_what_its_parameters_do(run_folder):
    found = longrope_jax.load(run_folder)
    tokens = np.arange(12)[None]
    expected = llama.logits(found.config, numbers(CONFIG), tokens, METHOD)
    np.testing.assert_allclose(found.logits(tokens), expected, rtol=1e-5, atol=1e-5)
