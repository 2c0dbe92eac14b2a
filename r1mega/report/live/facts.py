"""What the files of one stage's run directory say by now. A status must be had of any folder, so that a file that
cannot be read is told of, and never ends the reading."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.report.live.beats import RankBeat, beats_of
from r1mega.report.live.feed import PHASE
from r1mega.report.live.jobs import StageJobSeen
from r1mega.report.live.life import Life, RunState, holder_of, life_of
from r1mega.report.live.tail import last_rows
from r1mega.report.rows import Row, number
from r1mega.runtime import events
from r1mega.runtime.events import Event

RATE_STEPS = 50
"""Steps of late that the time left is reckoned by."""
LEVELS = ("alert", "warning", "note")
OF_METRICS = {"recovery": "recovered-server", "warning": "collapsed", "hacking": "hacking"}
"""Kinds of rows of metrics.jsonl that tell what happened -> the kind of event of the same meaning."""
RUNNING_BYTES, DONE_BYTES = 2 * 2**20, 128 * 2**10
"""How much of the end of metrics.jsonl is read."""


@dataclass(frozen=True)
class Happened:
    """All events of a kind."""

    kind: str
    level: str
    count: int
    last: float
    """When the last one was, in seconds since 1970; 0 where nobody wrote it down."""
    text: str
    """Of the last one."""
    step: int | None = None
    where: str = ""
    """The stage of a chain."""


@dataclass(frozen=True)
class StageFacts:
    """Where a stage is."""

    name: str
    path: Path
    life: Life
    job: StageJobSeen | None = None
    """The one that was launched for it."""
    kind: str = ""
    """As its config says: grpo, sft, ..."""
    step: int | None = None
    """Of the newest line of metrics."""
    num_steps: int | None = None
    max_seconds: float = 0.0
    saved: int | None = None
    """The newest checkpoint's step."""
    seconds_a_step: float | None = None
    left_s: float | None = None
    started: str = ""
    parts: int = 0
    """How often it was started, resumptions included."""
    newest: Row = field(default_factory=dict[str, Any])
    """The newest line of training."""
    evaluated: Row = field(default_factory=dict[str, Any])
    """The newest evaluation."""
    beats: Sequence[RankBeat] = ()
    happened: Sequence[Happened] = ()
    recent: Sequence[Row] = ()
    """Lines of training of late, oldest first."""
    faults: Sequence[str] = ()
    """Files that could not be read."""

    @property
    def share(self) -> float | None:
        """Of the stage that is done; None where nobody knows how long it is."""
        if self.life.state is RunState.DONE:
            return 1.0
        return min(1.0, self.step / self.num_steps) if self.step is not None and self.num_steps else None


def stage_facts(stage: Path, now: float, job: StageJobSeen | None = None) -> StageFacts:
    """Read what a stage has written.

    Args:
        now: seconds since 1970 of this machine.
        job: the one that was launched for it.
    """
    read = _StageReader(stage)
    config = read.object("config.json").get("stage")
    config = config if isinstance(config, dict) else {}
    record = read.object("run.json")
    summary = read.object("summary.json")
    told = read.told(lambda: events.read(stage), "events.jsonl")
    enough = DONE_BYTES if summary else RUNNING_BYTES
    rows = read.told(lambda: last_rows(stage / "metrics.jsonl", enough), "metrics.jsonl")
    beats = read.told(lambda: beats_of(stage), "logs/beats")
    train = [row for row in rows if row.get("kind") == "train" and number(row, "step") is not None]
    pace = seconds_a_step(train)
    life = life_of(
        done=bool(summary),
        begun=bool(record or rows or summary or told),
        holder=holder_of(stage / ".lock"),
        beats=beats,
        written=newest_write(stage),
        last=told[-1] if told else None,
        job=job,
        pace=pace,
        now=now,
    )
    parts = record.get("parts")
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    step = int(number(train[-1], "step") or 0) if train else None
    num_steps = number(config, "num_steps") or next((beat.num_steps for beat in beats if beat.num_steps), None)
    return StageFacts(
        name=stage.resolve().name,
        path=stage,
        life=life,
        job=job,
        kind=str(config.get("stage") or summary.get("stage") or ""),
        step=step,
        num_steps=int(num_steps) if num_steps else None,
        max_seconds=number(config, "max_seconds") or 0.0,
        saved=saved_step(stage),
        seconds_a_step=pace,
        left_s=left(step, num_steps, pace, number(config, "max_seconds")) if life.state is RunState.RUNNING else None,
        started=str(parts[0].get("started", "")) if parts else "",
        parts=len(parts),
        newest=train[-1] if train else {},
        evaluated=next((row for row in reversed(rows) if row.get("kind") == "eval"), {}),
        beats=beats,
        happened=digest([*told, *_of_metrics(rows, {event.kind for event in told})]),
        recent=train,
        faults=tuple(read.faults),
    )


