"""Perplexity of a checkpoint on your own text, or tasks, under one or several rotary methods.

    longrope evaluate CKPT --text book.txt
    longrope evaluate CKPT --text DIR --rotary rope --rotary yarn:factor=4 --length 16384 --cropped
    longrope evaluate CKPT --tasks passkey lines --lengths 4096 8192 16384 --rotary rope --out DIR

--picture FILE.png draws the loss by position. With --tasks the model is asked questions about
contexts of exact lengths, and --text is what surrounds the facts. Methods are data of one compiled
program. A row "cropped" is what needs no method: the model reads the last tokens alone, as many as
it was trained on.

A text is a .txt, .md or .jsonl file, a folder of them, or a corpus such as plays. One pass cuts it
into windows that each start anew, so early tokens of a window have little context; sliding windows
overlap, and give the lower perplexity of the papers. The loss by position is that of one pass over
whole windows. Differences are to the first method, paired by document, with a 95 % interval; where
windows are longer than the model was trained for, they stand for both sides of that length.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longrope_jax import llama, model, rotary, sharding
from longrope_jax.commands import evaluate_tasks
from longrope_jax.commands.evaluate_tasks import CROPPED, aligned
from longrope_jax.commands.generate import prepared, tell
from longrope_jax.data import corpora
from longrope_jax.evaluation import perplexity, statistics
from longrope_jax.evaluation.by_position import cropped_nll, position_blocks, whole_windows
from longrope_jax.evaluation.perplexity import PerplexityResult
from longrope_jax.evaluation.windowing import LastTokens, OnePass, Sliding, Windowing, score_windows
from longrope_jax.model import Model

_COLUMNS = 8  # blocks of positions in the table
_POINTS = 64  # of them in the picture


class Scored(NamedTuple):
    """What was measured under one method: perplexity, and the losses [n, T] of whole windows.

    The perplexity is None of the cropped row, whose windows are those of the other rows.
    """

    label: str
    perplexity: PerplexityResult | None
    nll: np.ndarray
    owners: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    add("--text", nargs="+", metavar="FILE", help="files, folders, or a corpus")
    add(
        "--rotary",
        action="append",
        metavar="METHOD",
        help="rotary method (default: the checkpoint's own); repeat it to compare several",
    )
    add("--length", type=int, metavar="N", help="tokens of a window (default: the trained length)")
    add(
        "--windowing",
        choices=("one-pass", "sliding", "last"),
        default="one-pass",
        help="default one-pass; last scores the last tokens of each document alone",
    )
    add("--last", type=int, metavar="N", help="tokens that --windowing last scores (default 256)")
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
    add(
        "--cropped",
        action="store_true",
        help="one more row: the checkpoint's first method, reading its trained length alone",
    )
    evaluate_tasks.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Prints a table with a row for each method, and draws the loss by position if asked.

    Raises:
        ValueError: An argument is wrong or the checkpoint cannot be read. What can be known from
            the checkpoint's headers and the text is found before its parameters are read.
    """
    header = model.open_model(args.checkpoint)
    headers = [prepared(header, text, args.tokenizer) for text in args.rotary or [None]]
    labels = args.rotary or [rotary.name_of(header.method)]
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    dataclasses.replace(header.config, dtype=args.dtype)
    if args.tasks:
        return evaluate_tasks.main(args, headers, labels)
    if not args.text:
        raise ValueError("give --text to read, or --tasks to ask")
    if args.lengths or args.out or args.generate or args.control != "none":
        raise ValueError("--lengths, --out, --generate and --control are of --tasks")
    length = header.trained_length if args.length is None else args.length
    if length is None:
        raise ValueError("this checkpoint declares no trained length: give --length")
    _windowing(args, length)
    bos, documents = headers[0].beginning(args.bos), _documents(args.text, headers[0])
    if args.length is None:
        # A window that no document fills would be padding.
        length = min(length, max(len(d) for d in documents) - (bos is None))
        if length < 1:
            raise ValueError("the text has no token to predict: give a longer one")
    windowing = _windowing(args, length)
    whole = _whole(documents, length, bos)
    for one in headers:
        rotary.make(one.method, head_dim=one.config.head_dim, seq_len=length)
    if args.picture:
        _check_picture(args.picture)
    if not whole.any():
        longest = max(map(len, documents))
        raise ValueError(
            f"no document fills a window of {length} tokens, the longest has {longest}: lower "
            "--length"
        )
    trained = header.trained_length
    if args.cropped:
        _check_cropped(trained, length, bos)
    loaded = model.load(args.checkpoint, dtype=args.dtype)
    found = []
    for label, one in zip(labels, headers, strict=True):
        tell(f"measuring {label} ...")
        ready = dataclasses.replace(loaded, method=one.method, tokenizer=one.tokenizer)
        found.append(measure(label, ready, documents, windowing, bos, args.batch_size))
    if args.cropped and trained is not None:
        tell(f"measuring {labels[0]} on the last {trained} tokens ...")
        tokens, options = whole_windows(documents, length, bos=bos), {"length": trained}
        with sharding.mesh_of(loaded.params):
            method = headers[0].method
            nll = cropped_nll(
                loaded.config, loaded.params, method, tokens, batch_size=args.batch_size, **options
            )
        found.append(Scored(CROPPED, None, nll, found[0].owners))
    print("\n".join(report(found, length, bos, trained)), flush=True)
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
        whole = _whole(documents, length, bos)
        nll = np.concatenate(rows)[: result.windows][whole]
        if not isinstance(windowing, OnePass):
            result = perplexity.perplexity_from(score, documents, windowing, **options)
    counts = [len(score_windows(len(d), OnePass(length), bos=bos is not None)) for d in documents]
    return Scored(label, result, nll, np.repeat(range(len(documents)), counts)[whole])


