"""What a cell of a user's table may hold: the text of a question, a truth, an id, options. Each fault says what is
there; the caller knows where."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from r1mega.config.load import nearest
from r1mega.data.lines import half_a_character

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KINDS: Mapping[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", dict: "an object", list: "a list",
    bytes: "bytes that are no text", type(None): "null",
}  # fmt: skip


def cell(row: Mapping[str, Any], column: str) -> Any:
    """Raises ValueError with the nearest column where the row has none of that name."""
    if column not in row:
        has = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"no column {column!r}{nearest(column, map(str, row))}: its columns are {has}")
    return row[column]


def text(row: Mapping[str, Any], column: str) -> str:
    """A text that is not empty. Raises ValueError."""
    value = cell(row, column)
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} should be text, and is {kind_of(value)}")
    if not value.strip():
        raise ValueError(f"column {column!r} is empty")
    if fault := half_a_character(value):
        raise ValueError(f"column {column!r}: {fault}")
    return value


def text_or_number(row: Mapping[str, Any], column: str) -> str:
    """A text, or a number in its decimal digits. Raises ValueError."""
    value = cell(row, column)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return digits(value, column)
    return text(row, column)


def digits(value: float | Decimal, column: str) -> str:
    """A number in the fewest decimal digits that say it, without an exponent: 3.0 is "3", 1e-7 is "0.0000001".

    Raises ValueError where it is none.
    """
    if not isinstance(value, int) and not math.isfinite(value):  # a long whole number is too long for a float
        raise ValueError(f"column {column!r} is {value}, which is no number")
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    written = format(exact, "f")
    return (written.rstrip("0").rstrip(".") if "." in written else written) or "0"


def options(row: Mapping[str, Any], column: str) -> list[str]:
    """Two or more different texts to choose from, in their order. Raises ValueError."""
    value = cell(row, column)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"column {column!r} should be a list of options, and is {kind_of(value)}")
    if not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"column {column!r} has {len(value)} options: it takes 2 to {len(LETTERS)}")
    texts = [text_or_number({f"{column}[{i}]": one}, f"{column}[{i}]") for i, one in enumerate(value)]
    if twice := next((one for one in texts if texts.count(one) > 1), None):
        raise ValueError(f"column {column!r} has the option {twice!r} more than once: one answer has two letters")
    return texts


def kind_of(value: Any) -> str:
    """What a value is, for people."""
    return _KINDS.get(type(value), f"of kind {type(value).__name__}")