class _StageReader:
    """Reads files of a folder, and keeps what could not be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[str] = []

    def object(self, name: str) -> Row:
        file = self._folder / name
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.faults.append(f"{name} cannot be read: {error}")
            return {}
        if not isinstance(value, dict):
            self.faults.append(f"{name} holds a {type(value).__name__} in place of an object")
            return {}
        return value

    def told(self, read: Any, name: str) -> list[Any]:
        try:
            return list(read())
        except (OSError, ValueError) as error:
            self.faults.append(f"{name} cannot be read: {error}")
            return []


def newest_write(stage: Path) -> float:
    """When a file of the run was last written, in seconds since 1970; 0 where there is none."""
    newest = 0.0
    for folder in (stage, stage / "logs", stage / "journal", stage / "checkpoints"):
        try:
            with os.scandir(folder) as entries:
                newest = max([newest, *(entry.stat(follow_symlinks=False).st_mtime for entry in entries)])
        except OSError:
            continue  # not there, or gone since it was listed
    return newest


def saved_step(stage: Path) -> int | None:
    """Step of the newest checkpoint that is there whole, None where there is none."""
    try:
        names = [path.name for path in (stage / "checkpoints").iterdir()]
    except OSError:
        return None
    steps = [int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdecimal()]
    return max(steps, default=None)


def seconds_a_step(train: Sequence[Row]) -> float | None:
    """Mean seconds of a step over the last `RATE_STEPS`, all phases that its lines name; None where none are known.

    A rollout's seconds stand on its first step's line: the mean begins with such a line, so that no half of a rollout
    counts as a whole.
    """
    rows = list(train[-RATE_STEPS:])
    heads = [i for i, row in enumerate(rows) if number(row, "seconds/rollout") is not None]
    if len(heads) > 1:
        rows = rows[heads[0] : heads[-1]]
    seconds = [sum(number(row, key) or 0.0 for key in row if key.startswith(PHASE)) for row in rows]
    return sum(seconds) / len(seconds) if seconds and sum(seconds) > 0 else None


def left(step: int | None, num_steps: float | None, pace: float | None, max_seconds: float | None) -> float | None:
    """Seconds of steps that are left, at the pace of late, evaluations not counted; None where it cannot be told."""
    if step is None or pace is None:
        return None
    bounds = [(num_steps - step) * pace] if num_steps else []
    bounds += [max_seconds - step * pace] if max_seconds else []
    return max(0.0, min(bounds)) if bounds else None


def digest(told: Iterable[Event]) -> list[Happened]:
    """One entry a kind, what needs someone first, then by time, the newest first."""
    counts, last = Counter[str](), dict[str, Event]()
    for event in told:
        counts[event.kind] += 1
        if event.kind not in last or event.time >= last[event.kind].time:
            last[event.kind] = event
    found = [Happened(kind, e.level, counts[kind], e.time, e.text, e.step) for kind, e in last.items()]
    return sorted(found, key=lambda h: (LEVELS.index(h.level) if h.level in LEVELS else 1, -h.last))


def _of_metrics(rows: Iterable[Row], known: set[str]) -> list[Event]:
    """What rows of metrics tell of kinds that no event has: of runs that wrote none."""
    found: list[Event] = []
    for row in rows:
        kind = OF_METRICS.get(str(row.get("kind")))
        if kind is not None and kind not in known:
            text = str(row.get("text") or row.get("warning") or row.get("reason") or "")
            step = number(row, "step")
            found.append(Event(0.0, kind, text, None if step is None else int(step)))
    return found
