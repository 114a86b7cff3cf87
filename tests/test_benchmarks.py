"""Benchmarks give both sides the same work, and their arithmetic is right; no time is tested."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import (
    compare,
    length,
    ours,
    process,
    profile,
    ratios,
    row_product,
    step_profile,
    work,
)
from longrope_jax import llama

TINY = work.SIZES["tiny"]
COMPARED = [name for name, w in work.WORKS.items() if "peer" in w.contenders]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    ours.export(TINY, path)
    return path


@pytest.fixture(scope="module")
def torch():
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    pytest.importorskip("transformers", reason=why)
    module = pytest.importorskip("torch", reason=why)
    threads = module.get_num_threads()
    yield module
    module.set_num_threads(threads)


def run(folder, **request):
    return process.run({"sizes": "tiny", "folder": str(folder), "samples": 1} | request)


# the same work


def test_the_peer_computes_the_same_logits(folder, torch):
    for name in ("ours", "peer"):
        run(folder, do="logits", contender=name)
    mine, theirs = (np.load(folder / f"{name}.npy") for name in ("ours", "peer"))
    assert mine.shape == theirs.shape == (TINY.prompt, TINY.model.vocab_size)
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("name", COMPARED)
def test_contenders_come_to_the_same_result(folder, torch, name):
    contenders = work.WORKS[name].contenders
    found = {c: run(folder, do="time", work=name, contender=c) for c in contenders}
    for each in found.values():
        assert ratios.disagreement(each["values"], found["peer"]["values"]) < compare.TOLERANCE
        assert each["tokens"] == found["peer"]["tokens"] > 0
        assert len(each["seconds"]) == 1 and each["seconds"][0] > 0
        assert each["peak_bytes"] >= each["ready_peak_bytes"] > 1e7
    assert len(compare.rows({c: [each] for c, each in found.items()})) == len(contenders)


def test_every_contender_is_a_function_that_takes_its_options(torch):
    for each in (c for w in work.WORKS.values() for c in w.contenders.values()):
        function = getattr(importlib.import_module(f"benchmarks.{each.module}"), each.function)
        inspect.signature(function).bind(TINY, None, **each.options)
        assert hasattr(TINY, each.options.get("length", "train"))
        assert each.options.get("remat", "none") in llama.REMAT


def test_every_weight_and_the_filled_cache_are_read_once_per_token():
    weights = sum(x.size for x in jax.tree.leaves(ours.shapes(TINY.model)))
    cache = llama.init_cache(TINY.model, 1, 20)
    assert compare.decode_bytes(TINY.model, 16, 8) == 4 * (weights + cache.k.size + cache.v.size)


# arithmetic


def test_a_ratio_is_that_of_medians_and_its_spread_that_of_pairs():
    assert ratios.ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="pairs"):
        ratios.ratio([1.0], [])


@given(
    power=st.floats(-3, 3),
    scale=st.floats(1e-3, 1e3),
    x=st.lists(st.integers(1, 10**6), min_size=2, max_size=8, unique=True),
)
@settings(max_examples=50, deadline=None)
def test_exponents_of_powers_are_found(power, scale, x):
    assert ratios.exponent(x, [scale * v**power for v in x]) == pytest.approx(power, abs=1e-6)


def test_an_exponent_needs_two_positive_points():
    for x, y in (([1], [1]), ([1, 1], [1, 2]), ([1, 2], [1, 0]), ([], [])):
        with pytest.raises(ValueError, match="two, positive"):
            ratios.exponent(x, y)


def measured(seconds, peak, values=(1.0,)):
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "prepare_seconds": 1.0,
        "cores": 1.0,
        "tokens": 8,
        "values": list(values),
    }


def test_the_table_prints_ratios_to_the_peer_and_none_without_one(capsys):
    from experiments import lab
    from experiments.lab import reports

    runs = {
        "ours": [measured([1.0, 2.0, 9.0], 2**30), measured([2.0], 2**30)],
        "peer": [measured([4.0], 2**32), measured([6.0], 2**32)],
    }
    rows = compare.rows(runs)
    assert rows[0]["tokens_per_second"] == 4.0
    assert rows[0]["speed"] == (2.5, 2.0, 3.0) and rows[0]["memory"] == (0.25, 0.25, 0.25)
    reports.print_table(lab.Table(compare._HEADER, compare.printed(rows), "t"))
    out = capsys.readouterr().out
    assert "2.50 (2.00 to 3.00)" in out and "0.25 (0.25 to 0.25)" in out
    (alone,) = compare.rows({"ours": runs["ours"]})
    assert "speed" not in alone and compare.printed([alone])[0][2] == ""


# processes


def test_contenders_take_turns(monkeypatch):
    asked = []

    def start(request):
        asked.append(request["contender"])
        return measured([1.0], 1)

    monkeypatch.setattr(process, "start", start)
    compare.take_turns({"work": "decode"}, work.WORKS["decode"], 2)
    assert asked == ["ours", "peer"] * 2


def test_another_result_than_the_peers_is_an_error(monkeypatch):
    def start(request):
        return measured([1.0], 1, [1.0 if request["contender"] == "peer" else 1.01])

    monkeypatch.setattr(process, "start", start)
    with pytest.raises(ValueError, match=r"decode: ours is 1\.0e-02 off"):
        compare.take_turns({"work": "decode"}, work.WORKS["decode"], 1)


def test_a_process_that_fails_says_why_in_one_line():
    with pytest.raises(ValueError, match=r"export ended with status 1: .*use --threads=1\.\."):
        process.start({"do": "export", "threads": 10**6})


def test_an_unknown_work_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="decode"):
        compare.main([f"--out={tmp_path}", "--only", "decod"])


# profile


def test_own_time_leaves_out_what_runs_inside():
    events = [(0, 100, "loop"), (10, 30, "dot"), (15, 5, "copy"), (50, 20, "dot"), (100, 7, "add")]
    assert step_profile.own_times(events) == {"loop": 50, "dot": 45, "copy": 5, "add": 7}
    assert sum(step_profile.own_times(reversed(events)).values()) == 107


def test_an_operation_without_a_name_takes_that_of_its_body_or_its_user():
    hlo = """HloModule jit_step

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %m = f32[2]{0} multiply(%p, %p), metadata={op_name="jit(step)/layers/mlp/mul"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %add.1 = f32[2]{0} add(%x, %x), metadata={op_name="jit(step)/add" source_file="a.py"}
  %copy.3 = f32[2]{0} copy(%add.1)
  %dot.4 = f32[2]{0} dot(%copy.3, %copy.3)
  %exp.5 = f32[2]{0} exponential(%dot.4), metadata={op_name="jit(step)/exp"}
  ROOT %fusion.2 = f32[2]{0} fusion(%exp.5), kind=kLoop, calls=%fused
}
"""
    names = step_profile.operation_names(hlo)
    assert names["add.1"] == "jit(step)/add"
    assert names["fusion.2"] == names["m"] == "jit(step)/layers/mlp/mul"
    assert names["dot.4"] == names["copy.3"] == "jit(step)/exp"


def test_a_real_steps_operations_fall_into_every_part():
    run, *_ = ours.train_step(TINY, "none")
    names = step_profile.operation_names(run.as_text())
    parts = step_profile.by_part(step_profile.Counter(dict.fromkeys(names, 10**9)), names)
    assert sum(t["forward"] + t["backward"] for t in parts.values()) == pytest.approx(len(names))
    for part, _ in step_profile.PARTS[:-1]:
        assert parts[part]["forward"] > 0, part
    for part in ("attention", "MLP", "norms", "loss", "rotation"):
        assert parts[part]["backward"] > 0, part
    assert len(profile.printed(parts)) == len(parts)


# length


def test_a_point_is_compiled_at_its_length_and_run_where_asked():
    short, long = (
        ours.point(TINY, length=T, run=T < 128, backward=False, remat="full") for T in (64, 512)
    )
    assert short["seconds"] > 0 and "seconds" not in long
    assert 0 < short["temporary_bytes"] < long["temporary_bytes"]


def test_curves_are_drawn_and_printed(tmp_path):
    lengths = [1024, 2048, 4096]
    memory = {"lengths": lengths, "temporary_bytes": [2**30, 2**31, 2**32], "seconds": []}
    memory["memory_exponent"] = length.exponents(lengths, memory["temporary_bytes"])
    timed = memory | {"seconds": [1.0, 4.0], "time_exponent": (2.0, 2.0)}
    (_, header, seconds), (*_, gib) = length.tables({"a": memory, "b": timed})
    assert seconds == [("b", "1.00", "4.00", "", "2.00 (2.00)")]
    assert gib[0] == ("a", "1.00", "2.00", "4.00", "1.00 (1.00)")
    assert len(header) == len(gib[0])
    length.draw({"a": memory, "b": timed}, tmp_path / "length.png")
    assert 0 < (tmp_path / "length.png").stat().st_size < 300_000


def test_weights_widened_by_parts_give_the_product():
    weights = np.random.default_rng(0).standard_normal((row_product.PARTS * 2, 64), np.float32)
    x = np.random.default_rng(1).standard_normal(64, np.float32)
    half = np.asarray(jnp.asarray(weights).astype(jnp.bfloat16))
    bits = jnp.asarray(half.view(np.uint16))
    wide = row_product.by_parts(row_product.widen_bfloat16, x, bits)
    np.testing.assert_allclose(wide, half.astype(np.float32) @ x, rtol=1e-4, atol=1e-4)
    q8_0 = map(jnp.asarray, row_product.q8(weights))
    found = row_product.by_parts(row_product.widen_q8, x, *q8_0)
    # Each weight is off by up to half a step, evenly, and 64 of them add with random signs.
    step = np.abs(weights).max() / 127
    assert 0 < np.abs(found - weights @ x).max() < 4 * step / 12**0.5 * np.linalg.norm(x)
