"""cons@k: the answer that most of k answers to a question give is taken, and is right or not (report 2.4: cons@64).

Answers are counted by what they mean (`classes`). An answer without a final answer in it has no vote. Of several
classes that have the most votes one is drawn at random, and what is reported is the expected value: the mean over the
tied classes. Where nobody votes the question is answered wrong.

With n > k answers the estimate is the expected value over all sets of k among the n, which is unbiased as pass@k is.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from r1mega.errors import DataError

Equivalent = Callable[[str, str], bool]
"""Whether two final answers mean the same; symmetric. What it raises passes through."""


_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:/0*[1-9][0-9]{0,40})?")
"""A decimal number, or one over a whole number; not so long that to read it costs anything."""


@dataclass(frozen=True)
class Vote:
    """What one scored answer brings to the vote."""

    answer: str | None
    """What it votes for, one text for each class of equivalent answers; None: it has no final answer, and no vote."""
    value: float
    """How right it is, in [0, 1]."""


@dataclass(frozen=True)
class Bloc:
    """The votes for one class of equivalent answers."""

    size: int
    value: float
    """The mean value of its votes; they agree, unless the verifier judges equivalent answers differently."""


def same_answer(a: str, b: str) -> bool:
    """Whether two final answers are the same in any case and spacing, or the same number: 0.50, 1/2 and .5."""
    a, b = ("".join(text.casefold().split()) for text in (a, b))
    return a == b or ((number := _number(a)) is not None and number == _number(b))


def cons_at_k(votes: Sequence[Vote], k: int) -> float:
    """The estimate for one question.

    Raises:
        DataError: k is not within 1 .. the number of votes.
    """
    if not 1 <= k <= len(votes):
        raise DataError(f"cons@{k} of {len(votes)} scored answers: k is at least 1, and at most their number")
    return expected_value(blocs(votes), len(votes), k)


def blocs(votes: Sequence[Vote]) -> list[Bloc]:
    """The votes that are cast, by what they are for, in the order of their first ones."""
    members: dict[str, list[float]] = {}
    for vote in votes:
        if vote.answer is not None:
            members.setdefault(vote.answer, []).append(vote.value)
    return [Bloc(len(values), math.fsum(values) / len(values)) for values in members.values()]


def classes(answers: Mapping[str, int], equivalent: Equivalent) -> dict[str, str]:
    """What each distinct answer counts as: the representative of its class.

    A verifier's equality need not be transitive (3 equals 3 cm and 3 m, which differ). So the rule is: answers are
    taken by their numbers of votes, the most first, those of equal numbers by their text; each joins the first class
    whose representative it equals, and where there is none begins one and represents it. The outcome hangs on no
    order of sampling, and an answer is compared with representatives alone.

    Args:
        answers: distinct answer -> its votes.
    """
    represented: dict[str, str] = {}
    representatives: list[str] = []
    for answer in sorted(answers, key=lambda text: (-answers[text], text)):
        found = next((other for other in representatives if equivalent(other, answer)), None)
        if found is None:
            representatives.append(found := answer)
        represented[answer] = found
    return represented


def _number(text: str) -> Fraction | None:
    if not _NUMBER.fullmatch(text):
        return None
    above, _, below = text.partition("/")
    return Fraction(above) / Fraction(below or "1")


def expected_value(classes: Sequence[Bloc], num: int, k: int) -> float:
    """The expected value of the answer with most votes, over all sets of k among `num` answers and over ties.

    A class of value v and size s wins with a votes where no other has more: of C(num, k) sets, those with a of its
    s, at most a of every other class's and the rest without a vote; where t others have a votes as well it is drawn
    with 1 / (t + 1) = integral of u^t over [0, 1]. So the others are the product of sum_b<a C(s_j, b) x^b +
    u C(s_j, a) x^a, of which the coefficient of x^(k - a) is a polynomial in u: Gauss-Legendre integrates it exactly.
    """
    if num == k:
        most = max((bloc.size for bloc in classes), default=0)
        tied = [bloc.value for bloc in classes if bloc.size == most]
        return math.fsum(tied) / len(tied) if tied else 0.0
    silent = num - sum(bloc.size for bloc in classes)
    sizes = Counter(bloc.size for bloc in classes)
    value_by_size = {size: math.fsum(bloc.value for bloc in classes if bloc.size == size) for size in sizes}
    nodes, weights = np.polynomial.legendre.leggauss(len(classes) // 2 + 1)
    u, weights = (nodes + 1) / 2, weights / 2
    total = 0.0
    for size, value in value_by_size.items():
        others = sizes - Counter([size])
        for a in range(1, min(size, k) + 1) if value else ():
            ways = np.tile(_silent_ways(silent, k - a), (len(u), 1))
            for other, times in others.items():
                for _ in range(times):
                    ways = _times(ways, _votes_up_to(other, a, u), k - a)
            total += value * math.comb(size, a) * float(weights @ ways[:, k - a])
    return total / math.comb(num, k)


def _silent_ways(silent: int, most: int) -> np.ndarray:
    """[most + 1]: in how many ways 0, 1, ... of the answers without a vote are among the k."""
    return np.array([float(math.comb(silent, b)) for b in range(most + 1)])


def _votes_up_to(size: int, a: int, u: np.ndarray) -> np.ndarray:
    """[nodes, min(size, a) + 1]: in how many ways a class has 0, 1, ... votes, those of a tie weighted by u."""
    row = np.tile([float(math.comb(size, b)) for b in range(min(size, a) + 1)], (len(u), 1))
    if size >= a:
        row[:, a] *= u
    return row


def _times(left: np.ndarray, right: np.ndarray, most: int) -> np.ndarray:
    """[nodes, most + 1]: the product of two polynomials in x without the powers above `most`, node by node."""
    product = np.zeros((len(left), most + 1))
    for power in range(min(right.shape[1], most + 1)):
        product[:, power:] += left[:, : most + 1 - power] * right[:, power : power + 1]
    return product
