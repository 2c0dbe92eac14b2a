"""Text into tokens: LaTeX, plain text and Unicode's mathematical characters alike.

An unknown command or character is Unreadable, never passed over: what is not understood may not be judged equal.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from r1mega.rewards.mathematics.guards import MAX_TOKENS, TooBig, Unreadable
from r1mega.rewards.mathematics.symbols import (
    ALIASES,
    BRACKETS,
    CHARACTERS,
    DROPPED,
    ENVIRONMENTS,
    FUNCTIONS,
    GREEK,
    OPERATORS,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    TEXT,
    UNWRAPPED,
    WITH_ARGUMENT_DROPPED,
)

Kind = Literal["num", "word", "sym", "fn", "op", "open", "close", "frac", "begin", "end", "unit", "set"]


@dataclass(frozen=True, slots=True)
class Token:
    """`text` as it is read. `spaced`: white space stands before it; `upright`: it stood in `\\text{}` or the like."""

    kind: Kind
    text: str
    spaced: bool = False
    upright: bool = False


_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_SPACE = re.compile(r"(?:\s|\\[,;:! \n]|~)+")
_NUMBER = re.compile(
    r"[0-9]*\.[0-9]*<[0-9]+>|(?:[0-9]+(?:\.(?:[0-9]+|(?![\d.])))?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![\d.]))?"
)
_WORD = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?|\\(.)", re.DOTALL)
_SIGNS = {
    "+": "+", "-": "-", "*": "*", "/": "/", "^": "^", "_": "_", "!": "!", "=": "=", "<": "<", ">": ">", ",": ",",
    ";": ";", ":": ":", "|": "|", "'": "'", "&": "&", ".": ".", "%": "%", "?": "?", '"': '"',
}  # fmt: skip
_PAIRS = {"<=": "<=", ">=": ">=", "!=": "!=", "**": "^", "==": "=", "=<": "<=", "≠": "!=", "||": "||", "+-": "pm"}
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|\\,|\\!|\\ |\\;|\s|,\\!|')\d{3})+(?![\d,]|\s\d|\.\d*\{)")
_REPEATING = re.compile(
    r"(?P<head>\d*\.\d*)(?:\\(?:overline|bar|dot)\s*\{(?P<bar>\d+)\}(?:\\dot\s*\{?(?P<last>\d)\}?)?"
    r"|\\(?:overline|bar|dot)\s*(?P<one>\d)|\((?P<round>\d+)\))"
)
_DOTS_AROUND = re.compile(r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)")
_CHOICES = re.compile(
    r"(?<![\w)}\]])(?:\{\s*\}\s*)?[_^]\s*\{?([0-9]{1,4}|[a-z])\}?\s*([CP])\s*_\s*\{?([0-9]{1,4}|[a-z])\}?"
)
"""`_5C_2` and `{}^5P_2`: combinations, and ordered ones."""


def clean(text: str) -> str:
    """`text` with one spelling a character: Unicode's signs as commands, grouped digits joined, delimiters gone."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m.group().translate(SUBSCRIPTS) + "}", text)
        text = "".join(CHARACTERS.get(character, character) for character in text)
    text = re.sub(r"\\[()\[\]](?!\s*-?\d+(?:\.\d+)?\s*(?:pt|em|ex)\])", " ", text)
    text = _without_dollars(text.replace("**", "^") if "**" in text and not text.startswith("**") else text)
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2]  # Markdown's bold
    text = _TIMES_TEN.sub(r" \\times ", text)  # 6.02 x 10^23
    text = _CHOICES.sub(_combinations, text)
    if "{,}" in text or _GROUPED.search(text):
        text = _GROUPED.sub(lambda m: re.sub(r"\D", "", m.group()), text)
        text = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)  # a decimal comma
    if "dot" in text:
        text = _DOTS_AROUND.sub(lambda m: rf"\overline{{{m[1]}{m[2]}{m[3]}}}", text)
    if "." in text:
        text = _REPEATING.sub(_repeating, text)
    return text.strip()


def _combinations(match: re.Match[str]) -> str:
    n, kind, k = match.groups()
    return rf"\binom{{{n}}}{{{k}}}" if kind == "C" else rf"\frac{{({n})!}}{{({n}-{k})!}}"


def _repeating(match: re.Match[str]) -> str:
    digits = match["bar"] or match["one"] or match["round"]
    head = match["head"] if match["head"] != "." else "0."
    return f"{head}<{digits}{match['last'] or ''}>"


def _without_dollars(text: str) -> str:
    if "$" not in text:
        return text
    text = text.replace("\\$", "\0").replace("$$", "$")
    if text.count("$") % 2 == 0 and not re.fullmatch(r"\s*\$\s*[\d.,]+.*\$\s*[\d.,]+[^$]*", text):
        text = text.replace("$", " ")
    return text.replace("$", "\\$").replace("\0", "\\$")


def number(text: str) -> Fraction:
    """The exact value of a number token: `12`, `1.5`, `2e-3`, `0.1<6>` (the digits in angles repeat)."""
    text, _, repeating = text.partition("<")
    text, _, exponent = text.lower().partition("e")
    if len(exponent) > 5 or (exponent and abs(int(exponent)) > 10_000):
        raise TooBig("an exponent of more than 10,000")
    whole, _, decimals = text.partition(".")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    if repeating:
        digits = repeating.rstrip(">")
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(decimals))
    return value * Fraction(10) ** int(exponent or "0")


