"""Damages checkpoints at random: each load must succeed or raise a one-line ValueError, soon and in
little memory.

    python tests/fuzz_checkpoints.py --mutations 10000 --seed 0
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import json
import random
import re
import resource
import shutil
import struct
import tempfile
import time
import warnings
from pathlib import Path

from checkpoints import CONFIG, numbers, tokenizer_json, write_meta

import longrope_jax
from longrope_jax import llama, rotary, weights
from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SpecialTokens
from longrope_jax.weights import huggingface

SECONDS, BYTES = 20, 300 << 20  # of one load; the machine may be busy
EXTREMES = [0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [b"0", b"-1", b"1e999", b"null", b"true", b"[]", b"{}", b'""', b"9" * 40, b"[" * 5000]
WORDS += [b'"../../etc/passwd"', b'"a\\u0000b"', b"NaN", b'"F32"', b'"I8"', b"[0,0]"]


def corpus(folder: Path, *, meta: bool) -> list[Path]:
    """One small checkpoint of each kind."""
    params = numbers(CONFIG)
    special = SpecialTokens(eos=0, chat_template="{{ messages }}")
    tokenizer = HuggingFaceTokenizer("random", tokenizer_json())
    save = {"tokenizer": tokenizer, "special_tokens": special}
    weights.save(folder / "hf", CONFIG, params, rotary.YaRN(4.0, 64), **save)
    kept, huggingface.SHARD_BYTES = huggingface.SHARD_BYTES, 9000
    weights.save(folder / "cut", CONFIG, params, rotary.RoPE(), dtype="bfloat16")
    huggingface.SHARD_BYTES = kept
    (folder / "gguf").mkdir()
    spec = rotary.Llama3(original_length=64, base=1e4)
    weights.save(folder / "gguf" / "m.gguf", CONFIG, params, spec, format="gguf", **save)
    found = [folder / "hf", folder / "cut", folder / "gguf"]
    if meta:
        config = dataclasses.replace(CONFIG, d_ff=llama.swiglu_width(32, multiple_of=16))
        found.append(write_meta(folder / "meta", config, numbers(config), 2))
    return found


def mutate(data: bytes, rng: random.Random, header: int) -> bytes:
    """`data` damaged in one to four places, most of them in the first `header` bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        end = min(len(data), header) if rng.random() < 0.8 else len(data)
        at = rng.randrange(end)
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) % 2**32)
        elif kind == 3:
            del data[at : len(data) if rng.random() < 0.5 else at + rng.randint(1, 64)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randint(1, 64))
        elif kind == 5:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif kind == 6:
            data[at:at] = rng.choice(WORDS)
        else:
            numbers_ = list(re.finditer(rb"-?\d+|\"\w*\"", data[:header]))
            if numbers_:
                found = rng.choice(numbers_)
                data[found.start() : found.end()] = rng.choice(WORDS)
    return bytes(data)


ODD = [
    0,
    -1,
    1,
    2,
    3,
    7,
    1.5,
    2**31,
    2**63,
    1e300,
    True,
    None,
    "",
    "F16",
    "../x",
    [],
    {},
    [0],
    "ĠĠ",
]


def mutate_json(value, rng: random.Random):
    """A JSON value with one node replaced, taken out or doubled."""
    holder, places = [value], []
    pending = [holder]
    while pending:
        node = pending.pop()
        keys = range(len(node)) if isinstance(node, list) else list(node)
        places += [(node, key) for key in keys]
        pending += [node[key] for key in keys if isinstance(node[key], list | dict)]
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0 and node is not holder:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(["x", "", *node])] = node[key]
    elif kind == 2:
        other, its = rng.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            node[key] = copy.deepcopy(other[its])
    elif kind == 3 and type(node[key]) is int:
        node[key] += rng.choice([-1, 1, 8])
    else:
        node[key] = rng.choice(ODD)
    return holder[0]


def damage(file: Path, rng: random.Random) -> None:
    """Damages a file: its bytes, or half of the time its JSON, which then stays JSON."""
    data = file.read_bytes()
    if rng.random() < 0.6 and file.suffix == ".json":
        data = json.dumps(mutate_json(json.loads(data), rng)).encode()
    elif rng.random() < 0.6 and file.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", data[:8])
        header = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), rng)).encode()
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    elif rng.random() < 0.6:
        # In place, one number: what follows stays readable.
        changed, at = bytearray(data), rng.randrange(min(len(data), 3000))
        changed[at] = rng.choice([0, 1, 2, 8, 255, changed[at] ^ 1, changed[at] + 1 & 255])
        data = bytes(changed)
    else:
        data = mutate(data, rng, 3000 if file.suffix in (".safetensors", ".gguf") else 10**9)
    file.write_bytes(data)


def fuzz(count: int, seed: int, *, meta: bool) -> collections.Counter:
    """Outcomes of `count` loads. Raises AssertionError for what no load may do."""
    rng, outcomes = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        sources = corpus(Path(name), meta=meta)
        for source in sources:
            longrope_jax.load(source)
        for at in range(count):
            source = sources[at % len(sources)]
            target = Path(name) / f"damaged-{at}"
            shutil.copytree(source, target)
            damage(rng.choice(sorted(target.iterdir())), rng)
            outcomes[source.name, _attempt(target, f"seed {seed}, mutation {at}")] += 1
            shutil.rmtree(target)
    return outcomes


def _attempt(target: Path, which: str) -> str:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = "loaded"
    try:
        with warnings.catch_warnings(action="ignore"):
            longrope_jax.load(target)
    except ValueError as error:
        outcome = "refused"
        text = str(error)
        assert text and "\n" not in text and len(text) < 900, f"{which}: {text[:3000]!r}"
    except BaseException as error:
        raise AssertionError(f"{which}: {type(error).__name__}: {error}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < BYTES, f"{which}: {grown >> 20} MiB more"
    assert time.monotonic() - start < SECONDS, f"{which}: took {time.monotonic() - start:.0f} s"
    return outcome


def main() -> None:
    """Prints how many loads of each kind were refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-meta", action="store_true", help="leave out pickles (no torch)")
    options = parser.parse_args()
    start = time.monotonic()
    outcomes = fuzz(options.mutations, options.seed, meta=not options.no_meta)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:5} {outcome:8} {count}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{options.mutations} mutations in {time.monotonic() - start:.0f} s, {peak} MiB at most")


if __name__ == "__main__":
    main()
