"""Whether two readings are the same answer."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from r1mega.rewards.mathematics import regions, solving, units
from r1mega.rewards.mathematics.exact import exact
from r1mega.rewards.mathematics.expression import parse
from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.notation import Token
from r1mega.rewards.mathematics.progressions import same_progressions
from r1mega.rewards.mathematics.reading import Chain, Grid, Ordered, Reading, Scalar, Several
from r1mega.rewards.mathematics.sets import region_of
from r1mega.rewards.mathematics.settle import Assigned, Equation, Family, Settled, System, is_region, settle
from r1mega.rewards.mathematics.special import Fixed
from r1mega.rewards.mathematics.term import Term, num
from r1mega.rewards.mathematics.value import same


def agree(truth: Reading, answer: Reading) -> bool:
    """Whether `answer` is `truth`. Raises Unreadable where a part cannot be read or computed."""
    return _agree(settle(truth), settle(answer))


def _agree(truth: Settled, answer: Settled) -> bool:
    for side in (truth, answer):
        if isinstance(side, Assigned) and not all(agree(side.value, step) for step in side.steps):
            raise Unreadable("equal signs between values that differ")
    if isinstance(truth, Fixed) or isinstance(answer, Fixed):
        decided = _agree_fixed(truth, answer)
        if decided is not None:
            return decided
    equations = _equations(truth, answer)
    if isinstance(truth, Assigned) and isinstance(answer, Assigned):
        if truth.name is None or answer.name is None or _same_name(truth.name, answer.name):
            return agree(truth.value, answer.value)
        return equations
    if equations:
        return True
    if isinstance(truth, Assigned) and not isinstance(answer, (Equation, System)):
        return _region_if_named(truth, answer) or _agree(settle(truth.value), answer)
    if isinstance(answer, Assigned) and not isinstance(truth, (Equation, System)):
        return _region_if_named(answer, truth) or _agree(truth, settle(answer.value))
    if isinstance(truth, System) or isinstance(answer, System):
        return _agree_systems(truth, answer)
    if isinstance(truth, Family) and isinstance(answer, Family):
        return same_progressions(truth.items, truth.parameter, answer.items, answer.parameter)
    if isinstance(truth, Scalar) and isinstance(answer, Scalar):
        return _agree_scalars(truth, answer)
    if isinstance(truth, Grid) or isinstance(answer, Grid):
        return _agree_grids(truth, answer)
    if isinstance(truth, Several) and isinstance(answer, Several) and not is_region(truth) and not is_region(answer):
        return _agree_items(truth.items, answer.items)
    if isinstance(truth, Ordered) and isinstance(answer, Ordered):
        return _agree_ordered(truth, answer)
    if isinstance(truth, Several) and isinstance(answer, Several) and _in_several_unknowns(truth):
        return truth.joined != "or" and answer.joined != "or" and _agree_items(truth.items, answer.items)
    return _agree_regions(truth, answer)


def _same_name(first: str, second: str) -> bool:
    functions = ("y", "f(x)")
    first, second = first.replace("mangle", "angle"), second.replace("mangle", "angle")
    first, second = (re.sub(r"_\{\d+(?:,\d+)+\}$", "", name) for name in (first, second))
    return first.replace("{", "").replace("}", "") == second.replace("{", "").replace("}", "") or (
        first in functions and second in functions
    )


def _equations(truth: Settled, answer: Settled) -> bool:
    left, right = _equation_of(truth), _equation_of(answer)
    return left is not None and right is not None and solving.same_equations(left, right)


def _equation_of(settled: Settled) -> tuple[Term, Term] | None:
    if isinstance(settled, Equation):
        return settled.sides
    if isinstance(settled, Assigned) and isinstance(settled.value, Scalar) and settled.name is not None:
        try:
            name = parse([Token("word", letter) for letter in settled.name])
        except Unreadable:
            return None
        return name, settled.value.node
    return None


def _agree_systems(truth: Settled, answer: Settled) -> bool:
    if isinstance(truth, System) and isinstance(answer, System):
        wanted, found = dict(truth.values), dict(answer.values)
        return wanted.keys() == found.keys() and all(agree(value, found[name]) for name, value in wanted.items())
    system, other = (truth, answer) if isinstance(truth, System) else (answer, truth)
    if isinstance(system, System) and isinstance(other, Ordered) and other.brackets == "()":
        values = tuple(value for _, value in system.values)
        return len(values) == len(other.items) and all(map(agree, values, other.items))
    return False


def _agree_scalars(truth: Scalar, answer: Scalar) -> bool:
    if not units.agree(truth.unit, answer.unit):
        return False
    if same(truth.node, answer.node):
        return True
    # `25%` for a truth of `25`: asked in per cent. A fraction is not: 0.25% is no answer to 0.25.
    if answer.node.kind == "percent" and truth.node.kind != "percent":
        shown = exact(answer.node.args[0])
        return shown is not None and abs(shown) > 1 and same(truth.node, num(shown))
    return False


def _agree_grids(truth: Settled, answer: Settled) -> bool:
    if isinstance(truth, Grid) and isinstance(answer, Grid):
        return [len(row) for row in truth.rows] == [len(row) for row in answer.rows] and all(
            same(one, other)
            for row, against in zip(truth.rows, answer.rows, strict=True)
            for one, other in zip(row, against, strict=True)
        )
    grid, other = (truth, answer) if isinstance(truth, Grid) else (answer, truth)
    if not isinstance(grid, Grid) or not isinstance(other, Ordered) or other.brackets not in ("()", "<>", "[]"):
        return False
    column = [row[0] for row in grid.rows] if all(len(row) == 1 for row in grid.rows) else list(grid.rows[0])
    if len(grid.rows) > 1 and len(column) != len(grid.rows):
        return False
    items = [item.node for item in other.items if isinstance(item, Scalar)]
    return len(items) == len(other.items) == len(column) and all(map(same, column, items))


def _agree_items(truth: Sequence[Reading], answer: Sequence[Reading]) -> bool:
    """Whether two lists hold the same values in any order; a value that stands twice counts once."""
    left, right = _distinct(truth), _distinct(answer)
    return len(left) == len(right) and all(any(agree(one, other) for other in right) for one in left)


def _distinct(items: Sequence[Reading]) -> list[Reading]:
    kept: list[Reading] = []
    for item in items:
        if not any(agree(one, item) for one in kept):
            kept.append(item)
    return kept


def _agree_ordered(truth: Ordered, answer: Ordered) -> bool:
    if len(truth.items) != len(answer.items):
        return False
    if truth.brackets == answer.brackets == ":":
        return _same_ratios(truth.items, answer.items)
    alike = truth.brackets == answer.brackets or {truth.brackets, answer.brackets} == {"()", "<>"}
    if not alike and (len(truth.items) == 2 or "()" not in (truth.brackets, answer.brackets)):
        return False
    if not alike and not {truth.brackets, answer.brackets} <= {"()", "[]", "<>"}:
        return False
    return all(map(agree, truth.items, answer.items))


def _same_ratios(truth: Sequence[Reading], answer: Sequence[Reading]) -> bool:
    left = [item.node for item in truth if isinstance(item, Scalar)]
    right = [item.node for item in answer if isinstance(item, Scalar)]
    return len(left) == len(truth) and len(right) == len(left) and all(
        same(Term("mul", None, (left[0], b)), Term("mul", None, (right[0], a)))
        for a, b in zip(left, right, strict=True)
    )  # fmt: skip


def _agree_fixed(truth: Settled, answer: Settled) -> bool | None:
    """The decision where one side is fixed; None where it is a set or a clock, which others can be too."""
    if isinstance(truth, Fixed) and isinstance(answer, Fixed):
        if {truth.kind, answer.kind} == {"clock", "time"}:
            return False
        return truth == answer
    fixed, other = (truth, answer) if isinstance(truth, Fixed) else (answer, truth)
    assert isinstance(fixed, Fixed)
    if isinstance(other, Assigned) or fixed.kind == "set":
        return None
    if fixed.kind == "clock" and isinstance(other, Ordered) and isinstance(fixed.key, tuple):
        if truth is fixed and math.gcd(*fixed.key) > 1:
            return False  # a time: a truth that is a ratio has no common factor
        return _same_ratios([Scalar(num(Fraction(part))) for part in fixed.key], other.items)
    return False


def _region_if_named(assigned: Assigned, other: Settled) -> bool:
    """`x \\in (0, 1)` against `0 < x < 1`: the names have to agree too."""
    try:
        name, region = region_of(other)
        return name in (None, assigned.name) and regions.equal(region_of(assigned.value)[1], region)
    except Unreadable:
        return False


def _agree_regions(truth: Settled, answer: Settled) -> bool:
    if {type(truth), type(answer)} == {Several, Ordered} and not is_region(truth) and not is_region(answer):
        return False  # points of the plane, and one of them
    if isinstance(truth, Chain) and isinstance(answer, Chain) and _in_several(truth, answer):
        return True
    left, right = region_of(truth), region_of(answer)
    if left[0] is not None and right[0] is not None and left[0] != right[0]:
        return False
    return regions.equal(left[1], right[1])


def _in_several_unknowns(reading: Several) -> bool:
    """Whether a list of inequalities is a system: each has to be there, in any order."""
    try:
        region_of(reading)
    except Unreadable:
        return is_region(reading)
    return False


def _in_several(truth: Chain, answer: Chain) -> bool:
    if len(truth.relations) != 1 or len(answer.relations) != 1:
        return False
    left, right = [parse(member) for member in truth.members], [parse(member) for member in answer.members]
    return solving.same_inequalities(
        (left[0], truth.relations[0], left[1]), (right[0], answer.relations[0], right[1])
    )
