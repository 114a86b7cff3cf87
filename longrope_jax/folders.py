"""A folder of results, local or in a bucket, has one writer at a time and no half of a file.

Results are written to local folders and to Google Cloud Storage (gs://), since orbax writes
checkpoints to no other object store. What is only read, such as a corpus or a checkpoint, may come
from any store that fsspec knows: `fetched` copies it to the local cache first.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from longrope_jax import lease

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
# What is written beside a file before it is renamed: `.NAME.PROCESS.tmp`.
_HALF = re.compile(r"\..+\.(\d+)\.(tmp|npz)")
# Orbax writes it into a folder of a bucket when all else in that folder is written.
_WHOLE = "commit_success.txt"
_STAMPS = ("etag", "ETag", "md5Hash", "generation", "mtime", "LastModified", "last_modified")


def is_url(path: str | Path) -> bool:
    """Returns whether a path is a URL such as gs://bucket/folder, and no local path."""
    return _SCHEME.match(str(path)) is not None


def located(path: str | Path) -> Path:
    """Returns the place of results: a local path with ~ expanded, or one in a gs:// bucket.

    The latter is an `etils.epath.Path`, which has the methods of `pathlib.Path` that we use; make
    no `pathlib.Path` of it, which would be a local folder `gs:`.

    Raises:
        ValueError: The path is a URL of another store, or gcsfs is not installed.
    """
    found = _SCHEME.match(str(path))
    if found is None:
        return Path(path).expanduser()
    if found[1] != "gs":
        raise ValueError(
            f"{path}: results go to local folders and to gs://BUCKET/FOLDER, since orbax writes "
            f"checkpoints to no {found[1]}:// store: mount it as a folder, or copy a local folder "
            "there afterwards"
        )
    if not re.match(r"gs://[^/]+", str(path)):
        raise ValueError(f"{path} names no bucket: write gs://BUCKET/FOLDER")
    try:
        import gcsfs  # noqa: F401
        from etils import epath
        from fsspec.config import conf
    except ImportError as error:
        raise ValueError(f"{path} needs gcsfs: pip install 'longrope_jax[gcs]'") from error
    # Another host's file would stay unseen in a kept listing.
    conf.setdefault("gs", {})["use_listings_cache"] = False
    return cast(Path, epath.Path(str(path)))


def local(path: str | Path) -> Path:
    """Returns a local path with ~ expanded.

    Raises:
        ValueError: The path is a URL such as gs://bucket.
    """
    if is_url(path):
        raise ValueError(f"{path} is no local path: give a local folder, and copy it afterwards")
    return Path(path).expanduser()


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and makes its folder."""
    if is_url(path):
        path.write_bytes(data)  # an object is there when it is whole
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copies a folder or a file, local or in a bucket, over `target`.

    A local target is whole or not there. In a bucket the marks by which orbax knows a whole
    checkpoint come last, those of parts before that of the checkpoint.
    """
    if not is_url(target):
        part = target.with_name(f"{target.name}.part")
        for rest in (part, target):  # of a process that was killed while it copied
            shutil.rmtree(rest, ignore_errors=True)
        shutil.copytree(source, part)
        part.rename(target)
        return
    import fsspec

    store, root = fsspec.core.url_to_fs(str(target))
    if store.exists(root):
        store.rm(root, recursive=True)
    if is_url(source):
        begin = fsspec.core.url_to_fs(str(source))[1]
        names = [name.removeprefix(begin).lstrip("/") for name in store.find(begin)]
        put, begin = store.copy, f"{begin}/"
    else:
        names = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
        put, begin = store.put_file, f"{source}{os.sep}"
    if not names:
        put(begin.rstrip("/"), root)
    for name in sorted(names, key=lambda name: (name.endswith(_WHOLE), -name.count("/"), name)):
        put(f"{begin}{name}", f"{root}/{name}")


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Returns `cache_dir`, or $LONGROPE_CACHE, or ~/.cache/longrope_jax."""
    chosen = cache_dir or os.environ.get("LONGROPE_CACHE") or "~/.cache/longrope_jax"
    return Path(chosen).expanduser().absolute()


def fetched(path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Returns a local path: that of a local one, ~ expanded, or of a copy of what a URL names.

    Files that did not change in the store are not fetched again; files that went from it go from
    the copy. Every host has its own.

    Args:
        path: a file or a folder, local or in any store that fsspec knows (gs, s3, az, hf, ...).
        cache_dir: see `cache_folder`.

    Raises:
        ValueError: The store's package is missing, or there is nothing at the URL.
    """
    if not is_url(path):
        return Path(path).expanduser()
    import fsspec

    url = str(path).rstrip("/")
    try:
        store, root = fsspec.core.url_to_fs(url)
        found: dict[str, dict[str, Any]] = store.find(root, detail=True)
    except ImportError as error:
        raise ValueError(f"{url} cannot be read: {' '.join(str(error).split())}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{url} cannot be read: {str(error) or type(error).__name__}") from error
    if not found:
        raise ValueError(f"no file or folder {url}: give the URL of one")
    scheme, _, rest = url.partition("://")
    copy = cache_folder(cache_dir) / "stores" / scheme / rest
    if set(found) == {root}:
        _fetch(store, {root: copy}, found)
        return copy
    wanted = {name: copy / name.removeprefix(root).lstrip("/") for name in found}
    wanted = {name: file for name, file in wanted.items() if not name.endswith("/")}
    if any(".." in file.parts for file in wanted.values()):
        raise ValueError(f"{url} has a file whose name leaves its folder")
    _fetch(store, wanted, found)
    for file in copy.rglob("*"):
        if file.is_file() and file not in wanted.values() and not file.name.startswith("."):
            file.unlink()
    return copy


def _fetch(store, files: dict[str, Path], found: dict[str, dict[str, Any]]) -> None:
    for name, file in files.items():
        facts = found[name]
        stamp = next((facts[key] for key in _STAMPS if facts.get(key)), "")
        mark = hashlib.sha256(json.dumps([facts.get("size"), str(stamp)]).encode()).hexdigest()
        kept = file.with_name(f".{file.name}.fetched")
        if file.is_file() and stamp and kept.is_file() and kept.read_text() == mark:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            store.get_file(name, str(temporary))
            os.replace(temporary, file)
            kept.write_text(mark)
        finally:
            temporary.unlink(missing_ok=True)


def sweep(folder: str | Path) -> None:
    """Removes the halves of files that processes left which were killed while they wrote."""
    if is_url(folder):
        return  # an object store holds no halves
    for path in Path(folder).rglob(".*"):
        half = _HALF.fullmatch(path.name)
        if half and not lease.runs(int(half[1])):
            _remove(path)


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a place beside `path` for a file or a folder, which takes the name at the end.

    So nothing stands at `path` that is not complete. What killed processes left beside it is
    removed, and so is what an error leaves.
    """
    path = Path(path).resolve()
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        half = _HALF.fullmatch(other.name)
        if half and not lease.runs(int(half[1])):
            _remove(other)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield part
        os.replace(part, path)
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Makes a folder and holds it, so that a second process which would write there is refused.

    The operating system lets go of a local folder when the process ends, however it ends. A file
    system without locks is not guarded. A folder in a bucket is held by a file, see `lease.held`.

    Raises:
        ValueError: Another process holds the folder.
    """
    folder = located(folder)
    if is_url(folder):
        with lease.held(folder):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(lease.taken(folder)) from None
        except OSError:
            pass  # a file system without locks
        yield
