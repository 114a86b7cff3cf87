"""The ledger of claims, docs/claims.md, is written from docs/claims.toml by

python -m docs.tools.claims
"""

import tomllib
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).parents[1]
SOURCE, PAGE = DOCS / "claims.toml", DOCS / "claims.md"
STATUSES = {
    "reproduced": "computed or run here, with the result that was claimed",
    "in miniature": "run here at a size or budget far below the source's",
    "corrected": "the claim is wrong or imprecise; the right statement stands beside it",
    "refuted here": "what was measured here contradicts it",
    "implemented": "built and tested; no measurement claims anything",
    "planned": "not done yet",
    "out of scope": "not done, with the reason",
}
INTRODUCTION = """\
# Claims

Every technical claim that this project makes or that it was compared with, and its status.
This page is written from [claims.toml](claims.toml) by `python -m docs.tools.claims`; a test looks
up every command, test and file that it names.
"""


def claims() -> list[dict]:
    """Returns the claims in the order of the file."""
    return tomllib.loads(SOURCE.read_text(encoding="utf-8"))["claim"]


def page() -> str:
    """Returns the page in Markdown."""
    found = claims()
    counts = Counter(claim["status"] for claim in found)
    parts = [INTRODUCTION, _table(("status", "claims", "meaning"), _counted(counts))]
    for about in dict.fromkeys(claim["about"] for claim in found):
        rows = [_row(claim) for claim in found if claim["about"] == about]
        parts += [f"## {about}\n", _table(("claim", "status", "found", "proof"), rows)]
    return "\n".join(parts).rstrip() + "\n"


def _counted(counts: Counter) -> list[list[str]]:
    return [[name, str(counts[name]), meaning] for name, meaning in STATUSES.items()]


def _row(claim: dict) -> list[str]:
    proofs = [_proof(text) for text in claim["proof"]]
    return [claim["says"], claim["status"], claim["found"], "<br>".join(proofs)]


def _proof(text: str) -> str:
    """A command as code, a test or a file as a link."""
    if " " in text:
        return f"`{text}`"
    path, _, test = text.partition("::")
    inside = path.removeprefix("docs/")
    return f"[{test or Path(path).name}]({inside if inside != path else '../' + path})"


def _table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
