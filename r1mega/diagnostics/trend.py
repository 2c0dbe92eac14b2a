"""Is there a trend in a short series whose noise is autocorrelated? A t test of the slope, in plain Python.

The slope is that of the least-squares line over W values. Noise is what a line and a step in the middle of the
window leave: so neither a steady nor a sudden change is taken for noise, which would hide it. It is taken for an
AR(1) process with Gaussian innovations. Its autocorrelation rho is found by its moment: the value at which the
expected lag-1 products of the residuals, over their expected squares, are what was seen. That corrects the bias
towards no autocorrelation that a fit of 3 parameters to 20 values has. A short window says little of rho, so it is
never taken for less than `LEAST_RHO`. With rho given, the variances of slope and residuals are exact, and the
degrees of freedom are Satterthwaite's, tr(MS)^2 / tr(MSMS), where S is the noise's correlation and M takes the fit
away.

What that is worth was simulated (tools/bench/hacking_detector.py, docs/measurements/hacking_detector.json): the
error rates hold for autocorrelation up to 0.5, and do not at 0.7. No library that is installed has this test;
scipy, which has the ordinary t test of a slope, is not among them.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.diagnostics.student_t import t_tail

LEAST_RHO, MOST_RHO, STEP = 0.45, 0.9, 0.01
ROUNDING = 1e-9
"""Share of the largest value below which a change is none."""


@dataclass(frozen=True)
class Trend:
    """What a window says."""

    change: float
    """Slope x (W - 1): of the line, from the window's first to its last value."""
    start: float
    """The line's value at the window's beginning."""
    p_up: float
    """One-sided p of "it does not rise"."""
    p_down: float
    """One-sided p of "it does not fall"."""


@functools.cache
def trend_test(window: int) -> "TrendTest":
    """The test for windows of a length. Raises ValueError for one of fewer than 12 values."""
    if window < 12:
        raise ValueError(f"a window of {window} values tells no trend from noise; take 12 or more")
    return TrendTest(window)


class TrendTest:
    """See `trend_test`; what depends on rho alone is computed once, some W^2 terms at each of 46 values."""

    def __init__(self, window: int) -> None:
        self._window = window
        middle = (window - 1) / 2
        self._times = [i - middle for i in range(window)]
        self._squares = math.fsum(t * t for t in self._times)
        step = [float(i >= window // 2) for i in range(window)]
        self._basis = _orthonormal([[1.0] * window, self._times, step])
        self._at = [self._forms(LEAST_RHO + STEP * i) for i in range(round((MOST_RHO - LEAST_RHO) / STEP) + 1)]

    def __call__(self, values: Sequence[float]) -> Trend:
        """values: [W], one a rollout, the oldest first. Raises ValueError where there are more or fewer."""
        if len(values) != self._window:
            raise ValueError(f"{len(values)} values for a window of {self._window}")
        mean = math.fsum(values) / self._window
        slope = math.fsum(t * y for t, y in zip(self._times, values, strict=True)) / self._squares
        change = slope * (self._window - 1)
        start = mean - change / 2
        least = ROUNDING * max(map(abs, values))
        if abs(change) <= least:
            return Trend(0.0, mean, 1.0, 1.0)
        residuals = list(values)
        for basis in self._basis:
            along = math.fsum(b * y for b, y in zip(basis, values, strict=True))
            residuals = [r - along * b for r, b in zip(residuals, basis, strict=True)]
        square = math.fsum(r * r for r in residuals)
        if square <= least * least:
            return Trend(change, start, float(change < 0), float(change > 0))
        seen = math.fsum(a * b for a, b in itertools.pairwise(residuals)) / square
        # The expected ratio grows with rho, so the first that is no less belongs to the rho of this series.
        _, variance, df = next((forms for forms in self._at if forms[0] >= seen), self._at[-1])
        t = slope / math.sqrt(variance * square)
        return Trend(change, start, t_tail(t, df), t_tail(-t, df))

    def _forms(self, rho: float) -> tuple[float, float, float]:
        """Of AR(1) noise with autocorrelation rho: the residuals' expected lag-1 products over their expected
        squares, the slope's variance over those squares, and the degrees of freedom."""
        size = self._window
        powers = [rho**lag for lag in range(size)]
        cov = [[powers[abs(i - j)] for j in range(size)] for i in range(size)]
        left = self._without_basis(cov)  # M S
        total = math.fsum(left[i][i] for i in range(size))
        lagged = [
            [((left[i - 1][j] if i else 0.0) + (left[i + 1][j] if i + 1 < size else 0.0)) / 2 for j in range(size)]
            for i in range(size)
        ]
        both = self._without_basis(lagged)  # M L M S
        products = math.fsum(both[i][i] for i in range(size))
        slope = [t / self._squares for t in self._times]
        variance = math.fsum(a * b * cov[i][j] for i, a in enumerate(slope) for j, b in enumerate(slope))
        square = math.fsum(left[i][j] * left[j][i] for i in range(size) for j in range(size))
        return products / total, variance / total, total * total / square

    def _without_basis(self, matrix: Sequence[Sequence[float]]) -> list[list[float]]:
        """M x matrix, where M takes the fit away."""
        rows = [list(row) for row in matrix]
        for basis in self._basis:
            along = [math.fsum(b * row[j] for b, row in zip(basis, matrix, strict=True)) for j in range(self._window)]
            rows = [[x - b * a for x, a in zip(row, along, strict=True)] for row, b in zip(rows, basis, strict=True)]
        return rows


def _orthonormal(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """Gram and Schmidt's."""
    found: list[list[float]] = []
    for column in columns:
        left = list(column)
        for basis in found:
            along = math.fsum(b * x for b, x in zip(basis, left, strict=True))
            left = [x - along * b for x, b in zip(left, basis, strict=True)]
        norm = math.sqrt(math.fsum(x * x for x in left))
        found.append([x / norm for x in left])
    return found
