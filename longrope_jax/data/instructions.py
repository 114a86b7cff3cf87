"""Windows of instruction tuning: short questions packed, long ones alone, and text in between.

Llama 2 Long (2309.16039, section 2.2) concatenates short instances to the window's length, gives
each long instance a window of its own, padded and never cut, and adds the language modelling loss
over the long prompts to that over the answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from longrope_jax.data.packing import WindowMaker
from longrope_jax.tasks import samples

_LEAST_TEXT = 8  # tokens of a document that surround what is asked for, at least


class Pair(NamedTuple):
    """A question about a document that somebody wrote.

    Attributes:
        document: name of the document.
        start, end: tokens of the document that hold the answer, [start, end).
        question: text of the question.
        answer: text of the answer, which follows the question.
    """

    document: str
    start: int
    end: int
    question: str
    answer: str


@dataclass(frozen=True)
class Instruct:
    """Instruct says what the windows of instruction tuning hold; shares are of windows.

    Attributes:
        task: a task that asks of any text (`tasks.samples.AboutText`), such as Passkey.
        short: share of windows that are packed with short instances.
        long: share of windows with one long instance alone.
        shortest: least tokens of a short instance.
        longest: greatest tokens of a short instance; a long one has more, up to the window. Lengths
            are log-uniform.
        prompt_weight: loss weight of the text and question of long instances; answers have 1.
        written: share of instances that ask a pair instead of the task, where there are pairs.
        form: text around a pair's question, which the answer follows.

    The rest of the windows is text with weight 1.

    Raises:
        ValueError: shares below 0 or above 1 together, or lengths out of order.
    """

    task: Any
    short: float = 0.0
    long: float = 0.0
    shortest: int = 64
    longest: int = 256
    prompt_weight: float = 0.0
    written: float = 0.5
    form: str = "\n\nQuestion: {question}\nAnswer: "

    def __post_init__(self):
        shares = (self.short, self.long, self.written)
        if min(shares) < 0 or self.short + self.long > 1 or self.written > 1:
            raise ValueError(f"short, long and written must be shares, got {shares}")
        if not 0 < self.shortest <= self.longest:
            raise ValueError(
                f"shortest must lie in 1..longest={self.longest} tokens, got {self.shortest}"
            )


@dataclass(frozen=True, eq=False)
class InstructionMaker:
    """An InstructionMaker makes windows for `packing.iterator`, as a WindowMaker does.

    Attributes:
        plain: makes windows of text, and knows the documents, the tokenizer and the length.
        instruct: what else windows hold.
        pairs: questions about the documents.

    Raises:
        ValueError: there are no documents in memory, a pair names another document, or long
            instances would have no room.
    """

    plain: WindowMaker
    instruct: Instruct
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self):
        known = {document.name for document in self.plain.documents}
        other = [pair.document for pair in self.pairs if pair.document not in known]
        if not known or other:
            why = f"a pair is about {other[0]!r}" if other else "there are none"
            raise ValueError(f"questions need the documents that are trained on in memory: {why}")
        if self.instruct.long and self.instruct.longest >= self.plain.length:
            raise ValueError(
                f"longest={self.instruct.longest} leaves no length for long instances in windows "
                f"of {self.plain.length} tokens"
            )

    def __len__(self) -> int:
        return len(self.plain)

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns one window: `tokens`, `weights` and `segment_start`, as `WindowMaker` does."""
        own, kind = self.instruct, rng.random()
        if kind >= own.short + own.long:
            return self.plain(number, rng)
        if kind >= own.short:
            size = _log_uniform(own.longest + 1, self.plain.length + 1, rng)
            return self._window([self._instance(size, own.prompt_weight, rng)])
        instances, room = [], self.plain.length + 1
        while room >= own.shortest:
            size = _log_uniform(own.shortest, min(own.longest, room), rng)
            instances.append(self._instance(size, 0.0, rng))
            room -= len(instances[-1][0])
        return self._window(instances)

    def _window(self, instances) -> dict[str, np.ndarray]:
        """Instances one after another and padding, each a segment of its own."""
        room = self.plain.length + 1 - sum(len(tokens) for tokens, _ in instances)
        parts = [*instances, (np.zeros(room, np.int32), np.zeros(room))]
        sizes = [len(tokens) for tokens, _ in parts]
        starts = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
        return {
            "tokens": np.concatenate([tokens for tokens, _ in parts]).astype(np.int32),
            "weights": np.concatenate([weights for _, weights in parts])[1:].astype(np.float32),
            "segment_start": starts[:-1].astype(np.int32),
        }

    def _instance(self, size: int, prompt_weight: float, rng: np.random.Generator):
        """Draws a text with its question and answer, `size` tokens at most, and their weights."""
        pair = (
            self._pair(size, rng) if self.pairs and rng.random() < self.instruct.written else None
        )
        if pair is not None:
            tokens, answer = pair
            return tokens, np.where(answer, 1.0, prompt_weight)
        drawn = samples.drawn(
            self._asked(size),
            self.plain.tokenizer,
            length=size,
            count=1,
            seed=int(rng.integers(2**31)),
            bos=self.plain.bos,
        )
        end = np.flatnonzero(drawn.answer[0])[-1] + 1
        return drawn.tokens[0, :end], np.where(drawn.answer[0, :end], 1.0, prompt_weight)

    def _asked(self, size: int) -> Callable:
        """The task's question in a random document, its fact at a random depth."""
        found = self.plain.documents
        documents = [d for d in found if len(d.starts) and len(d.tokens) - d.starts[0] >= size]
        if not documents:
            raise ValueError(f"no document that is trained on holds an instance of {size} tokens")
        ask = self.instruct.task.ask
        about = samples.about_text(lambda rng, depth: ask(size, rng, depth), documents, size)
        return lambda rng, i, depth: about(rng, int(rng.integers(len(documents))), rng.random())

    def _pair(self, size: int, rng: np.random.Generator):
        """A pair within text of its document, and which tokens answer; None without room."""
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        encode, bos = self.plain.tokenizer.encode, self.plain.tokenizer.special(self.plain.bos)
        prompt = encode(self.instruct.form.format(question=pair.question))
        answer = encode(pair.answer + "\n")
        text = next(d.tokens for d in self.plain.documents if d.name == pair.document)
        room = min(size - 1 - len(prompt) - len(answer), len(text))
        if room < pair.end - pair.start + _LEAST_TEXT:
            return None
        first = max(pair.end - room, 0)
        start = int(rng.integers(first, max(min(pair.start, len(text) - room), first) + 1))
        tokens = np.concatenate([[bos], text[start : start + room], prompt, answer])
        return tokens.astype(np.int32), np.arange(len(tokens)) >= len(tokens) - len(answer)


def _log_uniform(least: int, most: int, rng: np.random.Generator) -> int:
    """A number of tokens from `least` to `most`."""
    return int(least * (max(most, least) / least) ** rng.random())
