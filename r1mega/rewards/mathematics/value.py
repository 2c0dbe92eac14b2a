"""What expressions are worth: exactly where they are rational, otherwise to many digits, at chosen points.

Two expressions are equal where they agree exactly, or to far more digits than a coincidence could have; expressions
with unknowns where they agree at random points. Where both are real at some points, only those count: so `\\ln x^2`
is `2 \\ln x`, and `\\sqrt{x^2}` is not `x`.
"""

import random
import zlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath

from r1mega.rewards.mathematics.exact import Undefined, exact
from r1mega.rewards.mathematics.guards import MAX_FACTORIAL, MAX_VALUE_BITS, TooBig, Unreadable
from r1mega.rewards.mathematics.term import Term

Point = Mapping[str, Fraction]
_GUARD_DIGITS = 25
_MAX_DIGITS = 12_000
_NUM_POINTS = 14


def unknowns(*nodes: Term) -> frozenset[str]:
    """The names of all symbols."""
    return frozenset(str(node.value) for whole in nodes for node in whole.walk() if node.kind == "sym")


def digits_in(*nodes: Term) -> int:
    """About how many digits the numbers in the expressions have: what a difference between them may hide behind."""
    bits = 0
    for whole in nodes:
        for node in whole.walk():
            if node.kind in ("num", "pow", "fn", "div", "mul") and node.kind != "const":
                value = exact(node)
                if value is not None:
                    bits = max(bits, value.numerator.bit_length() + value.denominator.bit_length())
    return bits * 3 // 10


def same(first: Term, second: Term) -> bool:
    """Whether two expressions are equal. Raises Unreadable where that cannot be computed."""
    if first == second:
        return True
    left, right = exact(first), exact(second)
    if left is not None and right is not None:
        return left == right
    names = unknowns(first, second)
    if any(node.kind == "const" and node.value == "inf" for whole in (first, second) for node in whole.walk()):
        return False  # not equal as written, and infinity is not computed with
    if not names:
        return _same_constants(first, second)
    return _same_at_points(first, second, sorted(names))


def _same_constants(first: Term, second: Term) -> bool:
    """Computed twice, the second time to twice the digits: a difference that shrinks with both is none."""
    if not _close(_at(first, {}, 60), _at(second, {}, 60), 60):
        return False
    digits = _digits_for(first, second)
    return all(_close(_at(first, {}, d), _at(second, {}, d), d) for d in (digits, 2 * digits))


def _digits_for(first: Term, second: Term) -> int:
    digits = 60 + 3 * digits_in(first, second)
    if digits > _MAX_DIGITS:
        raise TooBig("a value that needs too many digits")
    return digits


