"""Results in a bucket, through a real object-store server; what is read from any store."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import longrope_jax
from experiments import lab
from experiments.lab import cli
from longrope_jax import folders, lease, rotary, runs
from longrope_jax.data import corpora
from longrope_jax.training import checkpoints, metrics

# Read when gcsfs is imported: no search for a kind of bucket, nor for a machine's credentials.
os.environ |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}
fsspec = pytest.importorskip("fsspec")
pytest.importorskip("gcsfs", reason="pip install 'longrope_jax[gcs]'")
pytest.importorskip("gcp_storage_emulator")

import gcs_server  # noqa: E402
import test_loop  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def server():
    """The server; the three clients (gcsfs, tensorstore, Google's own) are told of it."""
    process = subprocess.Popen(
        [sys.executable, gcs_server.__file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    url = process.stdout.readline().decode().strip()
    settings = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        "GOOGLE_CLOUD_PROJECT": "any",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(lease, "SETTLE", 0.0)
        yield
    process.kill()
    process.communicate()


@pytest.fixture
def bucket(request):
    return folders.located(f"gs://{gcs_server.BUCKET}/{request.node.name}")


def names(folder):
    store, root = fsspec.core.url_to_fs(str(folder))
    return {name.removeprefix(root).lstrip("/") for name in store.find(root)}


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


# Runs and studies


def test_a_run_in_a_bucket_goes_on_bit_identically(bucket, tmp_path):
    test_loop.fit(bucket, n=3)
    found = test_loop.fit(bucket, n=6)
    whole = test_loop.fit(tmp_path, n=6)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    kept = {name.split("/")[1] for name in names(bucket) if name.startswith("checkpoints/")}
    assert kept == {"6"}  # the newest alone, as in a folder
    assert checkpoints.latest_step(bucket / "checkpoints") == 6
    lines = [
        [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]
        for lines in (metrics.read(bucket), metrics.read(tmp_path))
    ]
    # Step 3 ended the first call, and is logged there.
    assert [line for line in lines[0] if line["step"] != 3] == lines[1]
    assert not [name for name in names(bucket) if "lease" in name or "tmp" in name]


def test_tensorboard_events_are_in_the_bucket(bucket):
    log = metrics.MetricsLog(bucket)
    log.write(1, {"loss": 2.5})
    log.flush()
    (events,) = [name for name in names(bucket) if name.startswith("tensorboard/")]
    assert b"loss" in (bucket / events).read_bytes()
    log.close()


def test_a_run_in_a_bucket_is_loaded(bucket, tmp_path):
    config = dataclasses.replace(test_loop.CONFIG, vocab_size=260)
    test_loop.fit(bucket / "runs" / "a", n=2)
    test_loop.fit(tmp_path / "runs" / "a", n=2)
    for folder in (bucket, tmp_path):
        record = runs.RunRecord(
            dataclasses.replace(config, vocab_size=test_loop.V),
            rotary.RoPE(100.0),
            longrope_jax.data.tokenizers.ByteTokenizer(),
            test_loop.T,
        )
        runs.save(folder / "runs" / "a", record)
    here, there = longrope_jax.load(tmp_path / "runs/a"), longrope_jax.load(f"{bucket}/runs/a")
    jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
    assert there.method == rotary.RoPE(100.0) and there.trained_length == test_loop.T
    with pytest.raises(ValueError, match="NAME is one of a"):
        longrope_jax.load(str(bucket))


def test_a_study_in_a_bucket_has_the_files_of_one_in_a_folder(bucket, tmp_path):
    cells = [lab.Cell("loss", "a"), lab.Cell("loss", "b")]
    made = []

    def loss(cell):
        made.append(cell.row)
        return {"loss": np.arange(3.0)}

    for folder in (bucket, tmp_path, bucket):
        lab.complete(folder, cells, {"loss": loss}, lab.Machine())
        table = lab.Table(["x", "y"], [["a", 1.0]], name="t")
        drawn = lab.Figure("f", lab.subplots()[0])
        section = lab.Section("S", [table, drawn])
        lab.publish(folder, "", {}, title="T", claims=["c"], sections=[section], cells=cells)
    assert made == ["a", "b"] * 2  # what is done is not done again
    local = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert names(bucket) == local - {".lock"} and "report.html" in local
    assert (bucket / "t.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


def test_a_kept_training_is_copied_with_its_marks_last(bucket, monkeypatch):
    """A copy that was cut off holds no checkpoint, rather than half of one."""
    test_loop.fit(bucket / "a", n=2)
    store = fsspec.core.url_to_fs(str(bucket))[0]
    copied, put = [], store.copy
    monkeypatch.setattr(store, "copy", lambda a, b: (copied.append(b), put(a, b)))
    folders.copy(bucket / "a", bucket / "b")
    marks = [name.endswith("commit_success.txt") for name in copied]
    assert marks == sorted(marks) and copied[-1].endswith("checkpoints/2/commit_success.txt")
    assert names(bucket / "b") == names(bucket / "a")
    shapes = checkpoints.params_shapes(bucket / "b" / "checkpoints")
    kept = checkpoints.restore_params(bucket / "b" / "checkpoints", shapes)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


def test_an_export_to_a_bucket_is_made_once_and_whole(bucket):
    def save(path):
        path.mkdir()
        (path / "config.json").write_text("{}")

    lab.exported(bucket / "export" / "hf", save)
    assert names(bucket) == {"export/hf/config.json"}
    lab.exported(bucket / "export" / "a.gguf", lambda path: path.write_bytes(b"GGUF"))
    assert (bucket / "export" / "a.gguf").read_bytes() == b"GGUF"


# One writer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.2)
    monkeypatch.setattr(lease, "DEAD", 1.5)


def test_a_second_writer_in_a_bucket_is_refused(bucket, quick):
    with folders.only_writer(bucket):
        with pytest.raises(ValueError) as error, folders.only_writer(bucket):
            pass
        one_line(error, "another process is writing", str(bucket))
    with folders.only_writer(bucket):  # it is free again
        pass


def left_by(bucket, host, process):
    lease._renew(bucket / ".lease", {"host": host, "process": process, "began": 1}, 3)


def test_a_writer_that_is_gone_is_waited_for_and_no_longer(bucket, quick, capsys):
    """On another host nobody can ask, so its lease is watched; on this one it is known at once."""
    left_by(bucket, "other", 1)
    began = time.monotonic()
    with folders.only_writer(bucket):
        assert 1.5 <= time.monotonic() - began < 10
    assert "other" in capsys.readouterr().err
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_by(bucket, lease._host(), dead.pid)
    with folders.only_writer(bucket):
        assert not capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_whose_folder_was_taken_ends(bucket, quick, monkeypatch):
    ended = threading.Event()

    def end(status):
        assert status == 1
        ended.set()
        sys.exit()  # of this thread

    monkeypatch.setattr(os, "_exit", end)
    with folders.only_writer(bucket):
        left_by(bucket, "other", 1)
        assert ended.wait(10)


# What is refused


@pytest.mark.parametrize(
    "url, words",
    [
        ("s3://bucket/run", ["gs://BUCKET/FOLDER", "s3://", "mount"]),
        ("gs:/bucket/run", ["names no bucket", "gs://BUCKET/FOLDER"]),
        ("file:///tmp/x", ["gs://BUCKET/FOLDER"]),
        ("gs://missing-bucket/run", ["cannot be written", "make the bucket"]),
    ],
)
def test_a_work_directory_that_cannot_be_is_refused_before_work(url, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        cli.parse("experiments.helix", [f"--workdir={url}"])
    one_line(error, url, *words)
    assert not list(tmp_path.iterdir())


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError) as error:
        folders.located("gs://bucket/run")
    one_line(error, "gs://bucket/run", "longrope_jax[gcs]")


# What is read


@pytest.fixture
def memory(request):
    store = fsspec.filesystem("memory")
    yield store, f"memory://{request.node.name}"
    store.rm("/", recursive=True)


def test_a_corpus_in_any_store_is_that_of_a_folder(bucket, memory, tmp_path):
    store, url = memory
    for name in ("a.txt", "b/c.md"):
        store.pipe_file(f"{url}/{name}", f"text of {name}".encode())
        folders.write(bucket / name, f"text of {name}".encode())
        folders.write(tmp_path / "here" / name, f"text of {name}".encode())
    here = corpora.load(tmp_path / "here")
    assert corpora.load(url, tmp_path / "cache") == here and len(here) == 2
    assert corpora.load(str(bucket), tmp_path / "cache") == here
    assert corpora.load(f"{bucket}/a.txt", tmp_path / "cache")[0].text == "text of a.txt"


def test_the_copy_follows_the_store(memory, tmp_path, bucket, monkeypatch):
    for name in ("a.txt", "b.txt"):
        folders.write(bucket / name, b"first")
    copy = folders.fetched(str(bucket), tmp_path)
    inode = (copy / "a.txt").stat().st_ino
    folders.write(bucket / "c.txt", b"new")
    folders.write(bucket / "b.txt", b"other")
    (bucket / "b.txt").unlink()
    folders.fetched(str(bucket), tmp_path)
    assert (copy / "a.txt").stat().st_ino == inode  # not fetched again
    assert {p.name for p in copy.glob("[!.]*")} == {"a.txt", "c.txt"}
    folders.write(bucket / "a.txt", b"later")  # of the same size
    assert (folders.fetched(str(bucket), tmp_path) / "a.txt").read_bytes() == b"later"


def test_what_is_not_in_a_store_is_named(memory, tmp_path):
    store, url = memory
    with pytest.raises(ValueError) as error:
        folders.fetched(f"{url}/missing", tmp_path)
    one_line(error, f"{url}/missing")
    with pytest.raises(ValueError) as error:
        folders.fetched("nostore://a/b", tmp_path)
    one_line(error, "nostore://a/b")
    store.pipe_file(f"{url}/a/../../x.txt", b"")
    if any(".." in name for name in store.find(url)):
        with pytest.raises(ValueError, match="leaves its folder"):
            folders.fetched(url, tmp_path)


def test_a_local_path_stays_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.fetched("~/text") == folders.located("~/text") == tmp_path / "text"
    assert isinstance(folders.located("C:\\x"), Path)  # a letter of a drive is no scheme
