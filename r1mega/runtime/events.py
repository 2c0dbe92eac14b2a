"""What happened to a run, in its own words: events.jsonl in the run directory, one line an event, never rewritten.

    {"time": 1790000000.25, "kind": "straggler", "step": 12, "text": "rank 3 on node7 ...", "host": "node1", ...}

`time` in seconds since 1970 (UTC); `step`: optimiser steps taken, or null; `host`: where the line was written;
whatever else a line has are figures of its kind. A resumed run appends, also where it takes steps again: this is a
history, unlike metrics.jsonl. Imports no torch, so that whoever only reads a run directory can.

Shell scripts append with `event` of slurm/job.sh.
"""

import errno
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r1mega.errors import RanksLostError, RolledBackError, is_of_a_lost_rank
from r1mega.runtime.interrupt import Interrupted

log = logging.getLogger(__name__)

FILE = "events.jsonl"

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk answers on which there is no space, or no quota, left."""
BEGUN = frozenset({"started", "resumed"})
"""Kinds that say that a run goes, and those that say that it does not any more."""
ENDED = frozenset({"finished", "stopped", "crashed", "rank-lost", "disk-full", "watchdog"})

Level = Literal["note", "warning", "alert"]
"""note: the run goes its way. warning: something was wrong, and was dealt with. alert: someone should look."""


class EventKind(NamedTuple):
    """What the events of a kind are."""

    level: Level
    meaning: str


KINDS: Mapping[str, EventKind] = {
    "started": EventKind("note", "the run began, in an empty run directory"),
    "resumed": EventKind("note", "the run was started again in a run directory that has work in it"),
    "finished": EventKind("note", "the stage is done, and its summary is written"),
    "stopped": EventKind("note", "the run was asked to leave, and has left"),
    "crashed": EventKind("alert", "the run, or one rank of it, ended with an error"),
    "requeued": EventKind("note", "the job was put back in the queue, by its batch script or by Slurm"),
    "rank-lost": EventKind("warning", "a rank is gone, or was ended by a signal; the run ends to be started again"),
    "watchdog": EventKind(
        "warning", "a rank was silent for longer than allowed; all ranks were ended to start again"
    ),
    "straggler": EventKind("warning", "a rank is slower than the others, step after step"),
    "recovered-server": EventKind("warning", "a rollout server failed and serves again"),
    "node-lost": EventKind("warning", "a node that the job's last start had is down; the job goes on without it"),
    "node-left-out": EventKind("warning", "a node failed its check, and the job goes on without it"),
    "disk-full": EventKind("alert", "something could not be written: no space, or no quota left"),
    "skipped-step": EventKind("warning", "an optimiser step was computed and not applied"),
    "rolled-back": EventKind("warning", "the run went back to an earlier checkpoint"),
    "dropped-data": EventKind("warning", "data was left out of training"),
    "spike": EventKind("warning", "loss or gradient norm is far from its recent values"),
    "collapsed": EventKind("alert", "a router, or what the policy answers, has collapsed"),
    "hacking": EventKind("alert", "reward rises while what it stands for does not"),
    "failing-verdicts": EventKind("alert", "rewards fail to judge, more often than half of what ends the run"),
    "mismatch-alert": EventKind("alert", "engine and trainer disagree on the probability of tokens"),
    "torn": EventKind(
        "warning", "a line of this file that cannot be read: its writer was killed, or the disk was full"
    ),
}
"""Every kind of event. Whoever needs another one adds a row."""


@dataclass(frozen=True)
class Event:
    """A line of the file."""

    time: float
    """Seconds since 1970, UTC; of a line that cannot be read the time of the one before it, or 0."""
    kind: str
    text: str
    step: int | None = None
    host: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def level(self) -> Level:
        """What its kind is; of a kind that this version does not know "warning"."""
        return KINDS[self.kind].level if self.kind in KINDS else "warning"


class Events:
    """Appends to a run directory's events. Any process may, and several at a time on one host; over NFS, where
    appending from two hosts is no one act, rank 0 should speak for all where it can."""

    def __init__(self, run_dir: Path) -> None:
        self.file = run_dir / FILE

    def say(self, kind: str, text: str, *, step: int | None = None, **figures: Any) -> None:
        """Append an event, with one write, so that no reader and no other writer finds half of it.

        A run must not end because its history cannot be written: where it cannot, the log says so.

        Args:
            kind: a row of `KINDS`.
            text: a sentence for people.
            step: optimiser steps taken, where the event belongs to one.
            figures: plain JSON by name; a number that is not finite is written as null.

        Raises:
            ValueError: there is no such kind, or a figure is called as a field of every line is.
        """
        if kind not in KINDS or kind == "torn":
            raise ValueError(f"{kind!r} is no kind of event; there are {', '.join(KINDS)}")
        head: dict[str, Any] = {"time": round(time.time(), 3), "kind": kind, "step": step, "text": text}
        head["host"] = socket.gethostname()
        if clash := head.keys() & figures.keys():
            raise ValueError(f"{', '.join(sorted(clash))}: every event has that already; call the figure otherwise")
        line = json.dumps(head | {name: _finite(value) for name, value in figures.items()}, default=str) + "\n"
        try:
            _append(self.file, line.encode())
        except OSError as error:
            log.warning("%s: cannot be written (%s); it lacks: %s", self.file, error.strerror, line.rstrip())


def read(run_dir: Path) -> list[Event]:
    """A run's events in the order in which they were written; none where it has none yet.

    A last line without an end is still being written, and left out; any other line that cannot be read is an event of
    kind "torn" with its first characters.
    """
    try:
        return parse((run_dir / FILE).read_bytes())
    except FileNotFoundError:
        return []


def parse(data: bytes) -> list[Event]:
    """The events of some lines of the file, as `read` has them."""
    found: list[Event] = []
    for line in data.decode(errors="replace").split("\n")[:-1]:
        if line.strip():
            found.append(_event(line) or Event(found[-1].time if found else 0.0, "torn", line[:200]))
    return found


@contextmanager
def told(run_dir: Path, what: str, *, resumed: bool) -> Iterator[None]:
    """Write down that the run inside begins, and how it ends. On rank 0, which holds the run directory's lock.

    Args:
        what: begins, such as "grpo stage, 2 ranks".
        resumed: the run directory had work in it.
    """
    events = Events(run_dir)
    before = [event.kind for event in read(run_dir) if event.kind in BEGUN | ENDED]
    killed = "; the start before this one ended without a word: it was killed, or its host went down"
    text = what + (killed if before and before[-1] in BEGUN else "")
    events.say("resumed" if resumed else "started", text)
    try:
        yield
    except BaseException as error:
        kind, text = _end_of(error)
        events.say(kind, text, error=type(error).__name__)
        raise
    events.say("finished", what)


def _end_of(error: BaseException) -> tuple[str, str]:
    """The event that an error is which ends a run: its kind, and a sentence."""
    if isinstance(error, Interrupted):
        return "stopped", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "left at once, with what was saved before"
    text = str(error) or type(error).__name__
    if isinstance(error, RanksLostError) or is_of_a_lost_rank(error):
        return "rank-lost", text
    if isinstance(error, RolledBackError):
        return "stopped", text
    return ("disk-full" if _is_of_a_full_disk(error) else "crashed"), text


def _is_of_a_full_disk(error: BaseException) -> bool:
    """Whether it is, or was made of, what a full disk answers; another rank's comes as its text alone."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if any(os.strerror(number) in str(error) for number in FULL):
        return True
    return error.__cause__ is not None and _is_of_a_full_disk(error.__cause__)


def _event(line: str) -> Event | None:
    try:
        row = json.loads(line)
        named = {"time": float(row.pop("time")), "kind": str(row.pop("kind")), "text": str(row.pop("text"))}
        step, host = row.pop("step", None), str(row.pop("host", ""))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return Event(**named, step=step if isinstance(step, int) else None, host=host, figures=row)


def _append(file: Path, line: bytes) -> None:
    """One write at the end of a file, on a line of its own also where the last writer left half of one."""
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
