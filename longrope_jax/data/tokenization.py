"""A corpus is made into a token cache once, by several processes, with bounded memory.

    tokenization.build("DIR_OF_TEXT", "CACHE", tokenizers.load("tokenizer.json"))

Each part of the corpus becomes one shard, whose name is the hash of its text and of the tokenizer.
A shard is written whole or not at all, so a run that was killed goes on with the parts that are
missing, and after a change of the corpus only what changed is tokenized again.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from longrope_jax.data import readers, token_cache, tokenizers
from longrope_jax.data.readers import Part
from longrope_jax.data.token_cache import BLOCK, FORMAT, INDEX, ShardRecord, TokenCache
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.folders import local, only_writer, sweep, write

PART = 2**25  # bytes of text in a part
_BATCH = 2**19  # characters that are encoded at a time
_HEADER = 128  # bytes of a .npy file before its array


@dataclass(frozen=True)
class Progress:
    """Progress is how far a tokenization is, given to a callback after every part.

    Attributes:
        parts: that are done, of `all_parts`; those of an earlier run among them.
        tokens: of those parts.
        fresh: tokens that this run has made.
        seconds: since it began.
    """

    parts: int
    all_parts: int
    tokens: int
    fresh: int
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens per second of this run."""
        return self.fresh / max(self.seconds, 1e-9)


def build(
    corpus: str | Path,
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    processes: int = 1,
    text: Iterable[str] = readers.TEXT,
    field: str = "text",
    part: int = PART,
    on_part: Callable[[Progress], None] | None = None,
) -> TokenCache:
    """Tokenizes what is missing of a corpus, and returns the cache.

    The result does not depend on `processes`, nor on how often the work was cut off. Shards of
    other texts that lie in the folder are removed at the end.

    Args:
        corpus: a file or folder, see `readers`.
        out: the cache's folder, on a local disk.
        tokenizer: makes the tokens.
        processes: that work at a time; 1 works in this one.
        text: suffixes of files that are one document each.
        field: of the text in JSON lines and parquet.
        part: bytes of text that become a shard; another value makes other shards.
        on_part: called after every part.

    Raises:
        ValueError: nothing to read, a damaged file or document (with its place), ids beyond the
            vocabulary, another process that writes into the folder, or one that was killed.
    """
    if processes < 1 or part < 1:
        raise ValueError(f"processes and part must be at least 1, got {processes} and {part}")
    folder = local(out)
    work = readers.parts(corpus, text=tuple(text), size=part)
    done: dict[int, ShardRecord] = {}
    begun, fresh = time.perf_counter(), 0
    with only_writer(folder):
        sweep(folder)
        _keep(tokenizer, folder)
        job = Job(folder, tokenizer, token_cache.tokenizer_hash(tokenizer), field)
        for number, record, made in _finished(job, work, processes):
            done[number] = record
            fresh += record.tokens * made
            if on_part:
                tokens = sum(shard.tokens for shard in done.values())
                seconds = time.perf_counter() - begun
                on_part(Progress(len(done), len(work), tokens, fresh, seconds))
        shards = [done[number] for number in range(len(work))]
        _finish(job, shards, str(corpus))
    return token_cache.open_cache(folder, tokenizer)


def from_tokens(
    documents: Iterable[np.ndarray], out: str | Path, tokenizer: Tokenizer
) -> TokenCache:
    """Makes a cache of documents that are tokens already, as one shard.

    Raises:
        ValueError: no token, ids beyond the vocabulary, or another process that writes there.
    """
    marked = [(tokens, _mark(np.asarray(tokens, "<u4").tobytes())) for tokens in documents]
    folder = local(out)
    with only_writer(folder):
        sweep(folder)
        _keep(tokenizer, folder)
        job = Job(folder, tokenizer, token_cache.tokenizer_hash(tokenizer), "")
        key = hashlib.sha256(
            f"{FORMAT} {job.mark} {[mark for _, mark in marked]}".encode()
        ).hexdigest()[:32]
        shard = _known(folder, key) or job.shard(marked, key, "the documents")
        _finish(job, [shard], "tokens")
    return token_cache.open_cache(folder, tokenizer)


