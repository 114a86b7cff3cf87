"""A token cache is a corpus as tokens on disk, which is read in place by any number of runs.

    cache = token_cache.open_cache("DIR")           # what `longrope tokenize CORPUS --out DIR` made
    cache.tokens, cache.documents
    cache.shard(0).document(7)                      # int32 [n]

A folder holds `cache.json`, the tokenizer, and two files for each shard: `KEY.npy`, the tokens of
its documents one after another, and `KEY.npz`, where they end, the hash of each text and a checksum
of every block of tokens. KEY is the hash of text and tokenizer. The tokens are mapped into memory:
a host reads the pages of its own windows and no others, a window may begin at any token of a
document of any length, and numpy alone opens the file (a record of array_record would be read
whole, and a document longer than a window is the common case here). A block is checked when it is
first read, so a damaged one is found where it would be trained on, and nowhere is a pass over the
whole cache needed.
"""

import functools
import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longrope_jax.data import tokenizers
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.folders import fetched

INDEX = "cache.json"
FORMAT = 1
BLOCK = 2**16  # tokens that have a checksum
_OPEN = 128  # shards of a cache that are open at a time


@dataclass(frozen=True)
class ShardRecord:
    """A ShardRecord is what `cache.json` says of a shard.

    Attributes:
        key: name of its files, the hash of its text and of the tokenizer.
        documents, tokens: how many it holds.
        left_out: documents without text, or that are not UTF-8.
    """

    key: str
    documents: int
    tokens: int
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class Shard:
    """A Shard is the documents of one part of a corpus.

    Attributes:
        path: of the tokens.
        ends: int64 [m], where each document ends among the tokens.
        hashes: uint64 [m], of the documents' texts: equal texts have equal hashes.
        checksums: uint32 [blocks], crc32 of each block of `BLOCK` tokens.
        left_out: documents of the part without text, or that are not UTF-8.
    """

    path: Path
    ends: np.ndarray
    hashes: np.ndarray
    checksums: np.ndarray
    left_out: int
    _raw: np.ndarray = field(repr=False)
    _checked: np.ndarray = field(repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return len(self._raw)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop), int32, from blocks that are whole.

        Raises:
            ValueError: a block's checksum is wrong; the message names file and block.
        """
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            if not self._checked[block]:
                data = self._raw[block * BLOCK : (block + 1) * BLOCK]
                if zlib.crc32(data.tobytes()) != self.checksums[block]:
                    raise ValueError(
                        f"{self.path} is damaged in tokens {block * BLOCK:,} to "
                        f"{block * BLOCK + len(data):,}: run `longrope tokenize` "
                        "again, which makes it anew"
                    )
                self._checked[block] = True
        return self._raw[start:stop].astype(np.int32)

    def document(self, number: int) -> np.ndarray:
        """Returns the tokens of one document, int32 [n]."""
        return self.read(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def check(self) -> None:
        """Reads every block.

        Raises:
            ValueError: a block is damaged.
        """
        self.read(0, len(self._raw))


@dataclass(frozen=True, eq=False)
class TokenCache:
    """A TokenCache is the tokens of a corpus, in shards on disk.

    Attributes:
        folder: of the cache.
        shards: what each shard holds, in the order of the corpus.
        tokenizer_hash: sha256 of the tokenizer that made the tokens.
        vocab_size: of that tokenizer.
    """

    folder: Path
    shards: tuple[ShardRecord, ...]
    tokenizer_hash: str
    vocab_size: int

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return sum(shard.documents for shard in self.shards)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all texts and the tokenizer: two caches of one fingerprint hold the same."""
        keys = "".join(shard.key for shard in self.shards)
        return hashlib.sha256(keys.encode()).hexdigest()[:16]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens, from the cache's own folder.

        Raises:
            ValueError: its file was changed or is gone.
        """
        files = [name for name in TOKENIZERS if (self.folder / name).is_file()]
        found = tokenizers.load(self.folder / files[0] if files else "bytes")
        if tokenizer_hash(found) != self.tokenizer_hash:
            raise ValueError(f"{self.folder} does not hold the tokenizer of its tokens any more")
        return found

    def shard(self, number: int) -> Shard:
        """Opens a shard; its tokens stay on disk.

        Raises:
            ValueError: its files are gone or damaged.
        """
        return self._open(number)

    @functools.cached_property
    def _open(self):
        return functools.lru_cache(_OPEN)(
            lambda number: open_shard(self.folder, self.shards[number].key)
        )


TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def open_cache(folder: str | Path, tokenizer: Tokenizer | None = None) -> TokenCache:
    """Opens a cache; of the shards nothing is read.

    Args:
        folder: that `longrope tokenize` wrote.
        tokenizer: that the caller means to use; None is the cache's own.

    Raises:
        ValueError: there is no finished cache, or another tokenizer made it.
    """
    folder = fetched(folder)
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {INDEX}: `longrope tokenize CORPUS --tokenizer T --out {folder}` "
            "makes it, and goes on where it was cut off"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, this version reads {FORMAT}")
        shards = tuple(ShardRecord(**shard) for shard in found["shards"])
        cache = TokenCache(folder, shards, found["tokenizer"], found["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version: {error}") from error
    if tokenizer is not None and tokenizer_hash(tokenizer) != cache.tokenizer_hash:
        raise ValueError(
            f"{folder} was made with another tokenizer, of {cache.vocab_size:,} ids: run "
            f"`longrope tokenize` with {getattr(tokenizer, 'path', 'bytes')} into another folder"
        )
    return cache


def is_cache(folder: str | Path) -> bool:
    """Whether a folder holds a finished token cache."""
    return (fetched(folder) / INDEX).is_file()


def open_shard(folder: Path, key: str) -> Shard:
    """Opens the two files of a shard; its tokens stay on disk.

    Raises:
        ValueError: they are gone, damaged, or do not fit each other.
    """
    path = folder / f"{key}.npy"
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as parts:
            ends, hashes, sums = parts["ends"], parts["hashes"], parts["checksums"]
            left_out = int(parts["left_out"])
        count = int(ends[-1]) if len(ends) else 0
        # A file without tokens cannot be mapped.
        raw = np.load(path, mmap_mode="r" if count else None, allow_pickle=False)
        if raw.shape != (count,):
            raise ValueError(f"{raw.shape} tokens, documents have {count}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} or its .npz is gone or damaged ({error}): run `longrope tokenize` again, "
            "which makes it anew"
        ) from error
    return Shard(path, ends, hashes, sums, left_out, raw, np.zeros(len(sums), bool))


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns the sha256 of what decides a tokenizer's ids: its file, or for bytes its specials."""
    if isinstance(tokenizer, tokenizers.HuggingFaceTokenizer):
        data = tokenizer.text().encode()
    elif isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
        data = Path(tokenizer.path).read_bytes()
    else:
        data = repr(tokenizer).encode()
    return hashlib.sha256(data).hexdigest()
