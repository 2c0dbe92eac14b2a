"""Rows that name themselves: each has the SHA-256 of its own content, by which other rows say what they come from.

    {"messages": [...], "provenance": {..., "from": ["<sha256 of a row>"]}, "sha256": "..."}

A row's `sha256` is its identity. A byte of it that was changed since shows, and so does a row that another was made
of and that is not there any more.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

Row = dict[str, Any]
SHA256 = "sha256"


def digest_of(row: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of a row's JSON with sorted keys and without spaces, its own "sha256" left out."""
    rest = {name: value for name, value in row.items() if name != SHA256}
    return sha256_of(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def signed(row: Mapping[str, Any]) -> Row:
    """The row with its `sha256` behind its other fields."""
    rest = {name: value for name, value in row.items() if name != SHA256}
    return {**rest, SHA256: digest_of(rest)}


def is_intact(row: Mapping[str, Any]) -> bool:
    """Whether a row is what it was when it was signed."""
    return row.get(SHA256) == digest_of(row)


def sha256_of(text: str) -> str:
    """Hexadecimal, of the text in UTF-8; what UTF-8 has no form for counts as its code."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class FromRow:
    """What was read of a row, which it still knows."""

    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False, kw_only=True)
    """As it stands in its file, with fields that are passed over; of a table its columns that are read."""

    @property
    def digest(self) -> str:
        """Of the row's content: of a row that names itself and was not changed since, its name."""
        assert self.row is not None, "read without its row"
        return digest_of(self.row)


Read = TypeVar("Read", bound=FromRow)


def keeping_row(read: Callable[[Any, str], Read]) -> Callable[[Any, str], Read]:
    """`read` of a row and its place, so that what it returns knows its row."""
    return lambda row, where: replace(read(row, where), row=row)
