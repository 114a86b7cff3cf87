"""What a suite is made of: items with choices, and the groups whose scores are reported apart."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """An Item is one question of a suite.

    Attributes:
        choices: (context, continuation) of each choice; a single one is the right answer.
        label: index of the right choice.
        unconditional: (context, continuation) of each choice without the question, for
            "acc_uncond" alone.
        answers: texts that are right, where the suite is answered by generated text.
        stop: strings that end generated text.
        max_new_tokens: the most tokens of generated text.
        true: indices of all right choices, for "mc2" alone.
        groups: names under which its score is reported beside that of the whole suite.
    """

    choices: tuple[tuple[str, str], ...]
    label: int
    unconditional: tuple[tuple[str, str], ...] = ()
    answers: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 50
    true: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A Suite is a benchmark.

    Attributes:
        name: the archive's folder, such as "piqa/rc_0shot", or the path of a file.
        metric: how a choice is chosen, of `suites.METRICS`; "mc2"; or, where there is one
            continuation, "greedy" or "bits_per_byte".
        items: its questions, in the order of the file.
        rule: how generated text is compared with the answers, of `evaluation.suites.RULES`; ""
            where a suite is not answered by text.
        note: what a reader of its scores must know, or "".
    """

    name: str
    metric: str
    items: tuple[Item, ...]
    rule: str = ""
    note: str = ""


def interleaved(parts: Iterable[Iterable[Item]], limit: int | None) -> tuple[Item, ...]:
    """The items of several subjects by turns, so that the first n of them cover all subjects."""
    rounds = itertools.zip_longest(*parts)
    return tuple(itertools.islice((i for one in rounds for i in one if i is not None), limit))
