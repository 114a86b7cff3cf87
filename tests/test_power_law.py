"""The power law is recovered exactly from its own values and from the paper's points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.context_power_law import FIGURE_1, PRINTED
from longrope_jax.evaluation.power_law import PowerLaw, bootstrap_fit, fit

LENGTHS = 2.0 ** np.arange(16)

# The refit in log L of the points of Figure 1; the triples printed there are rounded.
REFIT = {
    "7B": (26.6, 0.44, 1.559),
    "13B": (18.3, 0.494, 1.472),
    "34B": (17.6, 0.50, 1.42),
    "70B": (18.0, 0.502, 1.359),
}


def triple(law):
    return law.alpha, law.beta, law.gamma


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0.1, 1000), st.floats(0.05, 2), st.floats(0.1, 4))
def test_a_noiseless_law_is_recovered_exactly(alpha, beta, gamma):
    losses = (alpha / LENGTHS) ** beta + gamma
    np.testing.assert_allclose(triple(fit(LENGTHS, losses)), (alpha, beta, gamma), rtol=1e-6)


@pytest.mark.parametrize("steep", [(0.6, 3.6, 2.33), (1.0, 3.0, 2.0), (0.5, 5.0, 3.0)])
def test_a_law_that_is_nearly_flat_everywhere_is_still_found(steep):
    # One start alone stops on the plateau where gamma explains all but the first point.
    losses = PowerLaw(*steep)(LENGTHS)
    np.testing.assert_allclose(triple(fit(LENGTHS, losses)), steep, rtol=1e-4)


def test_four_lengths_are_enough_and_order_does_not_matter():
    lengths = np.array([8192, 256, 32768, 2048])
    losses = (20.0 / lengths) ** 0.5 + 1.4
    np.testing.assert_allclose(triple(fit(lengths, losses)), (20, 0.5, 1.4), rtol=1e-6)


@pytest.mark.parametrize("size", FIGURE_1)
def test_the_points_of_figure_1_refit_to_their_triples(size):
    refit, published = REFIT[size], PRINTED[size]
    law = fit(LENGTHS, FIGURE_1[size])
    half_a_digit = (0.05, 0.005 if size in ("7B", "34B") else 0.0005, 0.005)
    assert (np.abs(np.subtract(triple(law), refit)) <= half_a_digit).all()
    np.testing.assert_allclose(triple(law), published, rtol=0.07)


def test_the_law_obeys_the_papers_doubling_rule():
    law = PowerLaw(17.9, 0.51, 1.35)
    doubled = 2**-law.beta * law(LENGTHS) + (1 - 2**-law.beta) * law.gamma
    np.testing.assert_allclose(law(2 * LENGTHS), doubled, rtol=1e-12)
    assert 2**-law.beta == pytest.approx(0.70, abs=0.005)


def test_no_nearby_law_fits_noisy_points_better_in_log_loss():
    points = np.array(FIGURE_1["7B"])
    best = fit(LENGTHS, points)

    def cost(law):
        return (np.log(law(LENGTHS) / points) ** 2).sum()

    for index in range(3):
        for factor in (0.99, 1.01):
            moved = np.array(triple(best))
            moved[index] *= factor
            assert cost(PowerLaw(*moved)) > cost(best)


def test_bootstrap_intervals_hold_the_truth_and_the_fit_of_the_mean_curve():
    rng = np.random.default_rng(0)
    truth, hits = (26.0, 0.45, 1.5), np.zeros(3)
    for trial in range(20):
        noise = 0.1 * rng.normal(size=(20, 1)) + 0.1 * rng.normal(size=(20, 16))
        losses = PowerLaw(*truth)(LENGTHS) + noise
        found = bootstrap_fit(LENGTHS, losses, np.arange(20), n_resamples=80, seed=trial)
        intervals = (found.alpha, found.beta, found.gamma)
        hits += [i.low <= t <= i.high for i, t in zip(intervals, truth, strict=True)]
    np.testing.assert_allclose(
        [i.estimate for i in intervals], triple(fit(LENGTHS, losses.mean(0))), rtol=1e-9
    )
    # 20 trials at 95%: 15 or fewer hits happen with probability 3 in 1000.
    assert (hits >= 16).all() and (np.array([i.low for i in intervals]) > 0).all()


def test_an_exponent_that_noise_hides_is_not_identified():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(6, 16))[:, 5:]
    clear, hidden = (
        bootstrap_fit(LENGTHS[5:], losses, np.arange(6), n_resamples=80)
        for losses in (
            PowerLaw(alpha, 0.45, 1.5)(LENGTHS[5:]) + 0.02 * noise for alpha in (26.0, 0.001)
        )
    )
    assert clear.is_identified and not hidden.is_identified


def test_documents_without_noise_leave_no_width():
    losses = np.tile(PowerLaw(20, 0.5, 1.4)(LENGTHS), (6, 1))
    found = bootstrap_fit(LENGTHS, losses, list("aabbcc"), n_resamples=10)
    for interval, value in zip((found.alpha, found.beta, found.gamma), (20, 0.5, 1.4), strict=True):
        np.testing.assert_allclose([interval.low, interval.high], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "losses", "message"),
    [
        ([1, 2, 4], [3, 2, 1.5], "at least 4"),
        ([1, 1, 2, 4], [3, 3, 2, 1.5], "at least 4"),
        ([1, 2, 4, 8], [3, 2, 1], "one shape"),
        ([1, 2, 4, 8], [3, 2, 1, 0], "losses must be positive"),
        ([1, 2, 4, 8], [3, 2, 1, np.nan], "losses must be positive"),
        ([0, 2, 4, 8], [3, 2, 1, 0.5], "lengths must be positive"),
        ([1, 2, 4, np.inf], [3, 2, 1, 0.5], "lengths must be positive.*inf"),
        ([1, 2, 4, 8], [1, 2, 3, 4], "do not fall"),
    ],
)
def test_bad_input_is_named(lengths, losses, message):
    with pytest.raises(ValueError, match=message):
        fit(lengths, losses)


def test_documents_with_gaps_are_refused():
    losses = np.tile(PowerLaw(20, 0.5, 1.4)(LENGTHS), (4, 1))
    losses[2, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        bootstrap_fit(LENGTHS, losses, np.arange(4))
