"""The ranks' beats of a run, as far as it has written any."""

from dataclasses import dataclass
from pathlib import Path

BEAT_LIMIT_S = 60.0
"""Seconds without a beat after which a rank counts as gone or frozen."""


@dataclass(frozen=True)
class RankBeat:
    """What a rank said of itself last."""

    rank: int
    phase: str
    step: int | None
    since: float
    """When its phase began, seconds since 1970."""
    time: float
    """When it said so, seconds since 1970."""
    host: str = ""


def beats_of(stage: Path) -> list[RankBeat]:
    """By rank; none where the run has written none."""
    return []
