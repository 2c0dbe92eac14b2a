"""Is a step's loss or gradient norm far above what it was lately? Judged by median and median absolute deviation.

    z = (value - median) / max(1.4826 MAD, LEAST_SPREAD |median|)

1.4826 MAD is the standard deviation where values are normal (1 / Phi^-1(3/4)), whatever becomes of fewer than half of
them: a spike that was let into the window does not hide the next one. Values above the median alone count, since a
loss or a norm that falls is no harm. Where more than half of a window is one value, the least spread judges; where
that value is 0, as the losses of rollouts that teach nothing, nothing does.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LEAST_SPREAD = 0.02
"""Share of the median that one deviation is at least: a curve as smooth as a mean over a large batch would otherwise
be judged by its rounding."""


@dataclass(frozen=True)
class Spike:
    """A figure far above its window."""

    figure: str
    value: float
    median: float
    """Of the window."""
    z: float
    """Its distance from the median in deviations."""

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.4g}, {self.z:.1f} deviations above the median {self.median:.4g}"


def robust_z(value: float, window: Sequence[float]) -> float:
    """How many deviations a value lies above a window's median; below it negative.

    Args:
        window: finite values, one at least.

    Returns:
        0 where the window has no spread to judge by: its median and more than half of its values are 0.

    >>> round(robust_z(8.4478, [1.0, 2.0, 3.0, 4.0, 5.0]), 3)  # median 3, MAD 1
    3.674
    """
    median = statistics.median(window)
    deviation = TO_DEVIATION * statistics.median([abs(x - median) for x in window])
    spread = max(deviation, LEAST_SPREAD * abs(median))
    return (value - median) / spread if spread else 0.0


def spike(
    figures: Mapping[str, float], windows: Mapping[str, Sequence[float]], bounds: Mapping[str, float], length: int
) -> Spike | None:
    """The figure that is furthest past its bound, or None where none is.

    Args:
        figures: of a step, each finite.
        windows: name -> the figure in the steps before, the oldest first.
        bounds: name -> the least distance of a spike, in deviations; 0: not judged.
        length: of a full window; a shorter one judges nothing, and of a longer one the last values count.
    """
    found: list[Spike] = []
    for name, value in figures.items():
        window, bound = list(windows.get(name, ()))[-length:], bounds.get(name, 0.0)
        if bound and len(window) == length and (z := robust_z(value, window)) >= bound:
            found.append(Spike(name, value, statistics.median(window), z))
    return max(found, key=lambda each: each.z / bounds[each.figure], default=None)


def finite(figures: Mapping[str, float]) -> bool:
    """Whether every figure is a finite number."""
    return all(math.isfinite(value) for value in figures.values())
