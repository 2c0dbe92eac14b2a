"""Limits on what is read as mathematics, checked before it is: length, nesting, digits, and the size of values.

A policy under training writes anything. Nothing here evaluates text as code; these limits keep the time and memory of
arithmetic small, so that an answer built to be slow is wrong at once instead of at its deadline.
"""

import re

MAX_CHARACTERS = 4_000
MAX_TOKENS = 1_500
MAX_NESTING = 40
MAX_DIGITS = 1_000
"""Of one number as written. Values computed from it may have MAX_VALUE_BITS."""
MAX_VALUE_BITS = 100_000
MAX_FACTORIAL = 3_000
MAX_ITEMS = 64
"""Of one list or set: every one is compared with every other one."""

_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")


class Unreadable(ValueError):
    """The text is not mathematics that this grammar has, or its value is too large to be computed."""


class TooBig(Unreadable):
    """The text is beyond a limit: it is not read at all."""


def check(text: str) -> None:
    """Raise TooBig where `text` is longer, deeper or has longer numbers than an answer in mathematics has."""
    if len(text) > MAX_CHARACTERS:
        raise TooBig(f"longer than {MAX_CHARACTERS:,} characters")
    if _DIGITS.search(text):
        raise TooBig(f"a number of more than {MAX_DIGITS:,} digits")
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > MAX_NESTING:
        raise TooBig(f"brackets nested more than {MAX_NESTING} deep")
