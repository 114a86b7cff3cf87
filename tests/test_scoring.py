"""ROUGE-L agrees with executed reference values and chance never meets its own document."""

import sys

import numpy as np
import pytest

from longrope_jax import tasks
from longrope_jax.evaluation import scoring
from longrope_jax.evaluation.scoring import chance_rouge_l, rouge_l, rouge_l_scores

# peer_numbers.json, group text_metrics_executed, column google_rougeL_f. The last pair scores
# 0.615 with stemming (jumps, jumped), so it also says that none is done.
EXECUTED = [
    ("the cat sat on the mat", "a cat was sitting on the mat", 0.6153846153846153),
    (
        "Ishmael went to sea.",
        "Ishmael decided to go to sea because he was grim about the mouth.",
        0.3529411764705882,
    ),
    ("The answer is 42.", "42", 0.4),
    ("yes", "no", 0.0),
    (
        "The quick brown fox jumps over the lazy dog. It then sleeps.",
        "A quick brown fox jumped over a lazy dog and then it slept soundly.",
        0.5384615384615384,
    ),
]


@pytest.mark.parametrize(("prediction", "reference", "score"), EXECUTED)
def test_rouge_l_agrees_with_executed_values(prediction, reference, score):
    assert rouge_l(prediction, reference) == pytest.approx(100 * score, rel=1e-12)


def test_case_and_punctuation_do_not_count():
    assert rouge_l("CALL me: Ishmael!", "Call me Ishmael.") == 100


def test_an_empty_answer_scores_nothing():
    assert rouge_l("", "Call me Ishmael.") == 0
    assert rouge_l("Call me Ishmael.", "") == 0


def test_scores_keep_the_order_of_the_pairs():
    predictions, references, scores = zip(*EXECUTED, strict=True)
    found = rouge_l_scores(predictions, references)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, 100 * np.array(scores))
    assert rouge_l_scores([], []).shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_chance_never_scores_a_document_against_itself(seed):
    documents = ["a", "b", "a", "c", "b", "a", "d"]
    found = chance_rouge_l([f"only {name}" for name in documents], documents, seed=seed)
    np.testing.assert_allclose(found, 50.0)


def test_chance_is_repeatable_and_depends_on_the_seed():
    words = ["call", "me", "ishmael", "some", "years", "ago", "never", "mind", "how", "long"]
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(words, 5)) for _ in range(12)]
    first = chance_rouge_l(references, range(12), seed=0)
    np.testing.assert_array_equal(first, chance_rouge_l(references, range(12), seed=0))
    assert any((chance_rouge_l(references, range(12), seed=s) != first).any() for s in range(1, 4))
    assert 0 < first.mean() < 100


def test_a_document_named_twice_is_still_one_document():
    with pytest.raises(ValueError, match="at least 2 documents"):
        chance_rouge_l(["one", "two"], ["same", "same"])


def test_counts_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        rouge_l_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 references and 2 documents"):
        chance_rouge_l(["a"], [0, 1])


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    scoring._scorer.cache_clear()
    with pytest.raises(ValueError, match=r"longrope_jax\[tasks\]"):
        rouge_l("a", "a")
    scoring._scorer.cache_clear()


# Hand-made answers in the forms that published predictions have, with what each rule gives.
LINES = [
    ("The <REGISTER_CONTENT> in line calm-otter is <24169>.", "24169", 1, 1),
    ("24169", "24169", 1, 1),
    ("In line 12, the number is 24169", "24169", 0, 1),
    ("24169. I am sure, since there are 300 lines.", "24169", 1, 0),
    ("The number is <024169>", "24169", 1, 1),
    ("241690", "24169", 0, 0),
    ("2 4 1 6 9", "24169", 0, 0),
    ("I do not know.", "24169", 0, 0),
    ("", "24169", 0, 0),
    ("9" * 5000, "24169", 0, 0),
    ("0", "0", 1, 1),
]


@pytest.mark.parametrize(("answer", "wanted", "first", "last"), LINES)
def test_the_first_or_the_last_integer_counts(answer, wanted, first, last):
    assert scoring.RULES["first_integer"](answer, [wanted]) == first
    assert scoring.RULES["last_integer"](answer, [wanted]) == last


@pytest.mark.parametrize(
    ("answer", "wanted", "presence", "every", "part"),
    [
        ("It was in 1066, I think", ["1066"], 1, 1, 1),
        ("110663", ["1066"], 1, 1, 1),  # a substring counts, as in the published rules
        ("paris", ["Paris"], 0, 1, 1),
        ("Paris", [" Paris "], 1, 0, 0),  # presence strips what is wanted, RULER does not
        ("Paris\x07", ["Paris"], 1, 1, 1),
        ("red and GREEN", ["red", "green", "blue"], 1, 2 / 3, 1),
        ("", ["red"], 0, 0, 0),
        ("a\tb", ["a b"], 0, 0, 0),
    ],
)
def test_presence_and_matches(answer, wanted, presence, every, part):
    assert scoring.RULES["presence"](answer, wanted) == presence
    assert scoring.RULES["match_all"](answer, wanted) == pytest.approx(every)
    assert scoring.RULES["match_part"](answer, wanted) == part


# peer_numbers.json, group text_metrics_executed: google_rouge1_f, google_rouge2_f, google_rougeL_f.
OTHERS = [
    (0.6153846153846153, 0.3636363636363636),
    (0.3529411764705882, 0.13333333333333333),
    (0.4, 0.0),
    (0.0, 0.0),
    (0.6153846153846153, 0.24999999999999994),
]


@pytest.mark.parametrize(
    ("pair", "one", "two"), [(p, *o) for p, o in zip(EXECUTED, OTHERS, strict=True)]
)
def test_rouge_variants_agree_with_executed_values(pair, one, two):
    prediction, reference, longest = pair
    assert scoring.rouge(prediction, reference, ("rouge1",)) == pytest.approx(100 * one)
    assert scoring.rouge(prediction, reference, ("rouge2",)) == pytest.approx(100 * two)
    mean = 100 * (one * two * longest) ** (1 / 3)
    assert scoring.rouge(prediction, reference, ("rouge1", "rouge2", "rougeL")) == pytest.approx(
        mean
    )
    assert scoring.RULES["rouge_l"](prediction, ["x", reference]) == pytest.approx(longest)
    with pytest.raises(ValueError, match=r"unknown kind of ROUGE 'rouge3'; did you mean 'rouge"):
        scoring.rouge("a", "a", ("rouge3",))


def test_every_task_names_a_rule():
    assert {task.rule for task in tasks.TASKS.values()} <= scoring.RULES.keys()
