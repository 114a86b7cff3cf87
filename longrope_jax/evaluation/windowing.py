"""A windowing decides which tokens of a document each window scores: all of them, or the last.

This is pure host code.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple


@dataclass(frozen=True)
class OnePass:
    """OnePass cuts a document into consecutive windows that predict `length` tokens each.

    The last window may be short. No prediction sees the window before its own, so tokens early in
    a window have little context, and perplexities are higher than with `Sliding`.

    Attributes:
        length: tokens that a window predicts.

    Raises:
        ValueError: `length` is below 1.
    """

    length: int
    full_last: ClassVar[bool] = False

    def __post_init__(self):
        _check_windowing(self.length, self.length)

    @property
    def stride(self) -> int:
        """Tokens between the starts of windows."""
        return self.length

    @property
    def name(self) -> str:
        """The name of the windowing in results."""
        return f"one-pass-{self.length}"


@dataclass(frozen=True)
class Sliding:
    """Sliding begins a window of `length` predictions every `stride` tokens.

    Each window scores the tokens that no earlier window has scored. The method is by Press et al.
    (2012.15832), in the form of PI's and YaRN's papers, with stride 256 and a BOS before every
    window. Their scripts' max_length is `length` + 1, since they never use the last output.
    lm-evaluation-harness with (max_seq_len, context_len) is Sliding(max_seq_len,
    max_seq_len - context_len + 1, full_last=True) on documents that begin with their only BOS.

    Attributes:
        length: tokens that a window predicts.
        stride: tokens between the starts of windows.
        full_last: whether the last window moves back until it is full.

    Raises:
        ValueError: `length` is below 1, or `stride` lies outside 1..length and would skip tokens.
    """

    length: int
    stride: int
    full_last: bool = False

    def __post_init__(self):
        _check_windowing(self.length, self.stride)

    @property
    def name(self) -> str:
        """The name of the windowing in results."""
        return f"sliding-{self.length}-stride-{self.stride}" + "-full-last" * self.full_last


@dataclass(frozen=True)
class LastTokens:
    """LastTokens scores the last `last` tokens of a document, with as much before them as fits.

    It asks whether a longer context helps the same tokens: compare several lengths.

    Attributes:
        length: tokens that the only window predicts.
        last: tokens that it scores, fewer where the document is shorter.

    Raises:
        ValueError: `length` is below 1, or `last` lies outside 1..length.
    """

    length: int
    last: int
    full_last: ClassVar[bool] = False

    def __post_init__(self):
        _check_windowing(self.length, self.length)
        if not 1 <= self.last <= self.length:
            raise ValueError(f"last must lie in 1..{self.length} (the length), got {self.last}")

    @property
    def stride(self) -> int:
        """Tokens between the starts of windows: there is one window."""
        return self.length

    @property
    def name(self) -> str:
        """The name of the windowing in results."""
        return f"last-{self.last}-of-{self.length}"


Windowing = OnePass | Sliding | LastTokens


class Window(NamedTuple):
    """A Window is the tokens start..end (exclusive) of a document, with first..end scored."""

    start: int
    end: int
    first: int


def score_windows(n_tokens: int, windowing: Windowing, *, bos: bool) -> list[Window]:
    """Returns windows over a document of `n_tokens` that score no token twice, and mostly all.

    With `bos` a beginning token precedes every window, which has up to `length` tokens. Without it
    a window has one token more, because its first token is only context; the first token of the
    document then has no score.

    Raises:
        ValueError: the document has no token to score.
    """
    check_scorable("the document", n_tokens, bos)
    span = windowing.length + (not bos)
    if isinstance(windowing, LastTokens):
        start = max(0, n_tokens - span)
        return [Window(start, n_tokens, max(n_tokens - windowing.last, start + (not bos)))]
    found, first = [], int(not bos)
    for start in range(0, n_tokens, windowing.stride):
        end = min(start + span, n_tokens)
        if windowing.full_last:
            start = max(0, end - span)  # this moves only the last window, as all others are full
        found.append(Window(start, end, first))
        first = end
        if end == n_tokens:
            break
    return found


def check_scorable(what: str, n_tokens: int, bos: bool) -> None:
    """Checks that some token can be scored.

    Raises:
        ValueError: no token of `what` can be scored.
    """
    if n_tokens < 1:
        raise ValueError(f"{what} is empty")
    if n_tokens < 2 and not bos:
        raise ValueError(
            f"{what} has 1 token and nothing to predict it from: give a BOS token (bos)"
        )


def _check_windowing(length: int, stride: int) -> None:
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    if not 1 <= stride <= length:
        raise ValueError(
            f"stride must lie in 1..{length} (the length) to skip no token, got {stride}"
        )
