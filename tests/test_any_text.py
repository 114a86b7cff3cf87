"""Any text trains: Chinese, code, numbers, documents of every length, from memory and from disk."""

import json
import warnings

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import continual_pretraining as presets
from experiments import continual_pretraining as study
from experiments import lab
from longrope_jax import rotary
from longrope_jax.data import documents, mixtures, packing, streams, token_cache, tokenization
from longrope_jax.data.packing import TaskMixture
from longrope_jax.data.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
TEXTS = {
    "chinese": "道可道，非常道。名可名，非常名。" * 20,
    "more chinese": "天下皆知美之为美，斯恶已。皆知善之为善，斯不善已。" * 20,
    "code": "x=[1];y=(2);\n" * 60,
    "numbers": "0 1 1 2 3 5 8 13\n" * 60,
    "marks": "}{)(" * 200,
    "short": "?",
}


def settings(corpus, **options):
    known = {"corpus": str(corpus), "held_out": 2, "bos": "<bos>", "sentence_tokens": ()}
    return ConfigDict(known | options)


def write(folder, form):
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps({"name": k, "text": v}) + "\n" for k, v in TEXTS.items()))
    if form == "memory":
        return file
    tokenization.build(file, folder / "cache", TOKENIZER, part=500)
    return folder / "cache"


@pytest.mark.parametrize("form", ["memory", "disk"])
def test_every_text_is_trained_on_or_held_out(tmp_path, form):
    corpus = write(tmp_path, form)
    text = lab.text(settings(corpus), TOKENIZER, length=64)
    tokens, _ = text.windows(64)
    assert tokens.shape == (2, 65) and (tokens[:, 0] == 256).all()
    held_out = {TOKENIZER.decode(document.tokens) for document in text.held_out}
    assert len(held_out) == 2 and held_out < set(TEXTS.values())
    recipe = lab.Recipe(rotary.RoPE(), length=64, steps=60, batch=4, learning_rate=1e-3)
    if form == "disk":
        made = lab.blended(recipe, text)
        drawn = [made.batch(step)["tokens"] for step in range(60)]
    else:
        assert lab.blended(recipe, text) is None
        batches = packing.iterator(lab.windows(recipe, text), batch=4, seed=0)
        drawn = [next(batches)["tokens"] for _ in range(60)]
    seen = " ".join(TOKENIZER.decode(row) for batch in drawn for row in batch)
    for name, whole in TEXTS.items():
        assert (whole[:8] in seen) == (whole not in held_out), name


def test_text_without_sentences_is_never_asked_for_its_first_one():
    plain = documents.plain_document("a", np.arange(200) % 90)
    for every in (0, 16):
        maker = packing.training_windows(
            [plain], TOKENIZER, length=128, task_mixture=TaskMixture(first_sentence=1, every=every)
        )
        rng = np.random.default_rng(0)
        for number in range(len(maker)):
            assert set(maker(number, rng)["weights"].tolist()) <= {0.0, 1.0}
            assert maker(number, rng)["tokens"].max() <= 256  # BOS, no prompt


def test_a_study_trains_from_a_cache(tmp_path):
    config = presets.get_config("tiny")
    config.corpus = str(write(tmp_path, "disk"))
    config.held_out = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.main(config, tmp_path / "run")
    cells = study.plan(config, tmp_path / "run")
    assert not lab.missing(tmp_path / "run", cells)
    [trained] = {cell for measured in cells for cell in measured.after if cell.kind == "train"}
    found = lab.read(tmp_path / "run", trained)
    assert found["share/text"][-1] == 1 and found["epochs/text"][-1] > 0
    cache = token_cache.open_cache(config.corpus)
    kept, _ = streams.held_out(cache, count=1, least=64)
    assert found["held_out"].tolist() == [f"{mark:016x}" for mark, _ in kept]


def test_a_cache_is_read_for_its_own_tokenizer_and_number_of_documents(tmp_path):
    corpus = write(tmp_path, "disk")
    with pytest.raises(ValueError, match="another tokenizer"):
        lab.text(settings(corpus), ByteTokenizer(("<bos>",)), length=8)
    with pytest.raises(ValueError, match=r"held_out=\('a',\).*keeps no names"):
        lab.text(settings(corpus, held_out=("a",)), TOKENIZER, length=8)
    text = lab.text(settings(corpus, sentence_tokens=(5, 60)), TOKENIZER, length=8)
    recipe = lab.Recipe(
        rotary.RoPE(), length=8, steps=1, batch=4, learning_rate=1, mixture=TaskMixture(0.5)
    )
    with pytest.raises(ValueError, match="no sentences to ask for"):
        lab.blended(recipe, text)


def test_a_study_blends_its_own_text_by_stages(tmp_path):
    file = write(tmp_path, "memory")
    text = lab.on_disk(lab.text(settings(file), TOKENIZER, length=64), tmp_path)
    assert text.cache.documents == 4
    stages = (mixtures.Stage(0.5, 16), mixtures.Stage(1, 64))
    blend = mixtures.Mixture((("cut", mixtures.Source("", cut=16)),), stages)
    known = {"length": 64, "steps": 4, "batch": 8, "learning_rate": 1e-3, "blend": blend}
    recipe = lab.Recipe(rotary.RoPE(1e5), first_method=rotary.RoPE(), **known)
    made = lab.blended(recipe, text)
    assert [made.batch(step)["tokens"].shape for step in (0, 3)] == [(32, 17), (8, 65)]
    model = lab.model("random", lab.Machine())
    found = lab.train(model, recipe, text, tmp_path / "run", lab.Machine(log_every=1))
    assert np.isfinite(found["loss"]).all() and found["share/cut"].tolist() == [1] * 4
    plain = lab.Recipe(rotary.RoPE(1e5), 64, 4, 2, 1e-3)
    assert "blend" not in json.dumps(lab.Cell("train", "a", what=(plain,)).identity)
