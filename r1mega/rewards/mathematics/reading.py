"""What an answer is: a value with a unit, a list, a tuple or interval, a matrix, a relation, words.

`read` gives the readings of a text: usually one, two where the notation has two meanings (`1,234`; `5 m`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from r1mega.rewards.mathematics import special
from r1mega.rewards.mathematics.expression import parse, parse_front
from r1mega.rewards.mathematics.guards import MAX_ITEMS, TooBig, Unreadable
from r1mega.rewards.mathematics.notation import Token, clean, tokens_of
from r1mega.rewards.mathematics.symbols import VALUE_WORDS
from r1mega.rewards.mathematics.term import Term, num
from r1mega.rewards.mathematics.units import is_unit, is_unit_letter, unit_of

RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "in", "~")


@dataclass(frozen=True)
class Scalar:
    """A value: `3\\frac12`, `5 cm` (unit `cm^1`), `x^2 + 1`."""

    node: Term
    unit: str | None = None


@dataclass(frozen=True)
class Several:
    """Solutions in any order: `{1, 2}`, `1, 2`, `x > 3 or x < 1`. `joined` says with which word."""

    items: "tuple[Reading, ...]"
    joined: Literal["or", "and", ",", "set"] = ","


@dataclass(frozen=True)
class Ordered:
    """`(1, 2)`, `[0, 1)`, `\\langle 1, 2, 3 \\rangle`: a tuple, a vector or an interval, by its brackets.

    A ratio, `2 : 3`, has none, and `:` for them.
    """

    items: "tuple[Reading, ...]"
    brackets: str


@dataclass(frozen=True)
class Grid:
    """A matrix, row by row."""

    rows: tuple[tuple[Term, ...], ...]


@dataclass(frozen=True)
class Chain:
    """Members with relations between them, not yet read: `x = 3`, `1 < x \\le 2`, `x \\in (0, 1)`."""

    members: tuple[tuple[Token, ...], ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """A union, intersection or difference of sets."""

    kind: Literal["cup", "cap", "setminus"]
    items: "tuple[Reading, ...]"


@dataclass(frozen=True)
class Builder:
    """`{x | x > 1}`: the values of `name` that satisfy `condition`."""

    name: str
    condition: "Reading"


Reading: TypeAlias = Scalar | Several | Ordered | Grid | Chain | Operation | Builder | special.Fixed


def read(text: str, *, is_truth: bool) -> list[Reading]:
    """The readings of `text`, the likeliest first; as its own words where it is no mathematics. Raises TooBig.

    An answer may write a unit's letter right behind a number (`10m`); in a truth that is a variable.
    """
    cleaned = special.without_phrases(clean(text))
    fixed = special.read(cleaned)
    if fixed is not None:
        return [fixed]
    found: list[Reading] = []
    for variant in _variants(cleaned):
        try:
            tokens = tokens_of(variant)
        except TooBig:
            raise
        except Unreadable:
            continue
        try:
            found.append(read_tokens(tokens))
        except TooBig:
            raise
        except Unreadable:
            pass
        measured = _measured(tokens, spaced_only=is_truth)
        if measured is not None:
            found.append(measured)
    return found or [special.words(cleaned)]


def _variants(text: str) -> list[str]:
    """The text, and with its thousands joined: `1,234` may be one number or two."""
    grouped = r"(?<![\d.,(\[])\d{1,3}(?:,\d{3})+(?![\d,)\]]|\.\d*\()"
    if not re.search(grouped, text):
        return [text]
    joined = re.sub(grouped, lambda match: match.group().replace(",", ""), text)
    return [joined] if "." in text and re.fullmatch(r"[\d,]+\.\d+", text) else [joined, text]


def _measured(tokens: Sequence[Token], *, spaced_only: bool) -> Scalar | None:
    """`5 m` as metres, `9.8 m/s^2`."""
    first = next((position for position, token in enumerate(tokens) if token.kind == "word"), 0)
    if not first or tokens[0].kind not in ("num", "frac", "op", "open"):
        return None
    words = [token.text for token in tokens[first:] if token.kind == "word"]
    if not (is_unit_letter(words[0]) or is_unit(words[0])) or (spaced_only and not tokens[first].spaced):
        return None
    if any(len(word) == 1 and not is_unit_letter(word) for word in words):
        return None  # a product of unknowns
    try:
        node, unit = parse(tokens[:first]), unit_of(tokens[first:])
    except Unreadable:
        return None
    return None if any(part.kind in ("sym", "pm") for part in node.walk()) else Scalar(node, unit)


def read_tokens(tokens: Sequence[Token]) -> Reading:
    """The reading of these tokens, all of them. Raises Unreadable."""
    tokens = trim(tokens)
    if not tokens:
        raise Unreadable("there is nothing")
    for separators in (("or",), (",", ";", "and")):
        parts, found = split(tokens, separators)
        if len(parts) > 1:
            return _several(parts, found)
    members, relations = split(tokens, RELATIONS)
    if len(members) > 1:
        if not all(members):
            raise Unreadable("a relation without a side")
        return Chain(tuple(tuple(member) for member in members), tuple(relations))
    for operator in ("cup", "setminus", "cap"):
        operands, _ = split(tokens, (operator,))
        if len(operands) > 1:
            return Operation(operator, tuple(read_tokens(part) for part in operands))
    terms, _ = split(tokens, (":",))
    if len(terms) > 1:
        if not all(terms) or len(terms) > MAX_ITEMS:
            raise Unreadable("a ratio without a side")
        return Ordered(tuple(scalar(term) for term in terms), ":")
    if tokens[0].kind in ("open", "begin") and closing_of(tokens) == len(tokens) - 1:
        return _enclosed(tokens)
    if tokens[0].kind == "set" and len(tokens) == 1:
        return special.Fixed("set", tokens[0].text)
    return scalar(tokens)


def _several(parts: list[list[Token]], separators: list[str]) -> Reading:
    words = {separator for separator in separators if separator in ("or", "and")}
    parts = [part for part in parts if part]  # `1, 2, and 3`; a comma at the end
    if not parts or len(parts) > MAX_ITEMS:
        raise Unreadable("a list of nothing, or a longer one than is compared")
    joined = "or" if "or" in words else "and" if "and" in words else ","
    items = tuple(read_tokens(part) for part in parts)
    return items[0] if len(items) == 1 else Several(items, joined)


def _enclosed(tokens: Sequence[Token]) -> Reading:
    """A reading within one pair of brackets, or a matrix."""
    first, inner = tokens[0], tokens[1:-1]
    if first.kind == "begin":
        return _grid(first.text, inner)
    brackets = first.text + tokens[-1].text
    if inner and inner[0].kind == "begin" and closing_of(inner) == len(inner) - 1 and brackets in ("()", "[]"):
        return _enclosed(inner)
    if first.text in ("floor(", "ceil("):
        return scalar(tokens)
    if first.text == "{" and tokens[-1].text == "}":
        # Braces that group are trimmed already: these are plain text's, as in {1, 2}.
        return _set(inner)
    if first.text == "\\{":
        return _set(inner)
    parts, _ = split(inner, (",", ";"))
    if len(parts) == 1:
        if brackets in ("()", "[]"):
            return read_tokens(inner) if brackets == "()" else scalar(tokens)
        raise Unreadable("brackets around one value")
    if not all(parts) or len(parts) > MAX_ITEMS:
        raise Unreadable("an empty place between commas")
    items = tuple(read_tokens(part) for part in parts)
    if brackets == "[]" and all(isinstance(item, Ordered) and item.brackets == "[]" for item in items):
        return _grid_of(items)
    return Ordered(items, brackets.replace("<(", "<").replace(")>", ">"))


def _set(inner: Sequence[Token]) -> Reading:
    if not inner:
        return special.EMPTY
    head, marks = split(inner, ("|", ":"))
    if len(head) == 2 and marks:
        members, _ = split(head[0], ("in",))
        name = "".join(token.text for token in members[0])
        if re.fullmatch(r"[A-Za-z]+", name):
            return Builder(name, read_tokens(head[1]))
    parts, _ = split(inner, (",", ";", "or", "and"))
    if not all(parts) or len(parts) > MAX_ITEMS:
        raise Unreadable("an empty place between commas, or too many of them")
    items = tuple(read_tokens(part) for part in parts)
    if any(item == special.EMPTY for item in items):
        raise Unreadable("a set that holds the empty set")
    return Several(items, "set")


def _grid(environment: str, inner: Sequence[Token]) -> Reading:
    rows = [row for row in split(inner, ("\\\\",))[0] if row]
    if environment in ("cases", "aligned", "align", "align*", "gathered"):
        rows = [[token for token in row if token.text != "&"] for row in rows]
        return Several(tuple(read_tokens(row) for row in rows), "and")
    cells = tuple(tuple(parse(trim(cell)) for cell in split(row, ("&",))[0]) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1:
        raise Unreadable("a matrix whose rows differ in length")
    if environment in ("vmatrix", "Vmatrix"):
        raise Unreadable("a determinant")
    return Grid(cells)


def _grid_of(items: Sequence[Reading]) -> Reading:
    rows = [
        tuple(cell.node for cell in item.items if isinstance(cell, Scalar) and cell.unit is None)
        for item in items
        if isinstance(item, Ordered)
    ]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise Unreadable("a matrix whose rows differ in length")
    return Grid(tuple(rows))


def scalar(tokens: Sequence[Token]) -> Scalar | special.Fixed:
    """A value with or without a unit, or words. Raises Unreadable."""
    tokens = trim(tokens)
    text = " ".join(token.text for token in tokens)
    value = VALUE_WORDS.get(text.lower().replace(" - ", " "))
    if value is not None:
        return Scalar(num(value))
    if all(token.kind == "word" for token in tokens) and (
        len(tokens) > 1 or len(tokens[0].text) > 2 or not tokens[0].text.isascii() or tokens[0].upright
    ):
        if len(tokens) == 1 and tokens[0].text in ("pi", "infinity", "infty", "oo", "inf", "xyz", "abc"):
            return Scalar(parse(tokens))
        if not (len(tokens) == 1 and len(tokens[0].text) == 1):
            return special.words(text)
    currency, rest = None, list(tokens)
    sign = rest[0].text == "-" and len(rest) > 1
    if rest[int(sign)].kind == "unit" and rest[int(sign)].text != "°":
        currency = unit_of([rest.pop(int(sign))])
    node, used = parse_front(rest)
    if used == len(rest):
        return Scalar(node, currency)
    unit = unit_of(rest[used:])
    if any(part.kind == "sym" for part in node.walk()) and not (rest[used].upright or rest[used].kind == "unit"):
        raise Unreadable("words behind an expression")
    if currency is not None and unit is not None and unit != currency:
        raise Unreadable("two units")
    return Scalar(node, unit or currency)


def split(tokens: Sequence[Token], separators: Sequence[str]) -> tuple[list[list[Token]], list[str]]:
    """The parts of `tokens` between separators that stand in no brackets, and those separators."""
    parts: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for token in tokens:
        if token.kind in ("open", "begin"):
            depth += 1
        elif token.kind in ("close", "end"):
            depth -= 1
        separates = token.kind == "op" or (token.kind == "word" and token.text in ("or", "and"))
        if depth == 0 and separates and token.text in separators:
            parts.append([])
            found.append(token.text)
        else:
            parts[-1].append(token)
    return parts, found


def closing_of(tokens: Sequence[Token]) -> int:
    """Where the bracket or environment that `tokens` begin with is closed; -1 where it is not."""
    depth = 0
    for position, token in enumerate(tokens):
        if token.kind in ("open", "begin"):
            depth += 1
        elif token.kind in ("close", "end"):
            depth -= 1
            if depth == 0:
                return position
    return -1


def trim(tokens: Sequence[Token]) -> list[Token]:
    """Without full stops at the end, quotation marks, and braces that only group."""
    trimmed = [token for token in tokens if token.text not in ('"',)]
    while trimmed and trimmed[-1].text in (".", "?") and trimmed[-1].kind == "op":
        trimmed.pop()
    while trimmed and trimmed[0].text == "{" and closing_of(trimmed) == len(trimmed) - 1:
        if any(part for part in split(trimmed[1:-1], (",",))[1]) or len(trimmed) == 2:
            break  # plain text's set
        trimmed = trimmed[1:-1]
    return trimmed
