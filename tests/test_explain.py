"""What explain, diff and docs/rotary.md say is what the code does."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax import rotary
from longrope_jax.cli import main
from longrope_jax.rotary import documentation, hf

ROOT = Path(__file__).parents[1]


def run(capsys, *arguments):
    """Exit code, lines of stdout, stderr."""
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out.splitlines(), out.err


def quiet(config, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rotary.from_hf(config, **options)


# Every key of a config

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS = {
    "plain": {"rope_theta": 1e6, "max_position_embeddings": 4096, "rope_scaling": None},
    "neox": {"rotary_pct": 0.25, "rotary_emb_base": 20_000, "max_position_embeddings": 2048},
    "llama3": {"rope_theta": 5e5, "max_position_embeddings": 131_072, "rope_scaling": LLAMA3},
    "yarn": {"max_position_embeddings": 65_536, "rope_parameters": YARN | {"rope_theta": 1e4}},
    "yarn agreeing": {"max_position_embeddings": 32_768, "rope_scaling": YARN},
    "yarn, no factor": {
        "max_position_embeddings": 32_768,
        "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096},
    },
    "yarn, attention_factor": {
        "rope_scaling": YARN
        | {"attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 0.8, "attn_factor": 2.0}
    },
    "yarn, pair": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.8}},
    "yarn, one of the pair": {
        "rope_scaling": YARN | {"mscale": 0.7, "attn_factor": 0.9, "finetuned": True}
    },
    "dynamic": {
        "max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "dynamic",
            "factor": 2.0,
            "original_max_position_embeddings": 2048,
        },
    },
    "longrope": {
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [1.0, 20.0]},
    },
    "unread": {"rope_theta": 1e4, "original_max_position_embeddings": 64, "no_rope_layers": [1]},
}
OTHERS = {"hidden_size": 512, "num_attention_heads": 4, "vocab_size": 7, "bos_token_id": None}


def set_at(config, dotted, value):
    """A copy with the key `a.b` set."""
    first, _, rest = dotted.partition(".")
    return config | {first: set_at(config[first], rest, value) if rest else value}


def other_values(value):
    """Values that a key might have had in place of this one."""
    if isinstance(value, list):
        return [[2.5 * x + 1 for x in value]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ["linear"] if isinstance(value, str) else [False]
    return [2 * value, 0.5 * value + 0.25, value + 1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_key_is_used_exactly_if_another_value_of_it_tells(name):
    """Another method or an error for "used", the same method whatever else is written for it."""
    config = CONFIGS[name] | OTHERS
    spec, keys = quiet(config), rotary.audit(config)
    assert len(keys) == len({key.name for key in keys})
    flat = {
        f"{block}.{k}" for block in ("rope_scaling", "rope_parameters")
        for k in config.get(block) or ()
    }  # fmt: skip
    flat |= {k for k in config if not (config[k] and k in ("rope_scaling", "rope_parameters"))}
    assert {key.name for key in keys} == flat
    for key in keys:
        told = []
        for value in other_values(key.value) if key.value is not None else ():
            try:
                told.append(quiet(set_at(config, key.name, value)) != spec)
            except ValueError:
                told.append(True)
        assert any(told) == (key.status == "used"), key
        assert all(told) or not any(told), key


def statuses(config, **options):
    return {key.name: key.status for key in rotary.audit(config, **options)}


def test_statuses_are_these():
    found = statuses(CONFIGS["yarn"])
    assert found["max_position_embeddings"] == "overridden"
    assert statuses(CONFIGS["yarn agreeing"])["max_position_embeddings"] == "ignored"
    assert statuses(CONFIGS["yarn, no factor"])["max_position_embeddings"] == "used"
    found = statuses(CONFIGS["yarn, attention_factor"])
    assert {found[f"rope_scaling.{k}"] for k in ("mscale", "attn_factor")} == {"overridden"}
    found = statuses(CONFIGS["dynamic"])
    assert found["rope_scaling.original_max_position_embeddings"] == "overridden"
    assert statuses(CONFIGS["unread"])["no_rope_layers"] == "ignored"


def test_keys_of_other_layer_types_are_told_apart():
    layers = {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    keys = rotary.audit({"rope_parameters": layers}, layer_type="full_attention")
    assert [(k.name, k.status) for k in keys] == [
        ("rope_parameters.full_attention.rope_type", "used"),
        ("rope_parameters.full_attention.partial_rotary_factor", "used"),
        ("rope_parameters.sliding_attention", "ignored"),
    ]


def test_a_rotary_key_that_is_not_read_is_a_warning():
    for config, message in (
        ({"rope_thta": 5e5}, "'rope_thta'; did you mean 'rope_theta'.*it was not read"),
        ({"no_rope_layers": [1, 0]}, "unknown rotary key of the config 'no_rope_layers'"),
        ({"rope_scalng": {"type": "linear"}}, "did you mean 'rope_scaling'"),
        ({"alibi": True}, "unknown rotary key of the config 'alibi'.*it was not read"),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            assert rotary.from_hf(config) == rotary.RoPE()
        assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmless = {
            "rope_interleave": True,
            "qk_rope_head_dim": 64,
            "scope": 1,
            "rope_type_x": None,
            "alibi": False,
        }
        assert rotary.from_hf(harmless) == rotary.RoPE()


def test_gpt_neox_spelling_is_read():
    want = rotary.PartialRotary(rotary.RoPE(20_000), 0.25)
    assert rotary.from_hf({"rotary_pct": 0.25, "rotary_emb_base": 20_000}) == want
    with pytest.raises(ValueError, match="two values of rope_theta"):
        rotary.from_hf({"rope_theta": 1e4, "rotary_emb_base": 2e4})


@pytest.mark.parametrize(
    "config, message",
    [
        ([], "a config is an object of keys and values, got list"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object of keys and values, got 'lin"),
        ({"rope_theta": [1]}, r"rope_theta must be a finite number, got \[1\]"),
        ({"rope_scaling": {"type": ["linear"]}}, "unknown rope_type"),
        (
            {"rope_scaling": {"type": "su", "factor": 2.0, "short_factor": 1, "long_factor": 2},
             "original_max_position_embeddings": 64},
            "rope_type 'longrope': a value of the wrong kind",
        ),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_refused(config, message):
    with pytest.raises(ValueError, match=message) as error:
        rotary.from_hf(config)
    assert "\n" not in str(error.value)


def test_which_methods_hugging_face_has(spec):
    """Its seven types, NTK as its base, partial rotary around those; the others say so."""
    if type(spec) in {*hf._BY_TYPE.values(), rotary.NTKAware}:
        parameters = rotary.to_hf(spec, head_dim=16)
        types = {*hf._BY_TYPE}
        assert parameters["rope_type"] in types and json.loads(json.dumps(parameters))
    else:
        inner = rotary.name_of(getattr(spec, "inner", spec))
        with pytest.raises(ValueError, match=f"no rope_type for ({rotary.name_of(spec)}|{inner})"):
            rotary.to_hf(spec, head_dim=16)


# The command line


def test_explain_reads_a_config(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["yarn"] | OTHERS))
    code, lines, _ = run(capsys, "explain", path)
    text = "\n".join(lines)
    assert code == 0 and lines[0] == "keys of the config:"
    assert "ignored, not about positions: vocab_size" in text
    assert "warning: rope_type yarn: factor=8.0 won over max_position_embeddings" in text
    assert "yarn (YaRN): " in text and "  factor = 8.0 (chosen)" in lines
    assert "evaluated for sequences of 65536 tokens, head_dim 128" in text
    rows = [line.split() for line in lines[-64:]]
    f = rotary.YaRN(8, 4096).frequencies(head_dim=128, seq_len=1)
    np.testing.assert_allclose([float(row[1]) for row in rows], f.inv_freq, rtol=1e-6)
    trained = 4096 * f.inv_freq / (2 * np.pi)
    np.testing.assert_allclose([float(row[5]) for row in rows], trained, atol=6e-5)
    slowed = 1e4 ** -(np.arange(64) / 64) / f.inv_freq
    np.testing.assert_allclose([float(row[6]) for row in rows], slowed, atol=6e-5)
    longer = int((trained < 1).sum())
    assert f"  {longer} of 64 pairs make no full turn within the trained 4096 tokens" in lines
    assert "  21 of 64 pairs turn as in RoPE of this base, the others slower, by up to 8" in text


def test_sizes_come_from_the_config_or_the_command_line(tmp_path, capsys):
    path = tmp_path / "config.json"
    for config, size in (
        ({"head_dim": 32, "hidden_size": 512, "num_attention_heads": 4}, 32),
        ({"qk_rope_head_dim": 16, "head_dim": 32}, 16),
        ({"hidden_size": 512, "num_attention_heads": 8}, 64),
        ({}, 128),
    ):
        path.write_text(json.dumps(config))
        assert f"tokens, head_dim {size}" in "\n".join(run(capsys, "explain", path)[1])
    lines = run(capsys, "explain", path, "--head-dim", 8, "--seq-len", 100)[1]
    assert "  evaluated for sequences of 100 tokens, head_dim 8" in lines
    lines = run(capsys, "explain", "yarn:factor=8,original_length=512")[1]
    assert "  evaluated for sequences of 4096 tokens, head_dim 128" in lines
    path.write_text(json.dumps({"head_dim": 32}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"head_dim": 64}))
    code, _, message = run(capsys, "diff", path, other)
    assert code == 2 and message == (
        "error: the two have head_dim [32, 64]: choose one with --head-dim\n"
    )


def test_the_audit_says_which_sizes_are_used_for_head_dim():
    """Though the method is the same at every one of them."""
    both = {"hidden_size": 512, "num_attention_heads": 8}

    def rules(config):
        return {key.name: key.rule for key in rotary.audit(config)}

    (rule,) = set(rules(both).values())
    assert "used for head_dim = hidden_size / num_attention_heads" in rule
    found = rules(both | {"head_dim": 32})
    assert found["head_dim"].endswith("used for head_dim")
    assert found["hidden_size"].endswith("head_dim comes from head_dim")
    assert rules({"hidden_size": 512})["hidden_size"].endswith("head_dim comes from no key")


def test_diff_finds_the_largest_difference(capsys):
    """YaRN's two ramps: 67 % apart at most, at pair 38, as recorded of peers."""
    a = "yarn:factor=16,original_length=4096"
    code, lines, _ = run(capsys, "diff", a, a + ",ramp=rotations")
    text = "\n".join(lines)
    assert code == 0 and "  ramp  'dimension'  'rotations'" in lines
    assert "25 of 64 pairs differ, most pair 38: " in text and "(-67.12% in frequency)" in text
    row = lines[-64 + 38].split()
    assert row[0] == "38" and row[5] == "-67.12%"
    ours = [rotary.parse(t).frequencies(head_dim=128, seq_len=1).inv_freq[38]
            for t in (a, a + ",ramp=rotations")]  # fmt: skip
    np.testing.assert_allclose([float(x) for x in row[1:3]], ours, rtol=1e-6)
    turns = 65_536 * (ours[1] - ours[0]) / (2 * np.pi)
    np.testing.assert_allclose(float(row[6]), turns, atol=6e-5)


