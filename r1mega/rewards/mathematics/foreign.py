"""Sums, integrals, limits and products: notation that math-verify's parser has and this grammar has not.

Both sides have to be read whole. They are equal where sympy finds the same expression, or one value without unknowns
to many digits; math-verify's own comparison, which rounds and takes numbers out of what it could not read, is not
asked.
"""

import logging
import re
from typing import Any

from r1mega.rewards.mathematics.guards import Unreadable

_HELPS = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|det)(?![A-Za-z])")
_MAX_CHARACTERS = 300
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of a deadline that it was told to leave to others
_LONG_NUMBER = re.compile(r"[0-9]{5}|\^\s*\{?\s*[0-9]{3}|!|\^\s*\{?\s*[0-9A-Za-z]+\s*\^")


def helps(text: str) -> bool:
    """Whether `text` has notation for which the other parser is asked, and is small enough to be handed to it."""
    return _HELPS.search(text) is not None and _is_small(text)


def _is_small(text: str) -> bool:
    return len(text) <= _MAX_CHARACTERS and not _LONG_NUMBER.search(text)


def same(truth: str, answer: str) -> bool:
    """Whether two texts are one expression. Raises Unreadable where one of them is not read whole."""
    import sympy

    if not _is_small(truth) or not _is_small(answer):
        raise Unreadable("too large for sums and integrals")
    left, right = _parse(truth), _parse(answer)
    if left == right:
        return True
    if not all(part.args[0].is_rational_function() for side in (left, right) for part in side.atoms(*_unevaluated())):
        raise Unreadable("a sum or an integral of another kind than sympy does quickly")
    try:
        left, right = left.doit(), right.doit()
        if left == right:
            return True
        if left.free_symbols or right.free_symbols:
            return bool(sympy.simplify(left - right) == 0)
        if left.has(sympy.Float) or right.has(sympy.Float) or not (left.is_finite and right.is_finite):
            return False
        return bool(abs(sympy.N(left - right, 60)) < sympy.Float(10) ** -50 * max(1, abs(sympy.N(left, 60))))
    except (TypeError, ValueError, AttributeError, NotImplementedError, ArithmeticError) as error:
        raise Unreadable(f"sympy: {type(error).__name__}") from None


def _unevaluated() -> tuple[Any, ...]:
    import sympy

    return (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)


def _parse(text: str) -> Any:
    from math_verify import LatexExtractionConfig  # pyright: ignore[reportMissingImports]
    from math_verify.parser import parse  # pyright: ignore[reportMissingImports]

    text = re.sub(r"\s+", " ", text).strip().strip("$").strip()
    if "$" in text or "\\text" in text:
        raise Unreadable("words among sums and integrals")
    try:
        found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=0, fallback_mode="no_fallback")
    except Exception as error:  # a parser of foreign code, at text that it was not written for
        raise Unreadable(f"math-verify: {type(error).__name__}") from None
    import sympy

    if len(found) != 1 or not isinstance(found[0], sympy.Basic) or found[0].has(sympy.nan, sympy.zoo):
        raise Unreadable("math-verify does not read it")
    return found[0]
