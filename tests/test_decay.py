import csv
import json

import numpy as np
import pytest

from configs.attention_decay import get_config
from experiments import attention_decay, lab
from longrope_jax import rotary
from longrope_jax.analysis import decay

# Figure 4 of Llama 2 Long (2309.16039): formula in float64, 5 decimals; the drawn vector paths
# agree within 2e-4 RMS.
DISTANCES = [0, 1, 2, 10, 100, 1000, 4096, 8192, 16384, 32383]
GOLDEN = {
    "rope": "11.31371 10.97672 10.14378 7.56958 5.39937 1.79919 -0.59797 0.28182 -1.60967 0.38543",
    "pi:factor=8": (
        "11.31371 11.30819 11.29169 10.80102 7.49024 4.72415 2.48250 2.31299 1.34954 -0.99494"
    ),
    "pi:factor=4": (
        "11.31371 11.29169 11.22640 9.66790 6.65491 3.47398 2.31299 1.34954 -0.59797 -1.81343"
    ),
    "abf": "11.31371 11.06378 10.45244 8.64600 6.91255 5.56933 4.33036 3.00281 1.50930 2.39247",
    "xpos_abf": (
        "11.31371 11.06284 10.45078 8.64071 6.87830 5.31297 3.69718 2.44650 1.75604 1.30087"
    ),
}
# Minimum, its distance, first negative distance on 0..32,383; same source.
EXTREMES = {
    "rope": (-3.1706, 17156, 1707),
    "pi:factor=8": (-1.4355, 28123, 13649),
    "abf": (-0.7144, 30540, 18438),
    "xpos_abf": (1.2429, 30540, None),
}


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_values_of_figure_4(method):
    scores = decay.score(rotary.parse(method), DISTANCES, head_dim=128)
    np.testing.assert_allclose(scores, np.array(GOLDEN[method].split(), float), atol=1e-5)


@pytest.mark.parametrize("method", EXTREMES)
def test_extremes_of_figure_4(method):
    summary = decay.summarize(decay.score(rotary.parse(method), np.arange(32384), head_dim=128))
    minimum, where, negative = EXTREMES[method]
    assert summary.minimum == pytest.approx(minimum, abs=1e-4)
    assert summary.minimum_distance == where
    assert summary.first_negative == negative


@pytest.mark.parametrize("method", ["rope", "pi:factor=8", "abf", "xpos_abf"])
def test_score_is_the_dot_product_of_rotated_vectors(method):
    spec, head_dim = rotary.parse(method), 64
    m, n = np.array([0, 5, 700, 4095]), np.array([0, 2, 600, 17])
    rot = rotary.make(spec, head_dim=head_dim, seq_len=4096)
    ones = np.ones((4, 1, head_dim), np.float32)
    q = rotary.rotate(ones, rotary.phases(rot, m).query)
    k = rotary.rotate(ones, rotary.phases(rot, n).key)
    dots = np.sum(np.asarray(q) * np.asarray(k), axis=(1, 2)) / np.sqrt(head_dim)
    np.testing.assert_allclose(decay.score(spec, m - n, head_dim=head_dim), dots, atol=1e-4)
    pairs = decay.heatmap(spec, m, n, head_dim=head_dim)
    np.testing.assert_allclose(np.diag(pairs), dots, atol=1e-4)


def test_score_counts_amplitude_and_unrotated_features():
    f = rotary.Frequencies(np.array([1.0, 0.1]), amplitude=1.5)
    rot = rotary.from_frequencies(f, seq_len=16)
    ones = np.ones((1, 1, 8), np.float32)
    q = rotary.rotate(ones, rotary.phases(rot, np.array([9])).query)
    k = rotary.rotate(ones, rotary.phases(rot, np.array([2])).key)
    expected = float(np.sum(np.asarray(q) * np.asarray(k))) / np.sqrt(8)
    assert decay.score(f, [7], head_dim=8)[0] == pytest.approx(expected, abs=1e-5)


