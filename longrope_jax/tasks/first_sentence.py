"""FIRST-SENTENCE-RETRIEVAL asks for the first sentence of the text (Llama 2 Long, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope_jax.tasks.samples import (
    Document,
    Row,
    Samples,
    Tokenizer,
    assemble,
    check_control,
    draw_sentence,
    encode,
    first_token,
)


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

    @property
    def rule(self) -> str:
        """Name of the scoring rule."""
        return "rouge_l"

    def samples(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        *,
        length: int,
        count: int,
        seed: int,
        bos: str | int | None,
        control: str = "none",
        first: int = 0,
    ) -> Samples:
        """Returns samples that begin with a sentence, see `Task.samples`.

        Control "removed" leaves the sentence out of the context; "other" puts a random other
        sentence in its place.

        Raises:
            ValueError: as `Task.samples`, or the documents have no other sentence.
        """
        check_control(control)
        rng = np.random.default_rng(seed)
        prompt, end = encode(tokenizer, self.prompt), encode(tokenizer, self.end)
        begin = first_token(tokenizer, bos)
        longest = max(len(s) for d in documents for s in d.sentences)
        rows = []
        for i in range(first, first + count):
            document = documents[i % len(documents)]
            start, sentence = draw_sentence(document, rng, room=length)
            other = _another(documents, rng, sentence)
            if control == "other" and np.array_equal(other, sentence):
                raise ValueError("the documents have no second sentence: control 'other' needs one")
            head = {"none": sentence, "removed": sentence[:0], "other": other}[control]
            body = document.tokens[start + len(sentence) :]
            answer = np.concatenate([sentence, end])
            context = np.concatenate([begin, head, body])
            wanted = (tokenizer.decode(sentence).strip(),)
            rows.append(Row(context, prompt, answer, document.name, 0.0, wanted))
        return assemble(rows, longest + len(end), length, stated=len(begin) + longest)


def _another(documents: Sequence[Document], rng: np.random.Generator, sentence):
    """Draws a sentence that differs from `sentence`, if 100 tries find one."""
    for _ in range(100):
        _, other = draw_sentence(documents[int(rng.integers(len(documents)))], rng, room=0)
        if not np.array_equal(other, sentence):
            break
    return other
