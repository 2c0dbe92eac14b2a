"""What this process is doing, and what the ranks of a run say they are: logs/beats/rank_N.json in the run directory.

The training loop marks where it is, at the cost of a few assignments, whether anybody writes it down or not:

    heartbeat.phase("update", step)             # until the next mark; on every rank in the same order
    with heartbeat.waiting("all ranks", 600):   # the others are waited for, for so many seconds at most
        for ...: heartbeat.tick()               # ... since the last of these

Marks of other threads than the main one are left out: it is the training loop that others wait for. The threads that
write are `runtime.watchdog`'s. Imports no torch, so that whoever only reads a run directory can.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = Path("logs/beats")
ENDED = "ended"
"""The phase of a rank that has left, in order or with an error."""
_COLLECTIVES = ("/torch/distributed/", "/p2p_communication.py", "/param_and_grad_buffer.py")
"""Files of torch and Megatron in whose lines Python stands while another rank is waited for."""


@dataclass(frozen=True)
class Wait:
    """A wait for other ranks that has not ended."""

    what: str
    """For what."""
    seconds: float
    """Since it began, or since the last sign that something of it was done."""
    limit_s: float
    setting: str
    """Which gives the limit; a name of `TrainerLayout`."""

    @property
    def over(self) -> bool:
        return self.seconds >= self.limit_s


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life."""

    rank: int
    host: str
    pid: int
    phase: str
    step: int
    """Optimiser steps taken when the phase began."""
    since: float
    """When it began; seconds since 1970 by the clock of the rank's host, as `time`."""
    time: float
    """When this was written."""
    count: int = 0
    """Signs before this one."""
    phases: int = 0
    """Phases before this one: equal on all ranks that have come equally far."""
    detail: str = ""
    """What the first rank waits for, as people are told."""
    wait: Wait | None = None
    blocked: bool = False
    """Whether the main thread stands in a call that waits for other ranks (not seen where a GPU waits)."""
    at: str = ""
    """Where the main thread stands: file:line function."""
    worked: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds in which it has computed, by phase, in the optimiser steps before `worked_to`."""
    worked_to: int = 0
    verdict: str = ""
    """Why this rank ends, and all others with it."""
    num_steps: int = 0
    """Optimiser steps of the stage; 0: not known yet."""

    def age(self) -> float:
        """Seconds since it was written, by the clocks of two hosts; not below 0."""
        return max(time.time() - self.time, 0.0)

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid})"

    @property
    def doing(self) -> str:
        """Where it is, for people."""
        where = f", at {self.at}" if self.at else ""
        seconds = max(self.time - self.since, 0.0)
        return f"in phase {self.phase} after {self.step} steps for {seconds:.0f} s{where}"


def beat_file(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"rank_{rank}.json"


def read(run_dir: Path) -> list[Beat]:
    """The last sign of life of every rank of a run's last start, by rank; none where there is none yet."""
    files = (run_dir / FOLDER).glob("rank_*.json")
    return sorted((beat for file in files if (beat := read_beat(file))), key=lambda beat: beat.rank)


