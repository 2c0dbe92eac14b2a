"""The exact value of an expression of rational numbers, and the limits of its size."""

import math
from fractions import Fraction

from r1mega.rewards.mathematics.guards import MAX_FACTORIAL, MAX_VALUE_BITS, TooBig, Unreadable
from r1mega.rewards.mathematics.term import Term


class Undefined(Unreadable):
    """A division by zero or the like, here."""


def exact(node: Term) -> Fraction | None:
    """The value of an expression of rational numbers, sums, products, integer powers and factorials; otherwise None.

    Raises TooBig where it has more than MAX_VALUE_BITS, Undefined where it divides by zero.
    """
    kind = node.kind
    if kind == "num":
        return node.value if isinstance(node.value, Fraction) else None
    if kind in ("sym", "const", "pm"):
        return None
    values = []
    for part in node.args:
        value = exact(part)
        if value is None:
            return None
        values.append(value)
    result = _exact_operation(node, values)
    if result is not None and result.numerator.bit_length() + result.denominator.bit_length() > MAX_VALUE_BITS:
        raise TooBig("a value of more than 30,000 digits")
    return result


def _exact_operation(node: Term, values: list[Fraction]) -> Fraction | None:
    match node.kind:
        case "add":
            return sum(values, Fraction(0))
        case "mul":
            return values[0] * values[1]
        case "neg":
            return -values[0]
        case "percent":
            return values[0] / 100
        case "div":
            if values[1] == 0:
                raise Undefined("a division by zero")
            return values[0] / values[1]
        case "pow":
            return _exact_power(*values)
        case "fn":
            return _exact_function(str(node.value), values)
    return None


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base**exponent.numerator, exponent.denominator) if abs(exponent.numerator) < 50 else None
    power = exponent.numerator
    if base == 0 and power <= 0:
        raise Undefined("a power of zero")
    if base in (0, 1, -1):
        return base ** (power % 2 or 2) if base else base
    size = abs(power) * max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > MAX_VALUE_BITS:
        raise TooBig("a power of more than 30,000 digits")
    return base**power


def _exact_root(value: Fraction, index: int) -> Fraction | None:
    """The real root where it is rational; None where it is not, or complex."""
    if index <= 0 or index > 1_000 or value < 0:
        return None
    parts = []
    for whole in (value.numerator, value.denominator):
        root = math.isqrt(whole) if index == 2 else _integer_root(whole, index)
        if root**index != whole:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


def _integer_root(whole: int, index: int) -> int:
    low, high = 0, 1 << (whole.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**index <= whole:
            low = middle
        else:
            high = middle - 1
    return low


def _exact_function(name: str, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    whole = first.numerator if first.denominator == 1 else None
    if name == "abs":
        return abs(first)
    if name in ("floor", "ceil"):
        return Fraction(math.floor(first) if name == "floor" else math.ceil(first))
    if name == "root" and values[1].denominator == 1:
        if first < 0 and values[1].numerator % 2:
            root = _exact_root(-first, values[1].numerator)
            return None if root is None else -root
        return _exact_root(first, values[1].numerator)
    if name in ("factorial", "factorial2") and whole is not None:
        if whole < 0:
            raise Undefined("a factorial of a negative number")
        if whole > MAX_FACTORIAL:
            raise TooBig(f"a factorial of more than {MAX_FACTORIAL:,}")
        return Fraction(math.factorial(whole) if name == "factorial" else math.prod(range(whole, 0, -2)))
    if name == "binom" and whole is not None and values[1].denominator == 1:
        if whole > MAX_FACTORIAL or whole < 0:
            raise TooBig(f"a binomial coefficient of more than {MAX_FACTORIAL:,}")
        lower = values[1].numerator
        return Fraction(math.comb(whole, lower) if lower >= 0 else 0)
    if name == "log" and first > 0 and values[1] > 0 and values[1] != 1:
        return _exact_log(first, values[1])
    return None


def _exact_log(value: Fraction, base: Fraction) -> Fraction | None:
    for denominator in range(1, 5):
        guess = round(denominator * (_ln(value) / _ln(base)))
        if abs(guess) < 5_000 and base**guess == value**denominator:
            return Fraction(guess, denominator)
    return None


def _ln(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)
