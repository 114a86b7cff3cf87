"""FIRST-SENTENCE-RETRIEVAL and passkey retrieval can be asked of any real text.

A question is a prompt, and the answer follows it. A task mixture puts question and answer at a
random place of a training window; a test sample puts them at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.errors import unknown_name

CONTROLS = ("none", "removed", "other")
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo one spread depths as evenly as possible


@dataclass(frozen=True)
class FirstSentence:
    """The task asks for the first sentence of the text so far (Llama 2 Long 4.1, Figure 5b).

    The paper gives no prompt. Here the prompt is a special token, or any text.

    Attributes:
        prompt: a special token of the tokenizer, or text.
        end: a special token or text that closes the answer.
    """

    prompt: str = "<retrieve>"
    end: str = "<answer_end>"


@dataclass(frozen=True)
class Passkey:
    """The task asks for a random number that the text states once (2305.16300).

    Attributes:
        fact: text that states the key, with the field {key}. With a field {name} as well, the key
            has a random name of three letters, so that one text can state several keys.
        prompt: text of the question, with {name} where the fact has it; the answer is the digits of
            the key.
        digits: number of digits of the key, which has no leading zero.

    Raises:
        ValueError: `fact` has no field {key}, `prompt` has {key}, one of them alone has {name},
            there is another field, or `digits` is not from 1 to 18.
    """

    fact: str = "The pass key is {key}. Remember it. {key} is the pass key. "
    prompt: str = "What is the pass key? The pass key is "
    digits: int = 5

    def __post_init__(self):
        if not 1 <= self.digits <= 18:  # a key is a 64-bit number
            raise ValueError(f"digits must be from 1 to 18, got {self.digits}")
        rest = self.fact.replace("{key}", "").replace("{name}", "")
        if "{key}" not in self.fact or "{" in rest:
            raise ValueError(
                f"fact must hold {{key}}, with or without {{name}}, and no other field, got "
                f"{self.fact!r}"
            )
        if "{" in self.prompt.replace("{name}", ""):
            raise ValueError(f"prompt must hold no field but {{name}}, got {self.prompt!r}")
        if self.is_named != ("{name}" in self.prompt):
            raise ValueError(
                f"fact and prompt must both hold {{name}} or neither, got {self.fact!r} and "
                f"{self.prompt!r}"
            )

    @property
    def is_named(self) -> bool:
        """Whether keys have names, so that one text can state several."""
        return "{name}" in self.fact

    def draw(self, rng: np.random.Generator) -> str:
        """Returns a random key of `digits` digits."""
        return str(rng.integers(10 ** (self.digits - 1), 10**self.digits))

    def draw_name(self, rng: np.random.Generator) -> str:
        """Returns a random name of three consonants, or "" where keys have no names."""
        return "".join(rng.choice(list(_CONSONANTS), 3)) if self.is_named else ""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples are test samples of one length T.

    Attributes:
        tokens: int32 [n, T], each row BOS, context, prompt, answer and padding.
        answer: bool [n, T], true at the tokens of the answer.
        prompt_length: number of tokens before the answer, the same for every sample.
        documents: [n], name of the held-out document that each sample comes from.
    """

    tokens: np.ndarray
    answer: np.ndarray
    prompt_length: int
    documents: np.ndarray

    def first(self, count: int) -> "Samples":
        """Returns the first `count` samples."""
        return Samples(
            self.tokens[:count], self.answer[:count], self.prompt_length, self.documents[:count]
        )

    def last(self, length: int) -> "Samples":
        """Returns the samples cropped to their last `length` tokens, which hold every answer.

        Raises:
            ValueError: `length` does not reach back to an answer and the token before it.
        """
        left_out = self.tokens.shape[1] - length
        if not 0 <= left_out < self.prompt_length:
            answer = self.tokens.shape[1] - self.prompt_length
            raise ValueError(
                f"length must be from {answer + 1} to {self.tokens.shape[1]} tokens to hold the "
                f"answers, got {length}"
            )
        at = slice(left_out, None)
        tokens, answer = self.tokens[:, at], self.answer[:, at]
        return Samples(tokens, answer, self.prompt_length - left_out, self.documents)

    def references(self) -> list[np.ndarray]:
        """Returns the tokens of each answer."""
        return [row[mask] for row, mask in zip(self.tokens, self.answer, strict=True)]


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the tokens of `text`, or the one id of a special token of that name, int32 [T]."""
    if text in tokenizer.specials:
        return np.asarray([tokenizer.special(text)], np.int32)
    return tokenizer.encode(text)


def first_sentence_samples(
    task: FirstSentence,
    documents: Sequence[TokenizedDocument],
    tokenizer: Tokenizer,
    *,
    length: int,
    count: int,
    seed: int,
    bos: str,
    control: str = "none",
) -> Samples:
    """Returns `count` samples of exactly `length` tokens, spread evenly over the documents.

    Args:
        task: the task.
        documents: held-out documents.
        tokenizer: the tokenizer of the documents.
        length: tokens of a sample.
        count: number of samples.
        seed: seed of the draws.
        bos: name of the special token that begins a sample.
        control: "none"; "removed" leaves the sentence out of the context; "other" puts a random
            other sentence in its place. Both controls still ask for the original sentence.

    Raises:
        ValueError: the control is unknown, a document is shorter than `length`, the documents have
            no other sentence, or `length` does not hold question and answer.
    """
    if control not in CONTROLS:
        raise ValueError(unknown_name("control", control, CONTROLS))
    rng = np.random.default_rng(seed)
    prompt, end = encode(tokenizer, task.prompt), encode(tokenizer, task.end)
    longest = max(len(s) for d in documents for s in d.sentences)
    rows = []
    for i in range(count):
        document = documents[i % len(documents)]
        start, sentence = _draw(document, rng, room=length)
        other = _another(documents, rng, sentence)
        if control == "other" and np.array_equal(other, sentence):
            raise ValueError("the documents have no second sentence: control 'other' needs one")
        head = {"none": sentence, "removed": sentence[:0], "other": other}[control]
        body = document.tokens[start + len(sentence) :]
        answer = np.concatenate([sentence, end])
        context = np.concatenate([[tokenizer.special(bos)], head, body])
        rows.append(_Row(context, prompt, answer, document.name))
    return _assemble(rows, longest + len(end), length, stated=1 + longest)


def passkey_samples(
    task: Passkey,
    documents: Sequence[TokenizedDocument],
    tokenizer: Tokenizer,
    *,
    length: int,
    count: int,
    seed: int,
    bos: str,
    control: str = "none",
) -> Samples:
    """Returns `count` samples of exactly `length` tokens, with facts spread evenly over depths.

    Args:
        task: the task.
        documents: held-out documents.
        tokenizer: the tokenizer of the documents.
        length: tokens of a sample.
        count: number of samples.
        seed: seed of the draws.
        bos: name of the special token that begins a sample.
        control: "none"; "removed" leaves the fact out; "other" states another key. Both controls
            still ask for the original key.

    Raises:
        ValueError: the control is unknown, a document is shorter than `length`, or `length` does
            not hold question and answer.
    """
    if control not in CONTROLS:
        raise ValueError(unknown_name("control", control, CONTROLS))
    rng = np.random.default_rng(seed)
    rows = []
    drawn = [_draw_keys(task, documents[i % len(documents)], rng, length) for i in range(count)]
    longest = max(len(tokenizer.encode(key)) for _, key, _, _ in drawn)
    stated = 0
    for i, (start, key, other, name) in enumerate(drawn):
        document = documents[i % len(documents)]
        stated_key = {"none": key, "removed": None, "other": other}[control]
        fact = task.fact.format(key=stated_key, name=name) if stated_key else ""
        fact, prompt = tokenizer.encode(fact), tokenizer.encode(task.prompt.format(name=name))
        room = length - 1 - len(fact) - len(prompt) - longest
        depth = round(max(room, 0) * (i * _GOLDEN % 1))
        text = document.tokens[start:]
        context = np.concatenate([[tokenizer.special(bos)], text[:depth], fact, text[depth:]])
        rows.append(_Row(context, prompt, tokenizer.encode(key), document.name))
        stated = max(stated, 1 + len(fact))
    return _assemble(rows, longest, length, stated)


def _draw_keys(task: Passkey, document: TokenizedDocument, rng: np.random.Generator, length: int):
    """Draws where the text starts, the key, another key, and the key's name."""
    start, _ = _draw(document, rng, room=length)
    key, other = task.draw(rng), task.draw(rng)
    while other == key:
        other = task.draw(rng)
    return start, key, other, task.draw_name(rng)


