"""Intervals cover, components are recovered and sample sizes deliver, all on simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats

from longrope_jax.evaluation.statistics import (
    CLAIMS,
    Interval,
    cluster_bootstrap,
    paired_difference,
    power_needed,
    resampled_means,
    two_way_bootstrap,
    verdict,
)


def simulate(rng, seeds, documents, per=3, s_seed=0.0, s_document=1.0, s_both=0.0, s_sample=0.3):
    """Samples [seeds, documents * per] of mean 0 with known variance components, and clusters."""
    table = (
        s_seed * rng.normal(size=(seeds, 1, 1))
        + s_document * rng.normal(size=(1, documents, 1))
        + s_both * rng.normal(size=(seeds, documents, 1))
        + s_sample * rng.normal(size=(seeds, documents, per))
    )
    return table.reshape(seeds, -1), np.repeat(np.arange(documents), per)


def coverage(trials=300, **sizes):
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(trials):
        values, clusters = simulate(rng, **sizes)
        interval = two_way_bootstrap(values, clusters, n_resamples=300, seed=trial)
        hits += interval.low <= 0 <= interval.high
    return hits / trials


@pytest.mark.parametrize(
    "sizes",
    [
        {"seeds": 1, "documents": 8},
        {"seeds": 1, "documents": 30},
        {"seeds": 3, "documents": 20, "s_seed": 1.0, "s_document": 0.3},
        {"seeds": 3, "documents": 20, "s_seed": 0.5, "s_both": 0.5},
    ],
)
def test_a_95_percent_interval_covers_the_truth(sizes):
    assert 0.88 <= coverage(**sizes) <= 0.99


def test_ignoring_the_clusters_would_not_cover():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        values, _ = simulate(rng, 1, 10, per=10)
        interval = cluster_bootstrap(values[0], np.arange(100), n_resamples=200, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert hits / 200 < 0.7


@pytest.mark.parametrize("count", [5, 50])
def test_singleton_clusters_of_normal_data_give_students_interval(count):
    values = stats.norm.ppf((np.arange(count) + 0.5) / count)
    interval = cluster_bootstrap(values, np.arange(count), n_resamples=20000)
    truth = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    assert interval.estimate == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose([-interval.low, interval.high], truth, rtol=0.06)


def test_token_weights_equal_repeated_tokens():
    rng = np.random.default_rng(1)
    values, counts = rng.normal(size=12), rng.integers(1, 6, 12)
    clusters = np.repeat(["a", "b", "c", "d"], 3)
    weighted = cluster_bootstrap(values, clusters, weights=counts)
    repeated = cluster_bootstrap(np.repeat(values, counts), np.repeat(clusters, counts))
    np.testing.assert_allclose(
        [weighted.estimate, weighted.low, weighted.high],
        [repeated.estimate, repeated.low, repeated.high],
        rtol=1e-12,
    )
    assert weighted.estimate == pytest.approx(np.average(values, weights=counts))


def test_each_column_gets_the_interval_it_would_get_alone():
    rng = np.random.default_rng(2)
    values, clusters = rng.normal(size=(30, 4)), rng.integers(0, 6, 30)
    band = cluster_bootstrap(values, clusters, seed=3)
    for column in range(4):
        alone = cluster_bootstrap(values[:, column], clusters, seed=3)
        assert isinstance(alone.low, float)
        np.testing.assert_allclose(
            [alone.estimate, alone.low, alone.high],
            [band.estimate[column], band.low[column], band.high[column]],
            rtol=1e-12,
        )


def test_resampled_means_are_means_of_whole_documents():
    values = np.array([[1.0], [3.0], [10.0], [20.0], [30.0]])
    means = resampled_means(values, [0, 0, 1, 1, 1], n_resamples=200)
    assert set(np.round(means.ravel(), 9)) == {2.0, 20.0}


def test_order_of_samples_does_not_matter_and_the_seed_does():
    rng = np.random.default_rng(4)
    values, clusters = simulate(rng, 2, 10)
    order = rng.permutation(clusters.size)
    one = two_way_bootstrap(values, clusters)
    same = two_way_bootstrap(values[:, order], clusters[order])
    np.testing.assert_allclose([one.low, one.high], [same.low, same.high], rtol=1e-9)
    assert two_way_bootstrap(values, clusters) == one
    assert two_way_bootstrap(values, clusters, seed=1) != one


def test_seeds_that_differ_widen_the_interval_and_one_seed_cannot_show_it():
    values, clusters = simulate(np.random.default_rng(5), 3, 40, s_seed=3.0)
    both = two_way_bootstrap(values, clusters)
    one = two_way_bootstrap(values[:1], clusters)
    assert both.high - both.low > 3 * (one.high - one.low)


def test_a_shared_document_effect_cancels_in_the_paired_difference():
    rng = np.random.default_rng(6)
    shared, clusters = simulate(rng, 2, 30, s_sample=0.0)
    a = shared + 0.05 + 0.01 * rng.normal(size=shared.shape)
    b = shared + 0.01 * rng.normal(size=shared.shape)
    paired = paired_difference(a, b, clusters)
    alone = two_way_bootstrap(a, clusters)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.low < 0.05 < paired.high
    assert paired.estimate == pytest.approx((a - b).mean())


def test_identical_models_differ_by_exactly_nothing():
    values, clusters = simulate(np.random.default_rng(7), 2, 10)
    assert paired_difference(values, values, clusters) == Interval(0.0, 0.0, 0.0)


def test_variance_components_are_recovered_without_bias():
    rng = np.random.default_rng(8)
    found = []
    for _ in range(1500):
        values, clusters = simulate(rng, 4, 5, per=2, s_seed=1.2, s_both=0.9, s_sample=0.2)
        answer = power_needed(values, np.zeros_like(values), clusters)
        found.append([answer.between_documents, answer.between_seeds, answer.residual])
    # Sizes so small that a residual left in the other two would show as 20% more.
    truth = [1.0, 1.44, 0.81 + 0.04 / 2]
    np.testing.assert_allclose(np.mean(found, 0), truth, rtol=0.08)


def test_documents_of_unequal_size_add_no_variance_of_their_own():
    rng = np.random.default_rng(14)
    clusters = np.repeat(np.arange(6), [1, 2, 3, 5, 8, 13])
    ones = np.ones((3, clusters.size))
    needed = power_needed(5 * ones, ones, clusters, weights=rng.uniform(1, 9, clusters.size))
    found = (needed.between_documents, needed.between_seeds, needed.residual)
    np.testing.assert_allclose(found, 0, atol=1e-20)


def test_variance_components_are_never_negative():
    rng = np.random.default_rng(9)
    for _ in range(50):
        values, clusters = simulate(rng, 2, 4, s_document=0.0)
        answer = power_needed(values, np.zeros_like(values), clusters, gap=0.5)
        assert answer.between_documents >= 0 and answer.between_seeds >= 0


@pytest.mark.parametrize("which", ["documents", "seeds", "balanced"])
def test_the_sizes_named_detect_the_gap_with_the_power_asked(which):
    rng = np.random.default_rng(10)
    scales = {"s_seed": 0.1, "s_document": 0.2, "s_both": 0.3, "s_sample": 0.1}
    values, clusters = simulate(rng, 12, 60, per=1, **scales)
    needed = power_needed(values, 0 * values, clusters, gap=0.12)
    sizes = {
        "documents": (needed.documents, 12),
        "seeds": (60, needed.seeds),
        "balanced": needed.balanced,
    }
    documents, seeds = sizes[which]
    error = math.sqrt(
        needed.between_documents / documents
        + needed.between_seeds / seeds
        + needed.residual / (documents * seeds)
    )
    # Simulated from the components found, so only the formula is on trial.
    found = {
        "s_seed": math.sqrt(needed.between_seeds),
        "s_document": math.sqrt(needed.between_documents),
        "s_both": math.sqrt(needed.residual),
        "s_sample": 0.0,
    }
    means = [0.12 + simulate(rng, seeds, documents, 1, **found)[0].mean() for _ in range(1500)]
    detected = np.mean(np.abs(means) > 1.959964 * error)
    assert 0.77 <= detected <= 0.93
    assert np.std(means) == pytest.approx(error, rel=0.07)


def test_one_document_fewer_would_miss_the_power():
    values, clusters = simulate(np.random.default_rng(11), 4, 50, s_seed=0.02, s_both=0.2)
    needed = power_needed(values, 0 * values, clusters, gap=0.3)

    def variance(documents):
        own = needed.between_documents / documents + needed.residual / (4 * documents)
        return own + needed.between_seeds / 4

    budget = (0.3 / (1.959964 + 0.841621)) ** 2
    assert variance(needed.documents) <= budget < variance(needed.documents - 1)


def test_a_balanced_pair_leaves_seeds_at_most_half_of_the_variance():
    values, clusters = simulate(np.random.default_rng(11), 4, 50, s_seed=0.5)
    needed = power_needed(values, 0 * values, clusters, gap=0.3)
    half = (0.3 / (1.959964 + 0.841621)) ** 2 / 2
    seeds = needed.balanced[1]
    assert needed.between_seeds / seeds <= half < needed.between_seeds / (seeds - 1)


def test_what_more_documents_cannot_reach_is_none():
    values, clusters = simulate(np.random.default_rng(12), 3, 30, s_seed=1.0)
    needed = power_needed(values, 0 * values, clusters, gap=0.01)
    assert needed.documents is None and needed.seeds is None
    assert needed.balanced[1] > 100


def test_one_seed_leaves_the_seed_variance_unknown():
    values, clusters = simulate(np.random.default_rng(13), 1, 400, per=1, s_sample=0.0)
    needed = power_needed(values, 0 * values, clusters)
    assert needed.between_documents == pytest.approx(1, rel=0.2)
    assert (needed.between_seeds, needed.documents, needed.seeds) == (None, None, None)
    assert needed.balanced is None


@pytest.mark.parametrize(
    ("low", "high", "margin", "words"),
    [
        (0.1, 0.2, 0.0, ("holds", "reversed", "reversed")),
        (-0.2, -0.1, 0.0, ("reversed", "holds", "reversed")),
        (-0.1, 0.1, 0.0, ("indistinguishable",) * 3),
        (-0.1, 0.1, 0.2, ("reversed", "reversed", "holds")),
        (0.1, 0.3, 0.2, ("indistinguishable", "reversed", "indistinguishable")),
        (-0.3, 0.3, 0.2, ("indistinguishable",) * 3),
        (-0.2, 0.2, 0.2, ("indistinguishable", "indistinguishable", "holds")),
        (0.0, 0.0, 0.0, ("indistinguishable", "indistinguishable", "holds")),
    ],
)
def test_a_verdict_follows_from_where_the_interval_lies(low, high, margin, words):
    interval = Interval((low + high) / 2, low, high)
    assert tuple(verdict(interval, claim, margin) for claim in CLAIMS) == words


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'difference > margin'"):
        verdict(Interval(0, 0, 0), "diference > margn")


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf])
def test_a_margin_out_of_range_is_refused(margin):
    with pytest.raises(ValueError, match="margin must be"):
        verdict(Interval(0, 0, 0), CLAIMS[0], margin)


def test_a_verdict_needs_one_proper_interval():
    with pytest.raises(ValueError, match="one interval"):
        verdict(Interval(np.zeros(2), np.zeros(2), np.zeros(2)), CLAIMS[0])
    with pytest.raises(ValueError, match="low <= high"):
        verdict(Interval(math.nan, math.nan, math.nan), CLAIMS[0])


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([1.0, 2.0], [0, 0], {}, "at least 2 clusters"),
        ([1.0, 2.0], [0, 1, 2], {}, "clusters and weights to match"),
        ([1.0, math.nan], [0, 1], {}, "finite"),
        ([], [], {}, "one entry per sample"),
        ([1.0, 2.0], [0, 1], {"weights": [1.0, 0.0]}, "weights must be positive"),
        ([1.0, 2.0], [0, 1], {"weights": [1.0]}, "clusters and weights to match"),
        ([1.0, 2.0], [0, 1], {"confidence": 95}, "confidence must lie"),
        ([1.0, 2.0], [0, 1], {"n_resamples": 0}, "n_resamples"),
    ],
)
def test_bad_input_is_named(values, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, clusters, **options)


def test_unpaired_arrays_and_impossible_power_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference(np.zeros((2, 4)), np.zeros((1, 4)), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="gap must be above 0"):
        power_needed(np.zeros((2, 4)), np.zeros((2, 4)), [0, 0, 1, 1], gap=0)
    with pytest.raises(ValueError, match="a and b must be"):
        power_needed(np.zeros((2, 4, 3)), np.zeros((2, 4, 3)), [0, 0, 1, 1])
