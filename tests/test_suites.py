"""Benchmarks as ready-made requests: golden lines for every way of scoring, and damaged files."""

import gzip
import json

import numpy as np
import pytest

from longrope_jax.data import suites as data
from longrope_jax.data.suite_items import Item, Suite, interleaved
from longrope_jax.evaluation import suites
from longrope_jax.evaluation.requests import Scores


def line(item, idx, context="q", continuation=" a", label=0, **more):
    request = {"context": context, "continuation": continuation}
    return {"doc_id": item, "idx": idx, "request": request, "label": label, "doc": {}} | more


def written(path, rows, pack=False):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if pack else text)
    return str(path)


def scores(sums, tokens=None, greedy=None):
    n = len(sums)
    return Scores(np.array(sums), np.array(greedy or [False] * n), np.array(tokens or [1] * n))


def test_a_file_becomes_items_in_order(tmp_path):
    rows = [line(1, 1, continuation=" d", label=1), line(1, 0, label=1), line(0, 0), line(0, 1)]
    bare = [line(1_000_000, 0, "Answer:"), line(1_000_000, 1, "Answer:")]
    suite = data.load(written(tmp_path / "a.jsonl.gz", rows + bare, pack=True))
    assert suite.metric == "acc_per_char" and [item.label for item in suite.items] == [0, 1]
    assert suite.items[1].choices == (("q", " a"), ("q", " d"))
    assert len(data.load(str(tmp_path / "a.jsonl.gz"), limit=1).items) == 1


def test_each_way_of_choosing_has_its_own_answer():
    # Sums prefer choice 0, characters choice 1, tokens choice 0, and the question choice 1.
    item = Item((("q", " a"), ("q", " abcdef")), 1, (("", " a"), ("", " abcdef")))
    found = suites.scored(Suite("s", "acc_uncond", (item,)), scores([-3, -6, -1, -8], [1, 1, 1, 1]))
    assert {name: x.tolist() for name, x in found.items()} == {
        "acc_raw": [0.0],
        "acc_per_char": [1.0],
        "acc_per_token": [0.0],
        "acc_uncond": [1.0],
    }
    found = suites.scored(Suite("s", "acc_raw", (item,)), scores([-3, -6, -1, -8], [1, 4, 1, 1]))
    assert found["acc_per_token"].tolist() == [1.0]


def test_one_continuation_counts_greedy_and_bits_per_byte():
    suite = Suite("lambada", "greedy", (Item((("q", " ab"),), 0), Item((("q", " é"),), 0)))
    found = suites.scored(suite, scores([-3 * np.log(2), -6 * np.log(2)], greedy=[True, False]))
    assert found["greedy"].tolist() == [1, 0]
    np.testing.assert_allclose(found["bits_per_byte"], [1, 2])


@pytest.mark.parametrize(
    ("text", "answer", "exact", "f1"),
    [
        ("The white cat.", "white cat", 1, 1),
        ("a white dog", "white cat", 0, 0.5),
        ("", "white", 0, 0),
        ("An 'apple'", "apple", 1, 1),
    ],
)
def test_text_is_compared_as_squad_compares_it(text, answer, exact, f1):
    assert suites.exact_match(text, answer) == exact
    assert suites.f1(text, answer) == f1


def test_the_last_number_answers_gsm8k():
    assert suites.last_number("3 + 4 = 7. So the answer is $1,234.") == "1234"
    assert suites.last_number("minus: -2.5 apples") == "-2.5"
    assert suites.last_number("none") is None
    suite = Suite(
        "gsm8k/x", "greedy", (Item((("q", " x"),), 0, answers=("18",)),) * 2, "last_number"
    )
    assert suites.answered(suite, ["it is 18.", "18 of 20"])["exact_match"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "answer", "same"),
    [
        (r"so it is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", 1),
        (r"first \boxed{3}, then \boxed{\dfrac{1}{2}}", r"\frac{1}{2}", 1),
        ("Final Answer: The final answer is $1,200$. I hope it is correct.", "1200", 1),
        (r"\boxed{5\text{ cm}}", "5", 1),
        (r"\boxed{\left( 1, 2 \right)}", "(1,2)", 1),
        (r"\boxed{12}", "1", 0),
        (r"\boxed{never closed", "", 0),
        ("it is 7", "7", 0),
    ],
)
def test_what_stands_in_the_box_answers_math(text, answer, same):
    assert suites.same_answer(text, answer) == same


def test_a_suite_that_no_text_answers_is_refused_by_name():
    suite = Suite("humaneval", "bits_per_byte", (Item((("q", " x"),), 0),))
    with pytest.raises(ValueError, match="rule of humaneval"):
        suites.answered(suite, ["x"])


def test_two_right_answers_share_the_likelihood_in_mc2():
    item = Item((("q", " a"), ("q", " b"), ("q", " c")), 0, true=(0, 2))
    found = suites.scored(Suite("t", "mc2", (item,)), scores(np.log([0.2, 0.3, 0.1]).tolist()))
    np.testing.assert_allclose(found["mc2"], [0.5])
    far = scores([-2000.0, -2000.0 + np.log(3), -3000.0])
    np.testing.assert_allclose(suites.scored(Suite("t", "mc2", (item,)), far)["mc2"], [0.25])


def test_subjects_come_by_turns_so_that_a_limit_covers_all():
    parts = [[Item((("q", name),), 0) for name in names] for names in ("ab", "cde")]
    assert [i.choices[0][1] for i in interleaved(parts, 4)] == ["a", "c", "b", "d"]
    assert len(interleaved(parts, None)) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no requests"),
        (b"\x1f\x8b" + bytes(20), "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"not json\n", "line 1 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b"[1]\n", "line 1 must be an object"),
        (b'{"doc_id": 0}\n', "line 1: no request"),
        (json.dumps(line(0, 0, continuation=3)).encode(), "must be strings"),
        (json.dumps(line("x", 0)).encode(), "no request"),
        (json.dumps(line(-5, 0)).encode(), "doc_id"),
        ("\n".join(json.dumps(line(0, i, label=7)) for i in (0, 1)).encode(), "label 7"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        data.load(str(path))
    assert "bad.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST", 1000)
    (tmp_path / "bomb.jsonl").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        data.load(str(tmp_path / "bomb.jsonl"))


def test_a_limit_below_one_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="limit"):
        data.load("piqa", limit=0)
    with pytest.raises(ValueError, match=r"cannot read the suite .*none\.jsonl"):
        data.load(str(tmp_path / "none.jsonl"))
