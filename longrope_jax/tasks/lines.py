"""LongEval's two tasks: numbers of named lines, and the first topic of a long conversation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from longrope_jax.tasks import vocabulary
from longrope_jax.tasks.samples import (
    AboutText,
    Encode,
    Fact,
    Question,
    until_full,
)

_TOKENS_PER_TOPIC = 600


@dataclass(frozen=True)
class Lines(AboutText):
    """The task asks for the number of one line among as many lines as fit (LongChat, LongEval).

    Source: DachengLi1/LongChat, longeval, whose wording this is; keys are an adjective and a noun
    and values run from 1 to 50,000. What no further line fits into is text before the record.
    Peers: LongChat takes the last integer of an answer, Giraffe the first; the prompt here ends
    with the beginning of the answer, "line KEY is <".

    Attributes:
        integer: which integer of a generated answer counts, "last" or "first".

    Raises:
        ValueError: `integer` is something else.
    """

    integer: Literal["last", "first"] = "last"

    def __post_init__(self):
        if self.integer not in ("last", "first"):
            raise ValueError(f"integer must be 'last' or 'first', got {self.integer!r}")

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return f"{self.integer}_integer"

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del length
        seed, value, key = vocabulary.child(rng), _value(rng), next(vocabulary.word_keys(rng))
        wrong = vocabulary.other_than(lambda: _value(rng), {value})

        def haystack(room: int, encode: Encode, _: bool) -> list[np.ndarray]:
            own = np.random.default_rng(seed)
            keys = (other for other in vocabulary.word_keys(own) if other != key)
            lines = (
                _line(other, vocabulary.other_than(lambda: _value(own), {value})) for other in keys
            )
            return until_full(lines, room, encode)

        return Question(
            (Fact(_line(key, value), depth, other=_line(key, wrong)),),
            f"Now the record is over. Tell me what is the <REGISTER_CONTENT> in line {key}? I need "
            f"the number.\nThe <REGISTER_CONTENT> in line {key} is <",
            value,
            opening="\n\nBelow is a record of lines I want you to remember. Each line begins with "
            "'line <line index>' and contains a '<REGISTER_CONTENT>' at the end of the line as a "
            "numerical value. For each line index, memorize its corresponding <REGISTER_CONTENT>. "
            "At the end of the record, I will ask you to retrieve the corresponding "
            "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n",
            haystack=haystack,
        )


def _value(rng: np.random.Generator) -> str:
    return str(rng.integers(1, 50_001))


def _line(key: str, value: str) -> str:
    return f"line {key}: REGISTER_CONTENT is <{value}>\n"


_SIDES = "history future price beauty science purpose rules dangers origin making trade love"
_THINGS = (
    "sailing baking chess tea bridges gardens maps clocks glass bees opera rain silk trains salt "
    "paper mountains bicycles coins wells songs ships bread cheese dance islands lighthouses "
    "markets mushrooms pottery rivers roses snow stars tides towers tunnels wine wool windmills"
)


@dataclass(frozen=True)
class Topics(AboutText):
    """The task asks for the first topic of a conversation about many (LongChat, LongEval topics).

    A topic begins every 600 tokens, as in the published set, whose conversations ChatGPT wrote and
    a language model judged. Here what is said of a topic is the text of the documents, and an
    answer is right if it names the topic.
    """

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "match_all"

    def ask(self, length: int, rng: np.random.Generator, depth: float) -> Question:
        """Draws a question, see `AboutText`."""
        del depth  # the first topic is what is asked for
        sides, things = _SIDES.split(), _THINGS.split()
        # The things differ, so that no topic is nearly another.
        things = [things[i] for i in rng.permutation(len(things))]
        named = [f"the {rng.choice(sides)} of {thing}" for thing in things]
        (topic, wrong, *rest), more = named, max(1, length // _TOKENS_PER_TOPIC) - 1
        rest = [rest[i % len(rest)] for i in range(more)]
        facts = [Fact(_topic(topic), 0.0, other=_topic(wrong))]
        facts += [Fact(_topic(x), (i + 1) / (more + 1), False) for i, x in enumerate(rest)]
        return Question(
            tuple(facts),
            "\nUSER: Now the record is over. What is the first topic we discussed?\nASSISTANT: The "
            "first topic is",
            f" {topic}",
            opening="Below is a record of our previous conversation on different topics. You are "
            "the ASSISTANT, and I am the USER. At the beginning of each topic, the USER will say "
            "'I would like to discuss the topic of <TOPIC>'. Memorize each <TOPIC>. At the end of "
            "the record, I will ask you to retrieve the first topic. Now the record start.",
            depth=0.0,
        )


def _topic(name: str) -> str:
    return f"\nUSER: I would like to discuss the topic of {name}.\nASSISTANT: "
