"""Loss under contexts cut from the left, the profile of its exponent, and the study of both."""

import numpy as np
import pytest
from scipy import stats

from configs.context_power_law import get_config
from experiments import context_power_law, lab
from longrope_jax import llama, rotary
from longrope_jax.evaluation.by_position import nll_under_context
from longrope_jax.evaluation.power_law import PowerLaw, profile


@pytest.fixture(scope="module")
def model():
    return lab.model("random", lab.Machine())


@pytest.mark.parametrize("context", [1, 3, 8, 32])
def test_each_target_sees_the_tokens_before_it_and_no_more_than_the_context(model, context):
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 200, (2, 41))
    rope = rotary.RoPE()
    found = nll_under_context(
        model.config, model.params, rope, tokens, context=context, targets=6, batch_size=2
    )
    group = max(1, context // 8)
    rot = rotary.make(rope, head_dim=model.config.head_dim, seq_len=context)
    for target in range(6):
        at = 41 - 6 + target
        last = min(6, (target // group + 1) * group)
        seen = context - (last - 1 - target)
        rows = np.concatenate([tokens[:, :1], tokens[:, at - seen + 1 : at]], 1)
        logits = np.asarray(llama.logits(model.config, model.params, rows, rot), np.float64)[:, -1]
        expected = np.log(np.exp(logits).sum(-1)) - logits[[0, 1], tokens[:, at]]
        np.testing.assert_allclose(found.nll[:, target], expected, atol=2e-5)


def test_a_context_that_a_sample_does_not_hold_is_refused(model):
    tokens = np.ones((1, 9), np.int32)
    with pytest.raises(ValueError, match="together at most the 9 tokens"):
        nll_under_context(
            model.config, model.params, "rope", tokens, context=8, targets=2, batch_size=1
        )


LENGTHS = 2.0 ** np.arange(8)
LAW = PowerLaw(20.0, 0.5, 1.5)


def curves(seed, law=LAW, n=40):
    """Curves of documents that differ by a level, a slope and noise, as real ones do."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 0.3, (n, 1))
    slope = rng.normal(0, 0.02, (n, 1)) * np.log(LENGTHS)
    return law(LENGTHS) + level + slope + rng.normal(0, 0.02, (n, len(LENGTHS)))


def test_the_interval_covers_the_exponent_as_often_as_it_says():
    betas, documents = np.linspace(0.1, 1.2, 56), np.arange(40)
    found = [profile(LENGTHS, curves(seed), documents, betas) for seed in range(200)]
    covered = np.mean([f.beta.low <= 0.5 <= f.beta.high for f in found])
    assert abs(covered - 0.95) < 0.062  # four standard errors of a share of 200
    assert stats.kstest([f.p_value for f in found], "uniform").pvalue > 1e-3


def test_a_curve_that_is_no_power_law_is_rejected():
    bent = curves(0) + 0.2 * (LENGTHS > 10)
    assert profile(LENGTHS, bent, np.arange(40), np.geomspace(0.05, 3, 200)).p_value < 1e-6


def test_windows_of_a_document_count_once():
    betas, once = np.linspace(0.1, 1.2, 111), curves(1)
    several = profile(LENGTHS, np.repeat(once, 5, 0), np.repeat(np.arange(40), 5), betas)
    one = profile(LENGTHS, once, np.arange(40), betas)
    for name in ("estimate", "low", "high"):
        assert getattr(several.beta, name) == pytest.approx(getattr(one.beta, name))
    assert several.p_value == pytest.approx(one.p_value)


def test_fewer_documents_than_lengths_are_refused():
    with pytest.raises(ValueError, match="take more"):
        profile(LENGTHS, curves(0, n=8), np.arange(8), [0.4, 0.5])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder of text, and the config of a study of a random model on it."""
    folder = tmp_path_factory.mktemp("text")
    for name in range(8):
        sentences = (f"Line {i} of {name}." for i in range(400))
        (folder / f"{name}.txt").write_text("\n\n".join(sentences))
    settings = get_config("tiny")
    given = {"model": "random", "trained_length": 64, "corpus": str(folder), "bos": "<bos>"}
    settings.update(given)
    return settings


def test_the_study_measures_each_context_once_and_redraws(study, tmp_path, monkeypatch):
    # A random model's loss does not fall with the context, so the curve is bent by hand.
    real = context_power_law.nll_under_context

    def falling(*args, context, **options):
        found = real(*args, context=context, **options)
        return found._replace(nll=found.nll + 4.0 / context**0.5)

    monkeypatch.setattr(context_power_law, "nll_under_context", falling)
    report = context_power_law.main(study, tmp_path, "the command")
    assert report.results["windows"] == 6 and 0.2 < report.results["beta"].estimate < 1
    monkeypatch.setattr(context_power_law, "nll_under_context", None)
    again = context_power_law.main(study, tmp_path)
    np.testing.assert_array_equal(again.results["loss"], report.results["loss"])


def test_a_context_beyond_the_trained_length_is_refused(study, tmp_path):
    settings = study.copy_and_resolve_references()
    settings.contexts = (1, 128)
    with pytest.raises(ValueError, match="must lie in 1 to 64"):
        context_power_law.main(settings, tmp_path)
