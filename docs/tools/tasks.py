"""The page docs/reference/tasks.md, all tasks with an example each, is written from the code by

python -m docs.tools.tasks
"""

import re
from pathlib import Path

from longrope_jax import tasks
from longrope_jax.data import corpora, documents, suites, tokenizers
from longrope_jax.evaluation.scoring import RULES
from longrope_jax.rotary import docstrings

PAGE = Path(__file__).parents[1] / "reference/tasks.md"
_TEXT = (
    "The ferry left at noon. Two gulls followed it across the bay. Nobody on deck had been to the "
    "island before. A boy counted the waves and lost his place. The captain read a letter twice. "
    "Rain stood over the far shore. By evening they could see the lights of the harbour. "
)
_ARTICLE = (
    "The lighthouse of the island was built of grey stone. " * 8
    + "\n\nIts lamp was first lit in 1847 by the keeper. "
    + "Ships had waited for it for many years. " * 8
    + "\n\nA second tower was never built on the northern cape. "
    + "The fishermen took their bearings from a church. " * 8
)
_HEAD = """# Tasks

Each task is a dataclass in [`longrope_jax.tasks`](../../longrope_jax/tasks/__init__.py), written
NAME or NAME:OPTION=VALUE,...; [`longrope evaluate --tasks`](command.md) asks it at any length, and
`TaskMixture(windows=...)` mixes the same samples into training. Examples are samples of so many
bytes, read with one token a byte, as the code draws them with seed 0; `[...]` stands for what is
left out of the text. Written from the code by `python -m docs.tools.tasks`."""


def page() -> str:
    """Returns the text of the page."""
    kinds = dict.fromkeys(map(type, tasks.TASKS.values()))
    parts = [_HEAD, *map(_section, kinds), "## Scoring rules"]
    rules = (f"- `{name}`: {_first(rule.__doc__ or '')}" for name, rule in RULES.items())
    folders = (
        f"| `{name}` | `{folder}` | {suites.FIVE_SHOT.get(name, '')} |"
        for name, folder in suites.NAMES.items()
    )
    parts += ["\n".join(rules), "## Suites"]
    parts += [
        f"Folders of {suites.ARCHIVE.package} {suites.ARCHIVE.version} that a suite's name means; "
        "what each asks and how it is scored stands [beside the command](command.md)."
    ]
    return "\n\n".join([*parts, "\n".join([_HEADER, *folders])]) + "\n"


_HEADER = "| suite | requests | with 5 examples |\n|---|---|---|"


def _section(kind: type) -> str:
    """Tasks of one class: what they ask, their options, and each with its settings and a sample."""
    found = {name: task for name, task in tasks.TASKS.items() if type(task) is kind}
    options = docstrings.attributes(kind)
    source = docstrings.section(kind, "Source")
    parts = [f"## {', '.join(f'`{name}`' for name in found)}", _first(kind.__doc__ or "")]
    parts += [part for part in docstrings.body(kind) if part]
    parts += [f"Source: {source}" if source else ""]
    parts += ["\n".join(f"- `{key}`: {text}" for key, text in options.items())]
    for name, task in found.items():
        settings = ", ".join(f"`{key}={getattr(task, key)!r}`" for key in options)
        parts += _sample(name, settings, task)
    return "\n\n".join(filter(None, parts))


def _sample(name: str, settings: str, task: tasks.Task) -> list[str]:
    length, samples, controls = _example(task)
    text = tokenizers.ByteTokenizer().decode(samples.tokens[0, 1 : samples.prompt_length])
    shown = text if len(text) < 900 else f"{text[:300]} [...] {text[-500:]}"
    wanted = ", ".join(f"`{one}`" for one in samples.wanted[0])
    about = f"**`{name}`** ({settings})" if settings else f"**`{name}`**"
    said = f"{about}, scored by `{task.rule}`, controls: {', '.join(controls)}. {length:,} bytes:"
    return [said, f"```text\n{shown}\n```", f"Wanted: {wanted}"]


def _first(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())


def _example(task: tasks.Task):
    """The shortest round length that holds the task, a sample of it, and the controls there are."""
    tokenizer = tokenizers.ByteTokenizer()
    if isinstance(task, tasks.ARTICLES):
        asked = tasks.Asked("When was the lamp first lit?", ("1847",), _ARTICLE.index("1847"))
        about = [tasks.Article("island", _ARTICLE, (asked,))]
    else:
        text = corpora.Document("ferry", _TEXT * 40)
        about = [documents.tokenize_document(text, tokenizer, min_tokens=4, max_tokens=80)]
    for length in (400, 800, 1600, 3200, 6400):
        options = {"length": length, "count": 1, "seed": 0, "bos": "<bos>", "first": 1}
        try:
            found = task.samples(about, tokenizer, **options)
        except ValueError:
            continue
        return length, found, [c for c in tasks.CONTROLS[1:] if _has(task, about, options, c)]
    raise ValueError(f"no length holds {task}")


def _has(task: tasks.Task, about, options, control: str) -> bool:
    try:
        task.samples(about, tokenizers.ByteTokenizer(), control=control, **options)
    except ValueError as error:
        if not re.search("control", str(error)):
            raise
        return False
    return True


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
