"""Training windows: every window is parsed back and checked against its document."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longrope_jax import tasks
from longrope_jax.data import documents, packing, tokenizers
from longrope_jax.data.corpora import Document

TOKENIZER = tokenizers.ByteTokenizer()
BOS, EOS, RETRIEVE, END = map(chr, range(256, 260))
# One character per token; the specials are the characters 256 to 259.
SPOKEN = re.compile(f"{RETRIEVE}(?P<answer>[^{RETRIEVE}{END}{BOS}]*){END}")
FACT = re.compile(r"The pass key is (\d{5})\. Remember it\. \1 is the pass key\. ")
ASKED = re.compile(r"What is the pass key\? The pass key is (?P<answer>\d{5})")


def document(name, sentences, seed):
    """Sentences that occur once: three random words each."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), 4)) for _ in range(3 * sentences)]
    text = " ".join(f"{a.title()} {b} {c}." for a, b, c in np.reshape(words, (-1, 3)))
    return documents.tokenize_document(Document(name, text), TOKENIZER, min_tokens=4, max_tokens=40)


LONG = (document("a", 60, 1), document("b", 40, 2))
SHORT = (document("c", 2, 3), document("d", 1, 4))
EVERYTHING = packing.TaskMixture(first_sentence=0.5, passkey=0.4, answer_weight=3.0)


def maker(documents=LONG, task_mixture=EVERYTHING, length=256):
    return packing.training_windows(documents, TOKENIZER, length=length, task_mixture=task_mixture)


def as_text(tokens):
    return "".join(map(chr, tokens))


def parse(window, documents, weight=3.0):
    """Checks one window against the documents; how many answers it teaches, and their tokens."""
    text = as_text(window["tokens"])
    T = len(text) - 1
    assert text[0] == BOS and window["tokens"].dtype == np.int32
    begins = [m.start() for m in re.finditer(BOS, text)]
    last = [max(b for b in begins if b <= t) for t in range(T)]
    np.testing.assert_array_equal(window["segment_start"], last)

    expected = np.ones(T + 1)
    kinds = {"first_sentence": 0, "passkey": 0, "answer_tokens": 0}
    for begin, end in zip(begins, [*begins[1:], T + 1], strict=True):
        segment = text[begin + 1 : end]
        spoken, asked, fact = (p.search(segment) for p in (SPOKEN, ASKED, FACT))
        if spoken:
            assert segment.startswith(spoken["answer"]) and spoken["answer"].endswith(".")
        if asked:
            assert fact.end() <= asked.start() and fact[1] == asked["answer"]
        kinds["first_sentence"] += bool(spoken)
        kinds["passkey"] += bool(asked)
        expected[begin] = 0
        left = list(segment)
        for found in filter(None, (spoken, asked, fact)):
            at, to = (begin + 1 + x for x in found.span())
            expected[at:to] = 0
            left[slice(*found.span())] = [""] * (to - at)
            if "answer" in found.groupdict():
                answer = begin + 1 + found.start("answer")
                expected[answer:to] = weight
                kinds["answer_tokens"] += to - answer
        left = "".join(left)
        assert re.fullmatch("[A-Ja-j. ]*", left)
        check_text(left, documents, whole=end <= T)
    np.testing.assert_array_equal(window["weights"], expected[1:])
    return kinds


def check_text(segment, documents, whole):
    """What is left is a document's text from a sentence start on; to its end, if `whole`."""
    for d in documents:
        text = as_text(d.tokens)
        at = text.find(segment)
        if at >= 0:
            assert not segment or at in d.starts
            assert not whole or text.endswith(segment)
            return
    pytest.fail(f"in no document: {segment!r}")


def draw(m, n, seed=0):
    rng = np.random.default_rng(seed)
    return [m(int(rng.integers(len(m))), rng) for _ in range(n)]


# Windows


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
@example(length=1, seed=0)
def test_every_window_parses_back(length, seed):
    for given_documents in (LONG, LONG + SHORT, SHORT):
        m = maker(given_documents, length=length)
        for window in draw(m, 3, seed):
            assert window["tokens"].shape == (length + 1,)
            assert window["weights"].shape == window["segment_start"].shape == (length,)
            parse(window, given_documents)


def test_both_tasks_are_taught_at_many_places():
    found = draw(maker(), 200)
    kinds = [parse(window, LONG) for window in found]
    for name, share in (("first_sentence", 0.5), ("passkey", 0.4)):
        # A passage near its document's end is followed by another, which may be taught as well.
        assert abs(np.mean([kind[name] > 0 for kind in kinds]) - share) < 0.15
    assert sum(kind["first_sentence"] > 0 < kind["passkey"] for kind in kinds) > 10
    texts = [as_text(w["tokens"]) for w in found]
    places = [m.start() for text in texts for m in (SPOKEN.search(text), ASKED.search(text)) if m]
    assert min(places) < 60 and max(places) > 200 and len(set(places)) > 80


