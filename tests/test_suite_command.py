"""`longrope suite`: a table of methods, and results that are not measured twice."""

import json
import shutil

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, numbers, tokenizer_json, write

from longrope_jax import cli, model, rotary, runs
from longrope_jax.commands import suite as command
from longrope_jax.data import suites as data
from longrope_jax.data.suite_items import Item, Suite
from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SpecialTokens
from longrope_jax.training import checkpoints


@pytest.fixture
def asked(tmp_path):
    """The arguments of a suite of four items on a tiny checkpoint."""
    path, _ = write(tmp_path, "hf")
    (path / "tokenizer.json").write_text(tokenizer_json())
    rows = [
        {
            "doc_id": i,
            "idx": j,
            "label": i % 2,
            "request": {"context": f"question {i} is", "continuation": f" answer {j}"},
        }
        for i in range(4)
        for j in range(2)
    ]
    suite = tmp_path / "mine.jsonl"
    suite.write_text("\n".join(map(json.dumps, rows)))
    methods = ["--rotary", "rope", "--rotary", "pi:factor=4"]
    return ["suite", str(path), "--suite", str(suite), *methods, "--out", str(tmp_path / "out")]


def test_every_method_has_a_row_and_results_are_kept(asked, tmp_path, capsys, monkeypatch):
    assert cli.main(asked) == 0
    first = capsys.readouterr().out
    rows = first.splitlines()
    assert len(rows) == 3 and "acc_per_char" in rows[1] and "pi:factor=4" in rows[2]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()]
    assert len(records) == 2 and all(len(one["values"]["acc_raw"]) == 4 for one in records)

    def refuse(*_, **__):
        raise AssertionError("the checkpoint was loaded though all results are there")

    monkeypatch.setattr(model, "load", refuse)
    assert cli.main(asked) == 0
    assert capsys.readouterr().out == first


def test_what_is_wrong_is_one_line(asked, capsys):
    assert cli.main([*asked[:3], "piqqa", "--limit", "0"]) == 2
    assert "limit" in capsys.readouterr().err
    assert cli.main([*asked[:3], asked[3], "--generate"]) == 2
    assert "is not answered by text" in capsys.readouterr().err


def kept_run(folder):
    """A run that kept its checkpoints of three steps, with a loss that falls."""
    special = SpecialTokens(0, 3, True, (), None)
    tokenizer = HuggingFaceTokenizer("a.gguf", tokenizer_json())
    runs.save(folder, runs.RunRecord(CONFIG, rotary.RoPE(100.0), tokenizer, 64, special))
    with checkpoints.RunCheckpoints(folder / "checkpoints", keep=0) as saved:
        for step in (2, 4, 6):
            params = jax.tree.map(jax.numpy.asarray, numbers(CONFIG, step))
            saved.save(step, {"params": params})
    lines = [{"step": step, "loss": 10.0 - step} for step in (1, 3, 4, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_scored_at_each_checkpoint_beside_its_loss(asked, tmp_path, capsys):
    run = kept_run(tmp_path / "study" / "runs" / "a")
    out = tmp_path / "during"
    line = ["suite", str(run), *asked[2:4], "--during-training", "--out", str(out)]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    assert [f"step {n}" in shown for n in (2, 4, 6)] == [True] * 3
    assert "and training loss, 3 checkpoints: " in shown
    records = sorted((json.loads(p.read_text()) for p in out.iterdir()), key=lambda r: r["step"])
    last = model.load(run)  # the newest
    suite = data.load(asked[3])
    alone = command.measure(last, suite, generate=False, tokens=64)
    assert records[-1]["values"]["acc_raw"] == alone["acc_raw"].tolist()
    np.testing.assert_array_equal(
        model.load(run, step=2).params["embed"], numbers(CONFIG, 2)["embed"]
    )
    assert not np.array_equal(model.load(run, step=2).params["embed"], last.params["embed"])
    with pytest.raises(ValueError, match=r"no checkpoint of step 3 .* \[2, 4, 6\]"):
        model.load(run, step=3)


def test_losses_are_those_logged_last_and_ranks_are_spearmans(tmp_path):
    run = kept_run(tmp_path / "a")
    losses = command._losses(str(run))
    assert losses == {2: 9.0, 4: 6.0, 6: 4.0}
    header = model.open_model(run)
    plan = [command.Row(str(step), header, step) for step in losses]
    suite = Suite("s", "acc_raw", ())
    for scores, said in (
        ([0.1, 0.2, 0.3], "-1.00"),
        ([0.1, 0.3, 0.2], "-0.50"),
        ([1, 1, 1], "same"),
    ):
        found = {
            ("s", row.label): {"metric": "acc_raw", "means": {"acc_raw": score}}
            for row, score in zip(plan, scores, strict=True)
        }
        [line] = command._correlations(plan, [suite], found, losses)
        assert line.endswith(said)


def test_a_run_with_one_checkpoint_or_none_is_refused(asked, capsys, tmp_path):
    assert cli.main([*asked[:4], "--during-training"]) == 2
    assert "is no run of this package" in capsys.readouterr().err
    run = kept_run(tmp_path / "a")
    for step in ("2", "4"):
        shutil.rmtree(run / "checkpoints" / step)
    assert cli.main(["suite", str(run), *asked[2:4], "--during-training"]) == 2
    assert "checkpoints_kept=0" in capsys.readouterr().err


def test_groups_have_rows_and_toxicity_is_continued_without_a_score(asked, tmp_path, capsys):
    crows = tmp_path / "crows.csv"
    crows.write_text("sent_more,sent_less,bias_type\nthe cat,the mat,age\nit is,that is,gender\n")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"challenging": true, "prompt": {"text": "the cat"}}\n{"prompt": {"text": "it"}}\n'
    )
    run = str(kept_run(tmp_path / "a"))  # which has a beginning token
    assert cli.main(["suite", run, "--suite", f"crows_pairs:{crows}"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and ", age" in shown[2] and ", gender" in shown[3]
    assert cli.main([*asked[:3], f"toxicity:{prompts}"]) == 2
    assert "Perspective API" in capsys.readouterr().err
    out = tmp_path / "toxic"
    assert cli.main([*asked[:3], f"toxicity:{prompts}", "--generate", "--out", str(out)]) == 0
    [written] = out.glob("*.jsonl")
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [line["prompt"]["text"] for line in lines] == ["the cat", "it"]
    assert all(isinstance(line["continuation"]["text"], str) for line in lines)
    assert "none" in capsys.readouterr().out


def test_text_of_items_together_is_that_of_each_alone(asked):
    ready = model.load(asked[1])
    pairs = [("the cat sat on the mat", 6), ("it", 6), ("question", 3), ("that is", 6)]
    items = tuple(Item(((text, ""),), 0, max_new_tokens=n) for text, n in pairs)
    found = command.continued(ready, Suite("s", "greedy", items, "exact_match"))
    assert found == [ready.generate(text, max_new_tokens=n) for text, n in pairs]
