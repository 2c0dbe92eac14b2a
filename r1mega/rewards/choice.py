"""Multiple choice: the letter that an answer names, or the letters where several are right.

`B`, `(B)`, `B. Paris`, `\\text{(B)}\\ 12` and `The answer is B` name B. An answer that names more letters than the
truth is wrong, and so is one whose letter cannot be told.
"""

import re
from collections.abc import Mapping
from typing import Any

from r1mega.rewards.mathematics.answer import find_answer
from r1mega.rewards.mathematics.guards import MAX_CHARACTERS

_COMMANDS = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|boldsymbol|bf|rm|left|right)(?![A-Za-z])")
_PHRASES = re.compile(
    r"^(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+)?(?:final\s+|correct\s+|right\s+|best\s+)*"
    r"(?:answers?|options?|choices?)(?:\s+(?:is|are))?\s*:?\s*(?:options?\s+|choices?\s+)?(?=[(\[]?[A-Za-z](?![A-Za-z]))",
    re.IGNORECASE,
)
_LETTER = r"[(\[]?\s*([A-Za-z])\s*[)\]]?"
_ONE = re.compile(rf"{_LETTER}\s*(?P<mark>[.:)\]\-])?\s*(?P<text>.*)", re.DOTALL)
_SEVERAL = re.compile(rf"{_LETTER}(?:\s*(?:,|;|&|/|and|or|\s)\s*(?:and\s+|or\s+)?{_LETTER})+[.]?", re.IGNORECASE)
_JOINED = re.compile(r"[A-Z]{2,10}")
_MORE = re.compile(
    r"^(?:or|and|not|nor|but|is|isn't|are|if|&|,|/|;|\+|=|\^|_)|^[(\[]?[A-Za-z][)\]]?(?:[\s.,;:)]|$)", re.IGNORECASE
)


def letters(text: str) -> tuple[frozenset[str], str] | None:
    """The letters that `text` names, in upper case, and the text of the option behind a single one; else None.

    >>> letters("(B) 12 cm")
    (frozenset({'B'}), '12 cm')
    """
    if len(text) > MAX_CHARACTERS:
        return None
    plain = _COMMANDS.sub(" ", text.replace("$", " ").replace("\\ ", " ").replace("~", " "))
    plain = re.sub(r"[{}*]|\\[,;:!]|\\q?quad", " ", plain)
    plain = " ".join(plain.split())
    plain = _PHRASES.sub("", plain).strip()
    if _SEVERAL.fullmatch(plain):
        return frozenset(letter.upper() for letter in re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", plain)), ""
    if _JOINED.fullmatch(plain) and list(plain) == sorted(set(plain)):
        return frozenset(plain), ""
    match = _ONE.fullmatch(plain)
    if match is None:
        return None
    rest = match["text"].strip()
    enclosed = plain[0] in "(["
    if not rest:
        return frozenset((match[1].upper(),)), ""
    if not enclosed and match["mark"] is None and not (match[1].isupper() and plain[1:2] in (" ", ")")):
        return None
    if (_MORE.match(rest) and not (match["mark"] or enclosed)) or re.match(
        r"(?:or|and|not|&|,|/)\b", rest, re.IGNORECASE
    ):
        return None
    if re.search(r"(?<![A-Za-z])[(\[][A-Z][)\]]|\b(?:or|and|not)\s+[(\[]?[A-Z][)\]]?\s*[.)]?$", rest):
        return None  # another option behind it
    return frozenset((match[1].upper(),)), rest


class Choice:
    """The `Verifier` of multiple choice."""

    def find_answer(self, text: str) -> str | None:
        return find_answer(text)

    def last_answer(self, text: str) -> str:
        """The last letter that stands alone."""
        found = re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", text)
        return found[-1] if found else ""

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """A truth beyond the entry's `options`, where it lists them, has no right answer."""
        return is_right(answer, truth) and not _beyond(truth, entry.get("options"))


def _beyond(truth: str, options: Any) -> bool:
    named = truth_letters(truth)
    return (
        isinstance(options, list) and named is not None and any(ord(one) - ord("A") >= len(options) for one in named)
    )


def truth_letters(truth: str) -> frozenset[str] | None:
    """The letters of a truth under this rule; None where it names none, so that no answer can be right."""
    named = letters(truth)
    return None if named is None else named[0]


def is_right(answer: str, truth: str) -> bool:
    """Whether `answer` names the letters of `truth`, and no others."""
    wanted, named = truth_letters(truth), letters(answer)
    return wanted is not None and named is not None and named[0] == wanted
