"""A run directory of either kind, a stage's or a chain's, as one picture."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1mega.errors import DataError
from r1mega.launchers.job import Phase
from r1mega.report.live.advice import Advice, advise
from r1mega.report.live.beats import BEAT_LIMIT_S, waits
from r1mega.report.live.facts import LEVELS, Happened, StageFacts, digest, stage_facts
from r1mega.report.live.jobs import JobsSeen, StageJobSeen
from r1mega.report.live.life import Life, RunState, holder_of
from r1mega.report.live.log_digest import LogFile, LogLine, digest_logs, logs_of
from r1mega.report.live.spans import span
from r1mega.runtime import events

LOCK = ".lock"
OF_A_STAGE = ("config.json", "run.json", "metrics.jsonl", "events.jsonl", "summary.json")


@dataclass(frozen=True)
class RunFacts:
    """Where a run is, what happened, what it waits for, where its logs are."""

    path: Path
    now: float
    """When this was read, seconds since 1970."""
    chain: bool
    life: Life
    stages: Sequence[StageFacts]
    current: StageFacts | None
    """The stage that runs, or ran last; None where none has begun."""
    happened: Sequence[Happened]
    waits: Sequence[str]
    advice: Sequence[Advice]
    logs: Sequence[LogFile]
    said: Sequence[LogLine]
    """What the logs warn of."""
    faults: Sequence[str] = ()

    @property
    def done(self) -> int:
        return sum(stage.life.state is RunState.DONE for stage in self.stages)


class RunReader:
    """Reads a run directory as often as it is asked; what is done and unchanged is read once."""

    def __init__(self, run_dir: Path, *, may_wait: bool = False) -> None:
        """
        Args:
            may_wait: a folder that is not there yet, or empty, is a run that has not begun.
        """
        self.run_dir, self._may_wait = run_dir, may_wait
        self._done: dict[Path, tuple[object, StageFacts]] = {}
        self._jobs = JobsSeen(run_dir)

    def read(self, now: float) -> RunFacts:
        """The run as it is.

        Args:
            now: seconds since 1970.

        Raises:
            DataError: there is no run in the folder.
        """
        jobs, faults = self._jobs.look(ask=not (self.run_dir / "summary.json").is_file())
        names = stage_names(self.run_dir, self._jobs.stages)
        if names is None:
            there = is_stage(self.run_dir) or (self.run_dir / LOCK).is_file() or bool(jobs)
            if not there and not self._may_wait:
                raise DataError(
                    f"{self.run_dir}: no run here: no {', '.join(OF_A_STAGE)}, nor folders with them; name the "
                    "--run-dir of `r1mega run` or `r1mega pipeline`"
                )
            stage = self._stage(self.run_dir, now, next(iter(jobs.values()), None))
            return _picture(self.run_dir, now, [stage], chain=False, done=False, faults=faults)
        stages = [self._stage(self.run_dir / name, now, jobs.get(name)) for name in names]
        done = bool(_object(self.run_dir / "summary.json"))
        return _picture(self.run_dir, now, stages, chain=True, done=done, faults=faults)

    def _stage(self, stage: Path, now: float, job: StageJobSeen | None) -> StageFacts:
        signature = [_signature(stage / name) for name in OF_A_STAGE]
        if stage in self._done and self._done[stage][0] == signature:
            return self._done[stage][1]
        facts = stage_facts(stage, now, job)
        if facts.life.state is RunState.DONE:
            self._done[stage] = signature, facts
        return facts


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in OF_A_STAGE)


def stage_names(run_dir: Path, launched: Sequence[str] = ()) -> list[str] | None:
    """The stages of a chain in their order, those to come included where the chain has written them down, or was
    `launched` as so many jobs; None of a folder that is no chain's."""
    for file in ("summary.json", "chain.json"):
        listed = _object(run_dir / file).get("stages")
        if isinstance(listed, (list, dict)) and listed and all(_is_name(name) for name in listed):
            return list(listed)
    if launched and all(_is_name(name) for name in launched):
        return list(launched)
    if is_stage(run_dir) and not (run_dir / "chain.json").is_file():
        return None
    try:
        folders = [path for path in run_dir.iterdir() if not path.name.startswith(".") and is_stage(path)]
    except OSError:
        return None
    if not folders:
        return [] if (run_dir / "chain.json").is_file() else None
    return [path.name for path in sorted(folders, key=lambda path: (_began(path), path.name))]


