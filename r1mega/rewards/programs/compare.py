"""What a program gave, held against what it should: outside the sandbox, where the program cannot reach."""

import ast
import collections
import json
import math
from collections.abc import Sequence
from typing import Any

MAX_LITERAL_CHARACTERS = 100_000


def same_output(output: bytes, expected: str) -> bool:
    """Equal without trailing white space of lines and of the whole.

    >>> same_output(b"1 2 \\n3\\n\\n", "1 2\\n3")
    True
    """
    return _trimmed(output) == _trimmed(expected.encode("utf-8", "surrogatepass"))


def _trimmed(text: bytes) -> bytes:
    return b"\n".join(line.rstrip() for line in text.split(b"\n")).rstrip()


def same_value(encoded: bytes, expected: Any, *, literal: bool) -> bool:
    """Whether a function's value, as `harness` writes it, is a test's.

    Numbers are equal by value, and within a relative 1e-9 where a fraction is expected, or where what is expected
    (3.0, and not 3) and the value both have a decimal point; a truth value is no number;
    a tuple is a list, a set one in any order; a mapping's keys are read as JSON writes them.

    Args:
        expected: of JSON.
        literal: whether an expected text is read as the value's literal too.
    """
    try:
        value = json.loads(encoded)
        if _same(value, expected):
            return True
        return literal and isinstance(expected, str) and _same(value, ast.literal_eval(literal_text(expected)))
    except (ValueError, LookupError, RecursionError, MemoryError, TypeError, OverflowError, SyntaxError):
        return False


def literal_text(text: str) -> str:
    """JSON's three words as Python's."""
    return {"true": "True", "false": "False", "null": "None"}.get(text.strip(), text.strip())


def is_literal(text: Any) -> bool:
    """Whether a text is the literal of a value, quoted where that is a text."""
    if not isinstance(text, str) or len(text) > MAX_LITERAL_CHARACTERS:
        return False
    try:
        ast.literal_eval(literal_text(text))
        return True
    except (ValueError, RecursionError, MemoryError, TypeError, SyntaxError):
        return False


def _same(value: Any, expected: Any) -> bool:
    if isinstance(value, list):
        return _same_container(value[0], value[1:], expected)
    if isinstance(value, bool) or isinstance(expected, bool) or value is None or expected is None:
        return value is expected
    if isinstance(value, str) or isinstance(expected, str):
        return isinstance(value, str) and isinstance(expected, str) and value == expected
    if not isinstance(expected, int | float):
        return False
    if isinstance(expected, float) and (isinstance(value, float) or not expected.is_integer()):
        return value == expected or math.isclose(value, expected, rel_tol=1e-9, abs_tol=0.0)
    return value == expected


def _same_container(kind: str, inside: Sequence[Any], expected: Any) -> bool:
    if kind == "float":  # inf, -inf, nan
        return isinstance(expected, float) and repr(expected) == inside[0]
    if kind == "dict":
        if not isinstance(expected, dict) or len(expected) != len(inside):
            return False
        by_key = {_key(key): item for key, item in expected.items()}
        found = {_key(key): item for key, item in inside}
        return found.keys() == by_key.keys() and all(_same(found[key], by_key[key]) for key in found)
    if isinstance(expected, set | frozenset):
        expected = list(expected)
    if not isinstance(expected, list | tuple) or len(expected) != len(inside):
        return False
    if kind == "set":
        return collections.Counter(map(_frozen, inside)) == collections.Counter(map(_frozen_expected, expected))
    return all(_same(one, other) for one, other in zip(inside, expected, strict=True))


def _frozen(value: Any) -> Any:
    """An element of a set, hashable; equal to that of `_frozen_expected` where they are the same."""
    if isinstance(value, list):
        inside = [_frozen(item) for item in value[1:]]
        return frozenset(inside) if value[0] == "set" else tuple(inside)
    return ("truth", value) if isinstance(value, bool) else value


def _frozen_expected(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen_expected(item) for item in value)
    if isinstance(value, set | frozenset):
        return frozenset(_frozen_expected(item) for item in value)
    return ("truth", value) if isinstance(value, bool) else value


def _key(key: Any) -> str:
    """As JSON writes a key."""
    if isinstance(key, str):
        return key
    if isinstance(key, list):
        return json.dumps(key[1:]) if key[:1] in (["list"], ["tuple"]) else json.dumps(key)
    return json.dumps(key)
