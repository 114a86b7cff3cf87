"""What the README says can be typed."""

import configparser
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONFIG, tokenizer_json, write

import longrope_jax
from longrope_jax import rotary
from longrope_jax.rotary import documentation, registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", README + CONTRIBUTING, re.M | re.S)
# What the README calls a preset stands beside its script, in the table or in a command.
PRESETS = {
    *re.findall(r"^\|[^|]*\| `(\w+)`, `(\w+)`", README, re.M),
    *re.findall(r"configs/([a-z_]+)\.py:(\w+)", README),
}


def test_every_method_is_named():
    assert [name for name in rotary.names() if f"`{name}`" not in README] == []


def test_every_script_is_named():
    scripts = {p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text()}
    assert {"reproduce", "helix"} <= scripts
    assert [s for s in sorted(scripts) if not re.search(rf"[`.]{s}\b", README)] == []


@pytest.mark.parametrize(("name", "preset"), sorted(PRESETS))
def test_presets_exist(name, preset):
    assert (ROOT / "experiments" / f"{name}.py").exists()
    assert importlib.import_module(f"configs.{name}").get_config(preset)


def test_extras_exist():
    setup = configparser.ConfigParser(inline_comment_prefixes="#")
    setup.read(ROOT / "setup.cfg")
    groups = re.findall(r'"\.\[([\w,]+)\]"', README)
    named = {extra for group in groups for extra in group.split(",")}
    assert named and named <= set(setup["options.extras_require"])


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_methods_given_as_text_are_read():
    texts = re.findall(r"(\w+:[\w=,.]+\(\w+\)|\byarn:[\w=,.]*original_length[\w=,.]*)", README)
    assert len(texts) == 2
    for text in texts:
        rotary.parse(text)


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    (block,) = [code for code in CODE if "lr.load(" in code]
    path, _ = write(tmp_path, "hf")
    (path / "tokenizer.json").write_text(tokenizer_json())
    monkeypatch.chdir(tmp_path)
    exec(block.replace('"smollm2-135m"', repr(str(path))), space := {})
    model, printed = space["model"], capsys.readouterr().out
    assert printed.startswith("Model(") and len(printed.splitlines()[0]) <= 160
    assert space["logits"].shape == (len(model.encode("Once upon a time")), CONFIG.vocab_size)
    saved = longrope_jax.load(tmp_path / "out")
    assert saved.method == model.with_rotary("yarn:factor=4").method
    assert saved.special_tokens == model.special_tokens


def test_the_method_is_one(monkeypatch):
    (block,) = [code for code in CODE if "@register" in code]
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    exec(block, space := {"__name__": "mine"})
    turns = rotary.parse("mine:base=2e4").frequencies(head_dim=8, seq_len=16).inv_freq
    rope = rotary.RoPE(base=2e4).frequencies(head_dim=8, seq_len=16).inv_freq
    np.testing.assert_allclose(turns, rope / 2)
    assert any("half as fast" in cell for cell in documentation.row(space["Mine"]))


def test_it_is_short():
    assert len(re.findall(r"\S*[A-Za-z0-9]\S*", README)) <= 900
