"""What expressions are made of."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Term:
    """An expression. `kind`: num sym const add mul div pow neg fn percent pm; `value`: what a leaf or function is.

    `3x^2` is Term("mul", None, (Term("num", Fraction(3)), Term("pow", None, (x, two)))).
    """

    kind: str
    value: Fraction | str | int | None = None
    args: "tuple[Term, ...]" = ()

    def walk(self) -> "list[Term]":
        """This node and all below it."""
        found: list[Term] = []
        waiting: list[Term] = [self]
        while waiting:
            node = waiting.pop()
            found.append(node)
            waiting.extend(node.args)
        return found


def num(value: Fraction | int) -> Term:
    return Term("num", Fraction(value))
