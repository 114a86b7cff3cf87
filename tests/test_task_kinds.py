"""Every task: samples of an exact length, answers that their context holds, controls without."""

import re
import string

import numpy as np
import pytest

from longrope_jax import tasks
from longrope_jax.data import corpora, documents, packing, questions, tokenizers
from longrope_jax.tasks import articles, needles, vocabulary

TOKENIZER = tokenizers.ByteTokenizer()
LENGTH, COUNT, BOS = 3200, 20, 256


def text_of(seed, words=1200, alphabet="pqxz"):
    """Sentences of words of four letters, so that no fact of a task stands in them by chance."""
    rng = np.random.default_rng(seed)
    made = [vocabulary.letters(rng, 5, alphabet) for _ in range(words)]
    return " ".join(" ".join(made[i : i + 6]).capitalize() + "." for i in range(0, words, 6))


def document(seed):
    return documents.tokenize_document(
        corpora.Document(f"d{seed}", text_of(seed)), TOKENIZER, min_tokens=4, max_tokens=64
    )


def article(seed):
    """Twelve paragraphs that hold a year and a count each, asked for both."""
    rng, parts, asked = np.random.default_rng(seed), [], []
    for i in range(12):
        year, count, begin = 1500 + 20 * i + seed, 1000 * (i + 3) + seed, len("\n\n".join(parts))
        words = text_of(int(rng.integers(10**6)), 110, "pqxz").split(" ")
        words[40] = f"in {year} near"
        words[70] = f"with {count:,} ships and {year} again"
        parts.append(" ".join(words))
        begin += 2 * bool(i)
        for said, question in ((str(year), f"When {i}?"), (f"{count:,}", f"How many {i}?")):
            place = begin + parts[-1].index(said)
            asked.append(tasks.Asked(question.replace(str(i), chr(97 + i)), (said,), place))
    return tasks.Article(f"a{seed}", "\n\n".join(parts), tuple(asked))


DOCUMENTS = tuple(document(seed) for seed in range(2))
ARTICLES = tuple(article(seed) for seed in range(3))
NAMES = sorted(tasks.TASKS)
# How often the context states each string that is wanted, for all tasks but those that count.
TIMES = {"passkey": 2, "vt": None, "cwe": 6, "fwe": None, "altqa": None, "qa_1": None, "ffqa": None}
AT_A_DEPTH = [n for n in NAMES if n not in ("first_sentence", "topics", "cwe", "fwe")]


def source(task):
    return ARTICLES if isinstance(task, tasks.ARTICLES) else DOCUMENTS


def make(name, **changes):
    task = tasks.parse(name)
    settings = {"length": LENGTH, "count": COUNT, "seed": 1, "bos": "<bos>"} | changes
    return task.samples(source(task), TOKENIZER, **settings)


def split(samples):
    """(context and question, answer, wanted) of each sample as text."""
    n = samples.prompt_length
    for row, mask, wanted in zip(samples.tokens, samples.answer, samples.wanted, strict=True):
        yield TOKENIZER.decode(row[1:n]), TOKENIZER.decode(row[mask]), wanted


def context(text):
    """What stands before the last question."""
    return re.split(
        r"\nQuestion|Question: [FWD]|\nUSER: Now|Now the record is over|}\n|\nWhat are all|\n\nWhat"
        r"|\n\nThe first",
        text,
    )


