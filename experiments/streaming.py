"""Tokens to text while they come: a character is printed once all its bytes are there."""

from collections.abc import Callable, Iterable

# UTF-8 leaves at most three bytes of a character waiting, so at most three tokens.
_WAITING = 3
_CONTEXT = 8  # tokens before the new ones, since a tokenizer may treat a text's beginning apart


class TextStream:
    """Decodes a growing sequence of tokens piece by piece.

    Args:
        decode: ids to text; what is no character as U+FFFD.
        prompt: ids before the first new one; they are not given back.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Iterable[int] = ()):
        self._decode = decode
        self._ids = list(prompt)[-_CONTEXT:]
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