@dataclass(frozen=True)
class Job:
    """A Job is what every process knows: where shards go, and what makes their tokens."""

    folder: Path
    tokenizer: Tokenizer
    mark: str
    field: str

    def __call__(self, part: Part) -> tuple[ShardRecord, bool]:
        """Makes the shard of a part, unless it is there; and whether it was made now.

        Raises:
            ValueError: the part is damaged, or has ids beyond the vocabulary.
        """
        name = f"{FORMAT} {self.mark} {self.field} {readers.digest(part)}"
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        known = _known(self.folder, key)
        if known:
            return known, False
        return self.shard(self._documents(part), key, part.files[0]), True

    def shard(
        self, documents: Iterable[tuple[np.ndarray | None, int]], key: str, where: str
    ) -> ShardRecord:
        """Writes (tokens, hash of the text) of documents as a shard, whole or not at all.

        Raises:
            ValueError: ids beyond the vocabulary.
        """
        size = self.tokenizer.vocab_size
        ends, hashes, left_out = [], [], 0
        path = self.folder / f"{key}.npy"
        with _Tokens(path, np.uint16 if size <= 2**16 else np.uint32) as file:
            for tokens, mark in documents:
                if tokens is None or not len(tokens):
                    left_out += 1
                    continue
                if int(tokens.max()) >= size or int(tokens.min()) < 0:
                    raise ValueError(f"{where} has ids beyond the vocabulary of {size:,}")
                file.append(tokens)
                ends.append(file.count)
                hashes.append(mark)
            sums = file.close()
        arrays = {
            "ends": np.asarray(ends, np.int64),
            "hashes": np.asarray(hashes, np.uint64),
            "checksums": np.asarray(sums, np.uint32),
            "left_out": np.int64(left_out),
        }
        # Written last: a shard is there when this file is.
        temporary = self.folder / f".{key}.{os.getpid()}.npz"
        np.savez(temporary, **arrays)
        os.replace(temporary, self.folder / f"{key}.npz")
        return ShardRecord(key, len(ends), file.count, left_out)

    def _documents(self, part: Part) -> Iterator[tuple[np.ndarray | None, int]]:
        """Tokens and hash of each document, in order; None for one that cannot be read."""
        texts, marks, held = [], [], 0
        for document in readers.documents(part, self.field):
            if isinstance(document, np.ndarray):
                yield document, _mark(document.astype("<u4").tobytes())
                continue
            try:
                data = (document or "").encode().strip()
            except UnicodeEncodeError:  # a lone surrogate, which JSON may hold
                data = b""
            if not document or not data:
                yield None, 0
                continue
            texts.append(document)
            marks.append(_mark(data))
            held += len(document)
            if held >= _BATCH:
                yield from zip(tokenizers.encode_many(self.tokenizer, texts), marks, strict=True)
                texts, marks, held = [], [], 0
        yield from zip(tokenizers.encode_many(self.tokenizer, texts), marks, strict=True)


class _Tokens:
    """A .npy file that grows, with a checksum of each block; it appears when it is closed."""

    def __init__(self, path: Path, dtype):
        self.count = 0
        self._path, self._dtype = path, np.dtype(dtype)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._temporary.open("wb")
        self._file.seek(_HEADER)
        self._sums: list[int] = []
        self._open = 0  # crc32 of the block that is not full yet

    def append(self, tokens: np.ndarray) -> None:
        tokens = tokens.astype(self._dtype)
        while len(tokens):
            room = BLOCK - self.count % BLOCK
            data = tokens[:room].tobytes()
            self._file.write(data)
            self._open = zlib.crc32(data, self._open)
            self.count += len(tokens[:room])
            tokens = tokens[room:]
            if self.count % BLOCK == 0:
                self._sums.append(self._open)
                self._open = 0

    def close(self) -> list[int]:
        """Writes the header, puts the file in its place, and returns the blocks' checksums."""
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        assert self._file.tell() == _HEADER
        self._file.truncate(_HEADER + self.count * self._dtype.itemsize)
        self._file.close()
        os.replace(self._temporary, self._path)
        return [*self._sums, self._open] if self.count % BLOCK else self._sums

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _finished(
    job: Job, work: list[Part], processes: int
) -> Iterator[tuple[int, ShardRecord, bool]]:
    """Number, shard and whether it is new, of each part as it ends."""
    if processes == 1:
        yield from ((number, *job(part)) for number, part in enumerate(work))
        return
    # A forked process would share the threads of jax, if the caller has it loaded.
    context, parent = get_context("spawn"), os.getpid()
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start, initargs=(job, parent)
    ) as pool:
        waiting = {pool.submit(_work, part): number for number, part in enumerate(work)}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield (waiting.pop(future), *future.result())
        except BrokenProcessPool as error:
            raise ValueError(
                "a process that tokenizes was killed, for memory perhaps: the same command goes on "
                "where it was, --processes 1 needs the least memory"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finish(job: Job, shards: list[ShardRecord], corpus: str) -> None:
    """Writes the index, and removes shards that are not in it."""
    if not any(shard.tokens for shard in shards):
        raise ValueError(f"{corpus} has no document with text")
    index = {
        "format": FORMAT,
        "corpus": corpus,
        "tokenizer": job.mark,
        "vocab_size": job.tokenizer.vocab_size,
        "shards": [asdict(shard) for shard in shards],
    }
    write(job.folder / INDEX, json.dumps(index, indent=1).encode())
    kept = {shard.key for shard in shards}
    for file in (*job.folder.glob("*.npy"), *job.folder.glob("*.npz")):
        if file.stem not in kept:
            file.unlink()


_job: Job | None = None


def _start(job: Job, parent: int) -> None:
    """Prepares a process, which ends when the one that started it is gone."""
    global _job
    _job = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the cores already

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(part: Part) -> tuple[ShardRecord, bool]:
    assert _job is not None
    return _job(part)


def _known(folder: Path, key: str) -> ShardRecord | None:
    """The shard that an earlier run made, if all of it is whole."""
    with contextlib.suppress(Exception):  # a damaged one is made anew
        shard = token_cache.open_shard(folder, key)
        shard.check()
        return ShardRecord(key, len(shard.ends), shard.tokens, shard.left_out)
    return None


def _mark(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _keep(tokenizer: Tokenizer, folder: Path) -> None:
    """Puts the tokenizer's file beside the tokens."""
    kinds = (tokenizers.HuggingFaceTokenizer, tokenizers.SentencePieceTokenizer)
    for name, kind in zip(token_cache.TOKENIZERS, kinds, strict=True):
        if isinstance(tokenizer, tokenizers.HuggingFaceTokenizer) and kind is type(tokenizer):
            write(folder / name, tokenizer.text().encode())
        elif isinstance(tokenizer, tokenizers.SentencePieceTokenizer) and kind is type(tokenizer):
            write(folder / name, Path(tokenizer.path).read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)
