"""Readings as sets of real numbers: intervals, inequalities, unions, `{x | x > 1}`, solutions one by one."""

from r1mega.rewards.mathematics import regions, solving
from r1mega.rewards.mathematics.expression import parse
from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.reading import Builder, Chain, Operation, Ordered, Scalar, Several
from r1mega.rewards.mathematics.regions import Region
from r1mega.rewards.mathematics.settle import Assigned, Settled, settle
from r1mega.rewards.mathematics.special import EMPTY, REALS


def region_of(reading: Settled) -> tuple[str | None, Region]:
    """The set of real numbers that a reading describes, and the name of its unknown. Raises Unreadable."""
    if reading == EMPTY:
        return None, ()
    if reading == REALS:
        return None, regions.LINE
    if isinstance(reading, Ordered) and len(reading.items) == 2 and reading.brackets in ("()", "(]", "[)", "[]"):
        low, high = reading.items
        if isinstance(low, Scalar) and isinstance(high, Scalar):
            piece = regions.from_ends(low.node, reading.brackets[0] == "[", high.node, reading.brackets[1] == "]")
            return None, (piece,)
    if isinstance(reading, Chain):
        return _of_chain(reading)
    if isinstance(reading, Builder):
        return None, region_of(settle(reading.condition))[1]
    if isinstance(reading, Assigned):
        return reading.name, region_of(settle(reading.value))[1]
    if isinstance(reading, Operation):
        parts = [region_of(settle(item))[1] for item in reading.items]
        result = parts[0]
        for part in parts[1:]:
            if reading.kind == "cup":
                result = (*result, *part)
            else:
                result = regions.intersection(result, part if reading.kind == "cap" else regions.complement(part))
        return None, result
    if isinstance(reading, Several):
        return _of_several(reading)
    if isinstance(reading, Scalar) and reading.unit is None:
        return None, (regions.point(reading.node),)
    raise Unreadable("no set of numbers")


def _of_several(reading: Several) -> tuple[str | None, Region]:
    parts = [region_of(settle(item)) for item in reading.items]
    names = {name for name, _ in parts} - {None}
    if len(names) > 1:
        raise Unreadable("inequalities in several unknowns")
    excluding = [isinstance(item, Chain) and item.relations == ("!=",) for item in reading.items]
    together = reading.joined == "and"
    result: Region | None = None
    for (_, part), excludes in sorted(zip(parts, excluding, strict=True), key=lambda pair: pair[1]):
        if result is None:
            result = part
        elif together or (excludes and reading.joined == ","):
            result = regions.intersection(result, part)
        else:
            result = (*result, *part)
    return next(iter(names), None), result or ()


def _of_chain(chain: Chain) -> tuple[str | None, Region]:
    members = [parse(member) for member in chain.members]
    names: set[str] = set()
    result = regions.LINE
    for left, relation, right in zip(members, chain.relations, members[1:], strict=False):
        name, region = solving.solutions(left, relation, right)
        names.add(name)
        result = regions.intersection(result, region) if result is not regions.LINE else region
    if len(names) != 1:
        raise Unreadable("inequalities in several unknowns")
    return names.pop(), result