def test_heatmap_takes_log_n_and_first_positions_as_the_model_does():
    start = np.array([0.5, 0.05])
    f = rotary.Frequencies(
        np.array([1.0, 0.1]), start_inv_freq=start, start_count=4, logn_length=6.0
    )
    rot, positions = rotary.from_frequencies(f, seq_len=16), np.arange(12)
    ones = np.ones((12, 1, 4), np.float32)
    ph = rotary.phases(rot, positions)
    q, k = rotary.rotate(ones, ph.query)[:, 0], rotary.rotate(ones, ph.key)[:, 0]
    expected = np.where(np.tri(12), np.asarray(q) @ np.asarray(k).T / 2, np.nan)
    found = decay.heatmap(f, positions, positions, head_dim=4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_heatmap_equals_score_below_the_diagonal_and_is_nan_above():
    spec, positions = rotary.XPos(), np.array([0, 3, 40_000, 1_000_000])
    found = decay.heatmap(spec, positions, positions, head_dim=16)
    distance = positions[:, None] - positions
    expected = decay.score(spec, np.maximum(distance, 0), head_dim=16, seq_len=1_000_001)
    np.testing.assert_allclose(found, np.where(distance >= 0, expected, np.nan), atol=1e-9)


def test_oscillation_is_zero_for_a_falling_curve_and_the_rms_of_a_swing():
    steps = np.arange(10_000)
    assert decay.oscillation(np.exp(-steps / 500)) == pytest.approx(0, abs=1e-12)
    assert decay.oscillation(3 + np.sin(steps)) == pytest.approx(np.sqrt(0.5), rel=1e-2)
    assert decay.oscillation(np.sin(steps), tail=1) == pytest.approx(np.sqrt(0.5), rel=1e-2)


def test_oscillation_orders_the_methods_of_figure_4():
    swing = {
        m: decay.oscillation(decay.score(rotary.parse(m), np.arange(32384), head_dim=128))
        for m in EXTREMES
    }
    assert 10 * swing["xpos_abf"] < min(swing["pi:factor=8"], swing["abf"]) < swing["rope"]


def test_first_negative_uses_the_given_distances():
    assert decay.first_negative([1.0, -1.0, 1.0]) == 1
    assert decay.first_negative([1.0, -1.0], [0, 128]) == 128
    assert decay.first_negative([1.0, 0.0]) is None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: decay.score(rotary.RoPE(), [-1], head_dim=8), "not negative"),
        (lambda: decay.score(rotary.RoPE(), [], head_dim=8), "one or more"),
        (lambda: decay.score(rotary.RoPE(), [1], head_dim=7), "even"),
        (lambda: decay.score(rotary.Frequencies(np.ones(3)), [1], head_dim=4), "do not fit"),
        (lambda: decay.heatmap(rotary.RoPE(), [0], [-2], head_dim=8), "not negative"),
        (lambda: decay.oscillation([1.0, 2.0], tail=0), "tail"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_script_writes_everything(tmp_path, capsys):
    report = attention_decay.main(get_config("tiny"), tmp_path, "the command")
    found = {p.name for p in tmp_path.iterdir()}
    csvs = {"decay.csv", "curves.csv"}
    assert found == {"results.json", "decay.png", "heatmap.png", "report.html"} | csvs
    curves = report.results["curves"]
    assert json.loads((tmp_path / "results.json").read_text())["curves"] == curves
    table = list(csv.reader((tmp_path / "decay.csv").open()))
    assert table[0] == ["distance", "rope", "pi:factor=8", "abf", "xpos_abf"]
    assert len(table) == 1 + 256
    assert float(table[2][1]) == pytest.approx(
        decay.score(rotary.RoPE(), [1], head_dim=16)[0], abs=1e-6
    )
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 2
    assert "xpos_abf" in capsys.readouterr().out
    assert f"rope at {curves[0]['first negative']}" in report.claims[0]


@pytest.mark.parametrize("method", GOLDEN)
def test_script_compares_with_its_golden_values(method):
    scores = decay.score(rotary.parse(method), np.arange(32384), head_dim=128)
    curve = attention_decay.Curve(method, method, 128, scores)
    assert attention_decay.golden_difference(curve) < 1e-5
    wrong = attention_decay.Curve(method, method, 128, scores + 0.1)
    assert attention_decay.golden_difference(wrong) == pytest.approx(0.1, abs=1e-5)


def test_script_has_no_golden_values_for_other_curves():
    scores = np.ones(8)
    for method, head_dim in (("rope:base=1e6", 128), ("rope", 64)):
        curve = attention_decay.Curve(method, method, head_dim, scores)
        assert attention_decay.golden_difference(curve) is None


def run_script(tmp_path, *args):
    argv = ["attention_decay", f"--workdir={tmp_path}", *args]
    with pytest.raises(SystemExit) as end:
        lab.run(attention_decay.main, "experiments.attention_decay", argv)
    return end.value.code


TINY = "--config=configs/attention_decay.py:tiny"


def test_command_line_overlays_methods_and_head_dims(tmp_path):
    overrides = ['--config.methods=("rope:base=1e6", "abf")', "--config.head_dims=(8, 16)"]
    assert run_script(tmp_path, TINY, *overrides) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    labels = ["rope:base=1e6 H=8", "rope:base=1e6 H=16", "abf H=8", "abf H=16"]
    assert [c["curve"] for c in results["curves"]] == labels
    assert results["command"].startswith("python -m experiments.attention_decay --workdir=")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config=configs/attention_decay.py:papr"], ("'papr'", "'paper'")),
        ([TINY, "--config.methods=('rop',)"], ("'rop'",)),
        ([TINY, "--config.methods=('pi',)"], ("pi needs factor",)),
        ([TINY, "--config.methods=()"], ("--config.methods",)),
        ([TINY, "--config.head_dims=(7,)"], ("head_dim must be even",)),
        ([TINY, "--config.max_distance=0"], ("--config.max_distance", "at least 1", "got 0")),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, args, words):
    assert run_script(tmp_path, *args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words) and not list(tmp_path.iterdir())
