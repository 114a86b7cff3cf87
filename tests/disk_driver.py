"""One kind of work on a disk that is too small, then larger: disk_driver.py WORK FOLDER.

It needs a mount namespace of its own (`unshare -m`), in which it mounts a tmpfs as FOLDER/small.
WORK is one of chaos.py, `tokenize`, or `report`, which finds all cells of the study made. For each
size it prints one line of JSON: the exit status, what was said, and the digests of whole files;
at last the names of what differs from the same work on a disk with room.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chaos

from longrope_jax import cli

SIXTEENTHS = (2, 6, 10, 14, 18, 32)  # of what the whole work needs; the last is enough


def tokenize(folder: Path) -> None:
    out = str(folder / "tokens")
    corpus = str(folder.parent / "text")
    sys.exit(cli.main(["tokenize", corpus, "--tokenizer=bytes", f"--out={out}", "--processes=1"]))


WORK = chaos.WORK | {"tokenize": tokenize, "report": chaos.study}


def mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=True)


def size_of(folder: Path) -> int:
    """Bytes of a folder as tmpfs counts them, in pages."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


def whole_files(folder: Path) -> dict[str, str]:
    """Digests of files that no later start may change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kept = path.suffix in (".npz", ".whl", ".safetensors", ".tokens")
        if kept and not path.name.startswith(".") and path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main(name: str, folder: Path) -> None:
    large, small = folder / "large", folder / "small"
    chaos.text(folder / "text")
    large.mkdir(), small.mkdir()

    def run(where: Path) -> tuple[int, str]:
        process = chaos.forked(WORK[name], where, folder / "log")
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), (folder / "log").read_text()

    status, said = run(large)
    assert status == 0, said
    expected = chaos.result(large, folder / "log")
    sizes = [size_of(large) * part // 16 for part in SIXTEENTHS]
    mount(small, "-o", f"size={sizes[0]}")
    if name == "report":
        mount(small, "-o", "remount,size=64m")
        for made in ("cells", "runs"):
            shutil.copytree(large / made, small / made)
        sizes = [size_of(small) + more for more in (4096, 40_960, 2**22)]
    for size in sizes:
        mount(small, "-o", f"remount,size={size}")
        status, said = run(small)
        line = {"status": status, "said": said, "whole": whole_files(small)}
        print(json.dumps(line), flush=True)
        if status == 0:
            break
    found = chaos.result(small, folder / "log")
    wrong = sorted(key for key in expected | found if expected.get(key) != found.get(key))
    print(json.dumps(wrong))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
