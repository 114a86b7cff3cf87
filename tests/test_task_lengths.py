"""Scores over lengths and depths: intervals against statistics of others, lengths by hand."""

import numpy as np
import pytest
from scipy import stats

from longrope_jax import plot
from longrope_jax.evaluation import lengths, perplexity, windowing


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 20), (1, 1), (250, 500)])
def test_wilsons_interval_is_that_of_scipy(right, n):
    found = lengths.wilson([1.0] * right + [0.0] * (n - right))
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert found.estimate == pytest.approx(right / n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_effective_length_is_the_longest_before_the_first_failure():
    def of(**means):
        return {int(n[1:]): [m] * 4 for n, m in means.items()}

    effective = lengths.effective_length
    assert effective(of(n1=1.0, n2=0.86, n4=0.84, n8=0.9)) == (2, 2, 2)
    assert effective(of(n1=0.5, n2=0.43, n4=0.426)) == (4, 4, 4)
    assert effective(of(n1=0.5, n2=0.42)) == (1, 1, 1)
    assert effective(of(n1=0.0, n2=1.0)) == (None, None, None)
    assert effective(of(n1=1.0, n2=0.6), share=0.5) == (2, 2, 2)
    with pytest.raises(ValueError, match="1 length or more"):
        effective({})


def test_the_limits_of_the_effective_length_know_the_documents():
    """One document that fails where the others do not: resampled whole, it decides the length."""
    scores = {1: [1.0] * 40, 2: [1.0] * 30 + [0.0] * 10}
    clusters = {n: np.repeat(range(4), 10) for n in scores}
    whole = lengths.effective_length(scores, clusters)
    assert whole.length == 1 and (whole.low, whole.high) == (1, 2)
    scores[2] = [1.0] * 39 + [0.0]
    assert lengths.effective_length(scores, clusters) == (2, 2, 2)


def test_depths_fall_into_equal_parts():
    grid = lengths.by_depth({8: [1, 0, 1, 0], 4: [1] * 2}, {8: [0, 0.1, 0.99, 1.0], 4: [0.5] * 2})
    assert grid.shape == (5, 2)
    np.testing.assert_array_equal(grid[:, 0], [np.nan, np.nan, 1, np.nan, np.nan])
    np.testing.assert_array_equal(grid[:, 1], [0.5, np.nan, np.nan, np.nan, 0.5])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        lengths.by_depth({8: [1]}, {8: [0]}, bins=0)


def test_pictures_show_each_name_once():
    grid = np.full((5, 3), 0.5)
    figure = plot.scores_by_depth({f"m{i}": grid for i in range(5)}, [1, 2, 4])
    assert sum(axes.get_title().startswith("m") for axes in figure.axes) == 5
    with pytest.raises(ValueError, match="expected 2 lengths"):
        plot.scores_by_depth({"a": grid}, [1, 2])
    found = {1024: (0.9, 0.8, 1.0), 512: (1.0, 0.9, 1.0)}
    figure = plot.scores_by_length({"lines": {"rope": found, "pi": found}}, trained_length=800)
    assert len(figure.axes[0].lines) == 3
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [512, 1024])
    with pytest.raises(ValueError, match="at least 1 task"):
        plot.scores_by_length({})


@pytest.mark.parametrize("bos", [None, 7])
@pytest.mark.parametrize("n", [1, 5, 12, 40])
def test_the_last_tokens_are_scored_with_all_that_fits_before_them(n, bos):
    if n == 1 and bos is None:
        return
    document, of = np.arange(n), windowing.LastTokens(16, 4)
    seen = []

    def score(tokens):
        seen.append(tokens[0])
        return np.arange(16.0)[None]

    result = perplexity.perplexity_from(score, [document], of, bos=bos, batch_size=1)
    (row,) = seen
    assert result.tokens == min(4, n - (bos is None)) and result.windowing == "last-4-of-16"
    read = min(n, 16 + (bos is None))
    first = int(bos is not None)
    np.testing.assert_array_equal(row[first : first + read], document[-read:])
    # The last prediction of the window is that of the document's last token.
    last = first + read - 2
    assert result.nll == pytest.approx(np.arange(16)[last - result.tokens + 1 : last + 1].mean())
    with pytest.raises(ValueError, match=r"last must lie in 1\.\.16"):
        windowing.LastTokens(16, 17)