def report(
    found: list[Scored], length: int, bos: int | None, trained: int | None = None
) -> list[str]:
    """The lines of the table, and before it what was measured."""
    first = found[0]
    assert first.perplexity is not None
    sides: dict[str, slice] = {}
    if trained is not None and trained < length:
        sides = {f"to {trained:,}": slice(trained), f"beyond {trained:,}": slice(trained, None)}
    blocks = min(_COLUMNS, length)
    size = -(-length // blocks)
    edges = [f"{at + 1}-{min(at + size, length)}" for at in range(0, length, size)]
    begun = "nothing before" if bos is None else f"token {bos} before"
    documents = len(first.perplexity.document_tokens)
    head = ["method", "perplexity", "nats/token", "difference", *sides]
    table = [[*head, *edges]]
    for one in found:
        curve = position_blocks(one.nll, size).mean(0)
        table.append(
            [
                one.label,
                f"{one.perplexity.perplexity:.4g}" if one.perplexity else "-",
                f"{one.perplexity.nll:.4f}" if one.perplexity else "-",
                _difference(one, first),
                *(_side(one, first, at) for at in sides.values()),
                *(f"{value:.3f}" for value in curve),
            ]
        )
    return [
        f"{first.perplexity.tokens:,} tokens of {documents} documents, {first.perplexity.windowing}"
        f", {begun} each window",
        f"loss by position in nats: {len(first.nll)} whole windows of {length} tokens",
        "",
        *aligned(table),
    ]


def _difference(one: Scored, first: Scored) -> str:
    """Nats per token above the first method, with an interval where documents allow one."""
    a, b = one.perplexity, first.perplexity
    if one is first or a is None or b is None:
        return "-"
    documents = len(a.document_tokens)
    if documents < 2:
        return f"{a.nll - b.nll:+.4f}"
    means = [(r.document_nll / r.document_tokens)[None] for r in (a, b)]
    found = statistics.paired_difference(
        means[0], means[1], range(documents), weights=a.document_tokens
    )
    return f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _side(one: Scored, first: Scored, at: slice) -> str:
    """Mean loss in nats at some positions, and that above the first method with an interval."""
    means, others = one.nll[:, at].mean(1), first.nll[:, at].mean(1)
    said = f"{means.mean():.3f}"
    if one is first:
        return said
    if len(set(one.owners.tolist())) < 2:
        return f"{said} ({(means - others).mean():+.3f})"
    found = statistics.paired_difference(means[None], others[None], one.owners)
    return f"{said} ({found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}])"


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


def _check_cropped(trained: int | None, length: int, bos: int | None) -> None:
    if trained is None or trained >= length or bos is None:
        raise ValueError(
            "--cropped compares windows longer than the trained length: give a --length above "
            f"{trained}, got {length}, and --bos, since each shorter window begins anew"
        )


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
    if args.last is not None and args.windowing != "last":
        raise ValueError("--last is of the windowing last: give --windowing last")
    if args.windowing == "last":
        if args.stride is not None:
            raise ValueError("--stride is of sliding windows: give --windowing sliding")
        return LastTokens(length, min(256, length) if args.last is None else args.last)
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
