"""Answers that are read as a whole: times, numbers in a base, congruences, measures, the empty set, words."""

import re
from dataclasses import dataclass

from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.notation import Token, tokens_of
from r1mega.rewards.mathematics.symbols import BASE_WORDS
from r1mega.rewards.mathematics.units import is_unit, is_unit_letter, unit_of


@dataclass(frozen=True)
class Fixed:
    """An answer with one spelling: equal where `kind` and `key` are. time ("15:30"), base ("1010", 2), words..."""

    kind: str
    key: object


EMPTY = Fixed("set", "empty")
REALS = Fixed("set", "R")

_PHRASES = re.compile(
    r"^\s*\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*\}|"
    r"^\s*(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+)?(?:(?:final|correct)\s+)?"
    r"(?:answer|result|solution|value)\s*(?:is|are|:|=)\s*:?\s*|^\s*(?:ans(?:wer)?)\s*[:=]\s*|^\s*=\s*",
    re.IGNORECASE,
)
_INTEGERS = re.compile(
    r"[\s,;(]*(?:\\text\s*\{)?\s*(?:(?:where|for|with)\s+)?(?:any|all|every|some)?\s*(?:integers?\s+)?\}?\s*([a-z])\s*"
    r"(?:\\text\s*\{)?\s*(?:is\s+an?(?:y|\s+arbitrary)?\s+integer|are\s+integers|integer)\s*\}?\)?\.?\s*$"
)
_FOR_INTEGERS = re.compile(
    r"[\s,;(]*(?:\\text\s*\{)?\s*(?:where|for|with)\s+(?:any|all|every|some)?\s*integers?\s*\}?\s*([a-z])\}?\)?\.?\s*$"
)
_MEMBER = re.compile(
    r"(?:[\s,;]|\\(?:[ ,;:]|q?quad))*(?:\\left)?\(\s*([a-z])\s*\\in\s*\\mathbb\s*\{?([ZN])\}?\s*"
    r"(?:\\right)?\)\s*$"
)
_EMPTY = re.compile(
    r"(?:there\s+(?:is|are|exists?)\s+)?(?:no|none|0)\s*(?:real|integer|such|possible|valid)?\s*"
    r"(?:solutions?|roots?|such\s+(?:x|n|integers?|numbers?|values?))?\s*(?:exists?)?|(?:the\s+)?(?:empty|null)\s+set"
)
_REALS = re.compile(r"(?:x\s+is\s+)?(?:all|any|every|the\s+set\s+of\s+all)?\s*(?:real\s+numbers?|reals?)(?:\s+x)?")
_TIME = re.compile(
    r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(a\.?\s?m\.?|p\.?\s?m\.?|o'?clock|noon|midnight)?", re.IGNORECASE
)
_BASE = re.compile(
    r"\(?(-?[0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)\)?(?:_\{?\(?(?:base)?|\(?(?:in)?base)([A-Za-z]+|[0-9]+)\)?\}?\)?"
)
_CONGRUENCE = re.compile(
    r"(?:([a-z])\s*\\equiv\s*)?(-?\d+)\s*(?:\\pmod|\(?\s*\\?b?mod(?:ulo)?)\s*\{?\s*(\d+)\s*\}?\)?"
)
_MEASURE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?")
_EXCEPT = re.compile(
    r"^(?:x\s+is\s+)?(?:all|any|every)\s+(?:reals?|real\s+numbers?)\s+(?:x\s+)?except\s+(?:for\s+)?"
    r"(?:x\s*=\s*)?(.+)$"
)
_SYSTEM = re.compile(
    r"\\left\s*\\\{\s*\\begin\{(?:array|aligned|matrix)\}(?:\{[lcr]*\})?(.*)"
    r"\\end\{(?:array|aligned|matrix)\}\s*\\right\s*\.?",
    re.DOTALL,
)
_UPRIGHT = r"(\\(?:text|mathrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?)"
_FRACTION_OF_UNITS = re.compile(rf"\\[dt]?frac\s*\{{\s*{_UPRIGHT}\s*\}}\s*\{{\s*{_UPRIGHT}\s*\}}")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox|textnormal|mathbf|operatorname)\s*\{([^{}]*)\}")
_ARTICLES = frozenset(("a", "an", "the"))