def _draw(document: TokenizedDocument, rng: np.random.Generator, *, room: int):
    """Draws a sentence with at least `room` tokens of text from its start on."""
    fits = np.searchsorted(document.starts, len(document.tokens) - room, side="right")
    if not fits:
        raise ValueError(f"{document.name} is shorter than a sample of {room} tokens")
    i = rng.integers(fits)
    return int(document.starts[i]), document.sentences[i]


def _another(documents: Sequence[TokenizedDocument], rng: np.random.Generator, sentence):
    """Draws a sentence that differs from `sentence`, if 100 tries find one."""
    for _ in range(100):
        _, other = _draw(documents[int(rng.integers(len(documents)))], rng, room=0)
        if not np.array_equal(other, sentence):
            break
    return other


class _Row(NamedTuple):
    """One sample before its context is cut."""

    context: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    document: str


def _assemble(rows: Sequence[_Row], longest: int, length: int, stated: int) -> Samples:
    """Cuts contexts to the room that prompt and longest answer leave, at least `stated` tokens."""
    prompt_length = length - longest
    room = prompt_length - max(len(row.prompt) for row in rows)
    if room < stated:
        raise ValueError(
            f"length={length} tokens do not hold a question and its answer: take at least "
            f"{length + stated - room}"
        )
    tokens = np.zeros((len(rows), length), np.int32)
    answer = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        context = row.context[: prompt_length - len(row.prompt)]
        ids = np.concatenate([context, row.prompt, row.answer])
        tokens[i, : len(ids)] = ids
        answer[i, prompt_length : len(ids)] = True
    return Samples(tokens, answer, prompt_length, np.asarray([row.document for row in rows]))