def before(name, text):
    parts = context(text)
    # Variable tracking shows an example first, and text may hold the mark of another task.
    return "".join(parts[1:-1] if name == "vt" else parts[:-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [LENGTH, LENGTH + 1])
def test_samples_have_the_length_and_one_beginning(name, length):
    samples = make(name, length=length)
    assert samples.tokens.shape == samples.answer.shape == (COUNT, length)
    n = samples.prompt_length
    longest = max(mask.sum() for mask in samples.answer)
    assert n == length - longest or name == "first_sentence"
    for row, mask, wanted in zip(samples.tokens, samples.answer, samples.wanted, strict=True):
        size = int(mask.sum())
        assert row[0] == BOS and (row[1:] != BOS).all()
        assert mask[n : n + size].all() and not row[n + size :].any()  # whole, then padding
        assert row[:n].all()  # no padding before the answer
        answer = TOKENIZER.decode(row[mask])
        assert all(one in answer for one in wanted[:1])


@pytest.mark.parametrize("name", NAMES)
def test_the_context_holds_the_answer_and_the_control_does_not(name):
    samples, removed = make(name), make(name, control="removed")
    for (text, answer, wanted), (other, same, _) in zip(
        split(samples), split(removed), strict=True
    ):
        assert answer == same  # controls ask the same
        told, hidden = before(name, text), before(name, other)
        assert len(told) > LENGTH / 3 or name == "vt"
        for one in wanted:
            times = TIMES.get(name, 1)
            found = len(re.findall(rf"(?<!\w){re.escape(one)}(?!\w)", told))
            assert found == times if times else found > 0
            assert one not in hidden


@pytest.mark.parametrize("name", [n for n in AT_A_DEPTH if n not in ("altqa", "ffqa")])
@pytest.mark.parametrize("count", [10, 40])
def test_depths_cover_the_context_evenly(name, count):
    samples = make(name, count=count)
    found = []
    for text, _, wanted in split(samples):
        told = before(name, text)
        found.append(told.index(wanted[0]) / len(told))
    counts = np.histogram(samples.depths, bins=5, range=(0, 1))[0]
    assert np.abs(counts - count / 5).max() <= 1
    # Where the fact stands is where its depth says, but for the texts around the context.
    assert np.corrcoef(found, samples.depths)[0, 1] > (
        0.9 if name == "qa_1" else 0.97
    )  # few paragraphs


@pytest.mark.parametrize(
    ("place", "low", "high"), [("first", 0, 0.1), ("bulk", 0.1, 0.9), ("last", 0.9, 1)]
)
@pytest.mark.parametrize("name", ["altqa", "ffqa"])
def test_the_answer_stands_where_it_is_asked_for(name, place, low, high):
    length = 2000
    samples = make(f"{name}:place={place}", length=length, count=12)
    assert (samples.depths >= low).all() and (samples.depths <= high).all()
    for (text, _, wanted), depth in zip(split(samples), samples.depths, strict=True):
        told = before(name, text)
        places = [m.start() / len(told) for m in re.finditer(re.escape(wanted[0]), told)]
        assert min(abs(at - depth) for at in places) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_more_samples_begin_with_the_fewer(name):
    one, more, other = make(name), make(name, count=COUNT + 5), make(name, seed=2)
    np.testing.assert_array_equal(one.tokens, make(name).tokens)
    assert not np.array_equal(one.tokens, other.tokens)
    assert more.wanted[:COUNT] == one.wanted and more.first(COUNT).wanted == one.wanted
    np.testing.assert_array_equal(more.depths[:COUNT], one.depths)


@pytest.mark.parametrize("name", NAMES)
def test_text_around_the_facts_is_that_of_the_documents_alone(name):
    """What one trains on others of, then, no sample quotes."""
    training = text_of(99)
    held_out = [a.text for a in ARTICLES] + [TOKENIZER.decode(d.tokens) for d in DOCUMENTS]
    for text, _, _ in split(make(name)):
        assert not any(text[i : i + 20] in training for i in range(0, len(text), 20))
        words = re.findall(r"[pqxz]{5}", text)
        assert all(any(w in whole for whole in held_out) for w in words)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_one_line(name):
    # An article must hold the answer at its depth, so a short one is refused by what it holds.
    with pytest.raises(ValueError, match=r"length|shorter|fill") as caught:
        make(name, length=25)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"shorter|longest|fill"):
        make(name, length=10**5)
    with pytest.raises(ValueError, match="unknown control 'gone'"):
        make(name, control="gone")


@pytest.mark.parametrize("name", NAMES)
def test_the_other_control_states_something_else_or_is_refused(name):
    try:
        samples = make(name, control="other")
    except ValueError as error:
        assert "control 'other'" in str(error) and "removed" in str(error)
        assert name in ("vt", "cwe", "fwe", "altqa", "ffqa", "qa_1")
        return
    for text, _, wanted in split(samples):
        assert not any(one in before(name, text) for one in wanted)


@pytest.mark.parametrize(
    "number", ["1066", "1999", "7", "42", "1,200", "98,765,432", "3.5", "2400"]
)
def test_altered_numbers_keep_their_form(number):
    rng, known = np.random.default_rng(0), frozenset({"1065", "43", number})
    for _ in range(50):
        new = articles.altered_number(rng, number, known)
        assert new not in known and len(new) == len(number)
        assert re.sub(r"\d", "d", new) == re.sub(r"\d", "d", number)
        assert new[0] != "0" or len(number) == 1
        if number in ("1066", "1999"):
            assert 0 < abs(int(new) - int(number)) <= 10
    assert articles.altered_number(rng, "2100", frozenset()) <= "2100"


def test_a_number_is_altered_wherever_it_stands_and_nowhere_else():
    rng = np.random.default_rng(0)
    text = "In 1066 and 1066, but 11066, 1,066 and x10664 stay. 1066."
    new, answer = articles.altered(rng, text, "1066")
    assert "1066 " not in new.replace("x10664 ", "").replace("11066", "") and answer != "1066"
    assert new == f"In {answer} and {answer}, but 11066, 1,066 and x10664 stay. {answer}."


