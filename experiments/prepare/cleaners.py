"""Rules for code, LaTeX and questions with answers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from experiments.prepare.web import all_text
from longrope_jax.data.corpora import Document

# Code. The paper names the rules and no numbers; these are of its open reproduction, RedPajama.
_LONGEST, _MEAN, _ALPHANUMERIC = 1000, 100, 0.25
_HEADER = re.compile(r"\A(?:#![^\n]*\n)?((?:[ \t]*#[^\n]*\n|[ \t]*\n)+|\s*/\*.*?\*/\s*)", re.DOTALL)
_BOILERPLATE = re.compile(r"copyright|licen[sc]e|all rights reserved|spdx", re.IGNORECASE)
_PERMISSIVE = re.compile(r"\b(apache|bsd|mit)\b", re.IGNORECASE)


def permissive(metadata: str) -> bool:
    """Whether a package's METADATA declares Apache, BSD or MIT and no other licence."""
    said = re.findall(r"^License(?:-Expression)?:[ \t]*(\S.*)$", metadata, re.MULTILINE)
    said += re.findall(r"^Classifier: License :: OSI Approved :: (.*)$", metadata, re.MULTILINE)
    return bool(said) and all(_PERMISSIVE.search(licence) for licence in said)


def code(text: str) -> str:
    """A source file without a header on its licence; empty if it does not look like code.

    Dropped are files with a line above 1,000 characters, with lines of more than 100 on average,
    or with less than a quarter of letters and digits: tables, data, what a machine wrote.
    """
    header = _HEADER.match(text)
    if header and _BOILERPLATE.search(header.group()):
        text = text[header.end() :]
    lengths = [len(line) for line in text.split("\n")]
    share = sum(c.isalnum() for c in text) / max(len(text), 1)
    usual = max(lengths) <= _LONGEST and sum(lengths) / len(lengths) <= _MEAN
    return text if usual and share >= _ALPHANUMERIC else ""


# LaTeX.
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*%[^\n]*)*")
_SECTION = re.compile(r"\\(?:section|chapter)\b")
_BIBLIOGRAPHY = re.compile(
    r"\\begin\{thebibliography\}.*?\\end\{thebibliography\}"
    r"|\\bibliography(?:style)?\{[^}]*\}|\\printbibliography(?:\[[^\]]*\])?",
    re.DOTALL,
)
_MACRO = re.compile(
    r"\\(?:re)?newcommand\*?\s*\{?\s*\\([a-zA-Z]+)\s*\}?\s*(?:\[(\d)\])?(?=\s*\{)"
    r"|\\def\s*\\([a-zA-Z]+)\s*((?:#\d)*)(?=\s*\{)"
)
_DEEPEST = 8  # macros within macros; a macro of itself ends there


def latex(text: str) -> str:
    """A paper from its first section on, macros expanded, no comments and no bibliography.

    Empty if it has no section. Macros with optional arguments stay as they are.
    """
    text = _COMMENT.sub(r"\1", text.replace("\r\n", "\n"))
    text, macros = _definitions(text)
    begin = _SECTION.search(text)
    if not begin:
        return ""
    text = _BIBLIOGRAPHY.sub("", text[begin.start() :]).replace(r"\end{document}", "")
    for _ in range(_DEEPEST):
        expanded = _expanded(text, macros)
        if expanded == text:
            break
        text = expanded
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _definitions(text: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """The text without the definitions of macros; how many arguments each takes, and its body."""
    macros, kept, at = {}, [], 0
    for found in _MACRO.finditer(text):
        body, end = _group(text, found.end())
        if found.start() < at or body is None:
            continue
        name, count = found[1] or found[3], int(found[2] or len(found[4] or "") // 2)
        macros[name] = (count, body)
        kept.append(text[at : found.start()])
        at = end
    return "".join(kept) + text[at:], macros


def _group(text: str, at: int) -> tuple[str | None, int]:
    """What stands in braces from `at` on, and where it ends; None if no whole group does."""
    begin = at + len(text[at:]) - len(text[at:].lstrip())
    if text[begin : begin + 1] != "{":
        return None, at
    depth = 0
    for i in range(begin, len(text)):
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
            if not depth:
                return text[begin + 1 : i], i + 1
    return None, at


def _expanded(text: str, macros: Mapping[str, tuple[int, str]]) -> str:
    if not macros:
        return text
    used = re.compile(r"\\(" + "|".join(sorted(macros, key=len, reverse=True)) + r")(?![a-zA-Z])")
    parts, at = [], 0
    for found in used.finditer(text):
        count, body = macros[found[1]]
        end, arguments = found.end(), []
        for _ in range(count):
            argument, end = _group(text, end)
            arguments.append(argument)
        if found.start() < at or None in arguments:
            continue
        for i, argument in enumerate(arguments, start=1):
            body = body.replace(f"#{i}", argument)
        # A blank keeps a macro that ends the body apart from the letter behind it.
        joined = re.search(r"\\[a-zA-Z]+$", body) and text[end : end + 1].isalpha()
        parts += [text[at : found.start()], body, " " if joined else ""]
        at = end
    return "".join(parts) + text[at:]


@dataclass(frozen=True)
class Post:
    """A question or an answer of Stack Exchange.

    Attributes:
        id: of the post.
        parent: id of the question that it answers; 0 for a question.
        score: votes for it less votes against it.
        body: HTML.
        title: of a question.
    """

    id: int
    parent: int
    score: int
    body: str
    title: str = ""


def stack_exchange(posts: Iterable[Post]) -> Iterator[Document]:
    """Each question with its answers from the highest to the lowest score, HTML removed.

    Posts of one question may stand anywhere; questions come in the order of their ids. All posts
    of the site are held at a time. Answers of equal score stand in the order of their ids.
    """
    questions, answers = {}, {}
    for post in posts:
        if post.parent:
            answers.setdefault(post.parent, []).append(post)
        else:
            questions[post.id] = post
    for key, question in sorted(questions.items()):
        ordered = sorted(answers.get(key, ()), key=lambda post: (-post.score, post.id))
        parts = [f"Question: {question.title}".strip(), all_text(question.body)]
        parts += [f"Answer: {all_text(post.body)}" for post in ordered]
        yield Document(str(key), "\n\n".join(parts))
