"""Solutions with an integer parameter: `x = \\frac{\\pi}{4} + k\\pi, k \\in \\mathbb{Z}` in whatever form."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import mpmath

from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.term import Term
from r1mega.rewards.mathematics.value import unknowns, value_at

_DIGITS = 60
_TOLERANCE = mpmath.mpf(10) ** -40
_MAX_RATIO = 360


def same_progressions(first: Sequence[Term], name: str, second: Sequence[Term], other: str) -> bool:
    """Whether two unions of progressions, one integer parameter each, are the same numbers. Raises Unreadable."""
    with mpmath.workdps(_DIGITS):
        left, right = [_line(node, name) for node in first], [_line(node, other) for node in second]
        unit = left[0][1]
        ratios = [_ratio(step / unit) for _, step in (*left, *right)]
        period = unit * _common(ratios)
        return _residues(left, period) == _residues(right, period)


def _line(node: Term, name: str) -> tuple[Any, Any]:
    """Where the progression begins, and its step."""
    if unknowns(node) - {name}:
        raise Unreadable("a progression with other unknowns")
    zero, one, seven = (value_at(node, {name: Fraction(k)}) for k in (0, 1, 7))
    step = one - zero
    if abs(zero + 7 * step - seven) > _TOLERANCE or abs(step) < _TOLERANCE or mpmath.im(zero) or mpmath.im(step):
        raise Unreadable("not an arithmetic progression")
    return mpmath.re(zero), abs(mpmath.re(step))


def _ratio(value: Any) -> Fraction:
    for denominator in range(1, _MAX_RATIO):
        product = value * denominator
        if abs(product - mpmath.nint(product)) < _TOLERANCE and abs(product) < 10_000:
            return Fraction(int(mpmath.nint(product)), denominator)
    raise Unreadable("steps that have no common multiple")


def _common(ratios: list[Fraction]) -> int | Fraction:
    """The least common multiple."""
    result = ratios[0]
    for ratio in ratios[1:]:
        product = result * ratio
        a, b = result, ratio
        while b:
            a, b = b, a % b
        result = product / a
    if result > 10_000:
        raise Unreadable("steps that have no common multiple")
    return result


def _residues(lines: list[tuple[Any, Any]], period: Any) -> list[int]:
    """What the progressions leave modulo `period`, in whole parts of it."""
    found: set[int] = set()
    whole = 10**25  # a period in parts of 1e-25, to which 60 digits of working precision are rounded
    for start, step in lines:
        count = int(mpmath.nint(abs(period) / step))
        if count > 2_000:
            raise Unreadable("too many residues")
        for index in range(count):
            found.add(int(mpmath.nint((start + index * step) / abs(period) * whole)) % whole)
    return sorted(found)