def tokens_of(text: str) -> tuple[Token, ...]:
    """The tokens of a cleaned text. Raises Unreadable at an unknown command or character, TooBig past MAX_TOKENS."""
    found: list[Token] = []
    _cut(text, found, upright=False)
    return tuple(found)


def _cut(text: str, found: list[Token], *, upright: bool) -> None:
    position, spaced = 0, upright
    while position < len(text):
        if len(found) > MAX_TOKENS:
            raise TooBig(f"more than {MAX_TOKENS:,} parts")
        if (match := _SPACE.match(text, position)) is not None:
            position, spaced = match.end(), True
            continue
        kind: Kind = "op"
        if (match := _DEGREE.match(text, position)) is not None:
            kind, read = "unit", "°"
        elif (match := _NUMBER.match(text, position)) is not None:
            kind, read = "num", match.group()
        elif (match := _WORD.match(text, position)) is not None:
            kind, read = ("op", "%") if match.group() == "percent" else ("word", match.group())
        elif text[position] == "\\":
            position = _command(text, position, found, spaced=spaced, upright=upright)
            spaced = upright
            continue
        else:
            read, length, kind = _sign(text, position)
            found.append(Token(kind, read, spaced, upright))
            position, spaced = position + length, False
            continue
        found.append(Token(kind, read, spaced, upright))
        position, spaced = match.end(), False


def _sign(text: str, position: int) -> tuple[str, int, Kind]:
    if text.startswith("...", position):
        return "...", 3, "op"
    pair = _PAIRS.get(text[position : position + 2])
    if pair is not None:
        return pair, 2, "op"
    character = text[position]
    if character in "([{":
        return character, 1, "open"
    if character in ")]}":
        return character, 1, "close"
    if character in "€£¥₹¢":
        return character, 1, "unit"
    if character not in _SIGNS:
        raise Unreadable(f"the character {character!r}")
    return _SIGNS[character], 1, "op"


def _command(text: str, position: int, found: list[Token], *, spaced: bool, upright: bool) -> int:
    """Read the command at `position` and return where it ends."""
    match = _COMMAND.match(text, position)
    if match is None:
        raise Unreadable("a backslash at the end")
    name, sign, end = match[1], match[2], match.end()

    def add(kind: Kind, read: str) -> None:
        found.append(Token(kind, read, spaced, upright))

    if sign is not None:
        if sign in "{}":
            add("open" if sign == "{" else "close", "\\" + sign)
        elif sign == "\\":
            add("op", "\\\\")
        elif sign == "$":
            add("unit", "$")
        elif sign in "%|&":
            add("op", "||" if sign == "|" else sign)
        elif sign not in "#_/":
            raise Unreadable(f"the command \\{sign}")
        return end
    name = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "tbinom": "binom", "dbinom": "binom"}.get(name, name)
    name = ALIASES.get(name, name)
    if name in DROPPED:
        if name in ("left", "right", "middle") and (dot := re.compile(r"\s*\.").match(text, end)):
            return dot.end()
    elif name in TEXT:
        inside, end = _argument(text, end)
        _cut(inside, found, upright=True)
    elif name in WITH_ARGUMENT_DROPPED or name == "textcolor":
        end = _argument(text, end)[1]
    elif name == "mathbb":
        inside, end = _argument(text, end)
        add("set", inside.strip())
    elif name in ("begin", "end"):
        inside, end = _argument(text, end)
        if inside not in ENVIRONMENTS:
            raise Unreadable(f"the environment {inside[:20]!r}")
        add("begin" if name == "begin" else "end", inside)
        if inside == "array" and name == "begin" and text.startswith("{", end):
            end = _argument(text, end)[1]
    elif name in ("frac", "binom", "sqrt", "cbrt"):
        add("frac", name)
    elif name in FUNCTIONS:
        add("fn", name)
    elif name in OPERATORS:
        add("op", OPERATORS[name])
    elif name in BRACKETS:
        bracket = BRACKETS[name]
        add("open" if bracket.endswith(("(", "{", "[")) else "close", bracket)
    elif name in ("emptyset", "varnothing"):
        add("set", "empty")
    elif name in ("infty", "pi", "imath") or name in GREEK:
        add("sym", {"infty": "inf", "imath": "i", "varphi": "phi", "varepsilon": "epsilon"}.get(name, name))
    elif name in ("pounds", "euro", "yen", "cent", "textdollar"):
        add("unit", {"pounds": "£", "euro": "€", "yen": "¥", "cent": "¢"}.get(name, "$"))
    elif name not in UNWRAPPED:
        raise Unreadable(f"the command \\{name[:20]}")
    return end


def _argument(text: str, position: int) -> tuple[str, int]:
    """The argument that begins at `position`, without its braces, and where it ends."""
    while position < len(text) and text[position].isspace():
        position += 1
    if position >= len(text):
        raise Unreadable("a command without its argument")
    if text[position] != "{":
        return text[position], position + 1
    depth = 0
    for end in range(position, len(text)):
        if text[end] == "{":
            depth += 1
        elif text[end] == "}":
            depth -= 1
            if depth == 0:
                return text[position + 1 : end], end + 1
    raise Unreadable("a brace that is not closed")
