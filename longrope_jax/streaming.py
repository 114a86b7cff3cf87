"""Tokens to text while they come: whole characters only, and nothing from a stop string on."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

# UTF-8 leaves at most three bytes of a character waiting, so at most three tokens.
_WAITING = 3
_CONTEXT = 8  # tokens before the new ones, since a tokenizer may treat a text's beginning apart


class TextStream:
    """Decodes a growing sequence of tokens piece by piece.

    Args:
        decode: ids to text; bytes that are no character come as U+FFFD.
        prompt: ids before the first new one; their text is not given back.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Iterable[int] = ()):
        self._decode = decode
        self._ids = [int(i) for i in prompt][-_CONTEXT:]
        self._done = len(self._ids)

    def add(self, ids: Iterable[int]) -> str:
        """The text that is certain after these tokens."""
        self._ids += [int(i) for i in ids]
        size = len(self._ids)
        for end in range(size, max(size - _WAITING, self._done) - 1, -1):
            if not self._decode(self._ids[:end]).endswith("\ufffd"):
                return self._up_to(end)
        return self._up_to(max(size - _WAITING, self._done))

    def close(self) -> str:
        """The rest, whether it makes a character or not."""
        return self._up_to(len(self._ids))

    def _up_to(self, end: int) -> str:
        before, text = self._decode(self._ids[: self._done]), self._decode(self._ids[:end])
        drop = max(0, self._done - _CONTEXT) if end > self._done else 0
        self._ids, self._done = self._ids[drop:], end - drop
        return text[len(before) :]


class TextRows:
    """The text of several rows while their tokens come; a row ends before its first stop string.

    `add` is what `generate.generate` takes as `stream`.

    Args:
        decode: ids to text, as in `TextStream`.
        prompts: token ids of each row before the first new one.
        stop: strings that end a row; none of them appears in the text.
        stream: is given each row's new text, a piece at a time; together they are the result.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompts: Sequence[Iterable[int]],
        stop: Sequence[str] = (),
        stream: Callable[[list[str]], object] | None = None,
    ):
        self._rows = [TextStream(decode, prompt) for prompt in prompts]
        self._texts = [""] * len(prompts)
        self._sent = [0] * len(prompts)
        self._ended = [False] * len(prompts)
        self._stop, self._stream = stop, stream

    def add(self, new: Sequence[np.ndarray]) -> list[bool]:
        """Takes new token ids of each row; which rows have met a stop string."""
        self._extend([row.add(ids) for row, ids in zip(self._rows, new, strict=True)])
        self._send(last=False)
        return list(self._ended)

    def close(self) -> list[str]:
        """The whole new text of each row, after its last piece has been streamed."""
        self._extend([row.close() for row in self._rows])
        self._send(last=True)
        return list(self._texts)

    def _extend(self, pieces: list[str]) -> None:
        for i, piece in enumerate(pieces):
            if not self._ended[i]:
                before, text = len(self._texts[i]), self._texts[i] + piece
                starts = [(s, text.find(s, max(0, before - len(s) + 1))) for s in self._stop]
                # The one that is whole first counts, however the text comes in pieces.
                met = [(at + len(s), at) for s, at in starts if at >= 0]
                self._texts[i] = text[: min(met)[1]] if met else text
                self._ended[i] = bool(met)

    def _send(self, *, last: bool) -> None:
        pieces = []
        for i, text in enumerate(self._texts):
            held = 0 if last or self._ended[i] else _begun(text, self._stop)
            start, self._sent[i] = self._sent[i], max(self._sent[i], len(text) - held)
            pieces.append(text[start : self._sent[i]])
        if self._stream is not None and any(pieces):
            self._stream(pieces)


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end could be the beginning of a stop string."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
