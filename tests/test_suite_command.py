"""`longrope suite`: a table of methods, and results that are not measured twice."""

import json

import pytest
from checkpoints import tokenizer_json, write

from longrope_jax import cli, model


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
    assert "--generate is for" in capsys.readouterr().err
