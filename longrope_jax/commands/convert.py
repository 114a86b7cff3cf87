"""Writes a checkpoint in another format, or with another rotary method declared.

    longrope convert IN OUT
    longrope convert IN model.gguf --rotary yarn:factor=4 --context-length 32768

IN is a Hugging Face folder, a .gguf file, Meta's folder or a run of this package. OUT ending in
.gguf is a file for llama.cpp, else a Hugging Face folder. Tokenizer, chat template and the tokens
that begin and end a text are kept.
"""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

from longrope_jax import model, rotary, runs, weights
from longrope_jax.commands.generate import prepared
from longrope_jax.weights.gguf_export import DTYPES

# How files call the float types that can be written; all else is written as float32.
_KINDS = {"F16": "float16", "BF16": "bfloat16", "float16": "float16", "bfloat16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("checkpoint", metavar="IN", help="checkpoint: folder, file or name")
    add("out", metavar="OUT", help="folder or .gguf file to write; nothing may be there")
    add("--format", choices=weights.FORMATS, help="default: by the name of OUT")
    add("--rotary", metavar="METHOD", help="rotary method to declare (default: its own)")
    add("--dtype", choices=DTYPES, help="of the tensors (default: that of IN; quantised: float32)")
    add("--context-length", type=int, metavar="N", help="tokens to declare (default: what it says)")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json to write, or none (default: its own)")


def main(args: argparse.Namespace) -> int:
    """Converts the checkpoint and says what was written.

    Raises:
        ValueError: An argument is wrong, the checkpoint cannot be read, or the format cannot say
            all of it. All of this is found before the parameters are read.
    """
    header = model.open_model(args.checkpoint)
    if args.tokenizer == "none":
        header, args.tokenizer = dataclasses.replace(header, tokenizer=None), None
    ready = prepared(header, args.rotary, args.tokenizer, required=False)
    form = args.format or model.format_of(args.out)
    weights.check_save(
        ready.config,
        ready.method,
        ready.tokenizer,
        special_tokens=ready.special_tokens,
        format=form,
        path=args.out,
        family=ready.family,
    )
    dtype = args.dtype or dtype_of(args.checkpoint, ready)
    loaded = model.load(args.checkpoint, param_dtype=dtype)
    out = dataclasses.replace(ready, config=loaded.config, params=loaded.params)
    out.save(args.out, format=form, context_length=args.context_length)
    length = args.context_length or out.declared_length()
    print(
        f"wrote {args.out}: {form}, {dtype}, {rotary.name_of(out.method)}, "
        f"{'no tokenizer' if out.tokenizer is None else 'with its tokenizer'}, "
        f"{length or 'no'} tokens declared"
    )
    return 0


def dtype_of(source: str | Path, header: model.Model) -> str:
    """The dtype that most of a checkpoint's tensors have, float32 where they are quantised."""
    if runs.checkpoints_folder(source) is not None:
        return header.config.param_dtype
    kinds = weights.open_checkpoint(source).source.kinds
    # Norms are kept in float32 beside the others.
    most = Counter(kinds.values()).most_common(1)[0][0]
    return _KINDS.get(most, "float32")
