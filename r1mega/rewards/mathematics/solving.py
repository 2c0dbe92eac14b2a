"""Equations with the same solutions, and what inequalities describe: the questions that sympy answers.

sympy gets objects built here node by node from a bounded expression, never a string.
"""

from fractions import Fraction
from typing import Any

from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.regions import LINE, Range, Region, bound, from_ends, is_infinite, point
from r1mega.rewards.mathematics.term import Term, num
from r1mega.rewards.mathematics.value import exact, same, unknowns

_MAX_DEGREE = 8
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}


def minus(left: Term, right: Term) -> Term:
    if right == num(0):
        return left
    return Term("add", None, (left, Term("neg", None, (right,))))


def to_sympy(node: Term, *, real: bool = True) -> Any:
    """The same expression for sympy. Raises Unreadable at what is not algebraic or is too large."""
    import sympy

    value = exact(node)
    if value is not None:
        if value.numerator.bit_length() + value.denominator.bit_length() > 2_000:
            raise Unreadable("numbers too large for an equation")
        return sympy.Rational(value.numerator, value.denominator)
    if node.kind == "sym":
        return sympy.Symbol(str(node.value), real=real)
    if node.kind == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}[str(node.value)]
    parts = [to_sympy(part, real=real) for part in node.args]
    match node.kind:
        case "add":
            return sympy.Add(*parts)
        case "neg":
            return -parts[0]
        case "mul":
            return parts[0] * parts[1]
        case "div":
            return parts[0] / parts[1]
        case "percent":
            return parts[0] / 100
        case "pow":
            exponent = exact(node.args[1])
            if exponent is not None and abs(exponent) > 12:
                raise Unreadable("a power too large for an equation")
            return parts[0] ** parts[1]
    if node.kind == "fn" and node.value == "root":
        index = exact(node.args[1])
        if index is None or index.denominator != 1 or not 1 < index < 13:
            raise Unreadable("a root of unknown index")
        return sympy.sqrt(parts[0]) if index == 2 else sympy.real_root(parts[0], int(index))
    if node.kind == "fn" and node.value == "abs":
        return sympy.Abs(parts[0])
    if node.kind == "fn" and node.value in ("sin", "cos", "tan", "exp", "ln"):
        return getattr(sympy, "log" if node.value == "ln" else str(node.value))(parts[0])
    raise Unreadable(f"{node.value or node.kind} in an equation")


def same_equations(first: tuple[Term, Term], second: tuple[Term, Term]) -> bool:
    """Whether two equations have the same solutions: a factor that is nowhere zero is free, and so is a power."""
    left, right = minus(*first), minus(*second)
    if unknowns(left) != unknowns(right) or not unknowns(left):
        return False
    try:
        ratio = Term("div", None, (left, right))
        shifted = _renamed(ratio)
        if same(ratio, shifted):
            return True
    except Unreadable:
        pass
    one, other = _square_free(left), _square_free(right)
    return one is not None and other is not None and one == other


def _renamed(node: Term) -> Term:
    """The same expression at other unknowns: a ratio that is constant is equal to itself there."""
    if node.kind == "sym":
        return Term("sym", f"{node.value} elsewhere")
    return Term(node.kind, node.value, tuple(_renamed(part) for part in node.args))


def _square_free(node: Term) -> Any:
    """The zeros of a rational function as a polynomial without repeated factors, scaled to one form; else None."""
    import sympy

    numerator, denominator = sympy.fraction(sympy.together(to_sympy(node)))
    symbols = sorted(numerator.free_symbols, key=str)
    if not symbols or len(symbols) > 4:
        return None
    try:
        top = sympy.Poly(numerator, *symbols)
        bottom = sympy.Poly(denominator, *symbols)
    except sympy.PolynomialError:
        return None
    if top.total_degree() > _MAX_DEGREE:
        return None
    poles = {factor.monic() for factor, _ in bottom.factor_list()[1]} if bottom.total_degree() else set()
    return frozenset({factor.monic() for factor, _ in top.factor_list()[1]} - poles)


def same_inequalities(first: tuple[Term, str, Term], second: tuple[Term, str, Term]) -> bool:
    """`f < g` against `h > k` in several unknowns: equal up to a positive factor."""
    left, right = minus(first[0], first[2]), minus(second[0], second[2])
    relation = second[1]
    if unknowns(left) != unknowns(right):
        return False
    for factor in (right, Term("neg", None, (right,))):
        if relation == first[1] and _positive_multiple(left, factor):
            return True
        relation = _FLIPPED[relation]
    return False


def _positive_multiple(left: Term, right: Term) -> bool:
    ratio = Term("div", None, (left, right))
    try:
        return same(ratio, _renamed(ratio)) and same(ratio, Term("fn", "abs", (ratio,)))
    except Unreadable:
        return False


def solutions(left: Term, relation: str, right: Term) -> tuple[str, Region]:
    """The unknown of an inequality in one unknown, and the region of its real solutions. Raises Unreadable."""
    names = unknowns(left, right)
    for side, other, asked in ((left, right, relation), (right, left, _FLIPPED[relation])):
        if side.kind == "sym" and side.value not in unknowns(other):
            if is_infinite(other):
                return str(side.value), LINE
            return str(side.value), bound(other, asked)
    if len(names) != 1:
        raise Unreadable("an inequality in several unknowns")
    name = next(iter(names))
    return name, _solved(minus(left, right), relation, name)


def _solved(node: Term, relation: str, name: str) -> Region:
    import sympy

    difference = to_sympy(node)
    symbol = sympy.Symbol(name, real=True)
    numerator, denominator = sympy.fraction(sympy.together(difference))
    if not difference.has(sympy.Abs) and not (
        difference.is_rational_function(symbol)
        and sum(sympy.Poly(part, symbol).degree() for part in (numerator, denominator)) <= _MAX_DEGREE
    ):
        raise Unreadable("an inequality that is not rational")
    build = {"<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge, "!=": sympy.Ne}[relation]
    solved = sympy.solve_univariate_inequality(build(difference, 0), symbol, relational=False)
    return _region_of(solved)


def _region_of(found: Any) -> Region:
    import sympy

    if isinstance(found, sympy.Interval):
        low, high = _node_of(found.start), _node_of(found.end)
        return (from_ends(low, not found.left_open, high, not found.right_open),)
    if isinstance(found, sympy.Union):
        return tuple(piece for part in found.args for piece in _region_of(part))
    if isinstance(found, sympy.FiniteSet):
        return tuple(point(_node_of(element)) for element in found)
    if found is sympy.S.EmptySet:
        return ()
    if found is sympy.S.Reals:
        return (Range(None, False, None, False),)
    raise Unreadable("solutions of an unknown form")


def _node_of(value: Any) -> Term:
    """A number of sympy's as an expression: rational numbers, roots, pi and what is made of them."""
    import sympy

    if value is sympy.oo or value is -sympy.oo:
        node = Term("const", "inf")
        return node if value is sympy.oo else Term("neg", None, (node,))
    if value.is_Rational:
        return num(Fraction(int(value.p), int(value.q)))
    if value is sympy.pi or value is sympy.E:
        return Term("const", "pi" if value is sympy.pi else "e")
    parts = tuple(_node_of(part) for part in value.args)
    if value.is_Add:
        return Term("add", None, parts)
    if value.is_Mul:
        node = parts[0]
        for part in parts[1:]:
            node = Term("mul", None, (node, part))
        return node
    if value.is_Pow:
        return Term("pow", None, parts)
    raise Unreadable("solutions of an unknown form")
