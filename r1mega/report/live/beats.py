"""The ranks' beats of a run: which phase each is in, whom it waits for, and whether it beats at all."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mega.report.live.spans import span
from r1mega.report.rows import Row, number
from r1mega.runtime.heartbeat import ENDED, FOLDER

BEAT_LIMIT_S = 60.0
"""Seconds without a beat after which a rank counts as gone or frozen."""
IN_METRICS = {"sampling": "rollout", "rewards": "reward_models"}
"""Phases of beats that lines of metrics call otherwise."""
MAX_RANKS = 4096
WAITS_LONG_S = 10.0
"""Seconds of a wait for other ranks from which on it is told of."""


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
    detail: str = ""
    """What it waits for, as people are told: "answers: 37 of 512"."""
    waits: str = ""
    """Which other ranks it waits for; "" where for none."""
    waited_s: float = 0.0
    """For how long, when it said so."""
    limit_s: float = 0.0
    """After which the run is ended to start again; 0: none."""
    phases: int = 0
    """Phases before this one: equal on ranks that have come equally far."""
    at: str = ""
    """Where it stands: file:line function."""
    num_steps: int | None = None
    """Optimiser steps of the stage, where it knows them."""

    @property
    def ended(self) -> bool:
        return self.phase == ENDED

    def __str__(self) -> str:
        return f"rank {self.rank}{f' on {self.host}' if self.host else ''}"


def beats_of(stage: Path) -> list[RankBeat]:
    """By rank; none where the run has written none. One that cannot be read, or whose figures are none, is left out:
    whoever looks at a run is not ended by a file of it, so that this is stricter than the ranks among themselves.
    """
    found: list[RankBeat] = []
    try:
        files = [
            path for path in (stage / FOLDER).iterdir() if path.name.startswith("rank_") and path.suffix == ".json"
        ]
    except OSError:
        return []
    for file in files[:MAX_RANKS]:
        try:
            row = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(row, dict) and (beat := _beat(row)) is not None:
            found.append(beat)
    return sorted(found, key=lambda beat: beat.rank)


def _beat(row: Row) -> RankBeat | None:
    rank, since, time = (number(row, name) for name in ("rank", "since", "time"))
    if rank is None or since is None or time is None:
        return None
    wait = row["wait"] if isinstance(row.get("wait"), dict) else {}
    step = number(row, "step")
    return RankBeat(
        rank=int(rank),
        phase=str(row.get("phase", "")),
        step=None if step is None else int(step),
        since=since,
        time=time,
        host=str(row.get("host", "")),
        detail=str(row.get("detail") or ""),
        waits=str(wait.get("what", "")),
        waited_s=number(wait, "seconds") or 0.0,
        limit_s=number(wait, "limit_s") or 0.0,
        phases=int(number(row, "phases") or 0),
        at=str(row.get("at") or ""),
        num_steps=int(number(row, "num_steps") or 0) or None,
    )


def silent(beats: Iterable[RankBeat], now: float) -> list[RankBeat]:
    """Ranks that have not left and do not beat, the one that is silent longest first."""
    return sorted((b for b in beats if not b.ended and now - b.time > BEAT_LIMIT_S), key=lambda beat: beat.time)


def waits(beats: Sequence[RankBeat], now: float) -> list[str]:
    """What ranks wait for, a line each: silent ones, the one that others wait for, and what a rank says itself."""
    told = [f"{beat}, silent for {span(now - beat.time)}, in {beat.phase}" for beat in silent(beats, now)[:3]]
    waiting = [beat for beat in beats if not beat.ended and beat.waits and beat.waited_s >= WAITS_LONG_S]
    if waiting:
        first = max(waiting, key=lambda beat: beat.waited_s)
        limit = f", of {span(first.limit_s)} at most" if first.limit_s else ""
        behind = [beat for beat in beats if not beat.ended and not beat.waits and beat.phases <= first.phases]
        late = min(behind, key=lambda beat: beat.phases, default=None)
        whom = (
            f"{late}, in {late.phase} for {span(now - late.since)}{f', at {late.at}' if late.at else ''}: "
            if late
            else ""
        )
        told.append(
            f"{whom}{len(waiting)} of {len(beats)} ranks wait for {first.waits}, for {span(first.waited_s)}{limit}"
        )
    told += [f"{beat.phase}: {beat.detail}" for beat in beats if beat.detail and not beat.ended]
    return told