def test_diff_says_what_is_no_frequency(capsys):
    lines = run(capsys, "diff", "abf", "rope:base=500_000")[1]
    assert lines[-1] == "frequencies: the same for every pair" and "options: the same" in lines
    lines = run(capsys, "diff", "log_n:inner=(xpos),original_length=512", "nope")[1]
    text = "\n".join(lines)
    assert "log-n scaling beyond: A 512, B inf tokens" in lines
    assert "steepest decay per token: A -0.0024468, B 0" in text and "-100.00%" in text
    short = rotary.diff(rotary.PartialRotary(rotary.RoPE(), 0.5), rotary.RoPE(), head_dim=8)
    assert "3 of 4 pairs differ, most pair 2" in short
    assert "wavelength inf tokens in A" in short


def test_every_method_differs_from_rope_or_is_it(spec):
    text = rotary.diff(rotary.RoPE(), spec, head_dim=16, seq_len=4096)
    assert text.splitlines()[1] == f"B  {rotary.name_of(spec)}"


@pytest.mark.parametrize(
    "arguments", [("explain", "nope"), ("diff", "abf", "partial:inner=(rope),fraction=0.5")]
)
def test_pictures_are_written(tmp_path, capsys, arguments):
    picture = tmp_path / "a.png"
    assert run(capsys, *arguments, "--picture", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 300_000


def test_a_picture_without_matplotlib_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, message = run(capsys, "explain", "rope", "--picture", tmp_path / "a.png")
    assert code == 2 and "pip install 'longrope_jax[plot]'" in message
    assert run(capsys, "explain", "rope")[0] == 0


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "a config is an object"),
        (b'{"rope_scaling": {"type": "yarn"}}', "rope_type 'yarn' needs 'factor'"),
        (b'{"rope_scaling": {"type": "linear", "factor": NaN}}', "factor must be at least 1"),
        (b'{"rope_theta": 1' + 400 * b"0" + b"}", "rope_theta must be a finite number"),
    ],
)
def test_bad_files_are_one_line_and_exit_code_2(tmp_path, capsys, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    for arguments in (("explain", path), ("diff", "rope", path)):
        code, lines, error = run(capsys, *arguments)
        assert code == 2 and not lines
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("explain", "yrn:factor=8"), "unknown rotary method 'yrn'; did you mean 'yarn'?"),
        (
            ("explain", "tests"),
            "cannot read tests/config.json: No such file or directory; a checkpoint of another "
            "kind: longrope inspect tests",
        ),
        (("explain", "rope", "--head-dim", "7"), "head_dim must be even and positive, got 7"),
        (
            ("explain", "rope", "--seq-len", "0"),
            "seq_len must be a whole number from 1 to",
        ),
        (("diff", "rope", "abf", "--seq-len", "-5"), "seq_len must be a whole number from 1"),
        (("explain", "ntk:factor=1e300,base=1e300"), "base must be finite, got inf"),
        (("explain", "rope", "--picture", "/nowhere/a.png"), "cannot write the picture"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(capsys, arguments, message):
    code, _, error = run(capsys, *arguments)
    assert code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_the_module_runs_and_draws_nothing_unasked():
    code = (
        "import sys; from longrope_jax.cli import main; "
        "code = main(['explain', 'abf']); print('matplotlib' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


# docs/rotary.md


def test_the_table_in_the_docs_is_current():
    """If this fails: python -m longrope_jax.rotary.documentation."""
    text = (ROOT / "docs" / "rotary.md").read_text()
    assert documentation.updated(text) == text
    table = documentation.table()
    for name in rotary.names():
        assert f"| `{name}`" in table or f"<br>`{name}`" in table
    width = len(table.splitlines()[0].replace("\\|", "").split("|"))
    for line in table.splitlines():
        assert len(line.replace("\\|", "").split("|")) == width
    with pytest.raises(ValueError, match=r"cannot read /nowhere/rotary\.md"):
        documentation.update(Path("/nowhere/rotary.md"))


def test_the_caching_column_is_what_the_frequencies_do(spec):
    """ "no" where they depend on the length, "switch" where they change once, at L = 512."""
    while hasattr(spec, "inner"):
        spec = spec.inner
    section = rotary.docstrings.section(type(spec), "Cache")

    def differ(a, b):
        f, g = (spec.frequencies(head_dim=16, seq_len=n) for n in (a, b))
        return f.amplitude != g.amplitude or np.any(f.inv_freq != g.inv_freq)

    assert section.startswith("no") == differ(2048, 2560)
    assert ("switch" in section) == (differ(512, 513) and not differ(2048, 2560))


def test_every_option_of_every_method_is_documented(spec):
    assert documentation.row(type(spec))
    described = rotary.docstrings.attributes(type(spec))
    assert set(described) == {field.name for field in dataclasses.fields(spec)}


def test_a_docstring_that_lacks_something_is_told_what_to_write():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        """Mine: theta_j = 1.

        Source: here.
        """

        speed: float = 1.0

    with pytest.raises(ValueError, match="docstring of Mine has no section 'Cache': write a line"):
        documentation.row(Mine)
    Mine.__doc__ = "Mine: theta_j = 1.\n\nSource: here.\nCache: rotated keys.\nPeers: none.\n"
    with pytest.raises(ValueError, match="Mine says nothing of option 'speed': write"):
        documentation.row(Mine)
    with pytest.raises(ValueError, match="to write the table between"):
        documentation.updated("no marks")


# Files from strangers

JSON = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3)
JSON |= st.lists(JSON, max_size=2) | st.dictionaries(st.text(max_size=2), JSON, max_size=2)
SIZES = st.sampled_from([0, 1, 2, 4096, 65_536, 0.5, 8.0, -1])
NAMES = sorted(
    {"type", "rope_type", *hf._COMMON}.union(*(k for c in hf._BY_TYPE.values() for k in c.HF_KEYS))
)
BLOCK = st.dictionaries(st.sampled_from(NAMES), JSON | SIZES, max_size=4)
TYPED = st.builds(lambda t, b: b | {"rope_type": t}, st.sampled_from([*hf._BY_TYPE, "su"]), BLOCK)
OUTER = ["rope_theta", "rotary_pct", "max_position_embeddings", "rope_x", "head_dim", "text_config"]


@given(
    block=TYPED | BLOCK | JSON,
    outer=st.dictionaries(st.sampled_from(OUTER), JSON | SIZES, max_size=3),
    key=st.sampled_from(["rope_scaling", "rope_parameters"]),
)
@settings(max_examples=400, deadline=None)
def test_any_json_is_read_or_refused_in_one_line(block, outer, key):
    config = outer | {key: block}
    try:
        spec = quiet(config)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert len(rotary.audit(config)) >= len(outer)
    try:
        assert quiet({"rope_parameters": rotary.to_hf(spec, head_dim=8)}) == spec
    except ValueError as error:
        assert "Hugging Face" in str(error) or "rope_parameters differ" in str(error)
