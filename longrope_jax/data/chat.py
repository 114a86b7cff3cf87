"""A conversation becomes text and tokens by a checkpoint's own chat template.

    messages = [{"role": "user", "content": "Who speaks?"}]
    ids = chat.prompt(tokenizer, special_tokens, messages)         # int32 [T], an answer follows
    ids, assistant = chat.encode(tokenizer, special_tokens, messages + [answer])

The text is that of transformers' `apply_chat_template`, and so are the ids. A template is a program
of a stranger: it runs in jinja2's sandbox in a process of its own, with a bound on its time and
memory (see `chat_worker`). It is given the messages, the names of the beginning and the end token,
and empty tools and documents; one that asks for more is refused.
"""

import atexit
import contextlib
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer, encode_marked

Message = Mapping[str, Any]  # "role" and "content", texts, and what else a template reads

_SECONDS = 10.0  # of a template's run; real ones take milliseconds
_SAID = "QXZ"  # letters that a template hardly writes itself
_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SAID}]
# -P: the folder of the worker has modules that are called like others' packages.
_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("chat_worker.py")))
_LOCK = threading.Lock()


def render(
    tokenizer: Tokenizer | None,
    special: SpecialTokens,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Returns the text of a conversation.

    Args:
        tokenizer: names the beginning and the end token.
        special: the tokens and the template, as a checkpoint declares them.
        messages: the turns in their order.
        add_generation_prompt: whether the text ends where an answer begins; some templates have no
            such words and write the same text.

    Raises:
        ValueError: there is no template, jinja2 is not installed, or the template refuses the
            conversation, fails, does not end, or reads what it is not given.
    """
    return _rendered(tokenizer, special, messages, add_generation_prompt)[0]


def prompt(tokenizer: Tokenizer, special: SpecialTokens, messages: Sequence[Message]) -> np.ndarray:
    """Returns the ids after which an answer follows, int32 [T].

    Raises:
        ValueError: as `render`, or a message holds the name of a special token.
    """
    _check_plain(tokenizer, messages)
    text = render(tokenizer, special, messages, add_generation_prompt=True)
    return encode_marked(tokenizer, text)[0]


def encode(
    tokenizer: Tokenizer, special: SpecialTokens, messages: Sequence[Message]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a conversation, int32 [T], and which the assistant says, bool [T].

    The latter is the loss mask of instruction tuning. It holds what `{% generation %}` marks in the
    template, as transformers' `return_assistant_tokens_mask`. In a template without that tag it is,
    of each assistant's turn, what the text has more than the text of the turns before it that ends
    where an answer begins, up to the first token that ends a turn.

    Raises:
        ValueError: as `prompt`, or the text of the first turns is not how the text of all turns
            begins, so that it cannot be told who says what.
    """
    _check_plain(tokenizer, messages)
    text, spans = _rendered(tokenizer, special, messages, False)
    ids, places = encode_marked(tokenizer, text)
    if spans is not None:
        return ids, _within(places, spans)
    mask = _within(places, _answers(tokenizer, special, messages, text))
    ends = turn_ends(tokenizer, special)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    for start, end in edges.reshape(-1, 2):
        stops = np.flatnonzero(np.isin(ids[start:end], ends))
        if len(stops):
            mask[start + stops[0] + 1 : end] = False
    return ids, mask


def turn_ends(tokenizer: Tokenizer, special: SpecialTokens) -> tuple[int, ...]:
    """Returns the ids that end a turn: those that end a text, and what the template writes there.

    Raises:
        ValueError: as `render`.
    """
    text = render(tokenizer, special, _PROBE)
    after = text.rpartition(_SAID)[2].lstrip()
    written = sorted((name for name in tokenizer.specials if after.startswith(name)), key=len)
    return tuple(dict.fromkeys((*special.stops, *map(tokenizer.special, written[-1:]))))


def _within(places: np.ndarray, spans: Sequence[Sequence[int]]) -> np.ndarray:
    """Which tokens overlap a span of characters, bool [T]."""
    starts, ends = places.T
    return np.any([(starts < b) & (ends > a) for a, b in spans] or [starts < 0], axis=0)


def _answers(tokenizer, special, messages, text: str) -> list[tuple[int, int]]:
    """[start, end) of each assistant's turn in the text, by the texts of the turns before it."""
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, special, messages[:i], add_generation_prompt=True)
            whole = render(tokenizer, special, messages[: i + 1])
            if not (text.startswith(whole) and whole.startswith(before)):
                raise ValueError(
                    f"the chat template writes the first {i + 1} messages otherwise when more "
                    "follow, so the assistant's words cannot be told from its text: put "
                    "{% generation %} and {% endgeneration %} around them in the template, or "
                    "train on single turns"
                )
            spans.append((len(before), len(whole)))
    return spans


def _check_plain(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"message {i} must have a role, such as user, got {message!r:.60}")
        found = [
            name for name in tokenizer.specials if isinstance(content, str) and name in content
        ]
        if found:
            raise ValueError(
                f"message {i} holds {found[0]!r}, which a chat template turns into that special "
                "token: leave it out or write it otherwise"
            )


def _rendered(tokenizer, special, messages, begun: bool) -> tuple[str, list | None]:
    if special.chat_template is None:
        raise ValueError(
            "this checkpoint has no chat template: it continues text (longrope generate), or give "
            "special_tokens.chat_template"
        )
    if not messages:
        raise ValueError("messages is empty: a conversation has one turn or more")
    values: dict[str, Any] = {}
    if tokenizer is not None:
        by_id = {tokenizer.special(name): name for name in tokenizer.specials}
        known = special.ids().items()
        values = {f"{role}_token": by_id[at] for role, at in known if at in by_id}
    plain = [{k: v for k, v in message.items() if v is not None} for message in messages]
    values |= {"messages": plain, "add_generation_prompt": begun, "tools": None, "documents": None}
    found = _asked({"template": special.chat_template, "values": values, "seconds": _SECONDS})
    lacking = [name for name in found.get("unknown", ()) if name.endswith("_token")]
    if lacking:
        raise ValueError(
            f"the chat template writes {lacking[0]}, which this checkpoint does not name: give it "
            "in the template itself"
        )
    if "error" in found:
        raise ValueError(f"the chat template {found['error']:.400}")
    return found["text"], found["spans"]


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer; a template that ends the worker does not end this process."""
    line = json.dumps(request)
    with _LOCK:
        worker = _worker()
        try:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
            said = worker.stdout.readline()
        except BrokenPipeError:
            said = ""
        if said:
            return json.loads(said)
        _worker.cache_clear()
        status, why = worker.wait(), worker.stderr.read().strip()
    if "jinja2" in why.rpartition("\n")[2]:
        raise ValueError("chat templates need the package jinja2: pip install 'jinja2>=3.1.6'")
    if status < 0 and not why:
        return {"error": f"does not end within {request['seconds']:g} seconds"}
    return {"error": f"ended its process with status {status}: {why}"}


@functools.cache
def _worker() -> Any:
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    worker = subprocess.Popen(_COMMAND, text=True, encoding="utf-8", **pipes)
    atexit.register(_end, worker)
    return worker


def _end(worker: Any) -> None:
    with contextlib.suppress(OSError):
        worker.stdin.close()
    worker.wait()
