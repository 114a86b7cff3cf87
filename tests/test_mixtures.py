"""Mixtures of token caches: exact shares, every token once, runs that go on exactly."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from longrope_jax import llama, rotary, sharding
from longrope_jax.data import mixtures, packing, streams, token_cache, tokenization
from longrope_jax.data.mixtures import Mixture, Source, Stage
from longrope_jax.data.packing import TaskMixture
from longrope_jax.data.tokenizers import ByteTokenizer
from longrope_jax.tasks import Passkey
from longrope_jax.training import checkpoints, loop, metrics, optimizer
from longrope_jax.training import step as steps

TOKENIZER = ByteTokenizer()
BOS = TOKENIZER.special("<bos>")
# Documents of every length, Chinese and code, none of them with a sentence.
SIZES = (1, 2, 3, 5, 8, 40, 100, 7, 63, 64, 65)


def document(i: int, size: int) -> str:
    return ("0123456789{}()"[i] + "道x=\n"[i % 4]) * size


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """Folder with the caches "a" of SIZES and "b", one long document, in several shards."""
    folder = tmp_path_factory.mktemp("caches")
    texts = {
        "a": [document(i, size) for i, size in enumerate(SIZES)],
        "b": ["the quick brown fox jumps over the lazy dog " * 40, "z"],
    }
    for name, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{name}.jsonl").write_text(lines)
        tokenization.build(folder / f"{name}.jsonl", folder / name, TOKENIZER, part=150)
    return folder


def texts(folder, name) -> list[list[int]]:
    cache = token_cache.open_cache(folder / name)
    assert len(cache.shards) > 1
    shards = [cache.shard(i) for i in range(len(cache.shards))]
    return [shard.document(i).tolist() for shard in shards for i in range(len(shard.ends))]


SIXTEEN = (Stage(1, 16),)


def plan(caches, *, stages=SIXTEEN, steps=10, tokens=64, seed=0, sources=None, **options):
    sources = sources or (("a", Source(str(caches / "a"))),)
    mixture = Mixture(tuple(sources), tuple(stages))
    options = {"steps": steps, "tokens_per_step": tokens, "seed": seed, "bos": "<bos>"} | options
    return mixtures.plan(mixture, TOKENIZER, **options)


def two(caches, weight=3.0, **options):
    return (
        ("a", Source(str(caches / "a"), weight, **options)),
        ("b", Source(str(caches / "b"), 1.0)),
    )


def naive(documents, least=0, greatest=0, cut=0):
    """The stream, document by document, and where the document of each token begins."""
    tokens, begins = [], []
    for text in documents:
        if len(text) >= least and (not greatest or len(text) <= greatest):
            for at in range(0, len(text), cut or len(text)):
                piece = [BOS, *text[at : at + (cut or len(text))]]
                begins += [len(tokens)] * len(piece)
                tokens += piece
    return tokens, begins


@pytest.mark.parametrize(
    "bounds",
    [{}, {"least": 30}, {"greatest": 30}, {"cut": 7}, {"least": 3, "greatest": 190, "cut": 64}],
)
def test_stream_is_the_documents_one_after_another(caches, bounds):
    tokens, begins = naive(texts(caches, "a"), **bounds)
    stream = streams.Stream(token_cache.open_cache(caches / "a"), BOS, **bounds)
    assert len(stream) == len(tokens)
    rng = np.random.default_rng(0)
    for start in [0, len(tokens) - 1, *rng.integers(0, len(tokens), 40).tolist()]:
        found, first = stream.read(start, start + int(rng.integers(1, 300)))
        at = np.arange(start, start + len(found)) % len(tokens)
        assert found.tolist() == np.asarray(tokens)[at].tolist()
        assert first.tolist() == (np.asarray(begins)[at] == at).tolist()


@pytest.mark.parametrize("length", [4, 16, 32])
def test_every_token_is_predicted_once_in_an_epoch(caches, length):
    tokens, _ = naive(texts(caches, "a"))
    blocks = -(-len(tokens) // 32)
    made = plan(
        caches,
        stages=(Stage(1, length),) if length == 32 else (Stage(0.5, length), Stage(1, 32)),
        steps=2 * blocks,
        tokens=32,
    )
    # Blocks of the first epoch, by the steps that draw them.
    batches = [made.batch(step) for step in range(blocks)]
    predicted = np.concatenate([b["tokens"][:, 1:][b["weights"] > 0] for b in batches])
    wrapped = (np.asarray(tokens) * 1)[: blocks * 32 - len(tokens) + 1]
    own = [t for t in tokens if t != BOS] + [t for t in wrapped[1:] if t != BOS]
    assert sorted(predicted.tolist()) == sorted(own)
    for batch in batches:
        assert (batch["tokens"][:, 0] == BOS).all() and batch["tokens"].shape[1] % length == 1
        assert set(np.unique(batch["weights"])) <= {0.0, 1.0}
        is_first = batch["tokens"][:, :-1] == BOS
        begin = np.maximum.accumulate(np.where(is_first, np.arange(is_first.shape[1]), 0), axis=1)
        np.testing.assert_array_equal(batch["segment_start"], begin)
        np.testing.assert_array_equal(batch["weights"] == 0, batch["tokens"][:, 1:] == BOS)


def test_runs_of_other_lengths_see_the_same_text_in_the_same_order(caches):
    want = plan(caches, sources=two(caches), stages=(Stage(1, 32),))
    for stages in ((Stage(0.4, 8), Stage(1, 32)), (Stage(0.2, 4), Stage(0.8, 16), Stage(1, 32))):
        made = plan(caches, sources=two(caches), stages=stages)
        for step in range(10):
            one, other = want.batch(step), made.batch(step)
            np.testing.assert_array_equal(
                one["tokens"][:, 1:].ravel(), other["tokens"][:, 1:].ravel()
            )
    assert made.batch(0)["tokens"].shape == (16, 5) and made.batch(9)["tokens"].shape == (2, 33)


def test_hosts_read_their_own_rows_alone(caches, monkeypatch):
    made = plan(caches, sources=two(caches), tokens=128)
    whole = made.batch(3)
    read = []
    real = token_cache.Shard.read

    def spy(self, start, stop):
        read.append((self.path.name, start, stop))
        return real(self, start, stop)

    monkeypatch.setattr(token_cache.Shard, "read", spy)
    places = []
    for host in range(4):
        read.clear()
        rows = made.batch(3, host, 4)
        for name in whole:
            np.testing.assert_array_equal(rows[name], whole[name][host::4])
        places.append({(name, at) for name, a, b in read for at in range(a, b)})
    assert sum(map(len, places)) == len(set.union(*places)) > 60  # no token is read twice


@pytest.mark.parametrize("weights", [(1.0,), (67, 15, 4.5, 4.5, 4.5, 2.5, 2), (0, 1, 0), (1e-9, 1)])
def test_shares_are_exact_at_every_draw(weights):
    share = np.asarray(weights) / sum(weights)
    before = mixtures.counts(weights, 0)
    for n in range(1, 3000):
        found = mixtures.counts(weights, n)
        assert found.sum() == n and sorted(found - before)[-1] == 1 and (found >= before).all()
        assert np.abs(found - n * share).max() <= len(weights)
        before = found
    assert np.abs(mixtures.counts(weights, 10**12) / 10**12 - share).max() < 1e-8


def test_llamas_seven_sources_keep_their_shares(caches):
    names = dict.fromkeys(mixtures.LLAMA, str(caches / "a"))
    assert sum(weight for weight, _ in mixtures.LLAMA.values()) == 100
    sources = {name: value | {"epochs": 0} for name, value in mixtures.llama(names).items()}
    made = mixtures.parse({"sources": sources, "stages": [{"until": 1, "length": 16}]})
    run = mixtures.plan(made, TOKENIZER, steps=1000, tokens_per_step=160, seed=0, bos="<bos>")
    for name, (weight, _) in mixtures.LLAMA.items():
        assert run.seen(1000)[f"share/{name}"] == pytest.approx(weight / 100, abs=1e-3)
    assert mixtures.llama({"books": "x"}) == {"books": {"cache": "x", "weight": 4.5, "epochs": 2.3}}
    with pytest.raises(ValueError, match="unknown source of LLaMA 'book'; did you mean 'books'"):
        mixtures.llama({"book": "x"})


def test_upsampled_long_documents_have_their_share(caches):
    sources = mixtures.upsampled(str(caches / "a"), length=100, share=0.75)
    made = mixtures.parse({"sources": sources, "stages": [{"until": 1, "length": 16}]})
    run = mixtures.plan(made, TOKENIZER, steps=100, tokens_per_step=64, seed=0, bos="<bos>")
    assert run.seen(100)["share/long"] == 0.75
    long = {token for text in texts(caches, "a") if len(text) >= 100 for token in text[:1]}
    short = {token for text in texts(caches, "a") if len(text) < 100 for token in text[:1]}
    drawn = np.concatenate([run.batch(step)["tokens"] for step in range(100)]).ravel()
    assert long | short <= set(drawn.tolist())


def test_stages_may_change_the_weights(caches):
    stages = (Stage(0.5, 16, (("b", 0.0),)), Stage(1, 16, (("a", 0.0),)))
    made = plan(caches, sources=two(caches), stages=stages, steps=8)
    assert made.seen(4)["share/a"] == 1 and made.seen(8)["share/a"] == 0.5
    fox = set(b"the quick brown fox jumps over the lazy dog z")
    for step in range(8):
        drawn = set(made.batch(step)["tokens"].ravel().tolist()) - {BOS}
        assert (drawn <= fox) == (step >= 4)


def test_held_out_texts_are_never_drawn(caches):
    cache = token_cache.open_cache(caches / "a")
    found, hashes = streams.held_out(cache, count=2, least=8)
    assert len(found) == len(hashes) == 2 and all(len(tokens) >= 8 for _, tokens in found)
    made = plan(caches, without=hashes, steps=200)
    stream = made.streams[0]
    kept, _ = stream.read(0, len(stream))
    want = [t for t in texts(caches, "a") if t not in [tokens.tolist() for _, tokens in found]]
    assert kept.tolist() == naive(want)[0]
    assert made.settings != plan(caches, steps=200).settings
    with pytest.raises(ValueError, match="has 11 documents of 1 tokens or more, not 12"):
        streams.held_out(cache, count=12, least=1)


def test_questions_take_the_place_of_text(caches):
    passkey = Passkey(fact=" {name} {key}.", prompt=" {name} ")
    asks = packing.training_windows(
        (), TOKENIZER, length=128, task_mixture=TaskMixture(passkey=1.0, every=32, answer_weight=5),
        passkey=passkey,
    )  # fmt: skip
    one, other = (plan(caches, stages=(Stage(1, 128),), tokens=256, asks=a) for a in (None, asks))
    answers = 0
    for step in range(10):
        plain, asked = one.batch(step), other.batch(step)
        np.testing.assert_array_equal(plain["segment_start"], asked["segment_start"])
        answers += int((asked["weights"] == 5).sum())
        np.testing.assert_array_equal(asked["tokens"], other.batch(step)["tokens"])
    assert answers > 50
    sentence = packing.training_windows(
        (), TOKENIZER, length=128, task_mixture=TaskMixture(first_sentence=0.5)
    )
    with pytest.raises(ValueError, match="no sentences to ask for"):
        plan(caches, asks=sentence)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens": 60}, "multiple of the longest window, 16, got 60"),
        ({"stages": (Stage(0.5, 5), Stage(1, 16))}, "must divide the longest, 16, got 5"),
        ({"stages": (Stage(0.5, 16),)}, "end at 1"),
        ({"stages": (Stage(1, 16, (("c", 1.0),)),)}, "unknown source 'c'"),
        ({"stages": (Stage(1, 16, (("a", 0.0),)),)}, "one above 0"),
        ({"steps": 100, "sources": "epochs"}, r"'a' would be seen \d.* times, its epochs are 2"),
        ({"sources": "missing"}, "source 'a': .* has no cache.json"),
        ({"sources": "long"}, "no document of .* least=10000"),
    ],
)
def test_a_plan_that_cannot_be_honoured_is_refused(caches, change, match):
    kinds = {
        "epochs": (("a", Source(str(caches / "a"), epochs=2)),),
        "missing": (("a", Source(str(caches / "none"))),),
        "long": (("a", Source(str(caches / "a"), least=10_000)),),
    }
    change = {k: kinds[v] if k == "sources" else v for k, v in change.items()}
    with pytest.raises(ValueError, match=match):
        plan(caches, **change)


def test_config_value_is_read_and_checked(caches):
    from ml_collections import ConfigDict

    value = {
        "sources": {"a": {"cache": "A", "weight": 2.0, "least": 5}, "b": {"cache": "B"}},
        "stages": (
            {"until": 0.5, "length": 8, "weights": {"b": 3.0}},
            {"until": 1.0, "length": 16},
        ),
    }
    made = mixtures.parse(ConfigDict(value))
    assert made == mixtures.parse(value)
    assert made.sources == (("a", Source("A", 2.0, least=5)), ("b", Source("B")))
    assert made.stages == (Stage(0.5, 8, (("b", 3.0),)), Stage(1.0, 16))
    value["sources"]["a"]["wieght"] = 1
    with pytest.raises(ValueError, match="'wieght'; did you mean 'weight'"):
        mixtures.parse(value)


# Training

CONFIG = llama.LlamaConfig(260, 16, 1, 2, 1, 8, 32, attention="reference")
ADAMW = optimizer.OptimizerConfig(1e-2, 10, warmup_steps=2)


def fit(caches, directory, *, stop_at=None, **options):
    """A run whose windows change length, and its method with them, at step 3 of 10."""
    stages = (Stage(0.3, 8), Stage(1, 32))
    options = {"sources": two(caches), "stages": stages} | options
    made = plan(caches, **options)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])

    def stop(done, tokens):
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    methods = {
        first: rotary.make(rotary.RoPE(base), head_dim=8, seq_len=32)
        for first, base in ((0, 100.0), (3, 1000.0))
    }
    return loop.fit(
        steps.init_state(CONFIG, ADAMW, mesh, seed=1),
        steps.make_train_step(CONFIG, ADAMW, mesh),
        made.iterator(mesh),
        rotary=methods,
        loop=loop.LoopConfig(
            10, log_every=5, checkpoint_every=4, steps_per_dispatch=4, tensorboard=False
        ),
        mesh=mesh,
        directory=directory,
        on_step=stop,
        plan=made,
    )


def logged(directory):
    return [
        {k: v for k, v in line.items() if k not in metrics.WALL_CLOCK}
        for line in metrics.read(directory)
    ]


def test_a_run_goes_on_exactly_through_mixture_and_curriculum(caches, tmp_path):
    want = fit(caches, tmp_path / "whole")
    for cut in ((3, 4), (5, 9)):
        directory = tmp_path / "-".join(map(str, cut))
        for at in cut:
            with pytest.raises(KeyboardInterrupt):
                fit(caches, directory, stop_at=at)
        found = fit(caches, directory)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(a, b)
        assert logged(directory) == logged(tmp_path / "whole")


def test_shares_and_epochs_are_logged_and_saved(caches, tmp_path):
    fit(caches, tmp_path)
    made = plan(caches, sources=two(caches), stages=(Stage(0.3, 8), Stage(1, 32)))
    for line in logged(tmp_path):
        seen = {k: v for k, v in line.items() if "/" in k}
        assert seen == pytest.approx(made.seen(line["step"]))
    with checkpoints.RunCheckpoints(tmp_path / "checkpoints") as saved:
        saved_data = json.loads(next((tmp_path / "checkpoints").rglob("data/metadata")).read_text())
        assert saved.latest() == 10
    assert saved_data["seen"] == pytest.approx(made.seen(10))
    length = len(made.streams[0])
    drawn = int(np.ceil(6 * 3 / 4) + np.ceil(14 * 3 / 4))  # blocks of each stage
    assert saved_data["seen"]["epochs/a"] == pytest.approx(drawn * 32 / length)


def test_a_run_of_another_mixture_is_not_continued(caches, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(caches, tmp_path / "run", stop_at=5)
    for other in ({"sources": two(caches, 2.0)}, {"stages": (Stage(0.6, 8), Stage(1, 32))}):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with pytest.raises(ValueError, match=r"was started with (mixture|first_batch)="):
            fit(caches, tmp_path / "copy", **other)
        shutil.rmtree(tmp_path / "copy")


def test_order_is_drawn_anew_in_each_epoch_and_by_seed(caches):
    blocks = -(-len(naive(texts(caches, "a"))[0]) // 16)
    drawn = [plan(caches, steps=2 * blocks, tokens=16, seed=seed) for seed in (0, 1)]
    orders = [
        [
            tuple(made.batch(step)["tokens"][0, 1:].tolist())
            for step in range(e * blocks, (e + 1) * blocks)
        ]
        for made, e in itertools.product(drawn, (0, 1))
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1
