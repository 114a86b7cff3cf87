"""A corpus becomes tokens on disk once: the same tokens, killed or not, and no damage unseen."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tokenizer_json

from longrope_jax import cli
from longrope_jax.data import bpe, readers, token_cache, tokenization, tokenizers
from longrope_jax.data.tokenizers import ByteTokenizer

TEXTS = [
    "One line.",
    "道可道，非常道。\n名可名，非常名。",
    "def f(x):\n    return {x: [x ** 2]}\n",
    "0 1 1 0\n" * 300,
    "}{)(",
    "naïve 👩‍👩‍👧‍👦 \u2028 a long one " * 99,
]


def lines(texts=TEXTS, **more) -> bytes:
    objects = [{"text": text, "id": str(i)} | more for i, text in enumerate(texts)]
    return "".join(
        json.dumps(o, ensure_ascii=i % 2 > 0) + "\n" for i, o in enumerate(objects)
    ).encode()


def corpus(folder: Path, data: bytes | None = None, name: str = "a.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(lines() if data is None else data)
    return folder


def documents(cache: token_cache.TokenCache) -> list[list[int]]:
    shards = [cache.shard(i) for i in range(len(cache.shards))]
    return [shard.document(i).tolist() for shard in shards for i in range(len(shard.ends))]


def build(tmp_path, corpus, tokenizer=None, **options):
    return tokenization.build(corpus, tmp_path / "out", tokenizer or ByteTokenizer(), **options)


def a_tokenizer(kind: str, folder: Path):
    if kind == "json":
        (folder / "tokenizer.json").write_text(tokenizer_json())
        return tokenizers.load(folder / "tokenizer.json")
    if kind == "model":
        model = bpe.learn(["the cat sat on the mat 0123456789 " * 9], vocab_size=290)
        (folder / "t.model").write_bytes(model)
        return tokenizers.load(folder / "t.model")
    return ByteTokenizer()


@pytest.mark.parametrize("kind", ["bytes", "json", "model"])
@pytest.mark.parametrize("part", [1, 100, 10**6])
def test_cache_holds_what_the_tokenizer_gives(tmp_path, kind, part):
    tokenizer = a_tokenizer(kind, tmp_path)
    texts = ["the cat 7", "a thin  cat ", "x" * 3000] if kind == "json" else TEXTS
    cache = build(tmp_path, corpus(tmp_path / "in", lines(texts)), tokenizer, part=part)
    assert documents(cache) == [tokenizer.encode(text).tolist() for text in texts]
    assert cache.tokens == sum(map(len, documents(cache))) and cache.documents == len(texts)
    assert len(cache.shards) == {1: len(texts), 10**6: 1}.get(part, len(cache.shards))
    again = token_cache.open_cache(tmp_path / "out")
    assert again.tokenizer.encode(texts[0]).tolist() == documents(again)[0]
    assert again.fingerprint == cache.fingerprint


def test_processes_change_nothing(tmp_path):
    folder = corpus(tmp_path / "in")
    one = tokenization.build(folder, tmp_path / "1", ByteTokenizer(), part=200)
    tokenization.build(folder, tmp_path / "2", ByteTokenizer(), part=200, processes=2)
    assert len(one.shards) > 2
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in files:
        if not name.endswith(".npz"):  # zip archives hold the time
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz", "b/a.json.zst"])
def test_lines_of_datatrove_and_dolma_are_read_compressed_or_not(tmp_path, name):
    data = lines(source="dolma", added="2023", metadata={"url": "x"})
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        zstandard = pytest.importorskip("zstandard", reason="pip install zstandard to test .zst")
        data = zstandard.compress(data)
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    cache = build(tmp_path, corpus(tmp_path / "in", data, name), part=100)
    assert documents(cache) == [ByteTokenizer().encode(text).tolist() for text in TEXTS]


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow to test parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"content": [*TEXTS, None], "id": [str(i) for i in range(7)]})
    parquet.write_table(table, tmp_path / "a.parquet")
    cache = build(tmp_path, tmp_path / "a.parquet", field="content")
    assert documents(cache) == [ByteTokenizer().encode(text).tolist() for text in TEXTS]
    assert cache.shards[0].left_out == 1
    with pytest.raises(ValueError, match=r"no column 'text', it has content, id.*--field"):
        build(tmp_path, tmp_path / "a.parquet")


def test_text_files_are_a_document_each_with_unix_newlines(tmp_path):
    folder = corpus(tmp_path / "in", b"\xef\xbb\xbfone\r\ntwo\r", "a.txt")
    corpus(folder, b"x = 1\n", "b.py")
    corpus(folder, b"\xff\xfe", "c.txt")
    corpus(folder, b" \n", "d.txt")
    cache = build(tmp_path, folder, text=(".txt", ".py"))
    assert documents(cache) == [[*b"one\ntwo\n"], [*b"x = 1\n"]]
    assert cache.shards[0].left_out == 2
    assert documents(build(tmp_path, folder)) == [[*b"one\ntwo\n"]]


def test_safetensors_of_tokens_are_read(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {"a": np.arange(5, dtype=np.int64), "b": np.arange(6, dtype=np.uint16).reshape(2, 3)}
    numpy.save_file(tensors, tmp_path / "a.safetensors")
    found = documents(build(tmp_path, tmp_path / "a.safetensors"))
    assert found == [[0, 1, 2, 3, 4], [0, 1, 2], [3, 4, 5]]
    numpy.save_file({"a": np.asarray([260])}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="beyond the vocabulary of 260"):
        build(tmp_path, tmp_path / "a.safetensors")


def test_only_what_changed_is_tokenized_again(tmp_path):
    made = []
    folder = corpus(tmp_path / "in")
    corpus(folder, lines(["more"]), "b.jsonl")

    def run(**options):
        made.clear()
        return build(tmp_path, folder, on_part=lambda p: made.append(p.fresh), **options)

    first = run()
    assert made[-1] == first.tokens
    assert run().fingerprint == first.fingerprint and made == [0, 0]
    (folder / "a.jsonl").rename(folder / "0.jsonl")
    assert run().fingerprint == first.fingerprint and made == [0, 0]
    corpus(folder, lines(["less"]), "b.jsonl")
    assert run().fingerprint != first.fingerprint and made[-1] == 4
    assert len(list((tmp_path / "out").glob("*.npy"))) == 2  # the old shard is gone


def test_another_tokenizer_makes_another_cache(tmp_path):
    folder = corpus(tmp_path / "in")
    one = build(tmp_path, folder)
    other = ByteTokenizer(("<bos>",))
    with pytest.raises(ValueError, match="another tokenizer"):
        token_cache.open_cache(tmp_path / "out", other)
    assert build(tmp_path, folder, other).fingerprint != one.fingerprint


def test_a_flipped_bit_is_noticed_where_it_is_read_and_mended(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "BLOCK", 64)
    monkeypatch.setattr(tokenization, "BLOCK", 64)
    folder = corpus(tmp_path / "in")
    cache = build(tmp_path, folder)
    want = documents(cache)
    [file] = (tmp_path / "out").glob("*.npy")
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(128, len(whole), 20).tolist():
        data = bytearray(whole)
        data[at] ^= 4
        file.write_bytes(data)
        shard = token_cache.open_cache(tmp_path / "out").shard(0)
        bad = (at - 128) // 2
        with pytest.raises(ValueError, match=r"is damaged in tokens .*longrope tokenize"):
            shard.read(bad, bad + 1)
        shard.read(0, bad // 64 * 64)  # the blocks before are whole
        with pytest.raises(ValueError, match="is damaged"):
            shard.check()
    assert documents(build(tmp_path, folder)) == want
    for victim in (*(tmp_path / "out").glob("*.npz"), file):
        for data in (b"", victim.read_bytes()[:-9]):
            victim.write_bytes(data)
            with pytest.raises(ValueError, match="gone or damaged"):
                token_cache.open_cache(tmp_path / "out").shard(0)
            assert documents(build(tmp_path, folder)) == want


def test_killed_at_any_moment_it_ends_the_same(tmp_path):
    """SIGKILL at random moments, workers too, until it ends: the same files as in one go."""
    folder = corpus(tmp_path / "in", lines(["w" * 2000 + str(i) for i in range(200)]))
    want = tokenization.build(folder, tmp_path / "whole", ByteTokenizer(), part=5000)
    command = [sys.executable, "-c", _SLOW, str(folder), str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    rng, killed = np.random.default_rng(1), 0

    def shards() -> int:
        return len(list((tmp_path / "out").glob("*.npz")))

    for _ in range(40):
        # By progress, not by the clock, so that machines of every speed are killed as often.
        aim, process = shards() + rng.integers(3, 30), subprocess.Popen(command, cwd=root)
        while process.poll() is None and shards() < aim:
            time.sleep(0.001 * rng.random())
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert killed >= 2
    found = token_cache.open_cache(tmp_path / "out")
    assert found.fingerprint == want.fingerprint and documents(found) == documents(want)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.endswith(".tmp")]


_SLOW = """
import sys, time
from longrope_jax.data import tokenization, tokenizers
tokenization.build(*sys.argv[1:], tokenizers.ByteTokenizer(), part=5000,
                   on_part=lambda now: time.sleep(0.02 * (now.fresh > 0)))
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    folder = corpus(tmp_path / "in", lines(["w" * 99] * 4000))
    code = _SLOW.replace("part=5000", "part=500, processes=2")
    file = tmp_path / "main.py"  # spawned processes import the main file again
    file.write_text(f"if __name__ == '__main__':\n{code.replace(chr(10), chr(10) + '    ')}")
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, str(file), str(folder), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment)
    while not list((tmp_path / "out").glob("*.npz")):
        time.sleep(0.05)
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"content": "b"}\n', "line 2: no string.*content.*--field"),
        ("a.jsonl", b"[1]\n", "no string in the field 'text'"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is not JSON in UTF-8"),
        ("a.jsonl.gz", gzip.compress(lines())[:-20], "is damaged at line"),
        ("a.py", b"x", r"1 of \.py: name the suffixes.*--text"),
        ("a.jsonl", b"\n \n", "no document with text"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path, name, data, match):
    with pytest.raises(ValueError, match=match):
        build(tmp_path, corpus(tmp_path / "in", data, name))
    assert not token_cache.is_cache(tmp_path / "out")


def test_a_lone_surrogate_leaves_its_document_out(tmp_path):
    cache = build(tmp_path, corpus(tmp_path / "in", b'{"text": "\\ud800"}\n{"text": "a"}\n'))
    assert documents(cache) == [[97]] and cache.shards[0].left_out == 1


def test_command_says_what_it_made(tmp_path, capsys):
    words = [str(corpus(tmp_path / "in")), "--tokenizer", "bytes", "--out", str(tmp_path / "out")]
    assert cli.main(["tokenize", *words, "--processes", "1"]) == 0
    shown = capsys.readouterr()
    assert "tokens of 6 documents in 1 shards" in shown.out and "tokens/s" in shown.err
    assert cli.main(["tokenize", str(tmp_path / "none"), *words[1:]]) == 2
    assert "no file or folder" in capsys.readouterr().err


def test_processes_that_tokenize_load_no_jax():
    code = "import sys, longrope_jax.data.tokenization; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_parts_hold_every_line_once(tmp_path):
    file = corpus(tmp_path / "in") / "a.jsonl"
    for size in (1, 7, 64, 500, 10**6):
        parts = readers.parts(file, size=size)
        read = [text for part in parts for text in readers.documents(part)]
        assert read == TEXTS
        assert sum(part.size for part in parts) == file.stat().st_size


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_line_without_end_takes_neither_memory_nor_time(suffix, tmp_path, monkeypatch):
    """512 MB of one line, of a file that is far smaller; measured with a limit of 1 MiB."""
    monkeypatch.setattr(readers, "_LONGEST", 2**20)
    if suffix == ".gz":
        compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
        pieces = [compressor.compress(b"a" * 2**20) for _ in range(512)]
        data = b"".join(pieces) + compressor.flush()
    else:
        data = pytest.importorskip("zstandard").compress(b"a" * 2**29)
    file = tmp_path / f"endless.jsonl{suffix}"
    file.write_bytes(data)
    tracemalloc.start()
    began = time.process_time()
    (part,) = readers.parts(file, size=2**30)
    with pytest.raises(ValueError, match=r"line 1: a line has more than 1,048,576 bytes") as error:
        list(readers.documents(part))
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24 and seconds < 2 and "\n" not in str(error.value)


def test_parts_of_a_file_are_cut_without_reading_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST", 2**16)
    file = tmp_path / "endless.jsonl"
    file.write_bytes(b"a" * 2**26)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"byte 999: a line has more than 65,536 bytes"):
        readers.parts(file, size=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_fields_of_a_hostile_document_are_not_all_printed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({f"field{i}": 1 for i in range(100_000)}) + "\n")
    (part,) = readers.parts(file, size=2**30)
    with pytest.raises(ValueError, match="no string in the field 'text'") as error:
        list(readers.documents(part))
    assert len(str(error.value)) < 1000
