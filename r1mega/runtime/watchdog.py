"""Nothing hangs: a rank that others wait for too long, or of which no sign of life comes, ends the run with 75.

    with watchdog.guarded(run_dir, rank, world_size, settings):     # every rank, around its stage
        ... heartbeat.phase(...), heartbeat.waiting(...) ...

A thread in each rank writes what its main thread does (`runtime.heartbeat`). Rank 0's reads all of them, the others'
read rank 0's, so that a run of a thousand ranks costs two thousand small reads each `beat_s`. Where rank 0's thread
sees a wait over its limit or a silent rank, it says who is missing (its log, events.jsonl) and puts that into its own
sign of life; every rank then leaves the stacks of its threads in logs/stacks/rank_N.txt, and ends. Rank 0's silence
is seen by each of the others. The thread ends the process, whatever library the main thread is stuck in; where that
one does not let go of Python itself, a timer in C dumps its stacks, and its launcher ends it with the others.

Time in which a whole process stands still (SIGSTOP, a suspended job, a file system that does not answer the thread)
counts for no wait. A rank that wakes after the others have ended for its sake ends as well, before it writes what
belongs to another start; where all have slept, all go on.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from r1mega.config.watchdog import Watchdog
from r1mega.errors import RanksLostError
from r1mega.runtime import heartbeat
from r1mega.runtime.events import Events
from r1mega.runtime.heartbeat import Beat
from r1mega.runtime.missing import Signs, late_text, silent_text, woken_text
from r1mega.runtime.stragglers import Stragglers

log = logging.getLogger(__name__)

STACKS = Path("logs/stacks")
HOLD_BEATS = 2
"""A rank ends so many beats after it knows that all do, so that others, who may know of it later, are still there."""
BACKUP_BEATS = 4
"""Beats over its limit after which a rank that waits acts without rank 0, which must have seen that."""


@contextmanager
def guarded(run_dir: Path, rank: int, world_size: int, settings: Watchdog) -> Iterator[None]:
    """Write this rank's signs of life while entered, and where there are other ranks watch for theirs."""
    guard = _Guard(run_dir, rank, world_size, settings)
    guard.start()
    try:
        yield
    except BaseException:
        guard.stop(failed=True)
        raise
    guard.stop()


