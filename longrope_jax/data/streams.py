"""The documents of a token cache, one after another, as a stream that is read anywhere.

    stream = Stream(token_cache.open_cache("DIR"), bos=1)
    tokens, first = stream.read(start, stop)

Each document is a beginning token and its own tokens. Nothing of the stream is held in memory but
where the documents of the shards that were last read begin.
"""

import functools
from dataclasses import dataclass

import numpy as np

from longrope_jax.data.token_cache import TokenCache

_TABLES = 128  # shards whose documents are held as a table


@dataclass(frozen=True, eq=False)
class Stream:
    """A Stream is the chosen documents of a cache, one after another.

    Attributes:
        cache: of the tokens.
        bos: id that begins a document.
        least, greatest: documents of fewer or more tokens are left out; 0 is no bound.
        cut: documents are cut into pieces of so many tokens, which then are documents of their own;
            0 leaves them whole.
        without: hashes of texts that are left out, such as those held out.

    Raises:
        ValueError: a bound is negative, or no document is left.
    """

    cache: TokenCache
    bos: int
    least: int = 0
    greatest: int = 0
    cut: int = 0
    without: frozenset[int] = frozenset()

    def __post_init__(self):
        for name in ("least", "greatest", "cut"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or a number of tokens, got {self.bounds}")
        if not len(self):
            raise ValueError(f"no document of {self.cache.folder} has the tokens of {self.bounds}")

    @property
    def bounds(self) -> str:
        """Which documents are chosen, in words."""
        return f"least={self.least}, greatest={self.greatest}, cut={self.cut}"

    def __len__(self) -> int:
        return int(self._edges[-1])

    @functools.cached_property
    def _edges(self) -> np.ndarray:
        """Positions of the stream at which the shards begin, and its length, int64 [shards + 1]."""
        plain = not (self.least or self.greatest or self.cut or self.without)
        sizes = [
            shard.tokens + shard.documents if plain else int(self._table(i)[0][-1])
            for i, shard in enumerate(self.cache.shards)
        ]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    @functools.cached_property
    def _table(self):
        return functools.lru_cache(_TABLES)(self._documents)

    def _documents(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the chosen documents of a shard.

        Returns:
            Where each begins in this shard's part of the stream, and that part's length [m + 1];
            where each begins in the shard [m]; tokens of each [m].
        """
        opened = self.cache.shard(shard)
        sizes = np.diff(opened.ends, prepend=0)
        kept = sizes >= self.least
        if self.greatest:
            kept &= sizes <= self.greatest
        if self.without:
            kept &= ~np.isin(opened.hashes, np.asarray(sorted(self.without), np.uint64))
        starts, sizes = (opened.ends - sizes)[kept], sizes[kept]
        pieces = -(-sizes // self.cut) if self.cut else 1
        begins = np.concatenate([[0], np.cumsum(sizes + pieces)])
        return begins, starts, sizes

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns positions [start, stop) of the stream, which goes on from its end at its start.

        Returns:
            tokens int32 [n], and bool [n], which of them begin a document.

        Raises:
            ValueError: a block of the cache is damaged.
        """
        tokens, first = np.empty(stop - start, np.int32), np.zeros(stop - start, bool)
        done, at = 0, start % len(self)
        while done < len(tokens):
            shard = int(np.searchsorted(self._edges, at, side="right")) - 1
            begins, starts, sizes = self._table(shard)
            at -= int(self._edges[shard])
            document = int(np.searchsorted(begins, at, side="right")) - 1
            while done < len(tokens) and document < len(sizes):
                low = at - int(begins[document])
                high = min(int(begins[document + 1] - begins[document]), low + len(tokens) - done)
                size = self.cut or int(sizes[document])
                piece, offset = np.divmod(np.arange(low, high), size + 1)
                is_first = offset == 0
                place = piece * size + offset - 1
                out = tokens[done : done + high - low]
                if (own := place[~is_first]).size:
                    a, b = int(starts[document] + own[0]), int(starts[document] + own[-1]) + 1
                    out[~is_first] = self.cache.shard(shard).read(a, b)
                out[is_first] = self.bos
                first[done : done + high - low] = is_first
                done, at, document = done + high - low, at + high - low, document + 1
            at = (at + int(self._edges[shard])) % len(self)
        return tokens, first


def held_out(
    cache: TokenCache, *, count: int, least: int = 0
) -> tuple[list[tuple[int, np.ndarray]], frozenset[int]]:
    """Chooses documents to hold out: those whose texts have the smallest hashes.

    The choice needs no seed and holds while a corpus grows, as far as no new document comes before
    it; documents of equal text fall on the same side.

    Args:
        cache: to choose from; its hashes and lengths are read once.
        count: of documents.
        least: tokens that each of them has.

    Returns:
        (hash, tokens) of each document, and the hashes, which training leaves out.

    Raises:
        ValueError: too few documents are so long.
    """
    best: dict[int, tuple[int, int]] = {}
    for shard in range(len(cache.shards)):
        opened = cache.shard(shard)
        long = np.flatnonzero(np.diff(opened.ends, prepend=0) >= least)
        for at in long[np.argsort(opened.hashes[long])[: 2 * count]].tolist():
            best.setdefault(int(opened.hashes[at]), (shard, at))
        best = dict(sorted(best.items())[:count])
    if len(best) < count:
        raise ValueError(
            f"{cache.folder} has {len(best)} documents of {least:,} tokens or more, not {count}: "
            "hold out fewer, or shorter ones"
        )
    found = [(mark, cache.shard(s).document(at)) for mark, (s, at) in best.items()]
    return found, frozenset(best)