def test_an_association_shares_no_word_with_its_question():
    small = {"the", "a", "an", "of", "in", "with", "to", "is", "at", "for", "was", "and", "or"}
    for said, asked in needles.ASSOCIATIONS:
        first, second = (set(re.findall(r"[a-z]+", x.lower())) - small for x in (said, asked))
        stems = {w[:5] for w in first} & {w[:5] for w in second}
        assert not stems, (said, asked)


def test_values_asked_for_stand_in_all_their_needles():
    samples = make("niah_multivalue:values=3,keys=2,queries=2")
    for text, answer, wanted in split(samples):
        assert len(set(wanted)) == 6 and answer.count(",") == 4 and " and " in answer
        assert all(f"is: {one}." in text for one in wanted)


def test_variables_are_assigned_in_order_to_one_value():
    for text, answer, wanted in split(make("vt:chains=2")):
        told = before("vt", text)
        value = re.findall(r"assigned the value (\d+) in the text", text)[-1]
        said = dict(re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", told))
        assert said[wanted[0]] == value
        held = {value}
        for name, of in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", told):
            held |= {name} if of in held else set()
        assert held == {value, *wanted} and answer.split(", ")[0].strip() == wanted[0]


def test_the_words_asked_for_are_the_most_frequent():
    for text, _, wanted in split(make("fwe")):
        told = text[: text.index("\nQuestion")]
        words = re.findall(r"(?<= )[a-z]{6}(?= )", told.partition("coded words.")[2] + " ")
        words, counts = np.unique(words, return_counts=True)
        order = words[np.argsort(-counts)]
        assert set(order[:3]) == set(wanted) and "..." in told
    for text, _, wanted in split(make("cwe")):
        words = before("cwe", text).partition("most often.\n")[2].split("\n")
        words, counts = np.unique([w for w in words if w], return_counts=True)
        assert set(words[counts == 6]) == set(wanted) and set(counts) == {1, 6}


def test_a_paragraph_among_others_is_the_only_one_with_the_answer():
    for text, _, wanted in split(make("qa_1")):
        parts = before("qa_1", text).split("Document:\n")[1:]
        assert sum(wanted[0] in part for part in parts) == 1


def test_a_json_object_is_valid_json():
    import json

    for text, answer, _ in split(make("kv")):
        found = json.loads(text[text.index("{") : text.index("}") + 1])
        key = re.findall(r'Key: "(.*)"', text)[-1]
        assert found[key] == answer and len(found) > 20


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("linse", "unknown task 'linse'; did you mean 'lines'"),
        ("lines:integr=first", "unknown option of lines 'integr'; did you mean 'integer'"),
        ("lines:integer=second", "integer must be 'last' or 'first', got 'second'"),
        ("passkey:digits=many", "digits of passkey must be a int, got 'many'"),
        ("niah_multivalue:keys=1,queries=2", "queries must be from 1 to keys=1"),
        ("altqa:place=middle", "unknown place 'middle'"),
        ("niah_single_1:haystack=hay", "unknown haystack 'hay'"),
        ("vt:hops=0", "hops and chains must be at least 1"),
        ("cwe:common=0", "common must be at least 1"),
        ("fwe:alpha=1", "alpha must be above 1"),
        ("association:others=16", "others must be from 0 to 15"),
    ],
)
def test_a_bad_task_is_one_line(text, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        tasks.parse(text)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1: expected"),
        ('{"text": "a b", "questions": []}', "line 1: expected"),
        ('{"text": 1, "questions": [{"question": "q", "answers": ["a"]}]}', "line 1: expected"),
        ('{"text": "a", "questions": [{"question": "q", "answers": []}]}', "has no answer"),
        ('{"text": "a", "questions": [{"question": "q", "answers": ["b"]}]}', "does not hold"),
        (
            '{"text": "ab", "questions": [{"question": "q", "answers": ["b"], "start": -1}]}',
            "line 1: expected",
        ),
    ],
)
def test_a_bad_file_of_questions_is_one_line(tmp_path, line, named):
    file = tmp_path / "own.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=named) as caught:
        questions.load(file)
    assert "\n" not in str(caught.value)


def test_own_questions_are_read(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"text": "It was 12.", "questions": [{"question": "q", "answers": ["12"]}]}\n')
    (found,) = questions.load(file)
    assert found.questions == (tasks.Asked("q", ("12",), 7),) and found.name == "own.jsonl:1"
    with pytest.raises(ValueError, match="unknown set of questions 'sqad'; did you mean 'squad'"):
        questions.load("sqad")
    with pytest.raises(ValueError, match="no file"):
        questions.load(tmp_path / "none.jsonl")


def test_punctuation_of_the_vocabulary():
    for words in (vocabulary.ADJECTIVES, vocabulary.NOUNS, vocabulary.NAMES):
        assert len(set(words)) == len(words)
        assert all(set(w) <= set(string.ascii_letters) for w in words)