def without_phrases(text: str) -> str:
    """`text` without "the answer is" before it and a full stop behind it; integer parameters in one notation."""
    text = _PHRASES.sub("", text.strip()).strip()
    if text.endswith(".") and not text.endswith(("..", "m.")):
        text = text[:-1].rstrip()
    if "integer" in text:
        for pattern in (_INTEGERS, _FOR_INTEGERS):
            text = pattern.sub(lambda match: rf", {match[1]} \in \mathbb{{Z}}", text)
    text = re.sub(r"^([0-9]+)_\{?10\}?$", r"\1", text)
    text = _EXCEPT.sub(lambda match: rf"\mathbb{{R}}\setminus\{{{match[1]}\}}", text)
    text = _SYSTEM.sub(lambda match: rf"\begin{{cases}}{match[1]}\end{{cases}}", text)
    text = _FRACTION_OF_UNITS.sub(r"\1/\2", text)
    text = re.sub(r"\bper\s+cent\b", "percent", text)
    text = re.sub(r"^(\d+)\s+to\s+(\d+)$", r"\1:\2", text)
    return _MEMBER.sub(lambda match: rf", {match[1]} \in \mathbb{{{match[2]}}}", text)


def read(text: str) -> Fixed | None:
    """The fixed meaning of a whole answer; None where it has none and is to be read as mathematics."""
    plain = _TEXT.sub(lambda match: f" {match[1]} ", text)
    plain = re.sub(r"\\[,;:! ]|~|\\q?quad(?![a-z])", " ", plain).strip()
    lower = " ".join(plain.lower().rstrip(".!").split())
    if lower in ("none", "{}", "\\{\\}", "\\emptyset", "\\varnothing") or (
        len(lower) > 6 and _EMPTY.fullmatch(lower) is not None
    ):
        return EMPTY
    if len(lower) > 4 and _REALS.fullmatch(lower):
        return REALS
    if lower in ("dne", "does not exist", "doesn't exist", "the limit does not exist"):
        return Fixed("words", "does not exist")
    return _time(plain) or _based(plain) or _congruence(plain) or _compound(plain)


def words(text: str) -> Fixed:
    """Text as text: case, articles and punctuation of plain words do not count; anything else counts."""
    plain = _TEXT.sub(lambda match: f" {match[1]} ", text)
    parts = re.findall(r"[^\W_]+(?:'[a-z]+)?", plain)
    if parts and not re.search(r"[\\^_{}=<>+*/|\[\]()]|\d\s*-|\.\.", plain):
        lower = [part.lower() for part in parts]
        kept = [part for part in lower if part not in _ARTICLES] if len(lower) > 1 else lower
        return Fixed("words", " ".join(kept or lower))
    try:
        return Fixed("text", "".join(token.text for token in tokens_of(text)))
    except Unreadable:
        return Fixed("text", re.sub(r"\s+", "", text))


def _time(text: str) -> Fixed | None:
    if text.lower() in ("noon", "midnight"):
        return Fixed("time", (720 if text.lower() == "noon" else 0, 0))
    match = _TIME.fullmatch(text)
    if match is None or (match[2] is None and match[4] is None):
        return None
    hour, minute, second = int(match[1]), int(match[2] or 0), int(match[3] or 0)
    half = (match[4] or "").lower().replace(".", "").replace(" ", "").replace("'", "")
    if hour > 24 or minute > 59 or second > 59 or (half in ("am", "pm") and not 1 <= hour <= 12):
        return None
    if half in ("noon", "midnight") and (hour, minute) != (12, 0):
        return None
    if half in ("am", "midnight"):
        hour %= 12
    elif half in ("pm", "noon"):
        hour = hour % 12 + 12
    elif hour < 13:
        return Fixed("clock", (hour, minute, second) if match[3] else (hour, minute))
    return Fixed("time", (hour * 60 + minute, second))


def _based(text: str) -> Fixed | None:
    match = _BASE.fullmatch("".join(text.split()))
    if match is None:
        return None
    digits, name = match[1].upper(), match[2].strip().lower()
    base = int(name) if name.isdigit() and len(name) <= 2 else BASE_WORDS.get(name)
    if base is None or not 2 <= base <= 36 or not re.search(r"\d|[A-F]{2}", digits):
        return None
    if any(int(digit, 36) >= base for digit in digits.strip("-") if digit != "."):
        return None
    sign, digits = ("-", digits[1:]) if digits[0] == "-" else ("", digits)
    return Fixed("base", (sign + (digits.lstrip("0") or "0"), base))


def _congruence(text: str) -> Fixed | None:
    match = _CONGRUENCE.fullmatch(text)
    if match is None or len(match[2]) > 40 or len(match[3]) > 40 or not int(match[3]):
        return None
    modulus = int(match[3])
    return Fixed("congruence", (int(match[2]) % modulus, modulus))


def _compound(text: str) -> Fixed | None:
    """`2 hours 30 minutes`, `5 ft 6 in`: parts in the order in which they stand."""
    parts = _MEASURE.findall(text)
    if len(parts) < 2 or len(parts) > 4 or re.sub(r"[\s,.]|\band\b", "", _MEASURE.sub("", text)):
        return None
    if not all(is_unit(unit) or is_unit_letter(unit) for _, unit in parts):
        return None
    return Fixed("measure", tuple((float(value), unit_of([Token("word", unit)])) for value, unit in parts))
