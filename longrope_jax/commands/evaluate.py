"""Perplexity and loss by position of a checkpoint on your own text, under one or several methods.

    longrope evaluate CKPT --text book.txt
    longrope evaluate CKPT --text DIR --rotary rope --rotary yarn:factor=4 --length 16384

--picture FILE.png draws the loss by position.

A text is a .txt, .md or .jsonl file, a folder of them, or a corpus such as plays. One pass cuts it
into windows that each start anew, so early tokens of a window have little context; sliding windows
overlap, and give the lower perplexity of the papers. The loss by position is that of one pass over
whole windows. Differences are to the first method, paired by document, with a 95 % interval.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longrope_jax import llama, model, rotary, sharding
from longrope_jax.commands.generate import prepared, tell
from longrope_jax.data import corpora
from longrope_jax.evaluation import perplexity, statistics
from longrope_jax.evaluation.by_position import position_blocks
from longrope_jax.evaluation.perplexity import PerplexityResult
from longrope_jax.evaluation.windowing import OnePass, Sliding, Windowing, score_windows
from longrope_jax.model import Model

_COLUMNS = 8  # blocks of positions in the table
_POINTS = 64  # of them in the picture


class Scored(NamedTuple):
    """What was measured under one method: perplexity, and the losses [n, T] of whole windows."""

    label: str
    perplexity: PerplexityResult
    nll: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    add("--text", nargs="+", required=True, metavar="FILE", help="files, folders, or a corpus")
    add(
        "--rotary",
        action="append",
        metavar="METHOD",
        help="rotary method (default: the checkpoint's own); repeat it to compare several",
    )
    add("--length", type=int, metavar="N", help="tokens of a window (default: the trained length)")
    add(
        "--windowing",
        choices=("one-pass", "sliding"),
        default="one-pass",
        help="default one-pass",
    )
    add("--stride", type=int, metavar="N", help="of sliding windows (default: length / 8)")
    add(
        "--bos",
        action=argparse.BooleanOptionalAction,
        help="put the beginning token before every window (default: as the checkpoint's own "
        "software does with a prompt)",
    )
    add("--batch-size", type=int, default=1, metavar="N", help="windows at a time (default 1)")
    add("--tokenizer", metavar="FILE", help="'bytes' or a tokenizer.json (default: its own)")
    add("--dtype", default="float32", help="of activations and matrix products (default float32)")
    add("--picture", type=Path, metavar="FILE.png", help="draw the loss by position")


def main(args: argparse.Namespace) -> int:
    """Prints a table with a row for each method, and draws the loss by position if asked.

    Raises:
        ValueError: An argument is wrong or the checkpoint cannot be read. What can be known from
            the checkpoint's headers and the text is found before its parameters are read.
    """
    header = model.open_model(args.checkpoint)
    headers = [prepared(header, text, args.tokenizer) for text in args.rotary or [None]]
    labels = args.rotary or [rotary.name_of(header.method)]
    length = header.trained_length if args.length is None else args.length
    if length is None:
        raise ValueError("this checkpoint declares no trained length: give --length")
    windowing, bos = _windowing(args, length), headers[0].beginning(args.bos)
    documents = _documents(args.text, headers[0])
    whole = _whole(documents, length, bos)
    for one in headers:
        rotary.make(one.method, head_dim=one.config.head_dim, seq_len=length)
        dataclasses.replace(one.config, dtype=args.dtype)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.picture:
        _check_picture(args.picture)
    if not whole.any() and (args.picture or args.length is not None):
        longest = max(map(len, documents))
        raise ValueError(
            f"no document fills a window of {length} tokens, the longest has {longest}: lower "
            "--length"
        )
    loaded = model.load(args.checkpoint, dtype=args.dtype)
    found = []
    for label, one in zip(labels, headers, strict=True):
        tell(f"measuring {label} ...")
        ready = dataclasses.replace(loaded, method=one.method, tokenizer=one.tokenizer)
        found.append(measure(label, ready, documents, windowing, bos, args.batch_size))
    print("\n".join(report(found, length, bos)), flush=True)
    if args.picture:
        draw(found, args.picture, header.trained_length)
    return 0


def measure(
    label: str,
    model: Model,
    documents: list[np.ndarray],
    windowing: Windowing,
    bos: int | None,
    batch_size: int,
) -> Scored:
    """Perplexity under the windowing, and the losses of whole windows, of which one pass has both.

    Args:
        label: names the method in tables.
        model: the model under its method.
        documents: token ids [T] of each.
        windowing: how the perplexity cuts documents; its length is that of all windows.
        bos: id put before every window, or None.
        batch_size: windows at a time.

    Raises:
        ValueError: As `perplexity.perplexity`.
    """
    rows, length = [], windowing.length
    rot = rotary.as_rotary(model.method, head_dim=model.config.head_dim, seq_len=length)

    def score(tokens: np.ndarray) -> np.ndarray:
        rows.append(
            np.asarray(perplexity.score_tokens(model.config, model.params, rot, tokens).nll)
        )
        return rows[-1]

    options = {"bos": bos, "batch_size": batch_size}
    with sharding.mesh_of(model.params):
        result = perplexity.perplexity_from(score, documents, OnePass(length), **options)
        nll = np.concatenate(rows)[: result.windows][_whole(documents, length, bos)]
        if isinstance(windowing, Sliding):
            result = perplexity.perplexity_from(score, documents, windowing, **options)
    return Scored(label, result, nll)


def report(found: list[Scored], length: int, bos: int | None) -> list[str]:
    """The lines of the table, and before it what was measured."""
    first = found[0]
    blocks = min(_COLUMNS, length)
    size = -(-length // blocks)
    edges = [f"{at + 1}-{min(at + size, length)}" for at in range(0, length, size)]
    begun = "nothing before" if bos is None else f"token {bos} before"
    documents = len(first.perplexity.document_tokens)
    table = [["method", "perplexity", "nats/token", "difference", *edges * bool(len(first.nll))]]
    for one in found:
        curve = position_blocks(one.nll, size).mean(0) if len(one.nll) else []
        table.append(
            [
                one.label,
                f"{one.perplexity.perplexity:.4g}",
                f"{one.perplexity.nll:.4f}",
                _difference(one, first),
                *(f"{value:.3f}" for value in curve),
            ]
        )
    return [
        f"{first.perplexity.tokens:,} tokens of {documents} documents, {first.perplexity.windowing}"
        f", {begun} each window",
        f"loss by position in nats: {len(first.nll)} whole windows of {length} tokens",
        "",
        *_aligned(table),
    ]


def _difference(one: Scored, first: Scored) -> str:
    """Nats per token above the first method, with an interval where documents allow one."""
    if one is first:
        return "-"
    a, b = one.perplexity, first.perplexity
    documents = len(a.document_tokens)
    if documents < 2:
        return f"{a.nll - b.nll:+.4f}"
    means = [(r.document_nll / r.document_tokens)[None] for r in (a, b)]
    found = statistics.paired_difference(
        means[0], means[1], range(documents), weights=a.document_tokens
    )
    return f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def draw(found: list[Scored], path: Path, trained_length: int | None) -> None:
    """Draws the mean loss against the position, a line for each method.

    Raises:
        ValueError: matplotlib is missing, or the file cannot be written.
    """
    figure = _figure()
    axes, length = figure.subplots(), found[0].nll.shape[1]
    size = -(-length // _POINTS)
    middles = [(at + min(at + size, length) + 1) / 2 for at in range(0, length, size)]
    for one in found:
        axes.plot(middles, position_blocks(one.nll, size).mean(0), label=one.label)
    if trained_length is not None and trained_length < length:
        axes.axvline(trained_length, color="#7F7F7F", linestyle="--", label="trained length")
    axes.set_xlabel("position in the window, tokens")
    axes.set_ylabel("loss, nats per token")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the picture {path}: {error}") from error


def _check_picture(path: Path) -> None:
    kinds = _figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise ValueError(f"--picture={path} must end in one of {', '.join(sorted(kinds))}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--picture={path}: make the folder {path.parent} first")


def _figure():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install 'longrope_jax[plot]'") from error
    return Figure(figsize=(8, 5), layout="constrained")


def _windowing(args: argparse.Namespace, length: int) -> Windowing:
    if args.windowing == "one-pass":
        if args.stride is not None:
            raise ValueError("--stride is of sliding windows: give --windowing sliding")
        return OnePass(length)
    return Sliding(length, max(1, length // 8) if args.stride is None else args.stride)


def _documents(sources: list[str], header: Model) -> list[np.ndarray]:
    found = [header.encode(d.text, bos=False) for name in sources for d in corpora.load(name)]
    for ids in found:
        llama.check_vocabulary(header.config, "the text", ids)
    tell(f"text: {len(found)} documents, {sum(map(len, found)):,} tokens")
    return found


def _whole(documents: list[np.ndarray], length: int, bos: int | None) -> np.ndarray:
    """Which windows of one pass are whole, bool [windows]."""
    begun, span = bos is not None, length + (bos is None)
    layout = [score_windows(len(document), OnePass(length), bos=begun) for document in documents]
    return np.array([end - start == span for each in layout for start, end, _ in each], bool)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows in columns, all but the first to the right."""
    first, *widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in rows]
