"""Sets of real numbers: intervals, their unions, and what inequalities in one unknown describe."""

from dataclasses import dataclass
from typing import Any

import mpmath

from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.term import Term
from r1mega.rewards.mathematics.value import exact, same, unknowns, value_at

_DIGITS = 80
_TOLERANCE = mpmath.mpf(10) ** -55


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; None is infinity. A single number has both ends closed and equal."""

    low: Term | None
    low_closed: bool
    high: Term | None
    high_closed: bool


Region = tuple[Range, ...]
"""The union of its pieces."""

LINE: Region = (Range(None, False, None, False),)


def point(node: Term) -> Range:
    return Range(node, True, node, True)


def is_infinite(node: Term) -> int:
    """1 for infinity, -1 for minus infinity, 0 for anything else."""
    if node.kind == "neg":
        return -is_infinite(node.args[0])
    return int(node.kind == "const" and node.value == "inf")


def from_ends(low: Term, low_closed: bool, high: Term, high_closed: bool) -> Range:
    """An interval as it is written. Raises Unreadable where an end at infinity is on the wrong side."""
    if is_infinite(low) > 0 or is_infinite(high) < 0:
        raise Unreadable("an interval from infinity")
    if not is_infinite(low) and not is_infinite(high) and not unknowns(low, high) and _number(low) > _number(high):
        raise Unreadable("an interval that ends before it begins")
    low_end = None if is_infinite(low) else low
    high_end = None if is_infinite(high) else high
    return Range(low_end, low_closed and low_end is not None, high_end, high_closed and high_end is not None)


def bound(end: Term, relation: str) -> Region:
    """`x < end` and the like."""
    if relation == "!=":
        return (Range(None, False, end, False), Range(end, False, None, False))
    if relation in ("<", "<="):
        return (Range(None, False, end, relation == "<="),)
    return (Range(end, relation == ">=", None, False),)


def equal(first: Region, second: Region) -> bool:
    """Whether two regions are the same set. Where ends have unknowns, piece by piece as they are written."""
    ends = [end for piece in (*first, *second) for end in (piece.low, piece.high) if end is not None]
    if unknowns(*ends):
        return len(first) == len(second) and all(map(_same_piece, first, second))
    left, right = normal(first), normal(second)
    return len(left) == len(right) and all(_close_pieces(a, b) for a, b in zip(left, right, strict=True))


def _same_piece(first: Range, second: Range) -> bool:
    if (first.low_closed, first.high_closed) != (second.low_closed, second.high_closed):
        return False
    for one, other in ((first.low, second.low), (first.high, second.high)):
        if (one is None) != (other is None) or (one is not None and other is not None and not same(one, other)):
            return False
    return True


Segment = tuple[Any, bool, Any, bool]
"""Low end, whether it belongs, high end, whether it belongs: as numbers."""


def normal(region: Region) -> list[Segment]:
    """Disjoint segments in ascending order, none of them empty, none of them touching."""
    segments = sorted((segment for piece in region if (segment := _segment(piece)) is not None), key=_order)
    merged: list[Segment] = []
    for low, low_closed, high, high_closed in segments:
        if merged:
            last_low, last_low_closed, last_high, last_closed = merged[-1]
            touches = _is_close(low, last_high) and (low_closed or last_closed)
            if touches or (low < last_high and not _is_close(low, last_high)):
                if _is_close(high, last_high):
                    merged[-1] = (last_low, last_low_closed, last_high, last_closed or high_closed)
                elif high > last_high:
                    merged[-1] = (last_low, last_low_closed, high, high_closed)
                continue
            if _is_close(low, last_low) and _is_close(high, last_high):
                continue
        merged.append((low, low_closed, high, high_closed))
    return merged


def _segment(piece: Range) -> Segment | None:
    low = -mpmath.inf if piece.low is None else _number(piece.low)
    high = mpmath.inf if piece.high is None else _number(piece.high)
    if _is_close(low, high):
        return (low, True, high, True) if piece.low_closed and piece.high_closed else None
    return (low, piece.low_closed, high, piece.high_closed) if low < high else None


def _order(segment: Segment) -> tuple[Any, int]:
    return segment[0], 0 if segment[1] else 1


def _number(node: Term) -> Any:
    with mpmath.workdps(_DIGITS):
        value = exact(node)
        number = value_at(node, {}) if value is None else mpmath.mpf(value.numerator) / value.denominator
    if abs(mpmath.im(number)) > _TOLERANCE:
        raise Unreadable("an end that is no real number")
    return mpmath.re(number)


def _is_close(first: Any, second: Any) -> bool:
    if mpmath.isinf(first) or mpmath.isinf(second):
        return first == second
    with mpmath.workdps(_DIGITS):
        return abs(first - second) <= _TOLERANCE * max(1, abs(first))


def _close_pieces(first: Segment, second: Segment) -> bool:
    return (
        first[1] == second[1]
        and first[3] == second[3]
        and _is_close(first[0], second[0])
        and _is_close(first[2], second[2])
    )


def complement(region: Region) -> Region:
    """All real numbers that are not in `region`."""
    result: Region = LINE
    for piece in region:
        outside: list[Range] = []
        if piece.low is not None:
            outside.append(Range(None, False, piece.low, not piece.low_closed))
        if piece.high is not None:
            outside.append(Range(piece.high, not piece.high_closed, None, False))
        result = intersection(result, tuple(outside))
    return result


def intersection(first: Region, second: Region) -> Region:
    """What is in both."""
    found: list[Range] = []
    for a in first:
        for b in second:
            low, low_closed = _later((a.low, a.low_closed), (b.low, b.low_closed), 1)
            high, high_closed = _later((a.high, a.high_closed), (b.high, b.high_closed), -1)
            piece = Range(low, low_closed, high, high_closed)
            if low is None or high is None or _segment(piece) is not None:
                found.append(piece)
    return tuple(found)


def _later(first: tuple[Term | None, bool], second: tuple[Term | None, bool], sign: int) -> tuple[Term | None, bool]:
    """The end that is further in: of two low ends the higher one (`sign` 1), of two high ends the lower one (-1)."""
    if first[0] is None or second[0] is None:
        return second if first[0] is None else first
    left, right = _number(first[0]), _number(second[0])
    if _is_close(left, right):
        return first[0], first[1] and second[1]
    return first if (left - right) * sign > 0 else second
