"""Text that comes as tokens do: whole characters at once, nothing from a stop string on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope_jax.data.tokenizers import ByteTokenizer
from longrope_jax.streaming import TextRows, TextStream

BYTES = ByteTokenizer()


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12), sizes=st.lists(st.integers(1, 5), min_size=60, max_size=60))
def test_streamed_characters_are_never_broken(text, sizes):
    """Every piece is whole characters, at once: no more than the last one waits."""
    ids, stream, given_ = BYTES.encode(text).tolist(), TextStream(BYTES.decode, [65]), ""
    for size in sizes:
        part, ids = ids[:size], ids[size:]
        piece = stream.add(part)
        given_ += piece
        assert text.startswith(given_)
    assert given_ + stream.close() == text


@settings(max_examples=60, deadline=None)
@given(data=st.lists(st.integers(0, 255), max_size=40), size=st.integers(1, 5))
def test_streamed_pieces_of_invalid_bytes_are_the_whole(data, size):
    """What can never become a character doesn't hold up what follows."""
    stream, given_ = TextStream(BYTES.decode), ""
    for start in range(0, len(data), size):
        given_ += stream.add(data[start : start + size])
        certain = BYTES.decode(data[: max(0, min(start + size, len(data)) - 3)]).rstrip("\ufffd")
        assert len(given_) >= len(certain)
    assert given_ + stream.close() == BYTES.decode(np.asarray(data, np.int64))


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text("abcé", max_size=20), min_size=1, max_size=3),
    stop=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    size=st.integers(1, 6),
)
def test_rows_end_before_their_first_stop_string(texts, stop, size):
    """However the tokens are cut: the streamed pieces, and what `close` gives, hold none of it."""
    pieces = [[] for _ in texts]

    def stream(new):
        for piece, text in zip(pieces, new, strict=True):
            piece.append(text)

    rows = TextRows(BYTES.decode, [[65]] * len(texts), stop, stream)
    ids = [BYTES.encode(text) for text in texts]
    ended = [False] * len(texts)
    for start in range(0, max(map(len, ids)), size):
        ended = rows.add([row[start : start + size] for row in ids])
    expected = []
    for text in texts:
        met = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
        expected.append(text[: min(met)[1]] if met else text)
    assert rows.close() == expected == ["".join(piece) for piece in pieces]
    assert all(
        text == cut for text, cut, end in zip(texts, expected, ended, strict=True) if not end
    )


@pytest.mark.parametrize("stop", [(), ("x",)])
def test_nothing_is_streamed_where_nothing_is_new(stop):
    found = []
    rows = TextRows(BYTES.decode, [[65]], stop, found.append)
    assert rows.add([np.array([0xC3])]) == [False] and found == []
    assert rows.add([np.array([0xA9])]) == [False] and found == [["é"]]
    assert rows.close() == ["é"] and found == [["é"]]
