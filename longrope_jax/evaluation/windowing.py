"""Which tokens of a long document a window scores: one pass or sliding. Pure host code."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple


@dataclass(frozen=True)
class OnePass:
    """Documents cut into consecutive windows that predict `length` tokens each.

    No prediction sees the window before its own (the last window may be short), so tokens early
    in a window have little context: perplexities are higher than with `Sliding`. ValueError:
    length < 1.
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
        """As it stands in results."""
        return f"one-pass-{self.length}"


@dataclass(frozen=True)
class Sliding:
    """Windows of `length` predictions every `stride` tokens; each scores what is not yet scored.

    Press et al. (2012.15832), in the form of PI's and YaRN's papers (stride 256, every window with
    its own BOS): the scripts' max_length is our length + 1, since they never use the last output.
    `full_last` moves the last window back until it is full, as lm-evaluation-harness does:
    (max_seq_len, context_len) is Sliding(max_seq_len, max_seq_len - context_len + 1,
    full_last=True) on documents that begin with their one BOS. ValueError: stride outside
    1..length, for it would skip tokens.
    """

    length: int
    stride: int
    full_last: bool = False

    def __post_init__(self):
        _check_windowing(self.length, self.stride)

    @property
    def name(self) -> str:
        """As it stands in results."""
        return f"sliding-{self.length}-stride-{self.stride}" + "-full-last" * self.full_last


Windowing = OnePass | Sliding


class Window(NamedTuple):
    """Tokens start..end (exclusive) of a document, of which first..end are scored."""

    start: int
    end: int
    first: int


def score_windows(n_tokens: int, windowing: Windowing, *, bos: bool) -> list[Window]:
    """Windows over a document of `n_tokens`: each token is scored exactly once.

    With `bos` every window is preceded by one and has up to `length` tokens. Without, it has one
    more, since its first token is context alone; then the document's first token has no score.
    ValueError: no token to score.
    """
    check_scorable("the document", n_tokens, bos)
    span = windowing.length + (not bos)
    found, first = [], int(not bos)
    for start in range(0, n_tokens, windowing.stride):
        end = min(start + span, n_tokens)
        if windowing.full_last:
            start = max(0, end - span)  # moves the last window alone: the others are full
        found.append(Window(start, end, first))
        first = end
        if end == n_tokens:
            break
    return found


def check_scorable(what: str, n_tokens: int, bos: bool) -> None:
    """Raises ValueError where no token of `what` can be scored."""
    if n_tokens < 1:
        raise ValueError(f"{what} is empty")
    if n_tokens < 2 and not bos:
        raise ValueError(f"{what} has 1 token and nothing to predict it from: give a BOS token")


def _check_windowing(length: int, stride: int) -> None:
    if length < 1:
        raise ValueError(f"a window predicts at least 1 token, got length {length}")
    if not 1 <= stride <= length:
        raise ValueError(f"stride must lie in 1..{length} (the length) to skip none, got {stride}")