def windows_of(names, length=LENGTH, **changes):
    mixture = packing.TaskMixture(
        answer_weight=3.0, windows=tuple((name, 1 / len(names)) for name in names)
    )
    return packing.training_windows(
        DOCUMENTS, TOKENIZER, length=length, task_mixture=mixture, articles=ARTICLES, **changes
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_window_of_training_is_a_sample_of_evaluation(name):
    """The same text, question and answer, and only the answer is learned."""
    maker = windows_of([name])
    for seed in range(3):
        window = maker(0, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.random()  # which drew the task
        options = {"seed": int(rng.integers(2**31)), "first": int(rng.integers(4096))}
        asked = make(name, length=LENGTH + 1, count=1, **options)
        np.testing.assert_array_equal(window["tokens"], asked.tokens[0])
        np.testing.assert_array_equal(window["weights"], 3.0 * asked.answer[0, 1:])
        assert window["weights"].any() and not window["segment_start"].any()
        assert {k: (v.shape, v.dtype) for k, v in window.items()} == {
            "tokens": ((LENGTH + 1,), np.int32),
            "weights": ((LENGTH,), np.float32),
            "segment_start": ((LENGTH,), np.int32),
        }


def statements(name, tokens, wanted):
    """What surrounds each place of a text where a wanted string stands, and the string.

    Names and topics come from lists that training and evaluation share: what is asked there is
    where they stand, so that more of the text around them counts.
    """
    text = TOKENIZER.decode(tokens[1:])
    before, after = (300, 200) if name in ("association", "topics") else (40, 8)
    for one in wanted:
        for found in re.finditer(re.escape(one), text):
            yield text[max(found.start() - before, 0) : found.end() + after]


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_of_evaluation_stands_in_a_window_of_training(name):
    """Training on some documents shows nothing that is asked about those held out."""
    held_out = [document(7)] if source(tasks.parse(name)) is DOCUMENTS else [article(7)]
    maker = windows_of([name])
    windows = [maker(i, np.random.default_rng(i))["tokens"] for i in range(40)]
    learned = "\n".join(TOKENIZER.decode(window[1:]) for window in windows)
    options = {"length": LENGTH, "count": COUNT, "bos": "<bos>"}
    for seed in range(3):
        asked = tasks.parse(name).samples(held_out, TOKENIZER, seed=seed, **options)
        for row, wanted in zip(asked.tokens, asked.wanted, strict=True):
            stated = list(statements(name, row, wanted))
            assert stated
            assert not [one for one in stated if one in learned]
    # The check sees a sample that was trained on.
    again = tasks.parse(name).samples(source(tasks.parse(name)), TOKENIZER, seed=0, **options)
    learned = TOKENIZER.decode(again.tokens[0][1:])
    assert any(one in learned for one in statements(name, again.tokens[0], again.wanted[0]))


def test_windows_are_of_every_task_and_of_text_in_their_shares():
    mixture = packing.TaskMixture(windows=(("kv", 0.25), ("passkey", 0.25)))
    maker = packing.training_windows(DOCUMENTS, TOKENIZER, length=700, task_mixture=mixture)
    found = [maker(0, np.random.default_rng(seed)) for seed in range(400)]
    texts = [TOKENIZER.decode(window["tokens"][1:]) for window in found]
    kinds = ["kv" if "JSON" in t else "passkey" if "pass key" in t else "text" for t in texts]
    for kind, share in (("kv", 0.25), ("passkey", 0.25), ("text", 0.5)):
        assert abs(kinds.count(kind) / 400 - share) < 0.08
    depths = [
        t.index("The pass key is") / len(t)
        for t, k in zip(texts, kinds, strict=True)
        if k == "passkey"
    ]
    assert min(depths) < 0.15 and max(depths) > 0.7


def test_a_sample_is_the_same_in_whichever_call_it_is_drawn():
    for name in ("passkey", "qa_1", "first_sentence"):
        later = make(name, count=1, first=3)
        assert later.depths is not None
        if name != "first_sentence":
            assert later.depths[0] == make(name, count=4).depths[3]
        assert later.documents[0] == make(name, count=4).documents[3]


def test_windows_without_what_they_ask_about_are_refused():
    with pytest.raises(ValueError, match="need articles"):
        packing.training_windows(
            DOCUMENTS,
            TOKENIZER,
            length=64,
            task_mixture=packing.TaskMixture(windows=(("ffqa", 1),)),
        )
    with pytest.raises(ValueError, match="need a document of 1000001 tokens"):
        windows_of(["kv"], length=1_000_000)
    with pytest.raises(ValueError, match="unknown task 'kw'; did you mean 'kv'"):
        packing.TaskMixture(windows=(("kw", 0.5),))
    for shares in (((("kv", 0.0)),), (("kv", 0.6), ("vt", 0.6))):
        with pytest.raises(ValueError, match="shares of windows"):
            packing.TaskMixture(windows=shares)
