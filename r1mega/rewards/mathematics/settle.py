"""Readings with their relations read: names and their values, systems, equations, integer parameters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.rewards.mathematics.expression import parse
from r1mega.rewards.mathematics.guards import MAX_ITEMS, TooBig, Unreadable
from r1mega.rewards.mathematics.notation import Token
from r1mega.rewards.mathematics.reading import (
    Builder,
    Chain,
    Operation,
    Ordered,
    Reading,
    Scalar,
    Several,
    read_tokens,
    trim,
)
from r1mega.rewards.mathematics.special import REALS
from r1mega.rewards.mathematics.term import Term

_NAME = re.compile(
    r"(?:[|](?=.*[|]$))?(?:angle|triangle|m angle)?[A-Za-z]+'*(?:_(?:\{[^{}]*\}|[A-Za-z0-9]+))?'*(?:\^\{?-1\}?)?"
    r"(?:\([A-Za-z0-9,+\-_{}']*\))?[|]?|frac\{d[a-z]?\}\{d[a-z]\}"
)


@dataclass(frozen=True)
class Assigned:
    """`x = 3`, `x \\in {1, 2}`: a value with its name; the name is None where a chain of equal values has none."""

    name: str | None
    value: "Reading"
    steps: "tuple[Reading, ...]" = ()
    """What stands between, in `x = 1 + 2 = 3`: has to be equal to the value."""


@dataclass(frozen=True)
class System:
    """`x = 3, y = 4`."""

    values: tuple[tuple[str, "Reading"], ...]


@dataclass(frozen=True)
class Family:
    """Expressions in an integer parameter."""

    items: tuple[Term, ...]
    parameter: str


@dataclass(frozen=True)
class Equation:
    """Two sides with unknowns."""

    sides: tuple[Term, Term]


Settled = Reading | Assigned | System | Family | Equation


def settle(reading: Reading) -> Settled:
    """A reading with its relations read, its signs of two doubled, and sets of one taken as their element."""
    if isinstance(reading, Chain):
        return _settle_chain(reading)
    if isinstance(reading, Scalar) and (pm := _both_signs(reading)) is not None:
        return pm
    if isinstance(reading, Several):
        return _settle_several(reading)
    return reading


def _both_signs(reading: Scalar) -> Several | None:
    if not any(node.kind == "pm" for node in reading.node.walk()):
        return None
    values = tuple(Scalar(_signed(reading.node, sign), reading.unit) for sign in (1, -1))
    return Several(values, "or")


def _signed(node: Term, sign: int) -> Term:
    if node.kind == "pm":
        inner = _signed(node.args[0], sign)
        return inner if int(str(node.value)) * sign > 0 else Term("neg", None, (inner,))
    return Term(node.kind, node.value, tuple(_signed(part, sign) for part in node.args))


def _settle_several(reading: Several) -> Settled:
    parameter = _parameter_of(reading.items[-1])
    if parameter is not None and len(reading.items) > 1:
        nodes = []
        for item in map(settle, reading.items[:-1]):
            value = settle(item.value) if isinstance(item, Assigned) else item
            inner = value.items if isinstance(value, Several) else (value,)
            nodes += [part.node for part in inner if isinstance(part, Scalar)]
            if len(nodes) == 0:
                raise Unreadable("a parameter of nothing")
        return Family(tuple(nodes), parameter)
    items: list[Settled] = []
    for item in map(settle, reading.items):
        if isinstance(item, Several) and reading.joined != "and" and not is_region(item):
            items += item.items
        else:
            items.append(item)
    if len(items) > MAX_ITEMS:
        raise TooBig(f"more than {MAX_ITEMS} values")
    if any(isinstance(item, System) for item in items) and reading.joined != "and":
        items = [Ordered(tuple(v for _, v in i.values), "()") if isinstance(i, System) else i for i in items]
    first = items[0]
    if isinstance(first, Chain) and first.relations == ("!=",) and all(isinstance(i, Scalar) for i in items[1:]):
        return _other_than(first, [item.node for item in items[1:] if isinstance(item, Scalar)])
    named = [item for item in items if isinstance(item, Assigned) and item.name is not None]
    if named and items[0] is named[0] and all(isinstance(item, (Assigned, Scalar, Ordered)) for item in items):
        return _settle_named(items, named)
    if any(isinstance(item, Family) for item in items):
        return _one_family(items)
    if any(isinstance(item, (Equation, System)) for item in items):
        raise Unreadable("a list of equations")
    kept = tuple(_settled_value(item) for item in items)
    return kept[0] if len(kept) == 1 else Several(kept, reading.joined)


def _one_family(items: Sequence[Settled]) -> Family:
    """`x = a + 2k\\pi or x = b + 2k\\pi, k \\in \\mathbb{Z}`: the parameter is said once, at the last."""
    nodes: list[Term] = []
    parameters: set[str] = set()
    for item in items:
        value = item.value if isinstance(item, Assigned) else item
        if isinstance(value, Family):
            nodes += value.items
            parameters.add(value.parameter)
        elif isinstance(value, Scalar):
            nodes.append(value.node)
        else:
            raise Unreadable("a parameter of something else than values")
    if len(parameters) != 1:
        raise Unreadable("several parameters")
    return Family(tuple(nodes), parameters.pop())


def _other_than(first: Chain, nodes: Sequence[Term]) -> Operation:
    """`x \\ne 1, 2`: all real numbers but these."""
    kept = (parse(first.members[1]), *nodes)
    return Operation("setminus", (REALS, Several(tuple(Scalar(node) for node in kept), "set")))


def _settled_value(item: Settled) -> Reading:
    if isinstance(item, Assigned):
        return item.value
    assert not isinstance(item, (System, Family, Equation))
    return item


def _settle_named(items: Sequence[Settled], named: Sequence[Assigned]) -> Settled:
    """`x = 1, x = 2` and `x = 1, 2` are values of x; `x = 1, y = 2` is a system."""
    bases = [re.sub(r"_\{?\d+\}?$", "", str(item.name)) for item in named]
    if len(set(bases)) == 1 and (len({item.name for item in named}) in (1, len(named))):
        values: list[Reading] = []
        for item in items:
            settled = settle(_settled_value(item))
            values += settled.items if isinstance(settled, Several) else [_settled_value(item)]
        return Assigned(bases[0], Several(tuple(values), "or"))
    if len(named) != len(items) or len({item.name for item in named}) != len(named):
        raise Unreadable("a list of named values in an unknown order")
    return System(tuple(sorted((str(item.name), item.value) for item in named)))


def _parameter_of(reading: Reading) -> str | None:
    """The name in `k \\in \\mathbb{Z}`."""
    if isinstance(reading, Chain) and reading.relations == ("in",) and reading.members[1][-1].kind == "set":
        domain = reading.members[1][-1].text
        if domain == "Z" and len(reading.members[0]) == 1 and len(reading.members[1]) == 1:
            return reading.members[0][0].text
    return None


def _settle_chain(chain: Chain) -> Settled:
    members, relations = list(chain.members), list(chain.relations)
    if relations == ["in"]:
        name = _name_of(members[0])
        if name is None:
            raise Unreadable("a membership of an unknown kind")
        return Assigned(name, read_tokens(members[1]))
    while "~" in relations[1:] or (relations[0] == "~" and _name_of(members[0]) is None):
        cut = relations.index("~", 1) if "~" in relations[1:] else 0
        members, relations = members[: cut + 1], relations[:cut]  # an exact value and its approximation
        if not relations:
            return settle(read_tokens(members[0]))
    if all(relation in ("=", "~") for relation in relations):
        return _settle_equalities(members)
    if any(relation not in ("<", "<=", ">", ">=", "!=") for relation in relations):
        raise Unreadable("relations of several kinds")
    return chain


def _settle_equalities(members: list[tuple[Token, ...]]) -> Settled:
    system = _settle_tuple(members)
    if system is not None:
        return system
    names = []
    while len(members) > 1 and (name := _name_of(members[0])) is not None:
        names.append(name)
        members = members[1:]
    values = [read_tokens(member) for member in members]
    if len(values) > 1 and not names:
        nodes = [value.node for value in values if isinstance(value, Scalar)]
        if len(nodes) == len(values) == 2 and any(part.kind == "sym" for n in nodes for part in n.walk()):
            return Equation((nodes[0], nodes[1]))
    if len(names) > 1 and len(values) == 1:
        return System(tuple(sorted((name, values[0]) for name in names)))
    return Assigned(names[0] if names else None, values[-1], tuple(values[:-1]))


def _settle_tuple(members: list[tuple[Token, ...]]) -> System | None:
    """`(x, y) = (1, 2)`."""
    if len(members) != 2 or not re.fullmatch(r"\([A-Za-z]+(?:,[A-Za-z]+)+\)", "".join(t.text for t in members[0])):
        return None
    values = read_tokens(members[1])
    names = [token.text for token in members[0] if token.kind in ("word", "sym")]
    if not isinstance(values, Ordered) or values.brackets != "()" or len(values.items) != len(names):
        return None
    return System(tuple(zip(names, values.items, strict=True)))


def _name_of(tokens: Sequence[Token]) -> str | None:
    """What stands before an equals sign, where it is only a name: `x`, `f(x)`, `AB`, `a_{10}`, `Area of ABC`."""
    tokens = trim(tokens)
    text = "".join(token.text for token in tokens)
    if all(token.kind == "word" for token in tokens) and len(tokens) <= 6:
        return text
    return text if len(text) < 40 and _NAME.fullmatch(text) else None


def is_region(reading: Settled) -> bool:
    """Whether a list is one of inequalities or intervals rather than of values."""
    return isinstance(reading, Several) and all(
        isinstance(item, (Chain, Operation, Builder)) for item in reading.items
    )
