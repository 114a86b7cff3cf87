"""What a model is asked, one file per task: training mixtures and evaluation use the same objects.

    samples = Passkey().samples(documents, tokenizer, length=4096, count=50, seed=0, bos="<s>")

A task is a frozen dataclass with its texts. `samples` draws from held-out documents, and each
sample has exactly the length that was asked for: a beginning token, context, question and answer.
A control asks the same questions of a context that does not hold their answers.
"""

import ast
import dataclasses
from typing import Any

from longrope_jax.errors import unknown_name
from longrope_jax.tasks.articles import Article, ArticleQA, Asked, ParagraphQA
from longrope_jax.tasks.first_sentence import FirstSentence
from longrope_jax.tasks.key_values import KeyValues
from longrope_jax.tasks.lines import Lines, Topics
from longrope_jax.tasks.needles import Association, Needles
from longrope_jax.tasks.passkey import Passkey
from longrope_jax.tasks.samples import CONTROLS, Samples, Task, encode
from longrope_jax.tasks.variables import Variables
from longrope_jax.tasks.words import CommonWords, FrequentWords

__all__ = [
    "ARTICLES",
    "CONTROLS",
    "TASKS",
    "Article",
    "ArticleQA",
    "Asked",
    "Association",
    "CommonWords",
    "FirstSentence",
    "FrequentWords",
    "KeyValues",
    "Lines",
    "Needles",
    "ParagraphQA",
    "Passkey",
    "Samples",
    "Task",
    "Topics",
    "Variables",
    "encode",
    "parse",
]

# What a person names; those of RULER have its names and settings.
TASKS: dict[str, Task] = {
    "first_sentence": FirstSentence("\n\nThe first sentence of the text above is: ", "\n"),
    "passkey": Passkey(prompt="\n\nWhat is the pass key? The pass key is "),
    "lines": Lines(),
    "topics": Topics(),
    "kv": KeyValues(),
    "association": Association(),
    "ffqa": ArticleQA(),
    "altqa": ArticleQA(altered=True),
    "niah_single_1": Needles(haystack="noise"),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(value="uuids"),
    "niah_multikey_1": Needles(keys=4),
    "niah_multikey_2": Needles(haystack="needles"),
    "niah_multikey_3": Needles(haystack="needles", key="uuids", value="uuids"),
    "niah_multivalue": Needles(values=4),
    "niah_multiquery": Needles(keys=4, queries=4),
    "vt": Variables(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
    "qa_1": ParagraphQA(),
}
ARTICLES = (ArticleQA, ParagraphQA)  # they read articles with questions, all others any text


def parse(text: str) -> Task:
    """Returns the task that is written NAME:OPTION=VALUE,..., such as "lines:integer=first".

    Raises:
        ValueError: the name, an option or a value is unknown.
    """
    name, _, rest = text.partition(":")
    if name not in TASKS:
        raise ValueError(unknown_name("task", name, TASKS))
    task: Any = TASKS[name]
    known = [field.name for field in dataclasses.fields(task)]
    changes: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, is_given, value = part.partition("=")
        if option not in known or not is_given:
            raise ValueError(f"{unknown_name(f'option of {name}', option, known)} in {text!r}")
        changes[option] = _value(value)
        wanted = type(getattr(task, option))
        if type(changes[option]) is not wanted and (type(changes[option]), wanted) != (int, float):
            raise ValueError(f"{option} of {name} must be a {wanted.__name__}, got {value!r}")
    return dataclasses.replace(task, **changes)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
