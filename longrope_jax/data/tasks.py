"""FIRST-SENTENCE-RETRIEVAL and passkey: how they are asked, taught and sampled.

Both are asked of any real text. A question is a prompt, the answer follows it. A task mixture puts
question and answer at a random place of a training window; a test sample puts them at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.errors import unknown_name

CONTROLS = ("none", "removed", "other")
_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo one are the evenest spread of depths


@dataclass(frozen=True)
class FirstSentence:
    """Return the first sentence of the text so far (Llama 2 Long section 4.1, Figure 5b).

    The paper gives no prompt. Here it is a special token, or any text.

    Attributes:
        prompt: a special token of the tokenizer, or text.
        end: the same, closes the answer.
    """

    prompt: str = "<retrieve>"
    end: str = "<answer_end>"


@dataclass(frozen=True)
class Passkey:
    """Return a random number that the text states once (landmark attention 2305.16300).

    Attributes:
        fact: text put into the haystack, with {key}.
        prompt: text of the question; the answer is the key's digits.
        digits: of the key, no leading zero.
    """

    fact: str = "The pass key is {key}. Remember it. {key} is the pass key. "
    prompt: str = "What is the pass key? The pass key is "
    digits: int = 5

    def __post_init__(self):
        if self.fact.count("{key}") < 1 or self.fact.replace("{key}", "").count("{"):
            raise ValueError(f"the fact must hold {{key}} and no other field, got {self.fact!r}")

    def draw(self, rng: np.random.Generator) -> str:
        """A key of `digits` digits."""
        return str(rng.integers(10 ** (self.digits - 1), 10**self.digits))


@dataclass(frozen=True, eq=False)
class Samples:
    """Test samples of one length T.

    Attributes:
        tokens: int32 [n, T]; BOS and context, prompt, answer, padding.
        answer: bool [n, T], the tokens of the answer.
        prompt_length: tokens before the answer, the same for every sample.
        documents: [n], the held-out document each comes from.
    """

    tokens: np.ndarray
    answer: np.ndarray
    prompt_length: int
    documents: np.ndarray

    def first(self, count: int) -> "Samples":
        """The first `count` samples."""
        return Samples(
            self.tokens[:count], self.answer[:count], self.prompt_length, self.documents[:count]
        )

    def references(self) -> list[np.ndarray]:
        """The answers' tokens."""
        return [row[mask] for row, mask in zip(self.tokens, self.answer, strict=True)]


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens of `text`, or the one id of a special token of that name."""
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
    """`count` samples of exactly `length` tokens, spread evenly over the documents.

    Args:
        control: "none"; "removed" leaves the sentence out of the context; "other" puts a random
            other sentence in its place. Both controls still ask for the original sentence.

    Raises:
        ValueError: unknown control, or a length that does not hold question and answer.
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
        rows.append((context, answer, document.name))
    return _assemble(rows, prompt, longest + len(end), length, stated=1 + longest)


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
    """`count` samples of exactly `length` tokens; the fact lies at an even spread of depths.

    Args and errors as `first_sentence_samples`; "removed" leaves the fact out, "other" states
    another key.
    """
    if control not in CONTROLS:
        raise ValueError(unknown_name("control", control, CONTROLS))
    rng = np.random.default_rng(seed)
    prompt, rows = tokenizer.encode(task.prompt), []
    drawn = [_draw_keys(task, documents[i % len(documents)], rng, length) for i in range(count)]
    longest = max(len(tokenizer.encode(key)) for _, key, _ in drawn)
    stated = 0
    for i, (start, key, other) in enumerate(drawn):
        document = documents[i % len(documents)]
        stated_key = {"none": key, "removed": None, "other": other}[control]
        fact = tokenizer.encode(task.fact.format(key=stated_key) if stated_key else "")
        room = length - 1 - len(fact) - len(prompt) - longest
        depth = round(max(room, 0) * (i * _GOLDEN % 1))
        text = document.tokens[start:]
        context = np.concatenate([[tokenizer.special(bos)], text[:depth], fact, text[depth:]])
        rows.append((context, tokenizer.encode(key), document.name))
        stated = max(stated, 1 + len(fact))
    return _assemble(rows, prompt, longest, length, stated)


def _draw_keys(task: Passkey, document: TokenizedDocument, rng: np.random.Generator, length: int):
    """Where the text starts, the key, and another key."""
    start, _ = _draw(document, rng, room=length)
    key, other = task.draw(rng), task.draw(rng)
    while other == key:
        other = task.draw(rng)
    return start, key, other


def _draw(document: TokenizedDocument, rng: np.random.Generator, *, room: int):
    """A random sentence with at least `room` tokens of text from its start on."""
    fits = np.searchsorted(document.starts, len(document.tokens) - room, side="right")
    if not fits:
        raise ValueError(f"{document.name} is shorter than a sample of {room} tokens")
    i = rng.integers(fits)
    return int(document.starts[i]), document.sentences[i]


def _another(documents: Sequence[TokenizedDocument], rng: np.random.Generator, sentence):
    """A random sentence, drawn again while it is the same as `sentence`."""
    for _ in range(100):
        _, other = _draw(documents[int(rng.integers(len(documents)))], rng, room=0)
        if not np.array_equal(other, sentence):
            break
    return other


def _assemble(rows, prompt, longest: int, length: int, stated: int) -> Samples:
    """Contexts cut to what prompt and longest answer leave, which must hold `stated` tokens."""
    prompt_length = length - longest
    room = prompt_length - len(prompt)
    if room < stated:
        raise ValueError(f"{length} tokens do not hold a question and its answer: take more")
    tokens = np.zeros((len(rows), length), np.int32)
    answer = np.zeros((len(rows), length), bool)
    for i, (context, reply, _) in enumerate(rows):
        row = np.concatenate([context[:room], prompt, reply])
        tokens[i, : len(row)] = row
        answer[i, prompt_length : len(row)] = True
    return Samples(tokens, answer, prompt_length, np.asarray([r[2] for r in rows]))