def read_beat(file: Path) -> Beat | None:
    """None where it is not there, or cannot be read."""
    try:
        row = json.loads(file.read_bytes())
        wait = row.pop("wait")
        return Beat(**row, wait=Wait(**wait) if wait else None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class Doing:
    """What a process does, as its main thread marks it and other threads read it."""

    def __init__(self) -> None:
        self.host, self.pid = socket.gethostname(), os.getpid()
        self.phase, self.step, self.since, self.phases, self.detail = "start", 0, time.time(), 0, ""
        self.worked_to = 0
        self.worked: dict[str, float] = {}
        """As `Beat` has both: complete optimiser steps alone."""
        self.num_steps = 0
        """Of the stage, once it is known."""
        self.lost_s = 0.0
        """Seconds in which this process did not run, so that nobody waited in them."""
        self.figures: dict[str, float] = {}
        """Of all ranks' signs, for metrics; on rank 0."""
        self._working: dict[str, float] = {}
        self._waits: list[tuple[str, float, str]] = []
        self._ticked = 0.0
        self._main = threading.main_thread().ident

    def _marks(self) -> bool:
        return threading.get_ident() == self._main

    def enter(self, name: str, step: int | None) -> None:
        if not self._marks():
            return
        if step is not None and step != self.step:
            self.step = step
            self.worked, self.worked_to = dict(self._working), step
        self.phase, self.since, self.detail = name, time.time(), ""
        self.phases += 1

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        if not self._marks():
            yield
            return
        before = self.phase, self.since
        self.phase, self.since = name, time.time()
        try:
            yield
        finally:
            self.phase, self.since = before

    @contextmanager
    def waiting(self, what: str, limit_s: float, setting: str) -> Iterator[None]:
        if not self._marks():
            yield
            return
        self._ticked = self.clock()
        self._waits.append((what, limit_s, setting))
        try:
            yield
        finally:
            self._ticked = self.clock()  # first: a wait around this one began to count anew only now
            self._waits.pop()

    def tick(self) -> None:
        if self._marks():
            self._ticked = self.clock()

    def work(self, seconds: float) -> None:
        if self._marks():
            self._working[self.phase] = self._working.get(self.phase, 0.0) + seconds

    def clock(self) -> float:
        """Seconds of a clock that stands still while the process does."""
        return time.monotonic() - self.lost_s

    def wait(self) -> Wait | None:
        """What is waited for just now."""
        try:
            what, limit_s, setting = self._waits[-1]
        except IndexError:
            return None
        return Wait(what, max(self.clock() - self._ticked, 0.0), limit_s, setting)

    def beat(self, rank: int, count: int, verdict: str) -> Beat:
        """The sign of life for this moment; from any thread."""
        frame = sys._current_frames().get(self._main or 0)
        blocked = frame is not None and any(part in frame.f_code.co_filename for part in _COLLECTIVES)
        worked = {phase: round(seconds, 3) for phase, seconds in self.worked.items()}
        return Beat(
            rank, self.host, self.pid, self.phase, self.step, self.since, time.time(), count, self.phases,
            self.detail, self.wait(), blocked, _place(frame), worked, self.worked_to, verdict, self.num_steps,
        )  # fmt: skip


def _place(frame: FrameType | None) -> str:
    """The innermost line of this program's, or the innermost of all."""
    innermost = frame
    while frame is not None:
        _, inside, file = frame.f_code.co_filename.rpartition("/r1mega/")
        if inside:
            return f"r1mega/{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    if innermost is None:
        return ""
    return f"{Path(innermost.f_code.co_filename).name}:{innermost.f_lineno} {innermost.f_code.co_name}"


def write_beat(run_dir: Path, beat: Beat) -> None:
    """Put a sign of life in the place of the last one. On a full disk the last one is touched instead.

    Raises:
        OSError: nothing of it can be written.
    """
    file = beat_file(run_dir, beat.rank)
    temporary = file.with_name(f".{file.name}.{threading.get_native_id()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)  # rank 0 may just have removed those of the start before
        temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        os.utime(file)


current = Doing()
"""This process."""


def begin() -> Doing:
    """Start anew, as a process that runs one stage after another does at each."""
    global current
    current = Doing()
    return current


def phase(name: str, step: int | None = None) -> None:
    """The training loop begins something else. Every rank says so, in the same order.

    Args:
        step: optimiser steps taken; None: as many as before.
    """
    current.enter(name, step)


def within(name: str) -> Any:
    """While entered, a phase within the present one, which not every rank need come to."""
    return current.inside(name)


def waiting(what: str, limit_s: float, setting: str) -> Any:
    """While entered, other ranks are waited for, `limit_s` seconds at most from each `tick` on."""
    return current.waiting(what, limit_s, setting)


def tick() -> None:
    """Something of what is waited for was done."""
    current.tick()


def work(seconds: float) -> None:
    """This rank has computed for so long in the present phase, without another copy of the model."""
    current.work(seconds)


def figures() -> dict[str, float]:
    """How alike the ranks are (`runtime.stragglers`), for metrics; nothing on ranks but 0, and of a rank alone."""
    return dict(current.figures)


def length(num_steps: int) -> None:
    """How many optimiser steps the stage has, which only its data may tell."""
    current.num_steps = num_steps


def detail(text: str) -> None:
    """What is waited for within the present phase, for people."""
    current.detail = text
