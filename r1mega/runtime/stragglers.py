"""Ranks that compute for longer than the others, step after step, as their signs of life have it. Arithmetic alone.

Only phases in which every rank computes are compared, and only the time until a rank meets another copy of the model:
afterwards all have waited for the slowest, and seem alike. Ranks that share one copy wait for each other all along:
a slow one makes its whole copy slow, and all of it is named; so do data-parallel ranks that share experts. With one
copy there is nothing to compare.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

from r1mega.config.watchdog import Watchdog
from r1mega.runtime.heartbeat import Beat

PHASES = ("logprobs", "update")
"""Those in which every rank computes."""
EXCESS_S = 0.1
"""Seconds a step by which a rank must be slower at least: below that nothing is lost, and small runs only jitter."""


@dataclass(frozen=True)
class Slow:
    """A rank that was slow for as many steps as the settings say."""

    rank: int
    host: str
    phase: str
    seconds: float
    """It computed in a step of late."""
    median: float
    """The median of all ranks did."""
    steps: int
    """For so many steps in a row."""

    def __str__(self) -> str:
        return (
            f"rank {self.rank} on {self.host} is slow: {self.seconds:.2f} s a step in {self.phase}, "
            f"{self.seconds / self.median:.1f} times the median of {self.median:.2f} s, for {self.steps} steps"
        )


class Stragglers:
    """Compares what ranks took for the steps that all have taken since the last comparison."""

    def __init__(self, settings: Watchdog) -> None:
        self._settings = settings
        self._before: Mapping[int, Beat] = {}
        self._slow_for: dict[tuple[int, str], int] = {}
        self.figures: dict[str, float] = {}
        """Of the last comparison, for metrics: how many times the median the slowest rank's step took in its update,
        and which rank that is."""

    def see(self, beats: Mapping[int, Beat]) -> list[Slow]:
        """Take in every rank's present sign of life; the ranks that have now been slow for long enough. Each is told
        once, and again after it was as fast as the others in between."""
        if self._before.keys() != beats.keys():
            self._before = dict(beats)
            return []
        steps = {rank: beat.worked_to - self._before[rank].worked_to for rank, beat in beats.items()}
        if min(steps.values(), default=0) < 1:
            return []
        told: list[Slow] = []
        for phase in PHASES:
            told += self._compare(phase, beats, steps)
        self._before = dict(beats)
        return told

    def _compare(self, phase: str, beats: Mapping[int, Beat], steps: Mapping[int, int]) -> list[Slow]:
        took = {
            rank: (beat.worked.get(phase, 0.0) - self._before[rank].worked.get(phase, 0.0)) / steps[rank]
            for rank, beat in beats.items()
        }
        median = median_low(took.values())
        if median <= 0:
            return []
        if phase == "update":
            slowest = max(took, key=lambda rank: took[rank])
            self.figures = {"ranks/slowest": took[slowest] / median, "ranks/slowest_rank": float(slowest)}
        told: list[Slow] = []
        for rank, seconds in took.items():
            key, wanted = (rank, phase), self._settings.straggler_steps
            if seconds < self._settings.straggler_factor * median or seconds - median < EXCESS_S:
                self._slow_for[key] = 0
                continue
            before = self._slow_for.get(key, 0)
            now = self._slow_for[key] = before + steps[rank]
            if before < wanted <= now:
                told.append(Slow(rank, beats[rank].host, phase, seconds, median, now))
        return told