def test_short_documents_are_packed():
    window = maker(SHORT)(0, np.random.default_rng(0))
    starts = np.unique(window["segment_start"])
    assert len(starts) >= 4
    np.testing.assert_array_equal(starts, np.flatnonzero(window["tokens"] == 256))


def test_plain_windows_hold_text_alone():
    for window in draw(maker(task_mixture=None), 50):
        kinds = parse(window, LONG)
        assert not any(kinds.values())
        assert set(window["weights"]) <= {0.0, 1.0}


@pytest.mark.parametrize("weight", [1.0, 3.5])
def test_answer_share_is_a_direct_count(weight):
    task_mixture = packing.TaskMixture(first_sentence=0.4, passkey=0.3, answer_weight=weight)
    m = maker(LONG + SHORT, task_mixture)
    found = draw(m, 64, seed=5)
    answers = sum(parse(window, LONG + SHORT, weight)["answer_tokens"] for window in found)
    total = sum(window["weights"].sum(dtype=np.float64) for window in found)
    share = packing.answer_share(m, seed=5, windows=64)
    np.testing.assert_allclose(share["answer_tokens"], answers / (64 * 256))
    np.testing.assert_allclose(share["answer_loss_weight"], weight * answers / total)
    assert answers > 300


@pytest.mark.parametrize("shares", [(-0.1, 0), (0, -0.1), (1.1, 0), (0, 1.1)])
def test_shares_outside_0_to_1_are_refused(shares):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        packing.TaskMixture(*shares)


# A constant rate of questions.

NAMED = tasks.Passkey(fact="The key of {name} is {key}. ", prompt="Key of {name}? ")
STATED = re.compile(r"The key of ([a-z]{3}) is (\d{5})\. ")
OF_NAME = re.compile(r"Key of ([a-z]{3})\? (\d{5})")


MANY = (document("long", 400, 7),)


def asking(every, length, first_sentence=0.5):
    mixture = packing.TaskMixture(first_sentence, 0.5, every=every)
    return packing.training_windows(
        MANY, TOKENIZER, length=length, task_mixture=mixture, passkey=NAMED
    )


def questions(m, n, seed=0):
    """(window, distance in characters from fact to question) of every question about a key."""
    for i, window in enumerate(draw(m, n, seed)):
        text = as_text(window["tokens"])
        facts = {f[1]: f for f in STATED.finditer(text)}
        for asked in OF_NAME.finditer(text):
            fact = facts[asked[1]]
            assert fact[2] == asked[2] and fact.end() <= asked.start()
            weights = window["weights"]
            assert not weights[fact.start() - 1 : fact.end() - 1].any()
            answer = slice(asked.start(2) - 1, asked.end(2) - 1)
            assert (weights[answer] == 1).all()
            assert not weights[asked.start() - 1 : answer.start].any()
            yield i, asked.start() - fact.end()


