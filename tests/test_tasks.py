"""Test samples of FIRST-SENTENCE-RETRIEVAL and passkey: what they ask, and what they hide."""

import re
from collections import Counter

import numpy as np
import pytest

from longrope_jax import tasks
from longrope_jax.data import documents, tokenizers
from longrope_jax.data.corpora import Document

TOKENIZER = tokenizers.ByteTokenizer()
BOS, RETRIEVE, END = chr(256), chr(258), chr(259)
T, N = 400, 60
PROMPT = "What is the pass key? The pass key is "


def document(name, sentences, seed):
    """Sentences of unequal length, each of which occurs once."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(3, 9))) for _ in range(sentences)]
    text = " ".join(f"{w.title()} {v} {v * 2}." for w, v in zip(words, words[::-1], strict=True))
    return documents.tokenize_document(Document(name, text), TOKENIZER, min_tokens=4, max_tokens=40)


DOCUMENTS = tuple(document(name, 60, seed) for seed, name in enumerate("abc"))


def first_sentence(**changes):
    settings = {"length": T, "count": N, "seed": 1, "bos": "<bos>"} | changes
    task = settings.pop("task", tasks.FirstSentence())
    documents = settings.pop("documents", DOCUMENTS)
    return task.samples(documents, TOKENIZER, **settings)


def passkey(**changes):
    settings = {"length": T, "count": N, "seed": 1, "bos": "<bos>"} | changes
    documents = settings.pop("documents", DOCUMENTS)
    return tasks.Passkey().samples(documents, TOKENIZER, **settings)


def as_text(tokens):
    return "".join(map(chr, tokens))


def texts(samples):
    """(context without BOS, prompt and all, answer) of each sample; checks the form."""
    n = samples.prompt_length
    for row, mask in zip(samples.tokens, samples.answer, strict=True):
        length = int(mask.sum())
        assert row[0] == 256 and length > 0
        assert mask[n : n + length].all() and not row[n + length :].any()
        yield as_text(row[1:n]), as_text(row[n : n + length])


def source(name):
    return as_text(next(d.tokens for d in DOCUMENTS if d.name == name))


@pytest.mark.parametrize("make", [first_sentence, passkey])
@pytest.mark.parametrize("control", tasks.CONTROLS)
@pytest.mark.parametrize("length", [200, T])
def test_samples_have_the_length_asked_for(make, control, length):
    samples = make(control=control, length=length)
    assert samples.tokens.shape == samples.answer.shape == (N, length)
    assert samples.tokens.dtype == np.int32 and samples.answer.dtype == bool
    longest = max(len(answer) for _, answer in texts(samples))
    if make is passkey:
        assert samples.prompt_length == length - 5
    else:  # room for the longest sentence of all, drawn or not
        assert length - 50 <= samples.prompt_length <= length - longest
    for reference, (_, answer) in zip(samples.references(), texts(samples), strict=True):
        assert as_text(reference) == answer
    counts = Counter(samples.documents.tolist())
    assert set(counts.values()) == {N // 3} and set(counts) == set("abc")


def test_the_first_sentence_is_asked_for():
    samples = first_sentence()
    for (context, answer), name in zip(texts(samples), samples.documents, strict=True):
        assert context.endswith(RETRIEVE) and answer.endswith("." + END)
        assert context.startswith(answer[:-1] + " ")
        assert context[:-1] in source(name)
    assert len({answer for _, answer in texts(samples)}) > N / 2


@pytest.mark.parametrize("control", ["removed", "other"])
def test_first_sentence_controls_hide_the_answer(control):
    samples = first_sentence(control=control)
    for (context, answer), name in zip(texts(samples), samples.documents, strict=True):
        sentence = answer[:-1]
        assert sentence not in context and RETRIEVE not in context[:-1]
        text = source(name)
        follows = text[text.index(sentence) + len(sentence) :]
        if control == "removed":
            assert follows.startswith(context[:-1])
        else:
            other = re.match(r"[^.]*\.", context)
            assert any(other[0] in source(d.name) for d in DOCUMENTS)
            assert follows.startswith(context[other.end() : -1])


def test_controls_ask_the_same_questions():
    for make in (first_sentence, passkey):
        plain, *others = (make(control=control) for control in tasks.CONTROLS)
        for other in others:
            assert [a for _, a in texts(plain)] == [a for _, a in texts(other)]


def test_the_other_sentence_is_never_the_same():
    """Of four sentences, so that many a draw would be the same one."""
    few = document("few", 4, 7)
    samples = first_sentence(documents=(few,), length=80, control="other")
    for context, answer in texts(samples):
        assert answer[:-1] not in context
    with pytest.raises(ValueError, match="no second sentence"):
        first_sentence(documents=(document("one", 1, 7),), length=5, control="other")


def test_a_prompt_of_plain_text():
    task = tasks.FirstSentence(prompt=" First: ", end=" Done.")
    for context, answer in texts(first_sentence(task=task)):
        assert context.endswith(" First: ") and answer.endswith(". Done.")
        assert context.startswith(answer.removesuffix(" Done."))


def fact_of(key):
    return f"The pass key is {key}. Remember it. {key} is the pass key. "


def test_the_key_asked_is_the_key_stated():
    samples = passkey()
    for (context, answer), name in zip(texts(samples), samples.documents, strict=True):
        assert re.fullmatch("[1-9][0-9]{4}", answer) and context.endswith(PROMPT)
        before, after = context.removesuffix(PROMPT).split(fact_of(answer))
        assert before + after in source(name)
    assert len({answer for _, answer in texts(samples)}) > 0.9 * N


@pytest.mark.parametrize("control", ["removed", "other"])
def test_passkey_controls_hide_the_key(control):
    for context, answer in texts(passkey(control=control)):
        stated = re.findall(r"\d+", context)
        assert answer not in context and len(set(stated)) == (control == "other")
        if control == "other":
            assert fact_of(stated[0]) in context


def test_a_named_key_is_asked_for_by_its_name():
    named = tasks.Passkey(fact="The key of {name} is {key}. ", prompt="The key of {name} is ")
    options = {"length": T, "count": N, "seed": 1, "bos": "<bos>"}
    names = set()
    for context, answer in texts(named.samples(DOCUMENTS, TOKENIZER, **options)):
        (stated,) = re.findall(r"The key of ([a-z]{3}) is (\d{5})\. ", context)
        assert context.endswith(f"The key of {stated[0]} is ") and stated[1] == answer
        names.add(stated[0])
    assert len(names) > 0.9 * N


@pytest.mark.parametrize(
    ("fact", "prompt"),
    [
        ("The key of {name} is {key}.", "The key is "),
        ("The key is {key}.", "The key of {name} is "),
        ("The key is {key}.", "The key is {key}"),
        ("{key} of {place}", "The key"),
    ],
)
def test_fact_and_prompt_name_the_same_fields(fact, prompt):
    with pytest.raises(ValueError, match="must"):
        tasks.Passkey(fact=fact, prompt=prompt)


@pytest.mark.parametrize("digits", [0, -1, 19])
def test_a_key_has_1_to_18_digits(digits):
    with pytest.raises(ValueError, match=f"digits must be from 1 to 18, got {digits}"):
        tasks.Passkey(digits=digits)
    for digits in (1, 18):
        assert len(tasks.Passkey(digits=digits).draw(np.random.default_rng(0))) == digits


def test_another_key_is_never_the_same():
    task = tasks.Passkey(digits=1)
    samples = task.samples(
        DOCUMENTS, TOKENIZER, length=T, count=N, seed=1, bos="<bos>", control="other"
    )
    assert all(answer not in context for context, answer in texts(samples))


@pytest.mark.parametrize("count", [10, 50])
def test_depths_cover_the_context_evenly(count):
    """Each tenth of the room before the question holds its share, one more or less."""
    depths = []
    for context, answer in texts(passkey(count=count)):
        room = len(context) - len(PROMPT) - len(fact_of(answer))
        depths.append(context.index(fact_of(answer)) / room)
    bins = np.histogram(depths, bins=10, range=(0, 1))[0]
    assert np.abs(bins - count / 10).max() <= 1
    assert min(depths) == 0


@pytest.mark.parametrize("make", [first_sentence, passkey])
def test_the_seed_decides_the_samples(make):
    one, again, other = make(), make(), make(seed=2)
    np.testing.assert_array_equal(one.tokens, again.tokens)
    assert not np.array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize("make", [first_sentence, passkey])
def test_the_shortest_length_holds_the_whole_question(make):
    """One token less is refused: no sample ever loses a part of what it asks for."""
    refused = 0
    for length in range(1, 200):
        try:
            samples = make(length=length)
        except ValueError as error:
            assert re.search(f"{length} tokens do not hold a question", str(error))
            assert "\n" not in str(error)
            refused = length
            continue
        for context, answer in texts(samples):
            wanted = fact_of(answer) if make is passkey else answer[:-1]
            assert wanted in context
    longest = max(len(s) for d in DOCUMENTS for s in d.sentences)
    needed = 1 + len(fact_of(12345)) + len(PROMPT) + 5
    assert refused == (needed if make is passkey else 1 + longest + 1 + longest + 1) - 1


@pytest.mark.parametrize("make", [first_sentence, passkey])
def test_bad_settings_are_one_line(make):
    with pytest.raises(ValueError, match="unknown control 'remove'; did you mean 'removed'"):
        make(control="remove")
    with pytest.raises(ValueError, match=r"^a is shorter than a sample of 10000 tokens$"):
        make(length=10_000)
    with pytest.raises(ValueError, match=r"unknown special token '<boss>'.*'<bos>'"):
        make(bos="<boss>")


def test_cropped_samples_keep_their_questions_and_answers():
    """The last tokens are those of the whole sample; less than an answer is refused."""
    samples = tasks.Passkey().samples(
        DOCUMENTS, TOKENIZER, length=300, count=4, seed=0, bos="<bos>"
    )
    cropped = samples.last(200)
    np.testing.assert_array_equal(cropped.tokens, samples.tokens[:, 100:])
    for own, whole in zip(cropped.references(), samples.references(), strict=True):
        np.testing.assert_array_equal(own, whole)
    assert samples.last(300).prompt_length == samples.prompt_length
    np.testing.assert_array_equal(
        cropped.tokens[:, : cropped.prompt_length], samples.tokens[:, 100 : samples.prompt_length]
    )
    answer = samples.tokens.shape[1] - samples.prompt_length
    with pytest.raises(ValueError, match=f"length .* from {answer + 1} to 300 .* got {answer}"):
        samples.last(answer)
