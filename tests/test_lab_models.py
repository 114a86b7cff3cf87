"""What a study knows of its checkpoint, and the chains of trainings that start from it."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import lab
from longrope_jax import llama, rotary
from longrope_jax.evaluation.by_position import nll_by_position

METHOD = rotary.RoPE()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Five random documents of other lengths."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    for at, name in enumerate("abcde"):
        count = 20 * (at + 1)
        sentences = (" ".join(rng.choice(words, 3)).capitalize() + f" {i}." for i in range(count))
        (folder / f"{name}.txt").write_text("\n\n".join(sentences))
    return folder


def settings(text, **changes):
    fields = {"corpus": str(text), "held_out": 2, "sentence_tokens": (3, 60), "bos": "<bos>"}
    return ConfigDict(fields | {"model": "random", "trained_length": 32, "machine": {}} | changes)


def loaded(text, length=32, **changes):
    return lab.text(settings(text, **changes), lab.opened("random").tokenizer, length=length)


def recipe(**changes):
    return lab.Recipe(METHOD, 32, 2, 8, 1e-2, **changes)


# The checkpoint


def test_facts_are_kept_and_need_no_checkpoint_again(tmp_path, monkeypatch):
    found = lab.facts(tmp_path, "random", lab.Machine())
    assert found.specials[0] == "<bos>" and found.bos == "" and found.trained_length is None
    monkeypatch.setattr("experiments.lab.checkpoint.opened", pytest.fail)
    assert lab.facts(tmp_path, "random", lab.Machine()) == found


def facts(method=METHOD, trained_length=None, bos="", specials=("<s>", "</s>")):
    return lab.Facts(llama.preset("smollm2_135m"), method, trained_length, bos, specials, 1, ())


@pytest.mark.parametrize(
    ("method", "declared", "given", "length"),
    [
        (METHOD, 4096, 0, 4096),
        (METHOD, None, 2048, 2048),
        (METHOD, 4096, 4096, 4096),
        (rotary.YaRN(factor=4, original_length=1024), 4096, 0, 1024),
    ],
)
def test_the_trained_length_is_the_checkpoints(method, declared, given, length):
    """A method that extends says the length before; 0 asks the checkpoint."""
    assert lab.check_length(facts(method, declared), "CKPT", given) == length


@pytest.mark.parametrize(
    ("found", "given", "words"),
    [
        (facts(), 0, ("CKPT", "--config.trained_length=")),
        (facts(trained_length=4096), 2048, ("4096", "2048", "--config.trained_length=4096")),
    ],
)
def test_another_length_or_none_names_the_field(found, given, words):
    with pytest.raises(ValueError) as error:
        lab.check_length(found, "CKPT", given)
    assert all(word in str(error.value) for word in words)


def test_documents_begin_with_the_token_that_is_named_or_the_checkpoints():
    assert lab.check_bos(facts(bos="<s>"), "CKPT") == "<s>"
    assert lab.check_bos(facts(bos="<s>"), "CKPT", "</s>") == "</s>"
    for found, bos, words in (
        (facts(), "", ("CKPT", "--config.bos='<s>'")),
        (facts(bos="<s>"), "<S>", ("--config.bos", "'<S>'", "'<s>'")),
        (facts(specials=()), "", ("CKPT", "tokenizer.json")),
    ):
        with pytest.raises(ValueError) as error:
            lab.check_bos(found, "CKPT", bos)
        assert all(word in str(error.value) for word in words), error.value


def test_a_method_takes_what_it_leaves_open_from_the_checkpoint(text, tmp_path):
    config, found = lab.filled(settings(text), tmp_path)
    method = lab.method("yarn:factor=4", found, config.trained_length, "rows.a")
    assert method == rotary.YaRN(base=found.base, factor=4, original_length=32)
    with pytest.raises(ValueError, match=r"--config\.rows\.a: .*'yarnn'.*'yarn'"):
        lab.method("yarnn", found, 32, "rows.a")


# Chains


def chain(trainable, text, tmp_path):
    """Two trainings, one after the other, and the models before and after them."""
    first = lab.Cell("train", "first", what=("random", recipe(trainable=trainable)))
    second = lab.Cell(
        "train", "second", what=(recipe(trainable=trainable, seed=9),), after=(first,)
    )
    measured = [lab.Cell("loss", "x", after=after) for after in ((), (first,), (second,))]
    models = lab.Models("random", tmp_path, lab.Machine(), {})
    functions = {"train": lambda cell: models.train(cell, text)}
    lab.complete(tmp_path, [first, second], functions, lab.Machine())
    return models, measured


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["full", "lora_plus"])
def test_a_chain_begins_where_the_training_before_ended(trainable, text, tmp_path):
    """Each stage adds to the one before, and a study started again reads the same from disk."""
    models, measured = chain(trainable, loaded(text), tmp_path)
    before, first, second = (jax.tree.map(np.asarray, models.start(c).params) for c in measured)
    assert not np.array_equal(before["embed"], first["embed"])
    assert not np.array_equal(first["embed"], second["embed"])
    gates = [one["layers"]["mlp"]["gate"] for one in (before, second)]
    assert np.array_equal(*gates) == (trainable == "lora_plus")  # what does not train stays
    again = lab.Models("random", tmp_path, lab.Machine(), {})
    jax.tree.map(np.testing.assert_array_equal, again.start(measured[2]).params, second)


@pytest.mark.slow
def test_adapters_leave_their_base_as_it_was(text, tmp_path):
    models = lab.Models("random", tmp_path, lab.Machine(), {})
    cell = lab.Cell("train", "a", what=(recipe(trainable="lora_plus"),))
    before = jax.tree.map(np.array, models.start(cell).params)
    models.train(cell, loaded(text))
    jax.tree.map(np.testing.assert_array_equal, models.start(cell).params, before)


# What was trained on is not measured


def test_a_run_is_not_measured_on_what_it_was_trained_on(text, tmp_path):
    short = loaded(text)
    trained = lab.Cell("train", "a")
    names = np.asarray([one.name for one in short.held_out])
    lab.complete(tmp_path, [trained], {"train": lambda _: {"held_out": names}}, lab.Machine())
    measured = lab.Cell("loss", "a", after=(trained,))
    lab.check_held_out(tmp_path, [measured], short)
    others = tuple({"a.txt", "b.txt", "c.txt", "d.txt", "e.txt"} - set(names))[:2]
    with pytest.raises(ValueError) as error:
        lab.check_held_out(tmp_path, [measured], loaded(text, held_out=others))
    assert all(name in str(error.value) for name in (*others, *names, "--config.held_out"))


def test_what_is_measured_once_counts_for_every_seed(tmp_path):
    values = {"base": np.ones((1, 2)), "trained": np.arange(6.0).reshape(3, 2)}
    found = lab.Scores(values, dict.fromkeys(values, np.asarray(["x", "y"])))
    assert lab.difference(found, "trained", "base").estimate == pytest.approx(-0.5)
    whole = found.repeated(["base", "absent"])
    assert whole.rows == ["base", "trained"]
    assert lab.difference(whole, "trained", "base").estimate == pytest.approx(1.5)


def test_losses_are_means_of_blocks_whatever_the_batch(text, tmp_path):
    model, (tokens, _) = lab.model("random", lab.Machine()), loaded(text).windows(32)
    for batch in (32, 8192):
        machine = lab.Machine(tokens_per_batch=batch)
        found = lab.losses(model, METHOD, tokens, machine, block=8)
        assert found.shape == (2, 4)
        nll = nll_by_position(model.config, model.params, METHOD, tokens)
        np.testing.assert_allclose(found[:, 3], nll[:, 24:].mean(1), rtol=1e-5)
        cropped = lab.losses(model, METHOD, tokens, machine, block=8, reads=16)
        np.testing.assert_allclose(cropped[:, :2], found[:, :2], rtol=1e-5)
        assert (cropped[:, 2:] != found[:, 2:]).all()


def test_speed_leaves_out_the_step_that_compiles():
    assert lab.speed({"tokens_per_second": np.asarray([1.0, 5.0, 7.0, 6.0])}) == 6
    assert lab.speed({"tokens_per_second": np.asarray([1.0])}) == 1
