"""A curve of any length in bounded memory: neighbours share a point, whose extremes are kept."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

MAX_POINTS = 500
"""Points above twice as many are joined in pairs; a drawn curve is some hundred dots wide."""


class Thinned:
    """Points (x, y, low, high) in order of x.

    low and high are the ends of y's interval where it was given with one, otherwise the smallest and the largest of
    the values that share a point, whose y is their mean.
    """

    def __init__(self, *, interval: bool = False) -> None:
        self.interval = interval
        """Whether low and high are an interval's ends."""
        self.joined = 0
        """Grows when points were joined or dropped: who has drawn some of them has to draw all of them anew."""
        self._per_point = 1
        self._first, self._x, self._y, self._low, self._high = (array("d") for _ in range(5))
        self._count, self._ends = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._x)

    def add(self, x: float, y: float, end: int, low: float | None = None, high: float | None = None) -> None:
        """Append a value.

        Args:
            x: not below the last one's.
            end: where its row ends in its file; not below the last one's.
        """
        low, high = y if low is None else low, y if high is None else high
        if self._count and self._count[-1] < self._per_point:
            num = self._count[-1]
            self._y[-1] += (y - self._y[-1]) / (num + 1)
            if self.interval:
                self._low[-1] += (low - self._low[-1]) / (num + 1)
                self._high[-1] += (high - self._high[-1]) / (num + 1)
            else:
                self._low[-1], self._high[-1] = min(self._low[-1], low), max(self._high[-1], high)
            self._x[-1], self._count[-1], self._ends[-1] = x, num + 1, end
            return
        for column, value in zip(self._columns, (x, x, y, low, high, 1, end), strict=True):
            column.append(value)
        if len(self) >= 2 * MAX_POINTS:
            self._join()

    def drop_from(self, x: float) -> None:
        """Drop what begins at `x` or behind it; a point that began before it stays as it is."""
        num = len(self)
        while num and self._first[num - 1] >= x:
            num -= 1
        if num == len(self) and (not num or self._x[-1] < x):
            return
        for column in self._columns:
            del column[num:]
        if num and self._x[-1] >= x:
            self._x[-1] = self._first[-1]
        self.joined += 1

    def since(self, end: int) -> tuple[int, list[list[float]]]:
        """The points that were added or grew after the row that ends at `end`: the first one's index, and all of
        them as [x, y], or [x, y, low, high] where these say more; five digits each."""
        start = bisect_right(self._ends, end)
        return start, [self._point(i) for i in range(start, len(self))]

    def _point(self, i: int) -> list[float]:
        point = [self._x[i], self._y[i]]
        if self.interval or self._low[i] != self._high[i]:
            point += [self._low[i], self._high[i]]
        return [_rounded(value) for value in point]

    @property
    def _columns(self) -> Sequence["array[Any]"]:
        return self._first, self._x, self._y, self._low, self._high, self._count, self._ends

    def _join(self) -> None:
        """Two neighbours become one point; the last one of an odd number stays."""
        old = [column[:] for column in self._columns]
        first, x, y, low, high, count, ends = old
        for column in self._columns:
            del column[:]
        for i in range(0, len(x), 2):
            j = min(i + 1, len(x) - 1)
            num = count[i] + (count[j] if j > i else 0)
            share = count[i] / num
            if self.interval:
                ends_of = low[i] * share + low[j] * (1 - share), high[i] * share + high[j] * (1 - share)
            else:
                ends_of = min(low[i], low[j]), max(high[i], high[j])
            mean = y[i] * share + y[j] * (1 - share)
            for column, value in zip(self._columns, (first[i], x[j], mean, *ends_of, num, ends[j]), strict=True):
                column.append(value)
        self._per_point *= 2
        self.joined += 1


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 else round(value, 1)