def _close(left: Any, right: Any, digits: int) -> bool:
    """Equal up to rounding, or both so small that they are zero in all but rounding.

    `digits` are three times those that the numbers of the expressions have, and more: a value that is not zero is
    larger than a third of them allows to be.
    """
    with mpmath.workdps(digits):
        size = max(abs(left), abs(right))
        if size < mpmath.mpf(10) ** (-(digits * 2 // 3)):
            return True
        return abs(left - right) <= size * mpmath.mpf(10) ** (_GUARD_DIGITS - digits)


def _same_at_points(first: Term, second: Term, names: list[str]) -> bool:
    generator = random.Random(zlib.crc32(repr((first, second)).encode()))
    both_real = both_complex = 0
    complex_equal = True
    digits = _digits_for(first, second)
    for number in range(_NUM_POINTS):
        signed = number % 2 == 1
        point = {
            name: Fraction(generator.randrange(1_000, 9_999_991 if number % 4 < 2 else 999_991), 1_000_003)
            * (-1 if signed and generator.random() < 0.6 else 1)
            for name in names
        }  # fmt: skip
        try:
            left, right = _at(first, point, digits), _at(second, point, digits)
        except Undefined:
            continue
        real = [_is_real(value) for value in (left, right)]
        equal = _close(left, right, digits)
        if all(real):
            if not equal:
                return False
            both_real += 1
        elif not any(real):
            both_complex += 1
            complex_equal &= equal
    return both_real >= 3 or (complex_equal and both_real + both_complex >= 3)


def _is_real(value: Any) -> bool:
    return abs(mpmath.im(value)) <= abs(value) * mpmath.mpf(10) ** -30


def _at(node: Term, point: Point, digits: int) -> Any:
    with mpmath.workdps(digits):
        return value_at(node, point)


def value_at(node: Term, point: Point) -> Any:
    """The value at a point, in mpmath's working precision. Raises Undefined, and TooBig past what is computed."""
    try:
        value = _compute(node, point)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, KeyError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Undefined(str(error)) from None
    if not mpmath.isfinite(value):
        raise Undefined("no finite value")
    return value


def _compute(node: Term, point: Point) -> Any:
    match node.kind:
        case "num":
            return _mpf(node.value)
        case "sym":
            return _mpf(point[str(node.value)])
        case "const":
            return {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}[str(node.value)] + 0
        case "pm":
            raise Unreadable("a sign that is two")
    values = [value_at(part, point) for part in node.args]
    match node.kind:
        case "add":
            return mpmath.fsum(values)
        case "neg":
            return -values[0]
        case "mul":
            return _bounded(values[0] * values[1])
        case "div":
            return _bounded(values[0] / values[1])
        case "percent":
            return values[0] / 100
        case "pow":
            return _power(values[0], values[1])
    return _function(str(node.value), values)


def _mpf(value: Any) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator


def _bounded(value: Any) -> Any:
    if value and abs(mpmath.mag(value)) > MAX_VALUE_BITS:
        raise TooBig("a value of more than 30,000 digits")
    return value


def _power(base: Any, exponent: Any) -> Any:
    if base == 0:
        if mpmath.re(exponent) <= 0:
            raise Undefined("a power of zero")
        return base
    if mpmath.mag(exponent) > 40 or abs(exponent) * (abs(mpmath.mag(base)) + 4) > MAX_VALUE_BITS:
        raise TooBig("a power of more than 30,000 digits")
    if mpmath.im(base) == 0 and mpmath.re(base) < 0 and mpmath.im(exponent) == 0:
        odd = _odd_root(exponent)
        if odd is not None:  # x^(1/3) is real where x is, as in \sqrt[3]{x}
            return (-1 if odd % 2 else 1) * mpmath.power(-base, exponent)
    return mpmath.power(base, exponent)


def _odd_root(exponent: Any) -> int | None:
    """The numerator of an exponent that is a fraction with a small odd denominator."""
    for denominator in (3, 5, 7, 9):
        product = mpmath.re(exponent) * denominator
        if abs(product - mpmath.nint(product)) < mpmath.mpf(10) ** (8 - mpmath.mp.dps):
            return int(mpmath.nint(product)) if int(mpmath.nint(product)) % denominator else None
    return None


def _function(name: str, values: list[Any]) -> Any:
    first = values[0]
    if name.startswith("?"):
        return mpmath.mpf(zlib.crc32(f"{name}{mpmath.nstr(first, 20)}".encode())) / 2**31
    if mpmath.mag(first) > 200 and name not in ("root", "abs", "ln", "log"):
        raise TooBig(f"{name} of a value of more than 60 digits")
    if name in ("factorial", "binom"):
        if max(abs(value) for value in values) > MAX_FACTORIAL:
            raise TooBig(f"a factorial of more than {MAX_FACTORIAL:,}")
        return mpmath.factorial(first) if name == "factorial" else mpmath.binomial(first, values[1])
    if name == "factorial2":
        return mpmath.fac2(first)
    if name == "root":
        return _root(first, values[1])
    if name == "log":
        return mpmath.log(first) / mpmath.log(values[1])
    if name == "abs":
        return abs(first)
    if name in ("floor", "ceil", "sgn"):
        return {"floor": mpmath.floor, "ceil": mpmath.ceil, "sgn": mpmath.sign}[name](first)
    own = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh", "arccosh": "acosh",
           "arctanh": "atanh", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc"}  # fmt: skip
    function = own.get(name, name)
    if function not in _FUNCTIONS:
        raise Unreadable(f"the function {name}")
    return getattr(mpmath, function)(first)


_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "asin",
        "acos",
        "atan",
        "acot",
        "asec",
        "acsc",
        "sinh",
        "cosh",
        "tanh",
        "coth",
        "sech",
        "csch",
        "asinh",
        "acosh",
        "atanh",
        "ln",
        "arg",
    ]
)


def _root(value: Any, index: Any) -> Any:
    if index == 0:
        raise Undefined("a root of index zero")
    whole = mpmath.re(index)
    odd = mpmath.isint(whole) and int(whole) % 2 == 1
    if mpmath.im(value) == 0 and mpmath.re(value) < 0 and odd:
        return -mpmath.power(-value, 1 / index)
    return mpmath.sqrt(value) if index == 2 else _power(value, 1 / index)
