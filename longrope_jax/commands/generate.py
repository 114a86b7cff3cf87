"""Continues a text with a checkpoint, under its own rotary method or another one.

    longrope generate CKPT --prompt "Once upon a time" --rotary yarn:factor=4
    longrope generate CKPT --prompt-file book.txt --max-new-tokens 100

Text goes to stdout as it comes, without the prompt. What was assumed and, at the end, the speed of
both phases go to stderr.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from longrope_jax import generate, model, rotary
from longrope_jax.data import tokenizers
from longrope_jax.model import Model
from longrope_jax.sampling import Sampling
from longrope_jax.streaming import TextRows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    add("--prompt", metavar="TEXT", help="text to continue")
    add("--prompt-file", metavar="FILE", help="file that holds it; - is stdin")
    add("--rotary", metavar="METHOD", help="rotary method (default: the checkpoint's own)")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="default 200")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="0, the default, takes the likeliest token",
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="share of probability to draw from (default 1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws (default 0)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable")
    add(
        "--bos",
        action=argparse.BooleanOptionalAction,
        help="put the beginning token first (default: as the checkpoint's own software does)",
    )
    add(
        "--rotary-length",
        choices=generate.ROTARY_LENGTHS,
        default="final",
        help="which length decides the frequencies of a method that depends on it: prompt and new "
        "tokens together (final, the default), or that of each step",
    )
    add(
        "--refresh-every",
        type=int,
        default=1,
        metavar="N",
        help="with current: tokens between two looks at the length (default 1)",
    )
    add("--tokenizer", metavar="FILE", help="'bytes' or a tokenizer.json (default: its own)")
    add("--dtype", default="float32", help="of activations and matrix products (default float32)")
    add("--cache-dtype", help="of keys and values (default: that of activations)")


def main(args: argparse.Namespace) -> int:
    """Prints the continuation as it comes.

    Raises:
        ValueError: An argument is wrong or the checkpoint cannot be read. What can be known from
            the checkpoint's headers is found before its parameters are read.
    """
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    sampling, text = Sampling(args.temperature, args.top_p, args.seed), _prompt(args)
    header = prepared(model.open_model(args.checkpoint), args.rotary, args.tokenizer)
    ids = _encoded(header, text, args.bos)
    texts = TextRows(header.decode, [ids], args.stop, lambda new: print(new[0], end="", flush=True))
    options = {
        "rotary_length": args.rotary_length,
        "refresh_every": args.refresh_every,
        "cache_dtype": args.cache_dtype,
    }
    config = dataclasses.replace(header.config, dtype=args.dtype)
    longest = len(ids) + args.max_new_tokens
    rotary.make(header.method, head_dim=config.head_dim, seq_len=longest)
    generate.check(config, [ids], args.max_new_tokens, **options)
    loaded = model.load(args.checkpoint, dtype=args.dtype)
    for note in loaded.notes:
        tell(f"checkpoint: {note}")
    result = generate.generate(
        loaded.config,
        loaded.params,
        header.method,
        [ids],
        args.max_new_tokens,
        sampling=sampling,
        stop=[(end,) for end in header.special_tokens.stops],
        stream=texts.add,
        **options,
    )
    texts.close()
    print(flush=True)
    tell(speed(result))
    return 0


def prepared(
    header: Model, method: str | None, tokenizer: str | None, *, required: bool = True
) -> Model:
    """A model without parameters under the method and with the tokenizer that are asked for.

    Args:
        header: from `open_model`.
        method: text of a method, or None for the checkpoint's own.
        tokenizer: file of a tokenizer, or None for the checkpoint's own.
        required: whether there must be a tokenizer.

    Raises:
        ValueError: The method or the tokenizer cannot be read, or the tokenizer is another model's.
    """
    if method is None:
        tell(f"rotary: {header.method}, the checkpoint's own")
    else:
        header = header.with_rotary(method)
        tell(header.notes[-1])
    if tokenizer is not None:
        given, size = tokenizers.load(tokenizer), header.config.vocab_size
        if given.vocab_size > size:
            found = f"--tokenizer has {given.vocab_size} ids, the model {size}"
            raise ValueError(f"{found}: it is another model's")
        header = dataclasses.replace(header, tokenizer=given)
    if required and header.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer: give --tokenizer FILE")
    return header


def speed(result: generate.Generation) -> str:
    """One line: tokens and tokens/s of prefill (all but the prompt's last token) and decoding."""
    phases = (
        ("prefill", result.prefilled, result.prefill_seconds),
        ("decode", result.decoded, result.decode_seconds),
    )
    parts = [f"{name} {n} tokens, {n / max(s, 1e-9):,.1f} tokens/s" for name, n, s in phases]
    return "; ".join(parts) + " (loading, compilation and printing not counted)"


def tell(text: str) -> None:
    """Prints a line beside the result, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _prompt(args: argparse.Namespace) -> str:
    if (args.prompt is None) == (args.prompt_file is None):
        raise ValueError("give the text to continue: either --prompt TEXT or --prompt-file FILE")
    if args.prompt_file is None:
        return args.prompt
    try:
        standard = args.prompt_file == "-"
        data = sys.stdin.buffer.read() if standard else Path(args.prompt_file).read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is wrong"
        raise ValueError(f"{args.prompt_file} is not UTF-8 text: {where}") from error


def _encoded(header: Model, text: str, bos: bool | None):
    if bos and header.special_tokens.bos is None:
        raise ValueError("--bos: this checkpoint says no beginning token; leave --bos out")
    ids = header.encode(text, bos)
    if not len(ids):
        raise ValueError("the prompt is empty: give some text, or --bos")
    begun = "with" if header.beginning(bos) is not None else "without"
    how = "the checkpoint's way" if bos is None else "as asked"
    tell(f"prompt: {len(ids)} tokens, {begun} a beginning token, {how}")
    return ids
