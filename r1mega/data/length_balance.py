"""Preference pairs whose lengths say nothing of which answer was chosen: a subset of them, by a named method.

The report's helpfulness pairs have chosen and rejected answers of comparable lengths over the whole set, so that a
reward model cannot learn length in place of helpfulness. Lengths are characters (code points) of what is judged. A
bin k holds the lengths from step^k up to and without step^(k + 1). Pairs of equal lengths favour neither side and
are always kept; of the others each method keeps, in every cell, as many in which the longer answer was chosen as in
which the shorter one was:

lengths      a cell is the two bins, of the longer and of the shorter answer. So every bin holds exactly as many
             chosen answers as rejected ones, whatever one makes of the two bins, they do not tell which was chosen,
             and the mean lengths of chosen and rejected differ by less than a factor of `step`.
difference   a cell is the bin of longer / shorter. Keeps more pairs. The mean of log(chosen / rejected) is less than
             log(step) / 2 away from 0; mean lengths themselves may differ, where the longer answer is chosen
             among long pairs and the shorter one among short pairs.
none         one keeps them all.

Which of a cell's pairs go is drawn by the hash of seed and pair: the order in which they come does not matter.
"""

import bisect
import hashlib
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

Balance = Literal["lengths", "difference", "none"]


class Sized(NamedTuple):
    """A pair as far as it matters here."""

    key: str
    """Its name, another for every pair."""
    chosen: int
    """Characters of the chosen answer, 1 or more."""
    rejected: int


class LengthBalance(NamedTuple):
    """The lengths of a set of pairs."""

    pairs: int
    longer_chosen: int
    """Pairs whose chosen answer is the longer one."""
    shorter_chosen: int
    mean_chosen: float
    """Characters; 0 of no pairs."""
    mean_rejected: float

    @classmethod
    def of(cls, pairs: Sequence[Sized]) -> "LengthBalance":
        num = max(len(pairs), 1)
        return cls(
            len(pairs),
            sum(pair.chosen > pair.rejected for pair in pairs),
            sum(pair.chosen < pair.rejected for pair in pairs),
            sum(pair.chosen for pair in pairs) / num,
            sum(pair.rejected for pair in pairs) / num,
        )

    @property
    def share_longer(self) -> float | None:
        """Of the pairs of unequal lengths, those whose chosen answer is the longer; None where there are none."""
        unequal = self.longer_chosen + self.shorter_chosen
        return self.longer_chosen / unequal if unequal else None

    def to_json(self) -> dict[str, float | None]:
        return {**self._asdict(), "share_longer": self.share_longer}

    def told(self) -> str:
        """In a line."""
        share = self.share_longer
        told = "no two lengths differ" if share is None else f"the longer answer chosen in {share:.1%}"
        return (
            f"{self.pairs:,} pairs, {told}, mean lengths {self.mean_chosen:,.0f} (chosen) and "
            f"{self.mean_rejected:,.0f} (rejected) characters"
        )


def balanced(pairs: Sequence[Sized], method: Balance, step: float, seed: int) -> list[Sized]:
    """The pairs that `method` keeps, in their order.

    Args:
        step: ratio of a bin's ends, above 1.
    """
    if method == "none":
        return list(pairs)
    cells: dict[Hashable, tuple[list[Sized], list[Sized]]] = {}
    for pair, cell in zip(pairs, _cells(pairs, method, step), strict=True):
        if pair.chosen != pair.rejected:
            cells.setdefault(cell, ([], []))[pair.chosen > pair.rejected].append(pair)
    kept = {pair.key for pair in pairs if pair.chosen == pair.rejected}
    for sides in cells.values():
        num = min(map(len, sides))
        for side in sides:
            kept.update(pair.key for pair in sorted(side, key=lambda pair: _drawn(seed, pair.key))[:num])
    return [pair for pair in pairs if pair.key in kept]


def possible(pairs: Sequence[Sized], step: float) -> dict[str, int]:
    """How many pairs each method would keep."""
    return {method: len(balanced(pairs, method, step, 0)) for method in get_args(Balance)}


def _cells(pairs: Sequence[Sized], method: Balance, step: float) -> Iterator[Hashable]:
    most = max((max(pair.chosen, pair.rejected) for pair in pairs), default=1)
    edges = [step**k for k in range(math.ceil(math.log(most) / math.log(step)) + 2)]
    for pair in pairs:
        shorter, longer = sorted((pair.chosen, pair.rejected))
        if method == "difference":
            yield bisect.bisect_right(edges, longer / shorter)
        else:
            yield bisect.bisect_right(edges, longer), bisect.bisect_right(edges, shorter)


def _drawn(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/balance/{key}".encode()).digest()