def _is_name(name: Any) -> bool:
    """A folder within the chain's, and no other."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _began(stage: Path) -> str:
    parts = _object(stage / "run.json").get("parts")
    first = parts[0] if isinstance(parts, list) and parts and isinstance(parts[0], dict) else {}
    return str(first.get("started", "~"))


def _picture(
    run_dir: Path, now: float, stages: Sequence[StageFacts], *, chain: bool, done: bool, faults: Sequence[str]
) -> RunFacts:
    current = current_of(stages)
    life = _chain_life(run_dir, stages, now, done=done) if chain else stages[0].life
    happened = [replace(h, where=stage.name if chain else "") for stage in stages for h in stage.happened]
    if chain:
        happened += digest_of_chain(run_dir)
    happened.sort(key=lambda h: (LEVELS.index(h.level) if h.level in LEVELS else 1, -h.last))
    running = current is not None and current.life.state is RunState.RUNNING
    logs = [log for folder in (run_dir, *((current.path,) if chain and current else ())) for log in logs_of(folder)]
    logs.sort(key=lambda log: -log.written)
    advice: list[Advice] = []
    if current is not None and current.life.state is not RunState.DONE:
        free = _free(run_dir) if running else None
        limits = _limits(current.path)
        advice = advise(current.recent, current.beats, now, running=running, limits=limits, free=free)
    return RunFacts(
        path=run_dir,
        now=now,
        chain=chain,
        life=life,
        stages=stages,
        current=current,
        happened=happened,
        waits=waits_of(life, current, stages, now),
        advice=advice,
        logs=logs,
        said=digest_logs(logs),
        faults=[
            *faults,
            *(f"{stage.name}: {fault}" if chain else fault for stage in stages for fault in stage.faults),
        ],
    )


def digest_of_chain(run_dir: Path) -> list[Happened]:
    """What a chain itself has written down."""
    try:
        return digest(events.read(run_dir))
    except (OSError, ValueError):
        return []


def current_of(stages: Sequence[StageFacts]) -> StageFacts | None:
    """The stage that runs; else the one that ended otherwise than done; else the last that has begun."""
    for wanted in (
        lambda s: s.life.state is RunState.RUNNING,
        lambda s: s.life.state in (RunState.FAILED, RunState.STOPPED, RunState.SILENT),
        lambda s: s.life.seen > 0 and s.life.state is RunState.WAITING and s.parts > 0,
    ):
        found = [stage for stage in stages if wanted(stage)]
        if found:
            return max(found, key=lambda stage: stage.life.seen)
    begun = [stage for stage in stages if stage.life.state is RunState.DONE]
    return begun[-1] if begun else None


def _chain_life(run_dir: Path, stages: Sequence[StageFacts], now: float, *, done: bool) -> Life:
    seen = max((stage.life.seen for stage in stages), default=0.0)
    holder = holder_of(run_dir / LOCK)
    if done and holder is None:
        return Life(RunState.DONE, "its summary is written", seen)
    if holder is not None:
        return Life(RunState.RUNNING, f"process {holder} of this machine holds its lock", max(seen, now))
    queued = [stage for stage in stages if waits_in_queue(stage)]
    for state in (RunState.RUNNING, RunState.FAILED, RunState.STOPPED, RunState.WAITING, RunState.SILENT):
        for stage in queued if state is RunState.WAITING else stages:
            if stage.life.state is state:
                return Life(state, f"{stage.name}: {stage.life.why}", seen)
    left = [stage.name for stage in stages if stage.life.state is not RunState.DONE]
    if len(left) == len(stages):
        return Life(RunState.WAITING, "no stage of it has begun", seen)
    if now - seen <= BEAT_LIMIT_S:
        return Life(RunState.RUNNING, f"a stage ended {span(now - seen)} ago", seen)
    what = f"{', '.join(left)} to come" if left else "its summary is missing"
    return Life(RunState.SILENT, f"no stage runs, {what}, and nothing was written for {span(now - seen)}", seen)


def waits_in_queue(stage: StageFacts) -> bool:
    return stage.life.state is RunState.WAITING and stage.job is not None and stage.job.phase is Phase.WAITING


def waits_of(life: Life, current: StageFacts | None, stages: Sequence[StageFacts], now: float) -> list[str]:
    """What a run waits for, a line each."""
    if life.state is RunState.WAITING and len(stages) == 1:
        return [life.why]
    told = [f"{stage.name}: {stage.life.why}" for stage in stages if waits_in_queue(stage)]
    if current is None or current.life.state is not RunState.RUNNING:
        return told
    return [*waits(current.beats, now), *told]


def _limits(stage: Path) -> Mapping[str, Any]:
    config = _object(stage / "config.json").get("stage")
    found = config.get("mismatch") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _free(folder: Path) -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free, usage.total


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
