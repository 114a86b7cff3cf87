"""A conversation with a checkpoint in the terminal, by the checkpoint's own chat template.

    longrope chat smollm2-135m
    longrope chat CKPT --rotary yarn:factor=4 --system "Answer in one word." < questions.txt

Each line of stdin is a turn. Answers go to stdout as they come, one blank line after each; what is
typed at a terminal follows a ">". An answer ends at the tokens that end a turn. A line /new forgets
the conversation, /exit or the end of stdin ends it. Nothing is ever cut off the conversation: where
it grows longer than the method reaches, a line on stderr says so.
"""

import argparse
import sys
from collections.abc import Iterator

from longrope_jax import generate, model
from longrope_jax.commands.generate import prepared, tell
from longrope_jax.data import chat
from longrope_jax.model import Model
from longrope_jax.sampling import Sampling
from longrope_jax.streaming import TextStream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint: folder, file or name")
    add("--system", metavar="TEXT", help="first message, of the system (default: the template's)")
    add("--rotary", metavar="METHOD", help="rotary method (default: the checkpoint's own)")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (default 512)")
    add("--temperature", type=float, default=0.0, metavar="X", help="0, the default, is greedy")
    add("--top-p", type=float, default=1.0, metavar="X", help="see longrope generate (default 1)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws (default 0)")
    add("--tokenizer", metavar="FILE", help="'bytes' or a tokenizer.json (default: its own)")
    add("--dtype", default="float32", help="of activations and matrix products (default float32)")


def main(args: argparse.Namespace) -> int:
    """Answers turn by turn.

    Raises:
        ValueError: An argument is wrong, the checkpoint cannot be read or has no chat template, or
            the template refuses the conversation. What the headers tell is found before parameters
            are read.
    """
    Sampling(args.temperature, args.top_p, args.seed)
    header = prepared(model.open_model(args.checkpoint), args.rotary, args.tokenizer)
    tokenizer, special = header.tokenizer, header.special_tokens
    assert tokenizer is not None  # `prepared` refuses that
    first = [] if args.system is None else [{"role": "system", "content": args.system}]
    ids = chat.prompt(tokenizer, special, [*first, _user("a")])
    generate.check(header.config, [ids], args.max_new_tokens)
    ends = chat.turn_ends(tokenizer, special)
    loaded = model.load(args.checkpoint, dtype=args.dtype)
    for note in loaded.notes:
        tell(f"checkpoint: {note}")
    messages, reach = list(first), header.declared_length()
    for line in _turns():
        if line == "/exit":
            break
        if line == "/new":
            messages = list(first)
            continue
        try:
            ids = chat.prompt(tokenizer, special, [*messages, _user(line)])
        except ValueError as error:  # of this turn alone: the conversation goes on without it
            if not sys.stdin.isatty():
                raise
            tell(f"error: {error}")
            continue
        answer, count = _answer(loaded, header, ids, ends, args)
        messages += [_user(line), {"role": "assistant", "content": answer}]
        if count == args.max_new_tokens:
            tell(f"the answer is cut at --max-new-tokens {count}")
        if reach and len(ids) + count > reach:
            tell(
                f"the conversation has {len(ids) + count:,} tokens, more than the {reach:,} that "
                "are declared for this method: /new begins another one, --rotary takes a method "
                "that reaches further"
            )
    return 0


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _turns() -> Iterator[str]:
    """Lines of stdin that are not empty; at a terminal each after a prompt."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(loaded: Model, header: Model, ids, ends, args) -> tuple[str, int]:
    """Prints the answer as it comes; the text, and how many tokens it has."""
    text, parts = TextStream(header.decode, ids), []

    def show(piece: str) -> None:
        parts.append(piece)
        print(piece, end="", flush=True)

    new = loaded.generate(
        ids,
        max_new_tokens=args.max_new_tokens,
        rotary=header.method,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        stop=ends,
        stream=lambda piece: show(text.add(piece)),
    )
    show(text.close())
    print("\n", flush=True)
    return "".join(parts), len(new)
