"""Figures are returned, show what they are asked for, and touch no state of pyplot."""

import numpy as np
import pytest

from longrope_jax import plot
from longrope_jax.analysis import decay as decay_lib
from longrope_jax.rotary import RoPE


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_decay_draws_the_scores():
    line = lines(plot.decay([RoPE(base=1e6), "abf"], length=64, head_dim=8))[str(RoPE(base=1e6))]
    expected = decay_lib.score(RoPE(base=1e6), np.arange(64), head_dim=8)
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_wavelengths_draws_turns_and_leaves_out_pairs_at_rest():
    figure = plot.wavelengths(["rope", "nope"], length=64, trained_length=64, head_dim=8)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["rope"].get_ydata()[0], 64 / (2 * np.pi))
    assert len(drawn["nope"].get_ydata()) == 0


def test_loss_by_position_averages_windows_and_blocks():
    figure = plot.loss_by_position({"a": [[1, 3, 5, 7], [1, 3, 5, 7]]}, block=2, trained_length=2)
    np.testing.assert_allclose(lines(figure)["a"].get_ydata(), [2, 6])


def test_helix_has_a_panel_each():
    assert [axes.get_title() for axes in plot.helix().axes] == ["rope", "pi", "abf"]


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="ropee"):
        plot.decay(["ropee"], length=64)


def test_a_panel_shows_a_method_beside_rope():
    figure = plot.panel("abf", length=64, trained_length=32, head_dim=8)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines][:2] == ["rope", "abf"]
    expected = decay_lib.score(RoPE(base=5e5), np.arange(64), head_dim=8)
    np.testing.assert_allclose(right.lines[1].get_ydata(), expected)
