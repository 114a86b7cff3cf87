import csv
import dataclasses
import json

import numpy as np
import pytest

from configs.method_atlas import get_config
from experiments import lab, method_atlas
from longrope_jax import rotary
from longrope_jax.analysis import decay
from longrope_jax.rotary import registry


@pytest.fixture
def plugged(monkeypatch):
    """Three methods of somebody else: a plain one, one with more than frequencies, a broken one."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @dataclasses.dataclass(frozen=True, eq=False)
    class Biased(rotary.Frequencies):
        bias: float = 0.0

    def method(name, frequencies):
        body = {"frequencies": lambda self, *, head_dim, seq_len: frequencies(head_dim)}
        cls = dataclasses.make_dataclass(name, [], frozen=True, namespace=body)
        return rotary.register(name)(cls)

    method("plugged_plain", lambda h: rotary.Frequencies(np.full(h // 2, 0.5)))
    method("plugged_biased", lambda h: Biased(np.ones(h // 2), bias=-0.1))
    method("plugged_remapping", lambda h: {"window": h})
    frozen = dataclasses.dataclass(frozen=True)

    @rotary.register("plugged_needy")
    @frozen
    class Needy:
        secret: float

        def frequencies(self, *, head_dim, seq_len):
            raise AssertionError


def run(tmp_path, **changes):
    config = get_config("tiny")
    config.update(changes)
    return method_atlas.main(config, tmp_path, "the command").results


def test_every_method_of_the_package_is_drawn_or_says_why_not():
    entries = [method_atlas.entry(name, get_config("tiny")) for name in rotary.names()]
    for e in entries:
        assert e.reason or (len(e.scores) == 256 and np.all(np.isfinite(e.scores)))
    drawn = {e.name for e in entries if not e.reason}
    assert {"rope", "pi", "abf", "xpos_abf", "yarn", "ntk", "longrope", "partial"} <= drawn
    starred = [e.name for e in entries if not e.reason and e.starred]
    assert starred == ["dual_chunk", "fope", "log_n", "self_extend"]
    assert {e.name: e.reason for e in entries if e.reason}.keys() == {"alibi", "by_layer"}


@pytest.mark.parametrize("name", ["rerope", "leaky_rerope", "self_extend", "dual_chunk"])
def test_remapped_curves_show_no_distance_beyond_the_trained_length(name):
    e = method_atlas.entry(name, get_config("tiny"))
    rope = decay.score(rotary.RoPE(), np.arange(64 * 16) / 16, head_dim=16)
    assert np.abs(e.scores[:, None] - rope).min(1).max() < 1e-9
    assert np.abs(e.scores[64:] - decay.score(rotary.RoPE(), np.arange(64, 256), head_dim=16)).any()


def test_script_writes_everything(tmp_path, capsys):
    run(tmp_path, methods=("rope", "log_n", "xpos_abf"))
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {
        "results.json", "methods.csv", "pairs.csv", "wavelengths.png", "decay.png", "report.html",
    }  # fmt: skip
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["options"][0] == {"method": "rope", "as evaluated": "RoPE(base=10000.0)"}
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 2
    assert "xpos_abf" in capsys.readouterr().out


def test_methods_registered_elsewhere_appear_or_say_why_not(tmp_path, plugged):
    result = run(tmp_path, methods=tuple(n for n in rotary.names() if n.startswith("plugged")))
    assert [r["method"] for r in result["methods"]] == ["plugged_plain"]
    assert {row["method"]: row["reason"] for row in result["not_drawn"]} == {
        "plugged_biased": "its scores depend on more than frequencies: bias",
        "plugged_needy": "plugged_needy needs secret: write plugged_needy:secret=...",
        "plugged_remapping": "its scores depend on more than frequencies: dict",
    }
    assert "plugged_needy needs secret" in (tmp_path / "report.html").read_text()


def test_numbers_are_those_of_the_method_at_the_extended_length(tmp_path):
    result = run(tmp_path, methods=("pi", "dynamic_ntk", "nope"))
    pi, dynamic, nope = result["methods"]
    wavelengths = 2 * np.pi * 4 / 10_000.0 ** -(np.arange(8) / 8)
    assert pi["beyond"] == np.sum(wavelengths > 64) and pi["turning"] == 8
    assert pi["longest"] == pytest.approx(wavelengths[-1] / 64)
    expected = decay.score(rotary.PositionInterpolation(factor=4), [64, 255], head_dim=16)
    assert [pi["at trained"], pi["at end"]] == pytest.approx(list(expected))
    spec = rotary.DynamicNTK(original_length=64)
    slowest = spec.frequencies(head_dim=16, seq_len=256).inv_freq[-1]
    assert dynamic["longest"] == pytest.approx(2 * np.pi / slowest / 64)
    assert nope["turning"] == 0 and nope["longest"] is None and nope["at end"] == pytest.approx(4)
    pairs = list(csv.reader((tmp_path / "pairs.csv").open()))
    assert len(pairs) == 1 + 3 * 8 and float(pairs[1][2]) == 0.25


def test_scores_that_depend_on_the_position_are_those_of_the_last_query(tmp_path):
    entry = method_atlas.entry("log_n", get_config("tiny"))
    assert entry.starred and len(entry.scores) == 256
    gain = np.log(256) / np.log(64)
    plain = decay.score(rotary.RoPE(), np.arange(256), head_dim=16)
    np.testing.assert_allclose(entry.scores, gain * plain, atol=1e-9)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config.methods=('rop',)"], ("'rop'", "'rope'")),
        (["--config.head_dim=7"], ("abf", "head_dim", "even")),
        (["--config.factor=0"], ("--config.factor", "at least 1", "got 0")),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, args, words):
    argv = ["atlas", "--config=configs/method_atlas.py:tiny", f"--workdir={tmp_path}", *args]
    with pytest.raises(SystemExit) as end:
        lab.run(method_atlas.main, "experiments.method_atlas", argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert all(word in error for word in words), error
