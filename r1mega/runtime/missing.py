"""Which rank is missing, from the signs of life of all: who is silent, and for whom one waits who waits too long."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from r1mega.config.watchdog import Watchdog
from r1mega.runtime.heartbeat import ENDED, Beat, beat_file, read_beat

QUIET_BEATS = 3
"""A rank that has missed so many signs is the first suspect where another one waits too long."""
LISTED = 8
"""Ranks that a message names."""


class Signs:
    """The last sign of each rank that is watched, and for how long none came after it."""

    def __init__(self, settings: Watchdog) -> None:
        self._settings = settings
        self.beats: dict[int, Beat] = {}
        self._signs: dict[int, tuple[int, int]] = {}
        self._quiet: dict[int, float] = {}
        self._doubtful = set[int]()
        """Ranks whose last sign may be of a start before this one."""

    def take(self, run_dir: Path, ranks: Iterable[int], passed: float) -> dict[int, Beat]:
        """Look at ranks' files again; every rank's last sign, without those of which none ever came.

        Args:
            passed: seconds since they were looked at. The clock is this host's alone, and one look counts no more
                than two beats: that this one came late is no rank's silence.
        """
        for rank in ranks:
            file = beat_file(run_dir, rank)
            sign = _sign(file)
            beat = read_beat(file) if sign and sign != self._signs.get(rank) else None
            if beat and sign:
                self.beats[rank], self._signs[rank], self._quiet[rank] = beat, sign, 0.0
                self._doubtful.discard(rank)
            elif sign is None and rank in self._doubtful:  # rank 0 has removed what is of the start before
                self._doubtful.discard(rank)
                del self.beats[rank], self._signs[rank]
            elif rank in self.beats:
                self._quiet[rank] += min(passed, 2 * self._settings.beat_s)
        return dict(self.beats)

    def begin(self, run_dir: Path, rank: int) -> None:
        """Look for the first time, when what is there may be of a start before this one: it counts as a sign of life
        only while it lies there, and only of a rank that had not come to its end."""
        file = beat_file(run_dir, rank)
        sign, beat = _sign(file), read_beat(file)
        if sign:
            self._signs[rank] = sign
        if sign and beat and not beat.verdict and beat.phase != ENDED:
            self.beats[rank], self._quiet[rank] = beat, 0.0
            self._doubtful.add(rank)

    def quiet(self, rank: int) -> float:
        """Seconds without a sign from a rank."""
        return self._quiet.get(rank, 0.0)

    def is_quiet(self, rank: int) -> bool:
        return self.quiet(rank) >= QUIET_BEATS * self._settings.beat_s

    def silent(self) -> list[Beat]:
        """The last signs of ranks of which none has come for too long. One that has left owes none."""
        limit = self._settings.silence_s
        return [b for rank, b in self.beats.items() if b.phase != ENDED and self.quiet(rank) >= limit]


def _sign(file: Path) -> tuple[int, int] | None:
    """What is another whenever a file was replaced or touched."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


def silent_text(silent: Sequence[Beat], settings: Watchdog) -> str:
    """What is said of ranks that are silent."""
    last = f"; last seen {silent[0].doing}" if len(silent) == 1 else ""
    return (
        f"{_names(silent)} gave no sign of life for {settings.silence_s:g} s "
        f"(cluster.trainer.watchdog.silence_s): stopped, or its host or its file system is gone{last}"
    )


def woken_text(rank: int, host: str, seconds: float) -> str:
    """What a rank says that wakes after the others have gone on."""
    return (
        f"rank {rank} on {host} stood still for {seconds:.0f} s, and the other ranks have gone on or were started "
        "again: it must write nothing more"
    )


def late_text(late: Beat, beats: Mapping[int, Beat], seen: Signs, num_ranks: int) -> tuple[str, list[Beat]]:
    """What is said where a rank waits too long, and the ranks that are missing, as far as all signs tell."""
    assert late.wait is not None
    setting = f"cluster.trainer.{late.wait.setting} = {late.wait.limit_s:g} s"
    waited = f"{late} has waited {late.wait.seconds:.0f} s for {late.wait.what} ({setting})"
    unseen = [rank for rank in range(num_ranks) if rank not in beats]
    missing = _missing(late, beats, seen)
    if unseen and not any(seen.is_quiet(beat.rank) for beat in missing):
        return f"{waited}: no sign of life ever came from rank(s) {', '.join(map(str, unseen[:LISTED]))}", []
    if not missing:
        where = f"all in phase {late.phase}"
        return f"{waited}, and so do all the others, {where}: the network between them is cut, or hangs", []
    if len(missing) == 1:
        (one,) = missing
        quiet = f"; no sign of it for {seen.quiet(one.rank):.0f} s" if seen.is_quiet(one.rank) else ""
        return f"{waited}; missing is {one}, {one.doing}{quiet}", missing
    return f"{waited}; missing are {_names(missing)}, the first {missing[0].doing}", missing


def _missing(late: Beat, beats: Mapping[int, Beat], seen: Signs) -> list[Beat]:
    others = [beat for beat in beats.values() if beat.rank != late.rank]
    if quiet := [beat for beat in others if seen.is_quiet(beat.rank) and beat.phase != ENDED]:
        return quiet
    if ended := [beat for beat in others if beat.phase == ENDED]:
        return ended
    least = min((beat.phases for beat in beats.values()), default=0)
    behind = [beat for beat in others if beat.phases == least]
    # Who stands in a collective waits as well; on a GPU that is not seen, and who is in no wait at all is missing.
    idle = [beat for beat in behind if not beat.blocked and (late.blocked or beat.wait is None)]
    return idle or (behind if least < late.phases else [])


def _names(beats: Sequence[Beat]) -> str:
    more = f" and {len(beats) - LISTED} more" if len(beats) > LISTED else ""
    return ", ".join(map(str, beats[:LISTED])) + more
