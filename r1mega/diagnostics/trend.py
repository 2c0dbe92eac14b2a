"""Is there a trend in a short series whose noise is autocorrelated? A t test of the slope, in plain Python.

The slope is that of the least-squares line over W values. Noise is what a line and one step leave, the step being
where it leaves least, in the middle half of the window: so neither a steady nor a sudden change is taken for noise,
which would hide it. It is taken for an AR(1) process with Gaussian innovations. Its autocorrelation rho is found by
its moment: the value at which the expected lag-1 products of the residuals, over their expected squares, are what
was seen. That corrects the bias towards no autocorrelation that a fit of 3 parameters to 20 values has, not that of
having chosen the step; a short window says little of rho in any case, so it is never taken for less than
`LEAST_RHO`, which makes up for both. With rho and the step given, the variances of slope and residuals are exact,
and the degrees of freedom are Satterthwaite's, tr(MS)^2 / tr(MSMS), where S is the noise's correlation and M takes
the fit away.

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

LEAST_RHO, MOST_RHO, STEP = 0.55, 0.91, 0.02
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
    """See `trend_test`; what depends on rho and the step's place alone is computed when it is first needed."""

    def __init__(self, window: int) -> None:
        self._window = window
        middle = (window - 1) / 2
        self._times = [i - middle for i in range(window)]
        self._squares = math.fsum(t * t for t in self._times)
        self._line = _orthonormal([[1.0] * window, self._times])
        self._fits = [_Fit(self._line, self._times, place) for place in range(window // 4, window - window // 4 + 1)]

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
        left = _without(self._line, values)
        taken = [math.fsum(s * y for s, y in zip(fit.step, left, strict=True)) for fit in self._fits]
        fit, along = max(zip(self._fits, taken, strict=True), key=lambda found: abs(found[1]))
        residuals = [y - along * s for y, s in zip(left, fit.step, strict=True)]
        square = math.fsum(r * r for r in residuals)
        if square <= least * least:
            return Trend(change, start, float(change < 0), float(change > 0))
        seen = math.fsum(a * b for a, b in itertools.pairwise(residuals)) / square
        # The expected ratio grows with rho, so the first that is no less belongs to the rho of this series.
        _, variance, df = next((forms for forms in fit.forms if forms[0] >= seen), fit.forms[-1])
        t = slope / math.sqrt(variance * square)
        return Trend(change, start, t_tail(t, df), t_tail(-t, df))


class _Fit:
    """A line and a step at one place."""

    def __init__(self, line: Sequence[Sequence[float]], times: Sequence[float], place: int) -> None:
        self._times = times
        *_, self.step = _orthonormal([*line, [float(i >= place) for i in range(len(times))]])
        """[W]: of norm 1, and what of the step is no line."""
        self._basis = [*line, self.step]

    @functools.cached_property
    def forms(self) -> list[tuple[float, float, float]]:
        """Of each rho: the residuals' expected lag-1 products over their expected squares, the slope's variance over
        those squares, and the degrees of freedom."""
        return [self._forms(LEAST_RHO + STEP * i) for i in range(round((MOST_RHO - LEAST_RHO) / STEP) + 1)]

    def _forms(self, rho: float) -> tuple[float, float, float]:
        size = len(self._times)
        squares = math.fsum(t * t for t in self._times)
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
        slope = [t / squares for t in self._times]
        variance = math.fsum(a * b * cov[i][j] for i, a in enumerate(slope) for j, b in enumerate(slope))
        square = math.fsum(left[i][j] * left[j][i] for i in range(size) for j in range(size))
        return products / total, variance / total, total * total / square

    def _without_basis(self, matrix: Sequence[Sequence[float]]) -> list[list[float]]:
        """M x matrix, where M takes the fit away."""
        columns = [_without(self._basis, column) for column in zip(*matrix, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]


def _without(basis: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """What orthonormal vectors leave of a vector."""
    left = list(values)
    for vector in basis:
        along = math.fsum(b * y for b, y in zip(vector, values, strict=True))
        left = [y - along * b for y, b in zip(left, vector, strict=True)]
    return left


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