class _Guard(threading.Thread):
    """A rank's thread."""

    def __init__(self, run_dir: Path, rank: int, world_size: int, settings: Watchdog) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._run_dir, self._rank, self._world_size, self._settings = run_dir, rank, world_size, settings
        self._doing = heartbeat.begin()
        self._events = Events(run_dir)
        self._over = threading.Event()
        self._count, self._verdict, self._unwritten, self._fault = 0, "", False, ""
        self._seen = Signs(settings)
        self._stragglers = Stragglers(settings)
        self._stacks: IO[str] | None = None

    def start(self) -> None:
        if self._world_size > 1:
            stacks = self._run_dir / STACKS / f"rank_{self._rank}.txt"
            stacks.parent.mkdir(parents=True, exist_ok=True)
            self._stacks = stacks.open("a", encoding="utf-8")  # a timer in C writes there: it cannot open files
            faulthandler.dump_traceback_later(self._settings.silence_s, file=self._stacks)
        self._last = time.monotonic()
        if self._rank > 0:
            self._seen.begin(self._run_dir, 0)
        self._write()
        super().start()

    def stop(self, *, failed: bool = False) -> None:
        """Say that this rank leaves. The thread is not waited for where a file system does not answer it.

        Args:
            failed: with an error, which may come of the end of others that have been told to.
        """
        self._over.set()
        self.join(1.0)
        if failed and self._stacks is not None and not self.is_alive():
            self._look(0.0)
        if self._verdict:
            self.join()  # the thread ends this process, as it has said
        self._doing.enter(heartbeat.ENDED, None)
        self._write()
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()
            if os.fstat(self._stacks.fileno()).st_size == 0:  # by its name it may be gone, with all of logs
                Path(self._stacks.name).unlink(missing_ok=True)

    def run(self) -> None:
        while not self._over.wait(self._settings.beat_s):
            try:
                self._turn()
            except Exception as error:  # else a rank that works would fall silent, and end all
                if str(error) != self._fault:
                    self._fault = str(error)
                    log.exception("the watchdog's turn failed, and is tried again in %g s", self._settings.beat_s)

    def _turn(self) -> None:
        """One sign of life, and a look at the others'."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        lost = passed - self._settings.beat_s
        if lost > max(1.0, self._settings.beat_s):
            self._doing.lost_s += lost
        if self._stacks is None:
            self._write()
            return
        if lost > self._settings.silence_s and (text := self._slept(lost)):
            self._end(text, tell=False)
        faulthandler.dump_traceback_later(self._settings.silence_s, file=self._stacks)
        self._write()
        self._look(passed)

    def _write(self) -> Beat:
        beat = self._doing.beat(self._rank, self._count, self._verdict)
        self._count += 1
        try:
            heartbeat.write_beat(self._run_dir, beat)
            self._unwritten = False
        except OSError as error:
            if not self._unwritten and not self._over.is_set():
                log.warning("%s: no sign of life can be written (%s)", error.filename or self._run_dir, error)
            self._unwritten = True
        return beat

    # ---- what the others say ----------------------------------------------------------------------------

    def _look(self, passed: float) -> None:
        """Take in the signs of those that this rank watches, and end where they say so.

        Args:
            passed: seconds since the last time.
        """
        mine = self._doing.beat(self._rank, self._count, "")
        watched = range(1, self._world_size) if self._rank == 0 else [0]
        beats = self._seen.take(self._run_dir, watched, passed)
        if self._rank == 0:
            everyone = {0: mine, **beats}
            late = [beat for beat in everyone.values() if beat.wait and beat.wait.over]
            if len(everyone) == self._world_size and not any(b.phase == heartbeat.ENDED for b in everyone.values()):
                self._compare(everyone)
        else:
            if 0 in beats and beats[0].verdict:
                self._end(beats[0].verdict, tell=False)
            everyone = {self._rank: mine, **beats}
            extra = BACKUP_BEATS * self._settings.beat_s
            late = [mine] if mine.wait and mine.wait.seconds >= mine.wait.limit_s + extra else []
        if silent := self._seen.silent():
            self._end(silent_text(silent, self._settings), tell=self._speaks(beats), ranks=silent)
        if late:
            if self._rank > 0:
                everyone |= {beat.rank: beat for beat in heartbeat.read(self._run_dir)}
            text, missing = late_text(late[0], everyone, self._seen, self._world_size)
            self._end(text, tell=self._speaks(beats), ranks=missing)

    def _speaks(self, beats: Mapping[int, Beat]) -> bool:
        """Whether this rank is the one that tells events.jsonl: rank 0, or the first of those that are left."""
        if self._rank == 0:
            return True
        alive = [beat.rank for beat in heartbeat.read(self._run_dir) if beat.rank not in beats]
        return self._rank == min(alive, default=self._rank)

    def _compare(self, everyone: Mapping[int, Beat]) -> None:
        for slow in self._stragglers.see(everyone):
            log.warning("step %d: %s", self._doing.step, slow)
            self._events.say(
                "straggler", str(slow), step=self._doing.step, rank=slow.rank, phase=slow.phase,
                seconds=slow.seconds, median=slow.median,
            )  # fmt: skip
        self._doing.figures = self._stragglers.figures

    def _slept(self, seconds: float) -> str:
        """Why this rank must not go on after it has not run for so long; nothing where no other has ended for it."""
        before = {**self._seen.beats, self._rank: self._doing.beat(self._rank, 0, "")}
        now = {beat.rank: beat for beat in heartbeat.read(self._run_dir)}
        replaced = [r for r, b in before.items() if r not in now or (now[r].host, now[r].pid) != (b.host, b.pid)]
        if replaced or any(beat.verdict for beat in now.values()):
            return woken_text(self._rank, self._doing.host, seconds)
        log.warning("this process stood still for %.0f s, and no rank has ended for it: the run goes on", seconds)
        return ""

    # ---- the end ----------------------------------------------------------------------------------------

    def _end(self, text: str, *, tell: bool, ranks: Sequence[Beat] = ()) -> None:
        """Leave the stacks, let the others know, and end this process whatever its main thread does."""
        self._verdict = text
        if self._rank == 0:
            self._write()  # first: the others wait for it
        where = self._run_dir / STACKS
        said = f"r1mega: watchdog: {text}. Stacks: {where}. All ranks end, to be started again"
        os.write(2, f"{said}\n".encode())  # no lock: the main thread may hold that of sys.stderr
        self._dump(text)
        if tell:
            names = {"ranks": [beat.rank for beat in ranks], "hosts": [beat.host for beat in ranks]}
            self._events.say("watchdog", text, step=self._doing.step, **names, stacks=str(STACKS))
        deadline = time.monotonic() + HOLD_BEATS * self._settings.beat_s
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, self._settings.beat_s))
            self._write()
        os._exit(RanksLostError.exit_code)

    def _dump(self, text: str) -> None:
        assert self._stacks is not None
        faulthandler.cancel_dump_traceback_later()
        beat = self._doing.beat(self._rank, self._count, text)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
        try:
            self._stacks.write(f"\n==== {when} {beat}, {beat.doing}\n     {text}\n")
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks, all_threads=True)
        except OSError as error:
            os.write(2, f"r1mega: {self._stacks.name}: {error.strerror}; the stacks follow\n".encode())
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
