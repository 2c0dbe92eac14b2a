"""What was launched of a run or a chain, written down beside it, so that any process can ask what became of it.

launch.json   {"config": "configs/r1/pipeline.toml", "root": "/home/me/r1mega", "stages": ["r1_zero", ...],
               "launches": [{"time": "2026-03-01T12:00:00+00:00", "launcher": "slurm", "with": [],
                             "done": ["r1_zero"], "jobs": [
                               {"name": "zero_traces", "id": "1234", "script": "slurm/chain_stage.sh",
                                "arguments": [...], "here": [...], "options": [...], "after": ["r1_zero"],
                                "run_dir": "zero_traces", "logs": ".jobs"}, ...]}, ...]}

Paths of jobs count from the folder of this file, so that a moved run is the same one. `stages` are a chain's, in its
order, at its last launch; of a stage by itself there is one. A launch's `done` are the stages that were done then,
for which it has no job.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from r1mega.errors import RunDirError
from r1mega.launchers.job import StageJob, Submitted
from r1mega.runtime import files, locks

LAUNCH, LOCK = "launch.json", ".launch.lock"
_PATHS = ("run_dir", "logs")


@dataclass(frozen=True)
class Submission:
    """Jobs that were submitted together."""

    time: str
    launcher: str
    settings: tuple[str, ...]
    """Of the launcher: `LaunchOptions.more`."""
    done: tuple[str, ...]
    """Stages that were done already."""
    jobs: tuple[Submitted, ...]


@dataclass(frozen=True)
class LaunchRecord:
    """launch.json of a folder."""

    folder: Path
    config: str
    root: str
    """The checkout that it was launched from."""
    stages: tuple[str, ...]
    launches: tuple[Submission, ...]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What was launched of the run or chain in a folder; None where nothing was.

        Raises:
            RunDirError: launch.json cannot be read.
        """
        folder = folder.resolve()
        try:
            found: dict[str, Any] = json.loads((folder / LAUNCH).read_text(encoding="utf-8"))
            launches = [
                Submission(
                    launch["time"], launch["launcher"], tuple(launch["with"]), tuple(launch["done"]),
                    tuple(_job(row, launch["launcher"], folder) for row in launch["jobs"]),
                )
                for launch in found["launches"]
            ]  # fmt: skip
            return cls(folder, found["config"], found["root"], tuple(found["stages"]), tuple(launches))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirError(f"{folder / LAUNCH}: cannot be read ({error!r}); remove it to launch anew") from None

    def latest(self) -> dict[str, Submitted | None]:
        """The last job of every stage, in the chain's order; None of one that was done before, or never launched."""
        found: dict[str, Submitted | None] = dict.fromkeys(self.stages)
        for launch in self.launches:
            found |= {name: None for name in launch.done if name in found}
            found |= {job.job.name: job for job in launch.jobs if job.job.name in found}
        return found

    def done_before(self) -> frozenset[str]:
        """The stages that the last launch found done."""
        return frozenset(self.launches[-1].done) if self.launches else frozenset()

    def with_launch(self, launch: Submission, stages: Sequence[str]) -> Self:
        return dataclasses.replace(self, stages=tuple(stages), launches=(*self.launches, launch))

    def write(self) -> None:
        """Raises RunDirError where it cannot be written."""
        launches = [
            {
                "time": launch.time,
                "launcher": launch.launcher,
                "with": launch.settings,
                "done": launch.done,
                "jobs": [_row(job, self.folder) for job in launch.jobs],
            }
            for launch in self.launches
        ]
        told = {"config": self.config, "root": self.root, "stages": self.stages, "launches": launches}
        try:
            files.write_json(self.folder / LAUNCH, told)
        except OSError as error:
            raise RunDirError(f"{self.folder / LAUNCH}: cannot be written: {error.strerror}") from None


def _job(row: dict[str, Any], launcher: str, folder: Path) -> Submitted:
    words = {name: tuple(row[name]) for name in ("arguments", "here", "options", "after")}
    job = StageJob(row["name"], row["script"], run_dir=folder / row["run_dir"], logs=folder / row["logs"], **words)
    return Submitted(job, launcher, row["id"])


def _row(submitted: Submitted, folder: Path) -> dict[str, Any]:
    job = submitted.job
    paths = {name: os.path.relpath(getattr(job, name), folder) for name in _PATHS}
    return {"name": job.name, "id": submitted.id, **dataclasses.asdict(job), **paths}


def now() -> str:
    """Of a launch, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def launching(folder: Path) -> Iterator[None]:
    """A folder for one launch alone, which is made where it is not there.

    Raises:
        RunDirError: another launch is at it, or it cannot be written.
    """
    try:
        files.make_folder(folder)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise RunDirError(f"{folder}: cannot be used: {error.strerror}; choose another --run-dir") from None
    with lock:
        if not locks.take(lock):
            raise RunDirError(f"{folder}: another launch is at it; wait for it")
        yield
