"""A process of its own that writes conversations by chat templates, which strangers wrote.

`chat` starts this file as a script and ends it. Each line of stdin is a JSON object with a
`template`, its `values` and `seconds`; each line of stdout is the answer: `text` with the `spans`
that `{% generation %}` marks (None without that tag) and the `unknown` variables, or an `error`. A
template that takes longer ends the process by SIGALRM, which not even one endless step in C can
hold off; one that takes much memory gets a MemoryError, and one that looks outside of jinja2's
sandbox a SecurityError.
"""

import contextlib
import datetime
import functools
import json
import secrets
import signal
import sys

from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30  # bytes of address space
_LONGEST = 2**26  # characters of a conversation
_OPEN, _CLOSE = (f"\0{secrets.token_hex(16)}{end}" for end in "<>")


class Generation(Extension):
    """The tag around what the assistant says, as transformers has it."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser):
        """Reads {% generation %} ... {% endgeneration %}."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller) -> str:
        return _OPEN + caller() + _CLOSE


class Refused(Exception):
    """The template refuses the conversation in its own words."""


def _refuse(message) -> None:
    raise Refused(str(message))


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """What templates of transformers find: no files, no imports, no attribute with underscores."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _json
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return made


@functools.lru_cache(maxsize=16)
def compiled(text: str):
    """A template, the variables that it reads from outside, and whether it has the tag."""
    made = environment()
    tree = made.parse(text)
    marks = any(found.name == "_marked" for found in tree.find_all(nodes.ExtensionAttribute))
    return made.from_string(text), meta.find_undeclared_variables(tree), marks


def answer(request: dict) -> dict:
    """What stands on the line of stdout."""
    try:
        template, read, marks = compiled(request["template"])
        text = template.render(**request["values"])
    except Refused as error:
        return {"error": f"refuses the conversation: {error}"}
    except SecurityError as error:
        return {"error": f"reaches outside of the sandbox: {error}"}
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f" in its line {line}"
        return {"error": f"fails{where} ({type(error).__name__}): {error}"}
    except (MemoryError, RecursionError) as error:
        return {"error": f"asks for too much ({type(error).__name__})"}
    if len(text) > _LONGEST:
        return {"error": f"writes {len(text):,} characters, more than {_LONGEST:,}"}
    text, spans = _spans(text)
    unknown = sorted(read - set(request["values"]) - set(environment().globals))
    return {"text": text, "spans": spans if marks else None, "unknown": unknown}


def _spans(text: str) -> tuple[str, list[list[int]]]:
    """The text without marks, and [start, end) of what stood between each two, in characters."""
    parts, spans, done = text.split(_OPEN), [], 0
    for i, part in enumerate(parts):
        said, _, rest = part.partition(_CLOSE) if i else ("", "", part)
        if i:
            spans.append([done, done + len(said)])
        parts[i] = said + rest
        done += len(parts[i])
    return "".join(parts), spans


def main() -> None:
    """Answers until stdin ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        found = json.dumps(answer(request))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(found, flush=True)


if __name__ == "__main__":
    main()
