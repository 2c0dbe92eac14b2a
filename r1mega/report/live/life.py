"""Whether a run lives: by who holds its lock here, by its ranks' beats, by what was written last, by its events."""

import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mega.launchers.job import Phase
from r1mega.report.live.beats import BEAT_LIMIT_S, RankBeat
from r1mega.report.live.jobs import StageJobSeen
from r1mega.report.live.spans import span
from r1mega.runtime.events import Event

FRESH_S = 90.0
"""Seconds after a write in which a run counts as alive, where nothing else tells."""
PACE_TIMES = 4.0
"""A run of long steps writes seldom: it counts as alive for so many of its steps' time."""
LOCKS = Path("/proc/locks")

ENDED = {
    "stopped": "stopped",
    "crashed": "failed",
    "rank-lost": "failed",
    "watchdog": "failed",
    "disk-full": "failed",
    "requeued": "waiting",
}
"""Kind of a run's last event -> what has become of it, where nothing of it lives."""


class RunState(enum.StrEnum):
    """Where a run or a chain stands."""

    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting"
    """It has not begun, or will go on by itself."""
    STOPPED = "stopped"
    """It was asked to leave, and has saved."""
    FAILED = "failed"
    SILENT = "silent"
    """Nothing says that it lives, and nothing that it ended: killed, or its machine is gone."""


OF_JOBS = {
    Phase.WAITING: (RunState.WAITING, "waits in its queue"),
    Phase.RUNNING: (RunState.RUNNING, "runs"),
    Phase.FAILED: (RunState.FAILED, "has failed"),
    Phase.CANCELLED: (RunState.FAILED, "was cancelled"),
}
"""What a launcher says of a job -> what that means for its run, where nothing of it is seen to live."""

EXIT_CODES = {
    RunState.DONE: 0,
    RunState.RUNNING: 3,
    RunState.WAITING: 3,
    RunState.STOPPED: 4,
    RunState.FAILED: 4,
    RunState.SILENT: 4,
}
"""What `r1mega status` leaves with: 0 done, 3 on its way, 4 neither: someone has to start or mend it."""


@dataclass(frozen=True)
class Life:
    """A state, what says so, and when there was a sign of life last."""

    state: RunState
    why: str
    seen: float = 0.0
    """Seconds since 1970; 0: never."""


def life_of(
    *,
    done: bool,
    begun: bool,
    holder: int | None,
    beats: Sequence[RankBeat],
    written: float,
    last: Event | None,
    job: StageJobSeen | None,
    pace: float | None,
    now: float,
) -> Life:
    """What is true of a run.

    Args:
        done: its summary is there.
        begun: it has left anything.
        holder: the process of this machine that holds its lock.
        written: when it was last written to, seconds since 1970.
        last: its newest event.
        job: the one that was launched for it.
        pace: seconds a step.
    """
    living = [beat for beat in beats if not beat.ended]
    beaten = max((beat.time for beat in beats), default=0.0)
    alive = max((beat.time for beat in living), default=0.0)
    seen = max(beaten, written)
    if done and holder is None:
        return Life(RunState.DONE, "its summary is written", seen)
    if holder is not None:
        return Life(RunState.RUNNING, f"process {holder} of this machine holds its lock", max(seen, now))
    end = last if last is not None and last.kind in ENDED and last.time >= beaten - BEAT_LIMIT_S else None
    if living and now - alive <= BEAT_LIMIT_S and (end is None or end.time < beaten):
        return Life(RunState.RUNNING, f"a rank beat {span(now - alive)} ago", seen)
    if job is not None and job.phase in OF_JOBS and (end is None or job.phase is not Phase.FAILED):
        state, what = OF_JOBS[job.phase]
        return Life(state, f"{job} {what}", seen)
    if end is not None:
        return Life(RunState(ENDED[end.kind]), f"{end.kind}: {end.text}", seen)
    if not begun:
        return Life(RunState.WAITING, "it has not begun", seen)
    if not living and now - written <= max(FRESH_S, PACE_TIMES * (pace or 0.0)):
        return Life(RunState.RUNNING, f"it wrote something {span(now - written)} ago", seen)
    what = "no rank has beaten" if living else "nothing was written"
    return Life(RunState.SILENT, f"{what} for {span(now - seen)}, and no end was told: killed, or cut off", seen)


def holder_of(lock: Path, locks: Path = LOCKS) -> int | None:
    """The process of this machine that holds a folder's lock (`runtime.locks`), by the kernel's own list; None where
    none does, or nobody can tell. Asking for the lock would make a run fail that begins at this moment."""
    try:
        inode = lock.stat().st_ino
        device = lock.stat().st_dev
        lines = locks.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or fields[3] != "WRITE" or not fields[4].isdecimal():
            continue
        major, _, rest = fields[5].partition(":")
        minor, _, number = rest.partition(":")
        if number != str(inode) or not int(fields[4]):
            continue
        try:
            if os.makedev(int(major, 16), int(minor, 16)) == device:
                return int(fields[4])
        except ValueError:
            continue
    return None