@pytest.mark.parametrize("length", [300, 2000])
def test_windows_of_every_length_ask_as_much_per_token(length):
    m = asking(200, length)
    texts = [as_text(w["tokens"]) for w in draw(m, 64_000 // length)]
    found = sum(len(OF_NAME.findall(t)) + len(SPOKEN.findall(t)) for t in texts)
    assert found * 200 / 64_000 == pytest.approx(1.0, abs=0.1)


def test_distances_are_log_uniform_from_16_tokens_to_the_window():
    found = np.array([d for _, d in questions(asking(4000, 2000, first_sentence=0.0), 800)])
    logs = np.log(found / 16) / np.log(2000 / 16)
    assert found.min() >= 16 and len(found) > 250
    assert np.abs(np.quantile(logs, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.08


def test_one_window_asks_several_keys_by_their_names():
    found = [i for i, _ in questions(asking(150, 1500), 20)]
    assert max(map(found.count, found)) >= 4


def test_the_first_sentence_is_asked_at_most_once_in_a_passage():
    for window in draw(asking(100, 1500, first_sentence=1.0), 30):
        passages = as_text(window["tokens"]).split(BOS)
        assert all(len(SPOKEN.findall(passage)) <= 1 for passage in passages)


def test_keys_without_names_cannot_be_stated_twice_in_a_text():
    with pytest.raises(ValueError, match=r"every=100 .* field \{name\}"):
        packing.training_windows(
            LONG, TOKENIZER, length=64, task_mixture=packing.TaskMixture(0.5, 0.5, every=100)
        )


@pytest.mark.parametrize("setting", [{"every": -1, "passkey": 1.0}, {"every": 64}])
def test_a_rate_without_a_task_is_refused(setting):
    with pytest.raises(ValueError, match="every"):
        packing.TaskMixture(**setting)


# The iterator


def batches(iterator, n):
    return [next(iterator) for _ in range(n)]


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_the_seed_decides_the_batches():
    first, again, other = (
        batches(packing.iterator(maker(), batch=4, seed=seed), 3) for seed in (1, 1, 2)
    )
    assert first[0]["tokens"].shape == (4, 257) and first[0]["weights"].shape == (4, 256)
    assert same(first, again) and not same(first, other)


def test_a_restored_iterator_goes_on_identically():
    iterator = packing.iterator(maker(), batch=8, seed=1)
    batches(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = batches(iterator, 20)  # beyond the end of an epoch
    fresh = packing.iterator(maker(), batch=8, seed=1)
    fresh.set_state(state)
    assert same(batches(fresh, 20), expected)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_rows_of_several_hosts_are_those_of_one(hosts, monkeypatch):
    """Window by window, beyond an epoch: what was drawn, too."""
    whole = batches(packing.iterator(maker(), batch=4, seed=3), 6)
    parts = []
    for index in range(hosts):
        monkeypatch.setattr(packing, "batch_share", lambda mesh, index=index: (index, hosts))
        parts.append(batches(packing.iterator(maker(), batch=4, seed=3, mesh=object()), 6))
    for step, batch in enumerate(whole):
        for name, rows in batch.items():
            dealt = [rows[i::hosts] for i in range(hosts)]
            np.testing.assert_array_equal([part[step][name] for part in parts], dealt)


def test_an_epoch_begins_at_every_sentence_once():
    m = maker(task_mixture=None, length=16)
    iterator = packing.iterator(m, batch=len(m) // 4, seed=3)
    epochs = [np.concatenate([b["tokens"] for b in batches(iterator, 4)]) for _ in range(2)]
    for epoch in epochs:
        assert len(np.unique(epoch[:, 1:13], axis=0)) == len(m) == 100
    assert not np.array_equal(*epochs)


# Documents


PLAY = """HAMLET

Act 1, Scene 1
==============

BARNARDO.
Who's there?

FRANCISCO.
Nay, answer me. Stand and unfold yourself, for
the night is dark! [Exit GHOST.]

Enter two guards
"""
NOVEL = """Call me Ishmael. Some years ago--never mind how long
precisely--I thought I would sail. "It is a way," said I, "of
driving off the spleen." Mr. Coffin slept.

Yes... as every one knows, it was 1851."""


def sentences(text):
    return [text[a:b] for a, b in documents.sentence_spans(text)]


def test_sentences_of_a_play():
    """Neither speakers, headings nor stage directions without a full stop."""
    assert sentences(PLAY) == [
        "Who's there?",
        "Nay, answer me.",
        "Stand and unfold yourself, for\nthe night is dark!",
    ]


def test_sentences_of_a_novel():
    """A sentence that ends in a quotation mark is none; an abbreviation ends one."""
    assert sentences(NOVEL) == [
        "Call me Ishmael.",
        "Some years ago--never mind how long\nprecisely--I thought I would sail.",
        "Mr.",
        "Coffin slept.",
        "Yes...",
        "as every one knows, it was 1851.",
    ]


TEXTS = st.text(st.sampled_from("abE é.!?,'\"\n-1"), max_size=120)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_sentences_lie_in_one_paragraph(text):
    spans = documents.sentence_spans(text)
    assert spans == sorted(spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    for a, b in spans:
        sentence = text[a:b]
        assert sentence[0].isalpha() and sentence[-1] in ".!?"
        assert not re.search(r"\n\s*\n", sentence)
        assert not re.search(r"[.!?]", sentence.rstrip(".!?"))
        assert b == len(text) or text[b].isspace()
        assert a == 0 or text[a - 1].isspace() or text[a - 1] in "'\"("


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example("Ab ab. Éé éé! Ab?")
def test_starts_agree_with_the_tokens(text):
    """The tokens of the sentences that are neither short nor long, or else of such lines."""
    found = [text[a:b] for a, b in documents.sentence_spans(text)]
    lines = [text[m.start() : m.end()] for m in re.finditer(r"[abEé].*", text)]
    wanted, others = ([s for s in x if 3 <= len(s.encode()) <= 12] for x in (found, lines))
    wanted = wanted or others
    if not wanted:
        with pytest.raises(ValueError, match="doc has no sentence or line of 3 to 12 tokens"):
            documents.tokenize_document(
                Document("doc", text), TOKENIZER, min_tokens=3, max_tokens=12
            )
        return
    found = documents.tokenize_document(
        Document("doc", text), TOKENIZER, min_tokens=3, max_tokens=12
    )
    assert TOKENIZER.decode(found.tokens) == text
    assert [TOKENIZER.decode(s) for s in found.sentences] == wanted
    for start, sentence in zip(found.starts, found.sentences, strict=True):
        np.testing.assert_array_equal(found.tokens[start : start + len(sentence)], sentence)


def test_sentences_of_other_scripts_end_with_their_own_marks():
    assert sentences("小明说：“你好！”然后走了。下雨了？Yes, rain. 3.5 kg") == [
        "小明说：“你好！”",
        "然后走了。",
        "下雨了？",
        "Yes, rain.",
    ]
    assert sentences("वह घर गया। फिर सोया।") == ["वह घर गया।", "फिर सोया।"]
    assert sentences("هل نمت؟ نعم.") == ["هل نمت؟", "نعم."]


def test_windows_of_source_code_begin_at_lines():
    code = "import os\n\n    def area(r):\n        return 3 * r\n# 7\n"
    document = Document("code", code)
    found = documents.tokenize_document(document, TOKENIZER, min_tokens=9, max_tokens=40)
    assert [as_text(s) for s in found.sentences] == ["import os", "def area(r):", "return 3 * r"]
    assert [code[i:][:3] for i in found.starts] == ["imp", "def", "ret"]


def test_unseen_drops_what_training_holds():
    seen = [TOKENIZER.decode(s) for s in LONG[0].sentences[::2]]
    left = documents.unseen(LONG[0], "x ".join(seen), TOKENIZER)
    np.testing.assert_array_equal(left.starts, LONG[0].starts[1::2])
    assert [as_text(s) for s in left.sentences] == [as_text(s) for s in LONG[0].sentences[1::2]]
    np.testing.assert_array_equal(left.tokens, LONG[0].tokens)
    with pytest.raises(ValueError, match="every sentence of a occurs"):
        documents.unseen(LONG[0], as_text(LONG[0].tokens), TOKENIZER)


# Validation windows


@pytest.mark.parametrize("per_document", [1, 3])
def test_validation_windows_do_not_overlap(per_document):
    rows, names = documents.validation_windows(LONG, length=128, per_document=per_document, bos=256)
    assert rows.shape == (2 * per_document, 129) and rows.dtype == np.int32
    assert names.tolist() == ["a"] * per_document + ["b"] * per_document
    for d in LONG:
        text = as_text(d.tokens)
        places = []
        for row in rows[names == d.name]:
            assert row[0] == 256
            places.append(text.index(as_text(row[1:])))
        assert set(places) <= set(d.starts.tolist())
        assert all(b - a >= 128 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize(("length", "per_document"), [(10_000, 1), (128, 7), (1, 10_000)])
def test_a_document_too_short_for_its_windows_is_refused(length, per_document):
    with pytest.raises(ValueError, match=rf"^. has [\d,]+ tokens.* not {per_document}$"):
        documents.validation_windows(LONG, length=length, per_document=per_document, bos=256)


def test_windows_that_fit_are_found_where_sentences_stand_unevenly():
    """Only the second half of the document has sentences that a window may begin at."""
    document = LONG[0]
    late = document.starts >= len(document.tokens) // 2
    uneven = dataclasses.replace(
        document,
        starts=document.starts[late],
        sentences=tuple(s for s, keep in zip(document.sentences, late, strict=True) if keep),
    )
    starts = documents.window_starts(uneven, length=128, count=3)
    assert set(starts.tolist()) <= set(uneven.starts.tolist())
    assert (np.diff(starts) >= 128).all() and starts[-1] + 128 <= len(document.tokens)


@given(st.data())
def test_a_sentence_is_found_wherever_its_words_stand(data):
    """The quick search agrees with a plain one for short, long, accented and repeated parts."""
    words = st.sampled_from(["Amber", "brook", "cédar", "delta e", "42 is", "Fjord, and", "o"])
    training = " ".join(data.draw(st.lists(words, min_size=1, max_size=40)))
    parts = data.draw(st.lists(st.lists(words, min_size=1, max_size=6).map(" ".join), max_size=9))
    may = documents._may_hold(training, parts)
    padded = f" {training} "
    for part, found in zip(parts, may, strict=True):
        at_words = any(f"{a}{part}{b}" in padded for a in " " for b in " ,")
        assert found or not at_words
    surely = [part for part in parts if len(part.encode()) >= 16 and part[0].isalpha()]
    never = [part for part in surely if part[:16] not in training]
    assert not documents._may_hold(training, never).any()
