"""Makes a corpus into tokens on disk, from which any number of runs and hosts train.

    longrope tokenize DIR_OF_TEXT --tokenizer CKPT/tokenizer.json --out CACHE
    longrope tokenize data.jsonl.gz --tokenizer bytes --out CACHE --field content
    longrope tokenize SOURCES --text .py --text .c --tokenizer tokenizer.model --out CACHE

Reads JSON lines (.jsonl, also .gz and .zst, as datatrove and Dolma write them), .parquet, .txt, .md
and files of other suffixes named by --text, one document each, and .safetensors of tokens. Killed
at any moment and started again it goes on where it was; after a change of the corpus it does what
changed. The result does not depend on --processes.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from longrope_jax.data import readers, tokenization, tokenizers
from longrope_jax.data.tokenization import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="file or folder")
    add("--tokenizer", required=True, metavar="T", help="tokenizer.json, .model, folder, or bytes")
    add("--out", required=True, metavar="DIR", help="folder of the tokens")
    add("--field", default="text", help="of the text in JSON lines and parquet (default: text)")
    add("--text", action="append", metavar=".SUFFIX", help="of text files (default: .txt and .md)")
    cores = os.cpu_count() or 1
    add("--processes", type=int, default=cores, metavar="N", help=f"at a time (default: {cores})")


def main(args: argparse.Namespace) -> int:
    """Tokenizes what is missing and says what the cache holds.

    Raises:
        ValueError: An argument is wrong, or the corpus cannot be read.
    """
    cache = tokenization.build(
        args.corpus,
        args.out,
        tokenizers.load(args.tokenizer),
        processes=args.processes,
        text=tuple(args.text or readers.TEXT),
        field=args.field,
        on_part=_Shown(),
    )
    left_out = sum(shard.left_out for shard in cache.shards)
    without = f"; {left_out:,} documents without text, or not UTF-8, left out" if left_out else ""
    print(
        f"{Path(args.out)}: {cache.tokens:,} tokens of {cache.documents:,} documents in "
        f"{len(cache.shards):,} shards{without}"
    )
    return 0


class _Shown:
    """Shows the progress on stderr: in place on a terminal, else a line every ten seconds."""

    def __init__(self):
        self._last = time.monotonic()

    def __call__(self, now: Progress) -> None:
        terminal, ended = sys.stderr.isatty(), now.parts == now.all_parts
        if not terminal and not ended and time.monotonic() - self._last < 10:
            return
        self._last = time.monotonic()
        print(
            f"{now.parts:,} of {now.all_parts:,} parts, {now.tokens:,} tokens, "
            f"{now.speed:,.0f} tokens/s",
            end="\r" if terminal and not ended else "\n",
            file=sys.stderr,
            flush=True,
        )
