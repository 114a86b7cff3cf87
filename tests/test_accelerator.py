"""The command for an accelerator that is lent for ten minutes, in its tiny setting."""

import jax
import pytest

from benchmarks import accelerator
from longrope_jax import llama


def test_a_part_that_fails_costs_its_row_and_is_done_again(tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "results.json", []

    def measured(part, size, seconds):
        calls.append(part)
        if part == "device":
            return {"device": "a card"}
        if part == "check":
            return {"rows": [{"what": "causal", "error": 0.01, "passed": True}]}
        if part == "train ours" and calls.count(part) == 1:
            return {"error": "RESOURCE_EXHAUSTED"}
        row = {"what": "step", "length": 8, "rows": 1, "seconds": 2.0, "tokens": 16, "flops": 4e12}
        return {"rows": [row]}

    monkeypatch.setattr(accelerator, "measured", measured)
    argv = ["--out", str(out), "--size", "tiny"]
    assert accelerator.main(argv) == 0
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().out
    assert accelerator.main(argv) == 0
    shown = capsys.readouterr().out
    assert "2.00 TFLOP/s" in shown and "8 tokens/s" in shown and "a card" in shown
    assert "RESOURCE" not in shown
    assert calls.count("train ours") == 2 and calls.count("check") == 1
    with pytest.raises(SystemExit):
        accelerator.main(["--out", str(out), "--size", "1b"])


def test_a_failed_check_is_an_exit_status(tmp_path, monkeypatch):
    rows = [{"what": "causal", "error": 0.5, "passed": False}]
    monkeypatch.setattr(accelerator, "measured", lambda *_: {"rows": rows})
    assert accelerator.main(["--out", str(tmp_path / "r.json"), "--size", "tiny"]) == 1


def test_the_model_has_about_a_billion_parameters():
    shapes = jax.eval_shape(
        lambda: llama.init_params(accelerator._config(accelerator.SIZES["1b"]), jax.random.key(0))
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(1.07e9, rel=0.01)


@pytest.mark.slow
def test_every_part_runs_in_the_tiny_setting():
    size = accelerator.SIZES["tiny"]
    for part in ("check", "attention ours", "train ours", "decode ours"):
        rows = accelerator.PARTS[part](size)
        assert rows and all(row.get("passed", row.get("seconds", 0) > 0) for row in rows), part
