"""Model text made fit to be shown: what drives a terminal, turns lines round or cannot be seen becomes its code."""

import itertools
import re
from typing import Literal

Kind = Literal["text", "tag", "code"]

INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that `str.isprintable` lets pass and that no font shows."""
TAG = re.compile(r"(</?[\w|｜▁-]{1,40}>)")
"""A tag of the answer format, or a special token."""


def visible(text: str) -> str:
    """`text` with every control or invisible character, the line break excepted, as its escape (`\\x1b`)."""
    if text.isprintable() and not INVISIBLE.search(text):
        return text
    return "".join(part for _, part in pieces(text))


def pieces(text: str) -> list[tuple[Kind, str]]:
    """`visible(text)` in pieces, by what they were: tags, codes of characters that do not show, and plain text."""
    found: list[tuple[Kind, str]] = []
    for shows, run in itertools.groupby(text, _shows):
        part = "".join(run)
        if shows:
            for word in filter(None, TAG.split(part)):
                found.append(("tag" if TAG.fullmatch(word) else "text", word))
        else:
            found.append(("code", part.encode("unicode_escape").decode("ascii")))
    return found


def cut(text: str, max_chars: int) -> str:
    """`text`, or its beginning and its end (the answer stands there), with what was left out between them counted."""
    left_out = len(text) - max_chars
    if left_out <= 0:
        return text
    tail = max_chars // 3
    return f"{text[: max_chars - tail]}\n… {left_out:,} characters left out …\n{text[-tail:]}"


def _shows(character: str) -> bool:
    return character == "\n" or (character.isprintable() and not INVISIBLE.match(character))
