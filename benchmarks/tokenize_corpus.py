"""What tokenizing a corpus costs: tokens per second, peak memory, and growth with its size.

    python -m benchmarks.tokenize_corpus --peer PYTHON_WITH_DATASETS

Writes JSON lines of the named corpora in random order, over and over, to a size of 75, 150 and
300 MB, and makes each into a token cache with as many processes as `--processes`. The other Python
has the packages datasets and tokenizers: there the same file goes through `Dataset.map` with the
same tokenizer and as many processes. Memory is the sum of the resident sets of all processes,
looked at ten times a second; the peer's mapped files count among it. Work beside it changes the
seconds, hardly the CPU seconds. Prints a table and writes tokenize_corpus.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_OURS = """
import sys
from longrope_jax.data import tokenization, tokenizers
if __name__ == "__main__":
    source, out, tokenizer, processes = sys.argv[1:]
    cache = tokenization.build(source, out, tokenizers.load(tokenizer), processes=int(processes))
    print(cache.tokens)
"""
_PEER = """
import sys
import datasets, tokenizers
def encode(batch, path):
    global made
    if "made" not in globals():
        made = tokenizers.Tokenizer.from_file(path)
    return {"ids": [one.ids for one in made.encode_batch(batch["text"], add_special_tokens=False)]}
if __name__ == "__main__":
    source, out, tokenizer, processes = sys.argv[1:]
    datasets.disable_progress_bars()
    found = datasets.load_dataset("json", data_files=source, split="train", cache_dir=out)
    found = found.map(encode, batched=True, num_proc=int(processes), fn_kwargs={"path": tokenizer},
                      remove_columns=found.column_names)
    print(sum(len(ids) for ids in found.data.column("ids")))
"""


def main(argv: list[str] | None = None) -> list[dict]:
    """Measures, prints, writes tokenize_corpus.json; returns what it holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize_corpus")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has datasets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[75, 150, 300], metavar="MB")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--corpus", default="plays+sotu+austen+moby-dick")
    parser.add_argument("--out", default="docs/results/benchmarks", metavar="DIR")
    args = parser.parse_args(argv)
    import longrope_jax
    from experiments import lab
    from experiments.lab import files, reports

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_text(longrope_jax.model.open_model("smollm2-135m").tokenizer.text())
        contenders = {"longrope tokenize": (sys.executable, _OURS)}
        contenders |= {"datasets map": (args.peer, _PEER)} if args.peer else {}
        for size in args.sizes:
            source = Path(folder) / f"{size}.jsonl"
            write(source, args.corpus, size * 10**6)
            for name, (python, code) in contenders.items():
                out = f"{folder}/{size} {name}"
                words = [str(source), out, str(tokenizer), str(args.processes)]
                found = measured(python, code, words, Path(folder))
                lines.append({"contender": name, "MB": size} | found)
            source.unlink()
    reports.print_table(lab.table(lines, f"{args.corpus}, {args.processes} processes"))
    files.save_json(Path(args.out) / "tokenize_corpus.json", lines)
    return lines


def write(file: Path, corpus: str, size: int) -> None:
    """Writes JSON lines of the corpus's documents, in random order again and again."""
    from longrope_jax.data import corpora

    documents, rng = corpora.load(corpus), np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as out:
        while True:
            for i in rng.permutation(len(documents)):
                # Another beginning: no two documents are the same.
                text = f"{rng.integers(10**9)}\n{documents[i].text}"
                out.write(json.dumps({"id": documents[i].name, "text": text}) + "\n")
                if out.tell() >= size:
                    return


def measured(python: str, code: str, words: list[str], folder: Path) -> dict[str, float]:
    """Tokens, seconds and peak memory of a program and all processes that it starts."""
    file = folder / "program.py"
    file.write_text(code)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HOME": str(folder)}
    start, before, peak = time.perf_counter(), _cpu_seconds(), 0
    command = [python, str(file), *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_resident, _family(process.pid))))
            time.sleep(0.1)
        assert process.stdout
        printed = process.stdout.read().split()
    if process.returncode or not printed:
        raise ValueError(f"{python} ended with status {process.returncode}")
    tokens = int(printed[-1])
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - before
    return {
        "tokens": tokens,
        "seconds": seconds,
        "CPU seconds": cpu,
        "tokens per second": tokens / seconds,
        "tokens per CPU second": tokens / cpu,
        "peak memory, MB": peak / 1e6,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


if __name__ == "__main__":
    main()
